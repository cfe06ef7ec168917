"""The bytes of one volume into another: by sharing blocks, or by reading and writing what is not zeroes."""

import errno
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from nbdresize.storage import syscalls
from nbdresize.storage.failures import failure
from nbdresize.storage.handle import Extent, Handle
from nbdresize.storage.opening import kind_of, open_as, wrong_kind
from nbdresize.storage.reserving import is_preallocated
from nbdresize.storage.volume import Progress

_PIECE = 1 << 20
_BLOCK = 4096
_ZERO_BLOCK = bytes(_BLOCK)
_EXTENTS_AT_ONCE = 256
_BETWEEN_FLUSHES = 64 * _PIECE

_CANT_SHARE = syscalls.NOT_SUPPORTED | {errno.EXDEV, errno.EINVAL, errno.ETXTBSY}
"""The file system has no shared blocks, or the two files lie on different ones, or differ in some property."""


def open_source(path: Path) -> Handle:
    """The file or block device to copy from, for reading. Raises VolumeFailed for anything else there."""
    kind = kind_of(path)
    if kind not in (stat.S_IFREG, stat.S_IFBLK):
        raise wrong_kind(path, kind, "a file or a block device")
    return Handle(open_as(path, kind, read_only=True), path, read_only=True)


def share_blocks(source: Handle, target: Handle) -> bool:
    """Make the empty file `target` share all of `source`, at one instant; False where that can't be.

    It never can where the source's space was reserved: the next write to it would need new space.
    """
    if is_preallocated(source.fileno()):
        return False
    try:
        return clone(source.fileno(), target.fileno())
    except OSError as error:
        raise failure(f"Copying {source.path} to", target.path, error) from error


def clone(source: int, target: int) -> bool:
    """The same for two descriptors. Raises OSError."""
    try:
        syscalls.clone(source, target)
    except OSError as error:
        if error.errno in _CANT_SHARE:
            return False
        raise
    return True


def copy_data(source: Handle, target: Handle, length: int, progress: Progress) -> None:
    """Copy the first `length` bytes into `target`, which reads as zeroes; nothing is written where they are zeroes.

    It is flushed on the way, so that the progress is the disk's, and stopping does not have to wait for it.
    """
    flushed = 0
    for offset, extent in _extents(source, 0, length):
        if extent.zero:
            progress(offset + extent.length, length)
            continue
        for start, size in _pieces(offset, extent.length):
            _copy_piece(source, target, start, size, zeroes=None)
            if start + size - flushed >= _BETWEEN_FLUSHES:
                target.flush()
                flushed = start + size
            progress(start + size, length)


def copy_over(source: Handle, target: Handle, offset: int, length: int) -> Iterator[int]:
    """Make the range of `target`, whatever it has, equal to that of `source`; yields the length of each piece done."""
    for start, extent in _extents(source, offset, length):
        if extent.zero:
            target.zero(start, extent.length)
            yield extent.length
            continue
        for piece, size in _pieces(start, extent.length):
            _copy_piece(source, target, piece, size, zeroes=target.zero)
            yield size


def _extents(source: Handle, offset: int, length: int) -> Iterator[tuple[int, Extent]]:
    """Where each begins, and what it is, looked at piecemeal: the source may have millions, and change."""
    end = offset + length
    while offset < end:
        for extent in source.extents(offset, end - offset, limit=_EXTENTS_AT_ONCE):
            yield offset, extent
            offset += extent.length


def _pieces(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """The range cut at multiples of the piece's size."""
    end = offset + length
    while offset < end:
        size = min(end - offset, _PIECE - offset % _PIECE)
        yield offset, size
        offset += size


def _copy_piece(
    source: Handle, target: Handle, offset: int, size: int, zeroes: Callable[[int, int], None] | None
) -> None:
    """Copy one piece; for its blocks of zeroes `zeroes` is called, or nothing done.

    The comparison costs less than a tenth of the copying, and a disk that was zeroed by its guest, or an image
    that was written without holes, comes out small.
    """
    data = source.read(size, offset)
    view = memoryview(data)
    start = 0
    while start < size:
        is_zero, end = _run(data, start)
        if not is_zero:
            target.write(view[start:end], offset + start)
        elif zeroes is not None:
            zeroes(offset + start, end - start)
        start = end


def _run(data: bytes, start: int) -> tuple[bool, int]:
    """Whether the block at `start` is all zeroes, and the end of the run of blocks that are alike in that."""
    is_zero = _is_zero(data, start)
    end = start + _BLOCK
    while end < len(data) and _is_zero(data, end) == is_zero:
        end += _BLOCK
    return is_zero, min(end, len(data))


def _is_zero(data: bytes, start: int) -> bool:
    rest = len(data) - start
    return data.startswith(_ZERO_BLOCK if rest >= _BLOCK else _ZERO_BLOCK[:rest], start)
