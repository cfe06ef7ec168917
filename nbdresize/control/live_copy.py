"""Copies of disks that are written meanwhile, where the file system can't share their blocks within the instant.

Everything is copied first; then, again and again, what was written since, which the servers mark (storage.write_map);
until what is left is so little that it can be copied at the instant itself.

There, one pass is enough. A server marks a write after it was done and before it is answered. So once all replies are
held back, all that a client was ever told of is in the copy already, or marked. What is done after that is answered
after the instant, and may be in the copy or not, as after a loss of power.

A server that is killed may have written what it did not mark, and its clients may then see that in what they read from
the next server. So everything is copied once more where a server is gone that was there before.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from nbdresize.control import admin_client, operations, recovery
from nbdresize.control.admin_client import Conversation, NoServer
from nbdresize.control.freeze import InstantLost
from nbdresize.control.leases import Lease
from nbdresize.control.model import Disk
from nbdresize.control.site import Site
from nbdresize.errors import NbdresizeError, ResourceInUse, ServerFailed
from nbdresize.storage.volume import Progress, no_progress
from nbdresize.storage.write_map import WriteMap, discard

ROUNDS = 30
"""How often what was written meanwhile is copied, before the clients are found to be too fast."""

FITTING = 0.4
"""Seconds that the last pass may take, as the one before it lets expect."""

_PATIENCE = 0.5


@dataclass(frozen=True)
class Copy:
    """A disk, and the name of the volume that becomes a copy of it."""

    disk: Disk
    volume: str


def shares(site: Site, disk: Disk) -> bool:
    """Whether a copy of the disk shares its blocks: where the file system can, and none of them is reserved."""
    return site.pool.shares_copies() and not site.pool.volume(disk.volume).preallocated()


@contextmanager
def live_copies(site: Site, copies: Sequence[Copy], task: operations.Task) -> Iterator["LiveCopies"]:
    """Have the servers mark what is written to these disks while this lasts. Only with the locks of their VMs held.

    Raises ServerFailed where a server can't be brought to that although clients are attached, InsufficientSpace where
    there is no room for the maps.
    """
    disks = tuple(copy.disk for copy in copies)
    try:
        with ExitStack() as stack:
            maps = []
            for copy in copies:
                path = site.state.write_map(copy.disk.volume)
                discard(path)  # of somebody who was killed: whoever is alive holds the lock
                maps.append(WriteMap.create(path, copy.disk.size))
                stack.callback(maps[-1].close)
            yield LiveCopies(site, copies, maps, _begin_marking(site, disks) if copies else set(), task)
    finally:
        recovery.stop_marking(site, disks)


class LiveCopies:
    """Copies that are being made: `make`, then `catch_up` and, at the instant, `take_rest`, in turns."""

    def __init__(
        self,
        site: Site,
        copies: Sequence[Copy],
        maps: Sequence[WriteMap],
        marking: set[Path],
        task: operations.Task,
    ) -> None:
        """`marking` are the servers that answered at the beginning. Others are met later, as they may get clients."""
        self._site = site
        self._copies = tuple(zip(copies, maps, strict=True))
        self._task = task
        self._rounds = 0
        self._fitting = FITTING
        self._known = set(marking)
        self._servers = set(marking)
        self._whole = False
        self._in_full: set[str] = set()

    @property
    def shared(self) -> frozenset[str]:
        """The volumes that share blocks with their disks, where those have not been written since."""
        return frozenset(copy.volume for copy, _ in self._copies) - self._in_full

    def make(self) -> None:
        """Copy everything, by sharing where that can be. Raises as Pool.copy, and OperationCancelled."""
        for copy, _ in self._copies:
            self._make(copy)

    def _make(self, copy: Copy) -> None:
        report = self._task.progress(f"copying {copy.disk.export_name}")

        def progress(done: int, total: int) -> None:
            if done < total or not shares(self._site, copy.disk):
                self._in_full.add(copy.volume)
            report(done, total)

        source = self._site.pool.volume(copy.disk.volume)
        self._site.pool.copy(source.path, copy.volume, progress=progress)

    def catch_up(self) -> None:
        """Copy what was written meanwhile until the rest fits into the instant.

        Raises ResourceInUse where it never does, and as Pool.copy_ranges.
        """
        while self._copies:
            if self._rounds == ROUNDS:
                names = ", ".join(copy.disk.export_name for copy, _ in self._copies)
                raise ResourceInUse(
                    f"The clients of {names} write faster than it can be copied",
                    "try again when they write less, detach them, or keep the pool on xfs or btrfs,"
                    " where snapshots share blocks",
                )
            self._rounds += 1
            self._meet_servers()
            start = time.monotonic()
            done = self._pass(self._task.progress("copying what was written meanwhile"))
            seconds = time.monotonic() - start
            if sum(written.marked() for _, written in self._copies) * seconds <= self._fitting * done:
                return

    def take_rest(self) -> None:
        """Copy what is left, at the instant. Raises InstantLost where a server has just been killed."""
        if not self._copies:
            return
        gone = {path for path in self._servers if not _answers(path)}
        if gone:
            self._servers -= gone
            self._whole = True
            raise InstantLost("a server has ended, whose last writes may not be marked")
        self._pass(no_progress)

    def lost(self) -> None:
        """The instant ended too early: the next one is for less."""
        self._fitting /= 2

    def sync(self) -> None:
        """Make the copies durable."""
        for copy, _ in self._copies:
            self._site.pool.sync(copy.volume)

    def _meet_servers(self) -> None:
        """Note those that have not been asked yet: their clients' writes are marked too, unless they are killed."""
        new = set(admin_client.servers(self._site.state)) - self._known
        self._known |= new
        self._servers |= new

    def _pass(self, progress: Progress) -> int:
        """Copy what is marked, or everything where marks may be missing; how many bytes that was."""
        whole, self._whole = self._whole, False
        done = 0
        for copy, written in self._copies:
            ranges = written.take()
            if whole:
                ranges = [(0, copy.disk.size)]
                self._in_full.add(copy.volume)
            source = self._site.pool.volume(copy.disk.volume).path
            self._site.pool.copy_ranges(source, copy.volume, ranges, progress)
            done += sum(length for _, length in ranges)
        return done


def _begin_marking(site: Site, disks: Sequence[Disk]) -> set[Path]:
    """Have all servers find the maps; those that have.

    Raises ServerFailed where one has not that may have clients of these disks.
    """
    exports = [disk.export_name for disk in disks]
    marking = set()
    for answer in admin_client.ask_all(site.state, {"command": "sizes", "exports": exports}):
        problem = answer.problem
        if answer.reply is not None:
            unmarked = answer.reply.get("unmarked", exports)
            if isinstance(unmarked, list) and not set(exports).isdisjoint(map(str, unmarked)):
                problem = "it can't mark what its clients write"
        if problem and any(_attached(site, disk) for disk in disks):
            raise ServerFailed(
                f"The server at {answer.path} does not help to copy disks that are in use: {problem}",
                f"restart it, or detach all clients of {', '.join(exports)}, whom it may serve",
            )
        if not problem:
            marking.add(answer.path)
    return marking


def _answers(path: Path) -> bool:
    """Whether the server lives: a process that was killed gives no answers any more once its leases are gone."""
    deadline = time.monotonic() + _PATIENCE
    try:
        with Conversation(path, deadline) as server:
            server.tell({"command": "counters"}, deadline)
            server.answer(deadline)
    except (NoServer, ServerFailed):
        return False
    return True


def _attached(site: Site, disk: Disk) -> bool:
    try:
        Lease.acquire_exclusive(site.lease(disk)).release()
    except NbdresizeError:
        return True
    return False
