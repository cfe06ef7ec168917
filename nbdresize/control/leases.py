"""Leases: proof that a connection uses a disk.

A connection holds the lease file of its disk's volume shared; shrinking and deleting hold it exclusively. Such a lock
ends with its process, however that ends, so no stale lease is ever cleaned up.

Whoever takes a lease exclusively holds the lock of its VM. That makes `upgrade` safe, which flock(2) does not do
atomically: no other change can slip in between.
"""

from pathlib import Path
from typing import Self

from nbdresize.control import locks
from nbdresize.errors import NbdresizeError, ResourceInUse, VolumeFailed


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
