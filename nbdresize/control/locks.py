"""Advisory locks on files: one per VM for whoever changes it, and the ground for leases.

flock(2) locks belong to an open file description: two threads that each opened the file exclude each other as two
processes do, and the kernel ends the lock with the last descriptor, however its process ends.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from nbdresize.errors import NbdresizeError, ResourceInUse, StateUnusable

SUFFIX = ".lock"
"""Of the lock file of a VM and of the lease of a volume, after its name."""

_IMAGE = ".image-"
"""What the lock files of images begin with: no VM is called so."""

_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.05


class FileLock:
    """A held lock on the file at `path`, exclusive or shared. Ends with `release` or with the process."""

    def __init__(self, path: Path, descriptor: int, *, exclusive: bool) -> None:
        self.path = path
        self.exclusive = exclusive
        self._descriptor: int | None = descriptor

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def fileno(self) -> int:
        """The descriptor that holds the lock. Raises ValueError after `release`."""
        if self._descriptor is None:
            raise ValueError(f"The lock on {self.path} has been released")
        return self._descriptor

    def release(self) -> None:
        """Give the lock back; nothing happens the second time."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def remove_file(self) -> None:
        """Remove the file; only its exclusive holder may. Whoever waits for the lock notices, and makes a new file."""
        if not self.exclusive:
            raise ValueError(f"The lock on {self.path} is shared")
        self.fileno()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def try_lock(path: Path, *, exclusive: bool) -> int | None:
    """A descriptor that holds the lock on `path`, made where it is missing; None while another holds it.

    Raises StateUnusable where the file can't be opened or locked.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise unusable(path, error) from error
        try:
            if not lock_descriptor(path, descriptor, exclusive=exclusive):
                os.close(descriptor)
                return None
            if _still_there(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def lock_descriptor(path: Path, descriptor: int, *, exclusive: bool) -> bool:
    """Whether the lock was got at once. Raises StateUnusable where locks don't work (NFS without lockd, ENOLCK)."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise unusable(path, error) from error
    return True


def _always() -> bool:
    return True


def lock_within(
    path: Path,
    wait: float,
    *,
    exclusive: bool,
    held_by: Callable[[], NbdresizeError],
    wanted: Callable[[], bool] = _always,
) -> int:
    """As `try_lock`, asking again for `wait` seconds, or while it is `wanted`; then raises what `held_by` makes."""
    deadline = time.monotonic() + wait
    pause = _FIRST_PAUSE
    while (descriptor := try_lock(path, exclusive=exclusive)) is None:
        if time.monotonic() >= deadline or not wanted():
            raise held_by()
        time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(pause * 2, _LONGEST_PAUSE)
    return descriptor


def lock_vm(directory: Path, vm: str, wait: float, wanted: Callable[[], bool] = _always) -> FileLock:
    """The lock of `vm`, held for the whole of each change of it.

    An intent whose VM is locked is being worked on; an open intent of an unlocked VM was left by a dead process.
    Raises ResourceInUse where another change goes on for longer than `wait` seconds, or than the lock is `wanted`.
    """

    def busy() -> NbdresizeError:
        return ResourceInUse(f"VM {vm} is being changed by another command", "try again when that has ended")

    path = directory / (vm + SUFFIX)
    return FileLock(path, lock_within(path, wait, exclusive=True, held_by=busy, wanted=wanted), exclusive=True)


def lock_image(directory: Path, image: str, wait: float, *, exclusive: bool) -> FileLock:
    """The lock of an image: shared while disks are made from it, exclusive while it is made or deleted.

    Raises ResourceInUse where it can't be had within `wait` seconds.
    """

    def busy() -> NbdresizeError:
        doing = "is in use: a disk is being made from it" if exclusive else "is being made or deleted"
        return ResourceInUse(f"Image {image} {doing}", "try again when that has ended")

    path = directory / f"{_IMAGE}{image}{SUFFIX}"
    return FileLock(path, lock_within(path, wait, exclusive=exclusive, held_by=busy), exclusive=exclusive)


def images_of(names: Iterable[str]) -> set[str]:
    """The images among the names of lock files, without their suffix."""
    return {name.removeprefix(_IMAGE) for name in names if name.startswith(_IMAGE)}


def unusable(path: Path, error: OSError) -> StateUnusable:
    """What to raise where the lock file at `path` can't be used."""
    reason = error.strerror or str(error)
    way_out = {
        errno.ENOLCK: "its file system has no working file locks: keep the state directory on a local one",
        errno.ENOSPC: "free some space on its file system",
        errno.EMFILE: "raise the limit of open files (ulimit -n)",
        errno.ENOENT: "the state directory is gone",
    }.get(error.errno or 0, "run as the user who owns the state directory, or choose another one with --root")
    return StateUnusable(f"The lock file {path} can't be used: {reason}", way_out)


def _still_there(path: Path, descriptor: int) -> bool:
    """Whether `path` still is the file that was locked: its holder may have removed it between open and lock."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise unusable(path, error) from error
    return os.path.samestat(there, os.fstat(descriptor))
