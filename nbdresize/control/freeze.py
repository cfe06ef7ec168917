"""The one instant at which several disks are copied, though clients write to them: no server answers meanwhile.

Between the beginning and the end of an instant no client sees a reply of any server. So copies that are begun and
ended in it hold everything that was answered before, of every disk, and nothing that depends on something they lack:
together they are what a loss of power at that moment would have left (see export.hold).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nbdresize.config import StateDirectory
from nbdresize.control import admin_client
from nbdresize.control.admin_client import LONGEST_HOLD, TIME_LIMIT, Conversation, NoServer
from nbdresize.control.leases import Lease, closed_door
from nbdresize.control.model import Disk
from nbdresize.control.site import Site
from nbdresize.errors import ResourceInUse, ServerFailed

_LONGEST_PROBLEM = 300
_LEAVING = 0.1
"""Seconds for a client that no server knows: one that was just about to come in, or to go."""
_DYING = 2.0
"""How long a process that is killed may take to close its sockets, one after the other, in seconds."""


class InstantLost(Exception):
    """Some reply may have left too early: what was copied is worth nothing. It can be tried again."""


@dataclass(frozen=True)
class Instant:
    """The instant as it lasts. `servers` hold replies back for it, none where nobody has the disks attached."""

    servers: int = 0
    until: float = float("inf")

    def seconds_left(self) -> float:
        """How long it still lasts; without servers, as long as one likes."""
        return self.until - time.monotonic()


@contextmanager
def instant(site: Site, disks: Sequence[Disk]) -> Iterator[Instant]:
    """No client of these disks sees a reply while this lasts, which is a second at the most where there are clients.

    Only with the locks of their VMs held. Raises InstantLost at the end where it did not last until then (also at the
    beginning, where the servers took too long to begin it); ServerFailed where a server can't be asked although clients
    are attached, ResourceInUse where nobody knows whose they are. Whatever the block raises goes on. Should this
    process die, everything goes on at once.
    """
    with ExitStack() as stack:
        for disk in disks:
            stack.enter_context(closed_door(site.state.leases, disk.volume))
        attached = [disk for disk in disks if not _taken(site, disk, stack, 0.0)]
        if not attached:
            yield Instant()
            return
        frozen = stack.enter_context(_Frozen(site.state, attached))
        for disk in attached:
            if disk.export_name not in frozen.opened and not _taken(site, disk, stack, _LEAVING):
                raise ResourceInUse(
                    f"{disk.export_name} has clients of a server that can't be asked: it has no socket in "
                    f"{site.state.run}",
                    "restart that server, or detach its clients",
                )
        now = Instant(frozen.servers, frozen.until)
        if now.seconds_left() <= 0:
            raise InstantLost("the servers took too long to hold replies back")
        yield now
        frozen.thaw()


class _Frozen:
    """All servers of the state directory, holding replies back, each for a connection that stays open."""

    def __init__(self, state: StateDirectory, disks: Sequence[Disk]) -> None:
        """Ready once all of them do. Raises ServerFailed, InstantLost."""
        self._exports = [disk.export_name for disk in disks]
        self.opened: set[str] = set()
        """Those of the disks that some server has open."""
        self._answering: list[Conversation] = []
        with ExitStack() as stack:
            deadline = time.monotonic() + TIME_LIMIT
            for path in admin_client.servers(state):
                with suppress(NoServer), self._answers(path):
                    self._answering.append(stack.enter_context(Conversation(path, deadline)))
            self.until = time.monotonic() + LONGEST_HOLD
            for reply in self._ask_all({"command": "freeze", "exports": self._exports, "seconds": LONGEST_HOLD}):
                self.opened.update(reply.get("open", ()))
            self._stack = stack.pop_all()

    @property
    def servers(self) -> int:
        return len(self._answering)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go whatever is still held back."""
        self._stack.close()

    def thaw(self) -> None:
        """Let the replies go. Raises InstantLost unless all servers held them back until now."""
        try:
            held = all(reply.get("held") is True for reply in self._ask_all({"command": "thaw"}))
        except ServerFailed as error:
            raise InstantLost(str(error)) from error
        if not held:
            raise InstantLost("a server did not hold replies back for so long")

    def _ask_all(self, message: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What all servers say, which are told first and heard then. Raises ServerFailed, InstantLost."""
        deadline = time.monotonic() + TIME_LIMIT
        replies = []
        for server in self._answering:
            with self._answers(server.path):
                server.tell(message, deadline)
        for server in self._answering:
            with self._answers(server.path):
                reply = server.answer(deadline)
                if reply.get("ok") is not True:
                    raise ServerFailed(f"The server at {server.path} refused: {reply.get('error')}"[:_LONGEST_PROBLEM])
                replies.append(reply)
        return replies

    @contextmanager
    def _answers(self, path: Path) -> Iterator[None]:
        """Tell a server that fails from one that has just ended, whose clients have gone with it."""
        try:
            yield
        except ServerFailed as error:
            if _ends(path, _DYING if isinstance(error.__cause__, ConnectionError) else 0):
                raise InstantLost(f"the server at {path} has just ended") from error
            raise ServerFailed(
                error.problem,
                f"restart it (process {path.name.partition('-')[0]}), or detach all clients of "
                f"{', '.join(self._exports)}, whom it may serve",
            ) from error


def _taken(site: Site, disk: Disk, stack: ExitStack, wait: float) -> bool:
    """Whether nobody has the disk attached; then nobody will until the stack ends."""
    try:
        stack.enter_context(Lease.acquire_exclusive(site.lease(disk), wait))
    except ResourceInUse:
        return False
    return True


def _ends(path: Path, seconds: float) -> bool:
    """Whether nobody listens there any more, at once or within so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            Conversation(path, time.monotonic() + _LEAVING).close()
        except NoServer:
            return True
        except ServerFailed:
            pass
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
