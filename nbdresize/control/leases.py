"""Leases: proof that a connection uses a disk; and the doors that keep new connections out.

A connection holds the lease file of its disk's volume shared; shrinking and deleting hold it exclusively. Such a lock
ends with its process, however that ends, so no stale lease is ever cleaned up.

Whoever takes a lease exclusively holds the lock of its VM. That makes `upgrade` safe, which flock(2) does not do
atomically: no other change can slip in between.

A door is a lock file beside the lease, there only while somebody holds it: for as long, nobody new gets a lease, while
those who have one keep it. One that a killed process has left is locked by nobody, and so keeps nobody out.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from nbdresize.control import locks
from nbdresize.errors import NbdresizeError, ResourceInUse, VolumeFailed

DOOR_SUFFIX = ".door"
"""Of the file that keeps new connections from a volume, after the volume's name."""

_BETWEEN_LOOKS = 0.005
_CLOSING = 5.0
"""Seconds to wait for others who look at the door, each for a moment."""


class Lease(locks.FileLock):
    """A held lease. `exclusive` says how; `release` ends it."""

    @classmethod
    def acquire_shared(cls, path: Path, wait: float = 0.0) -> Self:
        """The lease at `path` for one more connection.

        Raises ResourceInUse where a shrink or a delete holds it for longer than `wait` seconds, StateUnusable where
        the file can't be used.
        """

        def fenced() -> NbdresizeError:
            return ResourceInUse(f"The disk of lease {path.name} is being shrunk or deleted", "try again in a moment")

        return cls(path, locks.lock_within(path, wait, exclusive=False, held_by=fenced), exclusive=False)

    @classmethod
    def acquire_exclusive(cls, path: Path, wait: float = 0.0) -> Self:
        """The lease at `path` against all connections.

        Raises ResourceInUse where a connection holds it for longer than `wait` seconds, StateUnusable where the file
        can't be used.
        """

        def attached() -> NbdresizeError:
            return ResourceInUse(f"Clients are attached to the disk of lease {path.name}", "disconnect them first")

        return cls(path, locks.lock_within(path, wait, exclusive=True, held_by=attached), exclusive=True)

    def upgrade(self) -> bool:
        """Make a shared lease exclusive; False, and still shared, where there are others.

        Only with the lock of the VM held (see above). Raises VolumeFailed where the shared lease could not be had
        back: the lease is then released, and its connection must end.
        """
        if self.exclusive:
            return True
        if locks.lock_descriptor(self.path, self.fileno(), exclusive=True):
            self.exclusive = True
            return True
        # A conversion that fails has given the old lock up (flock(2)).
        if not locks.lock_descriptor(self.path, self.fileno(), exclusive=False):
            self.release()
            raise VolumeFailed(f"The lease {self.path.name} was lost to another change", "connect again")
        return False

    def downgrade(self) -> None:
        """Make an exclusive lease shared. Only with the lock of the VM held. Raises VolumeFailed as `upgrade` does."""
        if not locks.lock_descriptor(self.path, self.fileno(), exclusive=False):
            self.release()
            raise VolumeFailed(f"The lease {self.path.name} was lost to another change", "connect again")
        self.exclusive = False


def lease_path(directory: Path, volume: str) -> Path:
    """Where the lease of the volume of that name lies."""
    return directory / (volume + locks.SUFFIX)


def door_path(directory: Path, volume: str) -> Path:
    """Where the door of the volume of that name lies, while it is closed."""
    return directory / (volume + DOOR_SUFFIX)


@contextmanager
def closed_door(directory: Path, volume: str) -> Iterator[None]:
    """Nobody new gets a lease on the volume while this lasts. Only with the lock of its VM held.

    Who got one before the door was closed has it; who was about to get one gives it back. Raises StateUnusable.
    """

    def closed() -> NbdresizeError:
        return ResourceInUse(f"Somebody else keeps clients from volume {volume}", "try again in a moment")

    path = door_path(directory, volume)
    with locks.FileLock(
        path, locks.lock_within(path, _CLOSING, exclusive=True, held_by=closed), exclusive=True
    ) as door:
        try:
            yield
        finally:
            with suppress(OSError):  # an open door that lies about is removed by whoever finds it
                door.remove_file()


def enter(directory: Path, volume: str, wait: float = 0.0) -> Lease:
    """The lease of the volume for one more connection, once its door is open.

    Raises ResourceInUse where the door is closed, or a shrink or a delete holds the lease, for longer than `wait`
    seconds; StateUnusable where the files can't be used.
    """
    deadline = time.monotonic() + wait
    path, door = lease_path(directory, volume), door_path(directory, volume)
    while True:
        _wait_for_door(door, deadline)
        lease = Lease.acquire_shared(path, max(0.0, deadline - time.monotonic()))
        try:
            if _is_open(door):  # whoever closes it from now on finds this lease held
                return lease
        except BaseException:
            lease.release()
            raise
        lease.release()


def remove_left_doors(directory: Path) -> None:
    """Remove the doors that killed processes have left, which nobody may come to find."""
    with suppress(OSError):
        for door in directory.glob("*" + DOOR_SUFFIX):
            with suppress(NbdresizeError):
                _is_open(door)


def _wait_for_door(door: Path, deadline: float) -> None:
    while not _is_open(door):
        if time.monotonic() >= deadline:
            raise ResourceInUse(f"Clients are kept from the disk of door {door.name} for now", "try again in a moment")
        time.sleep(_BETWEEN_LOOKS)


def _is_open(door: Path) -> bool:
    """Whether nobody keeps the door closed; one that a killed process has left is removed."""
    if not os.path.lexists(door):
        return True
    descriptor = locks.try_lock(door, exclusive=True)
    if descriptor is None:
        return False
    with locks.FileLock(door, descriptor, exclusive=True) as left_behind, suppress(OSError):
        left_behind.remove_file()
    return True
