"""Which blocks of a volume were written since somebody looked: a map in a file that several processes share.

A live copy needs it where the file system can't make one at an instant. Whoever writes to the volume marks the range
after it was written and before the write is answered; whoever copies takes the marks, and then reads those blocks.
"""

import contextlib
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from nbdresize.errors import InsufficientSpace, StateUnusable
from nbdresize.storage import syscalls
from nbdresize.storage.failures import failure
from nbdresize.storage.reserving import reserve

_LEAST_BLOCK = 4096
_MOST_BLOCKS = 1 << 26
_MAGIC = b"nbdrszWM"
_VERSION = 1
_HEADER = struct.Struct("=8sIIQQ")
_START = 4096
_MARK, _CLEAR = b"\1", b"\0"
_MARKS = _MARK * (1 << 16)
_CLEARS = bytes(1 << 16)


class WriteMap:
    """The map of one volume, opened. Any number of threads and processes may mark at once, and one at a time take.

    The file, in the machine's order of bytes:

        0       8 bytes     magic, "nbdrszWM"
        8       32 bits     version, 1
        12      32 bits     zero
        16      64 bits     size of the volume in bytes
        24      64 bits     block_size
        4096    one byte per block of the volume: 1 if it was written, else 0

    `block_size` is 4096 bytes, doubled until the map has at most 2^26 of them. `identity` tells two maps of the same
    path apart: a map is never changed into another one, only removed and made anew.

    Marks live in the page cache, which all processes share, and outlive their processes. They are not durable.
    """

    __slots__ = ("_blocks", "_end", "_map", "_path", "_shift", "_size", "block_size", "identity")

    def __init__(self, path: Path, fd: int) -> None:
        """Map the open file, of which nothing is believed before it was checked; `fd` stays the caller's."""
        found = os.fstat(fd)
        header = os.pread(fd, _HEADER.size, 0) if stat.S_ISREG(found.st_mode) else b""
        magic, version, _, self._size, self.block_size = (
            _HEADER.unpack(header) if len(header) == _HEADER.size else (b"", 0, 0, 0, 0)
        )
        self._path = path
        if (magic, version, self.block_size) != (_MAGIC, _VERSION, _block_size(self._size)):
            raise _damaged(path, "is no map of writes that this version knows")
        self._shift = self.block_size.bit_length() - 1
        self._blocks = -(-self._size // self.block_size)
        self._end = _START + self._blocks
        if found.st_size != self._end:  # pages of a map that do not exist would end the process
            raise _damaged(path, f"has {found.st_size} bytes instead of {self._end}")
        self.identity = (found.st_dev, found.st_ino)
        self._map = mmap.mmap(fd, self._end)

    @classmethod
    def create(cls, path: Path, size: int) -> Self:
        """A new map of a volume of `size` bytes, with no block marked.

        It appears at `path` whole, with its space reserved, or not at all; one process at a time may make it. Killed
        on the way, that leaves a file which the next `create` or `discard` for the same path removes. Raises
        StateUnusable where there is a map already, InsufficientSpace where there is no room for it.
        """
        made = _unfinished(path)
        with _failing("Making", path):
            made.unlink(missing_ok=True)
            fd = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                _write_empty(fd, made, size)
                new = cls(path, fd)
                os.link(made, path)
                return new
            except FileExistsError as error:
                raise StateUnusable(
                    f"{path} exists already", "wait for the copy that it is for, or remove it"
                ) from error
            finally:
                os.close(fd)
                made.unlink(missing_ok=True)

    @classmethod
    def open(cls, path: Path) -> Self | None:
        """The map at `path`, or None where there is none. Raises StateUnusable for anything else there."""
        with _failing("Opening", path):
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            except FileNotFoundError:
                return None
            try:
                return cls(path, fd)
            finally:
                os.close(fd)

    def mark(self, offset: int, length: int) -> None:
        """Note that the range was written. What lies past the end of the map is left out."""
        first = offset >> self._shift
        last = (offset + length - 1) >> self._shift
        if first == last and length and last < self._blocks:  # nearly every call, so the whole of it is here
            self._map[first + _START] = 1
        elif length:
            self._fill(first + _START, min(last + 1 + _START, self._end), _MARKS)

    def take(self) -> list[tuple[int, int]]:
        """The marked ranges (offset, length) within the volume, in order and not touching; their marks are gone.

        A mark that is made again after that is there for the next call. So whatever was written before a mark is
        seen by who reads the volume after this returns, or its mark by the next call.
        """
        found: list[tuple[int, int]] = []
        for first, end in self._runs():
            self._fill(first, end, _CLEARS)
            offset, length = self._range(first, end)
            if found and sum(found[-1]) == offset:  # marked since the end of the last run was found
                offset, length = found[-1][0], found.pop()[1] + length
            found.append((offset, length))
        return found

    def marked(self) -> int:
        """How many bytes of the volume are marked."""
        return sum(self._range(first, end)[1] for first, end in self._runs())

    def close(self) -> None:
        """Unmap it; nothing else may be called after that. The marks stay."""
        self._map.close()

    def remove(self) -> None:
        """Take it away from its path; who has it open goes on marking it in vain. Nothing happens the second time."""
        discard(self._path)

    def _runs(self) -> Iterator[tuple[int, int]]:
        """Start and end of all runs of marks, as positions in the file."""
        first = self._map.find(_MARK, _START)
        while first >= 0:
            end = self._map.find(_CLEAR, first)
            yield first, (end if end >= 0 else self._end)
            first = self._map.find(_MARK, end) if end >= 0 else -1

    def _range(self, first: int, end: int) -> tuple[int, int]:
        offset = (first - _START) << self._shift
        return offset, min((end - _START) << self._shift, self._size) - offset

    def _fill(self, first: int, end: int, pattern: bytes) -> None:
        count = end - first
        if 0 < count <= len(pattern):
            self._map[first:end] = pattern[:count]
            return
        for start in range(first, end, len(pattern)):
            count = min(len(pattern), end - start)
            self._map[start : start + count] = pattern[:count]


def discard(path: Path) -> None:
    """Remove whatever a map at `path` has left, also one that can't be opened, or was never finished."""
    with _failing("Removing", path):
        path.unlink(missing_ok=True)
        _unfinished(path).unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def _block_size(size: int) -> int:
    block_size = _LEAST_BLOCK
    while size > block_size * _MOST_BLOCKS:
        block_size *= 2
    return block_size


def _write_empty(fd: int, path: Path, size: int) -> None:
    """All of the file, backed by space: a process that marks where the mapping can't get space is killed for it.

    Hence also written in place: by itself btrfs needs new space for a block each time it is written. (Its mappings keep
    to that with recent kernels only; with older ones it must not be full to the last block.)
    """
    block_size = _block_size(size)
    length = _START + -(-size // block_size)
    syscalls.write_in_place(fd)
    reserve(fd, path, 0, length)
    os.ftruncate(fd, length)
    os.pwrite(fd, _HEADER.pack(_MAGIC, _VERSION, 0, size, block_size), 0)


def _damaged(path: Path, what: str) -> StateUnusable:
    return StateUnusable(f"{path} {what}", "remove it, and begin the copy that it is for again")


@contextlib.contextmanager
def _failing(doing: str, path: Path) -> Iterator[None]:
    try:
        yield
    except InsufficientSpace as error:
        raise InsufficientSpace(error.problem, "free space there, which a copy of a disk in use needs") from error
    except OSError as error:
        raise failure(doing, path, error) from error
