"""Telling attached guests what became of their disks: what every command calls after control has changed a size.

A change of size is done when control says so. Whatever goes wrong here leaves something pending, with the reason, in
the ledger; `sync` and the next resize of the VM tell it again. Nobody is believed: what a guest has is asked of its
QEMU, and what QEMU is to have is read from the ledger when it listens, since it listens to one of us at a time.
"""

import stat
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbdresize.client.deadline import Deadline
from nbdresize.control import names
from nbdresize.control.admin_client import TIME_LIMIT
from nbdresize.control.control import Control
from nbdresize.control.guest_records import none_attached
from nbdresize.control.model import Disk, Guest, GuestNote, Stage
from nbdresize.errors import ERRORS, InvalidArgument, NbdresizeError, PeerFailed, ResourceNotFound
from nbdresize.guests.model import DiskNews
from nbdresize.guests.qemu.attached import read_graph
from nbdresize.guests.qemu.growing import grow_disk
from nbdresize.guests.qemu.monitor import CONNECT_TIME, STEP_TIME, Monitor
from nbdresize.guests.servers import serving_uris
from nbdresize.units import format_size

DEVICE = "QEMU"
"""The stage in which the guest's device gets its new size."""

_NOT_USED = "not in use there"
_LEAST = 0.05
"""Seconds for a step, however late it is; times are shown to people, so they are rounded."""

_AGENT = "give the path of the chardev that QEMU has for org.qemu.guest_agent.0"


@dataclass(frozen=True)
class Told:
    """What became of telling a guest of one disk.

    `changed`: the guest had something to learn. `error` is why something is pending; None where nothing is.
    """

    vm: str
    disk: str
    note: GuestNote
    stages: tuple[Stage, ...]
    changed: bool
    error: NbdresizeError | None = None

    @property
    def pending(self) -> bool:
        return self.error is not None


@dataclass(frozen=True)
class Attachment:
    """A guest that has been attached; `version` is that of its QEMU, `warnings` what it may lack later."""

    guest: Guest
    version: str
    warnings: tuple[str, ...] = ()


def tell(control: Control, vm: str, disks: Collection[str], *, timeout: float) -> tuple[Told, ...]:
    """Tell the guest of a VM the sizes of those of these disks that it does not know, and of all that are pending.

    It takes `timeout` seconds at the most. Nothing where the VM has no guest, or is gone. Raises nothing because of
    the guest: see Told.error.
    """
    try:
        guest = control.guest(vm)
        if guest is None:
            return ()
        known = {disk.name for disk in guest.disks if disk.note.size is not None}
        wanted = {disk.name for disk in guest.pending} | (set(disks) - known)
        return _tell(control, guest, wanted, Deadline(timeout)) if wanted else ()
    except ResourceNotFound:  # deleted by now
        return ()


def sync(control: Control, vm: str, disk: str | None, *, timeout: float) -> tuple[Told, ...]:
    """Tell the guest of a VM the sizes of all its disks, or of one, within `timeout` seconds.

    Raises ResourceNotFound where there is no such guest or disk. Of what the guest does: see Told.error.
    """
    guest = control.guest(vm)
    if guest is None:
        raise none_attached(vm)
    wanted = {each.name for each in control.vm(vm).disks} if disk is None else {control.disk(vm, disk).name}
    return _tell(control, guest, wanted, Deadline(timeout))


def attach(
    control: Control, vm: str, qmp: Path, agent: Path | None, *, timeout: float, operation: str | None = None
) -> Attachment:
    """Look at the QEMU that listens at `qmp`, tell it the sizes of the VM's disks, and remember it.

    Raises what Monitor.connect does, ResourceNotFound where it uses none of the VM's disks, and PeerFailed where it
    can't be told sizes, in `timeout` seconds. A disk that is pending for another reason keeps nobody from attaching.
    """
    deadline = Deadline(timeout)
    names.check_vm_name(vm)
    disks = control.vm(vm).disks
    if not disks:
        raise ResourceNotFound(f"VM {vm} has no disks", f"nbdresize disk add {vm} SIZE adds one")
    qmp = qmp.absolute()
    warnings = [] if agent is None else _agent_warnings(agent.absolute())
    before = Guest(vm, str(qmp), None if agent is None else str(agent.absolute()), 0)
    try:
        with _connected(qmp, deadline) as monitor:
            session = _Session(control, before, monitor, deadline)
            told = [session.tell(disk) for disk in session.disks({disk.name for disk in disks})]
            version = monitor.version
    except _NoSession as failed:
        raise failed.error from None
    refusal = next((each.error for each in told if isinstance(each.error, PeerFailed)), None)
    if refusal is not None:
        raise refusal
    if all(isinstance(each.error, ResourceNotFound) for each in told):
        error = next(each.error for each in told if each.error is not None)
        raise ResourceNotFound(f"That is not the QEMU of VM {vm}: {error.problem}", error.way_out)
    notes = {each.disk: each.note for each in told}
    guest = control.attach_guest(vm, qmp, None if agent is None else agent.absolute(), notes, operation=operation)
    return Attachment(guest, version, tuple(warnings))


def _tell(control: Control, guest: Guest, wanted: Collection[str], deadline: Deadline) -> tuple[Told, ...]:
    start = time.monotonic()
    try:
        with _connected(Path(guest.qmp), deadline) as monitor:
            session = _Session(control, guest, monitor, deadline)
            told = tuple(session.tell(disk) for disk in session.disks(wanted))
            _note(control, guest, told)  # before another command can tell more, and note that
    except _NoSession as failed:
        seconds = time.monotonic() - start
        disks = [disk for disk in control.vm(guest.vm).disks if disk.name in wanted]
        told = tuple(_pending(guest, disk, failed.error, seconds) for disk in disks)
        told = tuple(each for each in told if not _was_told_by_another(control, guest, each.disk))
        _note(control, guest, told)
    return told


def _note(control: Control, guest: Guest, told: Collection[Told]) -> None:
    control.note_guest(guest.vm, {each.disk: each.note for each in told})


def _was_told_by_another(control: Control, before: Guest, disk: str) -> bool:
    """Whether a disk that was pending is no longer: the command that kept QEMU busy has told it."""
    now = control.guest(before.vm)
    pending_now = {each.name for each in now.pending} if now is not None else set()
    return disk in {each.name for each in before.pending} - pending_now


class _NoSession(Exception):
    """The guest's QEMU could not be reached, because of `error`."""

    def __init__(self, error: NbdresizeError) -> None:
        super().__init__(error)
        self.error = error


class _Timed(Monitor):
    """A monitor whose steps all together have so long as `deadline` says."""

    deadline = Deadline(STEP_TIME)

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, timeout: float = STEP_TIME) -> Any:
        try:
            left = self.deadline.remaining()
        except TimeoutError:
            raise _too_late(self.deadline, f"before {command}") from None
        return super().execute(command, arguments, min(timeout, max(_LEAST, round(left, 2))))


def _connected(path: Path, deadline: Deadline) -> _Timed:
    """A session with the QEMU at `path`. Raises _NoSession."""
    try:
        monitor = _Timed.connect(path, min(CONNECT_TIME, max(_LEAST, round(deadline.remaining(), 2))))
    except TimeoutError:
        raise _NoSession(_too_late(deadline, "before its QEMU was reached")) from None
    except NbdresizeError as error:
        raise _NoSession(error) from error
    monitor.deadline = deadline
    return monitor


def _too_late(deadline: Deadline, where: str) -> PeerFailed:
    return PeerFailed(
        f"The {deadline.seconds:g} s for telling the guest were over {where}", "allow more with --guest-timeout"
    )


class _Session:
    """A guest's QEMU that listens to us, and to nobody else until it is told everything."""

    def __init__(self, control: Control, guest: Guest, monitor: _Timed, deadline: Deadline) -> None:
        self._control = control
        self._guest = guest
        self._monitor = monitor
        try:
            self._servers = serving_uris(control.state, min(TIME_LIMIT, deadline.remaining()))
        except TimeoutError:
            raise _NoSession(_too_late(deadline, "before its disks were looked for")) from None
        self._all: tuple[Disk, ...] = ()

    def disks(self, wanted: Collection[str]) -> list[Disk]:
        """Those of the VM's disks, as they are from now on: another command that changes them waits for us."""
        self._all = self._control.vm(self._guest.vm).disks
        return [disk for disk in self._all if disk.name in wanted]

    def tell(self, disk: Disk) -> Told:
        """Have the guest see this disk's size."""
        start = time.monotonic()
        try:
            grown = grow_disk(self._monitor, self._news(disk))
        except NbdresizeError as error:
            if isinstance(error, ResourceNotFound) and self._does_not_use(disk):
                return _told(self._guest, disk, None, _NOT_USED, time.monotonic() - start)
            return _pending(self._guest, disk, error, time.monotonic() - start)
        detail = f"{grown.device}, {format_size(grown.size)} confirmed"
        return _told(self._guest, disk, grown.size, detail, time.monotonic() - start)

    def _news(self, disk: Disk) -> DiskNews:
        return DiskNews(disk.vm, disk.name, disk.export_name, disk.size, disk.generation, self._servers)

    def _does_not_use(self, disk: Disk) -> bool:
        """Whether this QEMU has other disks of the VM, and nothing that might be this one: there is nothing to tell."""
        try:
            nodes = [node.filename for node in read_graph(self._monitor).nodes.values() if node.driver == "nbd"]
        except NbdresizeError:
            return False
        others = [each.export_name for each in self._all if each.id != disk.id]
        return not _mentioned(disk.export_name, nodes) and any(_mentioned(other, nodes) for other in others)


def _mentioned(export: str, filenames: Collection[str]) -> bool:
    return any(export in filename for filename in filenames)


def _told(guest: Guest, disk: Disk, size: int | None, detail: str, seconds: float) -> Told:
    note = GuestNote(disk.id, size, True, detail, int(time.time()))
    before = next((each for each in guest.disks if each.name == disk.name), None)
    changed = before is None or before.pending or before.note.size not in (size, None)
    return Told(guest.vm, disk.name, note, (Stage(DEVICE, seconds, detail),), changed)


def _pending(guest: Guest, disk: Disk, error: NbdresizeError, seconds: float) -> Told:
    """A disk that the guest does not use has nothing to learn, whatever is wrong."""
    known = _of_the_table(error)
    before = next((each.note for each in guest.disks if each.name == disk.name), None)
    note = GuestNote(disk.id, before.size if before else None, False, known.problem, int(time.time()))
    if before is not None and before.done and before.size is None:
        note = before
    return Told(guest.vm, disk.name, note, (Stage(DEVICE, seconds, known.problem, done=False),), True, known)


def _of_the_table(error: NbdresizeError) -> NbdresizeError:
    """The same as one of the classes that users know."""
    known = next(each for each in ERRORS if isinstance(error, each))
    return error if type(error) is known else known(error.problem, error.way_out)


def _agent_warnings(path: Path) -> list[str]:
    """Raises InvalidArgument for what is no socket; a guest agent that is not there yet may come later."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return [f"there is no guest agent at {path} yet: file systems don't grow until there is"]
    except OSError as error:
        raise InvalidArgument(f"{path} can't be looked at: {error.strerror}", _AGENT) from None
    if not stat.S_ISSOCK(mode):
        raise InvalidArgument(f"{path} is not a socket", _AGENT)
    return []
