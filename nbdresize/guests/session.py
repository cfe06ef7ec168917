"""A guest's QEMU that listens to us: for all that is to be told it at once, within one time."""

import fcntl
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from nbdresize.client.deadline import Deadline
from nbdresize.control.admin_client import TIME_LIMIT
from nbdresize.control.control import Control
from nbdresize.control.model import Disk
from nbdresize.errors import NbdresizeError, PeerFailed, ResourceNotFound
from nbdresize.guests.agent.places import Place, place_of
from nbdresize.guests.model import DiskNews
from nbdresize.guests.qemu.addresses import Addresses
from nbdresize.guests.qemu.attached import find, read_graph
from nbdresize.guests.qemu.growing import grow_disk
from nbdresize.guests.qemu.monitor import CONNECT_TIME, STEP_TIME, Monitor
from nbdresize.guests.servers import serving_uris
from nbdresize.units import format_size

NOT_USED = "not in use there"

_PAUSE = 0.02
_LEAST = 0.05
"""Seconds for a step, however late it is; times are shown to people, so they are rounded."""


class NoSession(Exception):
    """The guest's QEMU could not be reached, because of `error`."""

    def __init__(self, error: NbdresizeError) -> None:
        super().__init__(error)
        self.error = error


@dataclass(frozen=True)
class Answer:
    """What the QEMU of a guest says of a disk. `size` in bytes, None where it does not use the disk, or did not say.

    `place` is where the guest finds the disk, as far as that was asked for. `error` is what went wrong.
    """

    disk: Disk
    seconds: float
    detail: str
    size: int | None = None
    place: Place | None = None
    error: NbdresizeError | None = None


class _Timed(Monitor):
    """A monitor whose steps all together have so long as `deadline` says."""

    deadline = Deadline(STEP_TIME)

    def left(self) -> float:
        try:
            return min(STEP_TIME, self.deadline.remaining())
        except TimeoutError:
            return 0.0

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, timeout: float = STEP_TIME) -> Any:
        try:
            left = self.deadline.remaining()
        except TimeoutError:
            raise too_late(self.deadline, f"before {command}") from None
        return super().execute(command, arguments, min(timeout, _shown(left)))


class Session:
    """The QEMU of a VM. Until it is closed, nobody else tells that anything: what is read from the ledger is the newest
    that it is told.
    """

    def __init__(self, control: Control, vm: str, path: Path, deadline: Deadline) -> None:
        """Raises NoSession."""
        self._control = control
        self._vm = vm
        self._all: tuple[Disk, ...] = ()
        try:
            self._monitor = _Timed.connect(path, min(CONNECT_TIME, _shown(deadline.remaining())))
            self._monitor.deadline = deadline
        except TimeoutError:
            raise NoSession(too_late(deadline, "before its QEMU was reached")) from None
        except NbdresizeError as error:
            raise NoSession(error) from error
        self._alone = ExitStack()
        try:
            self._alone.enter_context(_alone_with(self._monitor.pid, deadline))
            self._servers = serving_uris(control.state, min(TIME_LIMIT, deadline.remaining()))
        except TimeoutError:
            self._close()
            raise NoSession(too_late(deadline, "before its disks were looked for")) from None
        except NbdresizeError as error:
            self._close()
            raise NoSession(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        self._monitor.close()
        self._alone.close()

    @property
    def version(self) -> str:
        return self._monitor.version

    def tell(self, wanted: Collection[str], *, places: bool = False) -> list[Answer]:
        """Have the guest see the sizes that these of the VM's disks have now. Raises ResourceNotFound without the VM.

        With `places`, where the guest finds those is looked up too.
        """
        self._all = self._control.vm(self._vm).disks
        return [self._tell(disk, places=places) for disk in self._all if disk.name in wanted]

    def _tell(self, disk: Disk, *, places: bool) -> Answer:
        start = time.monotonic()
        news = DiskNews(disk.vm, disk.name, disk.export_name, disk.size, disk.generation, self._servers)
        try:
            grown = grow_disk(self._monitor, news)
            place = self._place(news) if places else None
        except NbdresizeError as error:
            seconds = time.monotonic() - start
            if isinstance(error, ResourceNotFound) and self._does_not_use(disk):
                return Answer(disk, seconds, NOT_USED)
            return Answer(disk, seconds, error.problem, error=error)
        detail = f"{grown.device}, {format_size(grown.size)} confirmed"
        return Answer(disk, time.monotonic() - start, detail, grown.size, place)

    def _place(self, news: DiskNews) -> Place:
        """Of several devices that show one disk, the first: their guest has the same file systems on each."""
        chains = find(self._monitor, news, Addresses(news.servers, self._monitor.pid, self._monitor.left())).attached
        return place_of(self._monitor, chains[0].chain.devices[0].path)

    def _does_not_use(self, disk: Disk) -> bool:
        """Whether this QEMU has other disks of the VM, and nothing that might be this one: there is nothing to tell."""
        try:
            nodes = [node.filename for node in read_graph(self._monitor).nodes.values() if node.driver == "nbd"]
        except NbdresizeError:
            return False
        others = [each.export_name for each in self._all if each.id != disk.id]
        return not _mentioned(disk.export_name, nodes) and any(_mentioned(other, nodes) for other in others)


@contextmanager
def _alone_with(pid: int | None, deadline: Deadline) -> Iterator[None]:
    """Inside, no other command tells this QEMU anything, through another QMP socket: it would tidy up our nodes.

    A QEMU that can't be seen from here is not locked. Raises PeerFailed where the other takes too long.
    """
    try:
        process = os.open(f"/proc/{pid}/cmdline", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        while True:
            try:
                fcntl.flock(process, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                try:
                    time.sleep(min(_PAUSE, deadline.remaining()))
                except TimeoutError:
                    raise PeerFailed(
                        f"Another command was telling QEMU (process {pid}) something for {deadline.seconds:g} s",
                        "wait for its end",
                    ) from None
        yield
    finally:
        os.close(process)


def too_late(deadline: Deadline, where: str) -> PeerFailed:
    return PeerFailed(
        f"The {deadline.seconds:g} s for telling the guest were over {where}", "allow more with --guest-timeout"
    )


def _shown(seconds: float) -> float:
    return max(_LEAST, round(seconds, 2))


def _mentioned(export: str, filenames: Collection[str]) -> bool:
    return any(export in filename for filename in filenames)
