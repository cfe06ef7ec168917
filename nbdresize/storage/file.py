"""Volumes that are files, and the pool that is a directory of them."""

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from nbdresize.errors import InsufficientSpace, InvalidArgument, VolumeFailed
from nbdresize.storage import syscalls
from nbdresize.storage.failures import failure
from nbdresize.storage.handle import Handle
from nbdresize.storage.opening import open_as, stat_as
from nbdresize.storage.volume import Capacity, Pool, Volume
from nbdresize.units import MAX_SIZE, format_size

SUFFIX = ".raw"
PREALLOCATED = "user.nbdresize.preallocated"
"""The extended attribute of a file whose space was reserved in full, and stays so."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}", re.ASCII)
_ZEROES = bytes(1 << 20)


class FileVolume(Volume):
    """A raw file: sparse, or with all its space reserved."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, *, read_only: bool = False) -> Handle:
        fd = open_as(self.path, stat.S_IFREG, read_only=read_only)
        return Handle(fd, self.path, read_only=read_only, keeps_allocation=_is_preallocated(fd))

    def size(self) -> int:
        return stat_as(self.path, stat.S_IFREG).st_size

    def allocated(self) -> int:
        return stat_as(self.path, stat.S_IFREG).st_blocks * 512

    def preallocated(self) -> bool:
        """Whether its space was reserved when it was created. If so, growing reserves too, and trimming frees nothing.

        A file system without extended attributes forgets it: what was reserved stays, what comes later is sparse.
        """
        with self._opened(read_only=True) as fd:
            return _is_preallocated(fd)

    def grow(self, size: int) -> None:
        """See Volume. Of a preallocated file, the space is reserved before the size changes, so both or neither."""
        with self._opened() as fd:
            old = os.fstat(fd).st_size
            if size < old:
                raise VolumeFailed(f"{self.path} is {old} bytes long already, more than {size}", "shrink it instead")
            try:
                if size > old and _is_preallocated(fd):
                    _reserve(fd, self.path, old, size)
                _set_size(fd, self.path, size)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, old)  # also frees what was reserved past the end
                raise

    def shrink(self, size: int) -> None:
        with self._opened() as fd:
            old = os.fstat(fd).st_size
            if size > old:
                raise VolumeFailed(f"{self.path} is only {old} bytes long, less than {size}", "grow it instead")
            _set_size(fd, self.path, size)

    @contextlib.contextmanager
    def _opened(self, *, read_only: bool = False) -> Iterator[int]:
        fd = open_as(self.path, stat.S_IFREG, read_only=read_only)
        try:
            yield fd
        finally:
            os.close(fd)


class FilePool(Pool):
    """A directory with one file per volume, `NAME.raw`. It has to exist.

    Names are letters, digits, `_`, `-` and `.`, at most 200, and begin with a letter or a digit: never a path.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def create(self, name: str, size: int, *, preallocate: bool = False) -> FileVolume:
        """See Pool. Killed on the way, it leaves a file that `delete` removes."""
        path = self._path(name)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError as error:
            raise VolumeFailed(f"A volume {name} exists already in {self.directory}", "choose another name") from error
        except OSError as error:
            raise failure("Creating", path, error) from error
        try:
            try:
                if preallocate:
                    self._check_room(size)
                    _mark_preallocated(fd)
                    _reserve(fd, path, 0, size)
                _set_size(fd, path, size)
            finally:
                os.close(fd)
            self._sync_directory()
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        return FileVolume(path)

    def volume(self, name: str) -> FileVolume:
        return FileVolume(self._path(name))

    def delete(self, name: str) -> None:
        path = self._path(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise failure("Deleting", path, error) from error
        self._sync_directory()

    def names(self) -> list[str]:
        try:
            with os.scandir(self.directory) as entries:
                found = [entry.name.removesuffix(SUFFIX) for entry in entries if entry.name.endswith(SUFFIX)]
        except OSError as error:
            raise failure("Listing", self.directory, error) from error
        return sorted(name for name in found if _NAME.fullmatch(name))

    def capacity(self) -> Capacity:
        try:
            status = os.statvfs(self.directory)
        except OSError as error:
            raise failure("Asking for the capacity of", self.directory, error) from error
        return Capacity(total=status.f_blocks * status.f_frsize, available=status.f_bavail * status.f_frsize)

    def _path(self, name: str) -> Path:
        if _NAME.fullmatch(name) is None:
            raise InvalidArgument(f"{name[:40]!r} is not the name of a volume", "use letters, digits, '_', '-' and '.'")
        return self.directory / (name + SUFFIX)

    def _check_room(self, size: int) -> None:
        """Refuse at once what could only fill the file system first. Those without a limit (ramfs) say 0 of 0."""
        capacity = self.capacity()
        if capacity.total and size > capacity.available:
            free = format_size(capacity.available)
            raise InsufficientSpace(
                f"{format_size(size)} can't be reserved in {self.directory}, where {free} are free",
                "ask for less, free space there, or create it without preallocation",
            )

    def _sync_directory(self) -> None:
        """Make creations and deletions in it survive a crash."""
        try:
            fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise failure("Syncing", self.directory, error) from error


def _set_size(fd: int, path: Path, size: int) -> None:
    """Make the file `size` bytes long, durably, also if it already is: it may not have been synced since."""
    if not 0 <= size <= MAX_SIZE:
        raise InvalidArgument(f"{size} bytes is not a size for a volume", f"give 0 to {MAX_SIZE}")
    try:
        if os.fstat(fd).st_size != size:
            os.ftruncate(fd, size)
        os.fsync(fd)
    except OSError as error:
        raise failure(f"Making {format_size(size)} of", path, error) from error


def _reserve(fd: int, path: Path, start: int, end: int) -> None:
    """Back the range, which lies past the file's end, with space; by writing zeroes where nothing else does it."""
    if start >= end:
        return
    try:
        try:
            syscalls.allocate(fd, start, end - start)
        except OSError as error:
            if error.errno not in syscalls.NOT_SUPPORTED:
                raise
            while start < end:
                start += os.pwrite(fd, _ZEROES[: end - start], start)
    except OSError as error:
        raise failure(f"Reserving {format_size(end - start)} for", path, error) from error


def _mark_preallocated(fd: int) -> None:
    with contextlib.suppress(OSError):  # a file system without extended attributes: see FileVolume.preallocated
        os.setxattr(fd, PREALLOCATED, b"1")


def _is_preallocated(fd: int) -> bool:
    try:
        return bool(os.getxattr(fd, PREALLOCATED))
    except OSError:
        return False
