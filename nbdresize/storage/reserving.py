"""The space and the size of an open file: reserved, marked as reserved, set."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from nbdresize.errors import InsufficientSpace, InvalidArgument
from nbdresize.storage import syscalls
from nbdresize.storage.failures import failure
from nbdresize.storage.volume import Capacity, Progress, no_progress
from nbdresize.units import MAX_SIZE, format_size

PREALLOCATED = "user.nbdresize.preallocated"
"""The extended attribute of a file whose space was reserved in full, and stays so."""

_STEP = 1 << 30
_ZEROES = bytes(1 << 20)


def set_size(fd: int, path: Path, size: int) -> None:
    """Make the file `size` bytes long, durably, also if it already is: it may not have been synced since."""
    if not 0 <= size <= MAX_SIZE:
        raise InvalidArgument(f"{size} bytes is not a size for a volume", f"give 0 to {MAX_SIZE}")
    try:
        if os.fstat(fd).st_size != size:
            os.ftruncate(fd, size)
        os.fsync(fd)
    except OSError as error:
        raise failure(f"Making {format_size(size)} of", path, error) from error


def reserve(fd: int, path: Path, start: int, end: int, progress: Progress = no_progress) -> None:
    """Back the range, which lies past the file's end, with space; by writing zeroes where nothing else does it.

    In pieces, so that nobody has to wait for terabytes in order to stop it. What can't succeed is refused before it
    fills the file system. Raises InsufficientSpace and VolumeFailed; part of the range is then reserved.
    """
    if start >= end:
        return
    with _failing(path, end - start):
        _check_length(fd, end)
        _check_room(fd, path, start, end)
    for offset in range(start, end, _STEP):
        for done in _back(fd, path, offset, min(offset + _STEP, end)):
            progress(done - start, end - start)


def mark_preallocated(fd: int) -> None:
    with contextlib.suppress(OSError):  # a file system without extended attributes: see FileVolume.preallocated
        os.setxattr(fd, PREALLOCATED, b"1")


def is_preallocated(fd: int) -> bool:
    try:
        return bool(os.getxattr(fd, PREALLOCATED))
    except OSError:
        return False


def capacity_of(file: int | Path) -> Capacity:
    """Of the file system that a descriptor or a path lies on, without what it keeps for others. Raises OSError."""
    status = os.statvfs(file)
    for_others = status.f_bfree - status.f_bavail
    total = max(0, status.f_blocks - for_others) * status.f_frsize
    return Capacity(total=total, available=status.f_bavail * status.f_frsize)


def _back(fd: int, path: Path, start: int, end: int) -> Iterator[int]:
    """Back one piece with space; yields how far it is, now and then."""
    with _failing(path, end - start):
        allocated = _allocated(fd, start, end)
    if allocated:
        yield end
        return
    while start < end:
        with _failing(path, end - start):
            start += os.pwrite(fd, _ZEROES[: end - start], start)
        yield start


def _allocated(fd: int, start: int, end: int) -> bool:
    try:
        syscalls.allocate(fd, start, end - start)
    except OSError as error:
        if error.errno not in syscalls.NOT_SUPPORTED:
            raise
        return False
    return True


def _check_length(fd: int, end: int) -> None:
    """Refuse a length that the file system does not have. The kernel compares it with its limit before all else."""
    try:
        syscalls.punch_hole(fd, end - 1, 1)  # past the file's end, where there is nothing
    except OSError as error:
        if error.errno not in syscalls.NOT_SUPPORTED:
            raise


def _check_room(fd: int, path: Path, start: int, end: int) -> None:
    """Refuse at once what could only fill the file system first. Those without a limit (ramfs) say 0 of 0.

    What the file has beyond its first `start` bytes was reserved by an earlier try, and is not needed again.
    """
    capacity = capacity_of(fd)
    size = end - max(start, min(end, os.fstat(fd).st_blocks * 512))
    if capacity.total and size > capacity.available:
        free = format_size(capacity.available)
        raise InsufficientSpace(
            f"{format_size(size)} can't be reserved in {path.parent}, where {free} are free",
            "ask for less, free space there, or use disks without preallocation",
        )


@contextlib.contextmanager
def _failing(path: Path, size: int) -> Iterator[None]:
    """Only around system calls: an OSError of `progress` is its own."""
    try:
        yield
    except OSError as error:
        raise failure(f"Reserving {format_size(size)} for", path, error) from error
