"""Locks on a served file itself, for servers that have no ledger: they end with their process.

The lease is a flock(2), the lock for a change of size an open file description lock (fcntl(2)) on one byte far
outside of what any file holds. The two don't see each other, nor does QEMU's own locking see either.
"""

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nbdresize.errors import ResourceInUse, VolumeFailed

_POLL = 0.01
_CHANGE_LOCK_OFFSET = 2**62
_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, process


class FileLease:
    """A flock on the file at `path`, shared by those who use it and exclusive for who cuts it. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = _open(path, os.O_RDONLY)

    def share(self, wait: float) -> "FileLease":
        """Hold it shared. Raises ResourceInUse where it is held exclusively for longer than `wait` seconds."""
        self._lock(fcntl.LOCK_SH, wait, f"{self._path} is being shrunk")
        return self

    def exclude(self, wait: float = 0.0) -> "FileLease":
        """Hold it alone. Raises ResourceInUse where others use the file; one's own share is lost then (flock(2))."""
        self._lock(fcntl.LOCK_EX, wait, f"Others have {self._path} attached")
        return self

    def share_again(self, wait: float) -> None:
        """Back from alone, or from a failed attempt. Raises as share(), and then nothing is held any more."""
        try:
            self.share(wait)
        except BaseException:
            self.release()
            raise

    def _lock(self, kind: int, wait: float, problem: str) -> None:
        if not _poll(lambda: fcntl.flock(self._fd, kind | fcntl.LOCK_NB), wait):
            raise ResourceInUse(problem, "try again when they have gone")

    @property
    def held(self) -> bool:
        return self._fd >= 0

    def release(self) -> None:
        """Give it back; nothing happens if it is."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@contextmanager
def changing_size(path: Path, wait: float) -> Iterator[None]:
    """While this lasts, no other process of ours changes the size of the file. Raises ResourceInUse after `wait`."""
    fd = lock_size(path, wait)
    try:
        yield
    finally:
        os.close(fd)


def lock_size(path: Path, wait: float) -> int:
    """Lock the size of a file or device; a descriptor that keeps it until it is closed. Raises as changing_size."""
    fd = _open(path, os.O_RDWR)
    lock = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _CHANGE_LOCK_OFFSET, 1, 0)
    try:
        if not _poll(lambda: fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock), wait):
            raise ResourceInUse(
                f"Another server of ours decides on the size of {path}", "let one serve it, or try again"
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open(path: Path, mode: int) -> int:
    try:
        return os.open(path, mode | os.O_CLOEXEC)
    except OSError as error:
        raise VolumeFailed(f"{path} can't be opened: {error.strerror}", "see that it exists and is ours") from error


def _poll(lock: Callable[[], object], wait: float) -> bool:
    """Try until the lock is had, for `wait` seconds; whether it was. These calls know no time limit of their own."""
    deadline = time.monotonic() + wait
    while True:
        try:
            lock()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise VolumeFailed(f"A served file can't be locked: {error.strerror}") from error
        else:
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)
