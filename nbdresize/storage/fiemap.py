"""Where the blocks of a file lie on its file system: the ioctl FS_IOC_FIEMAP and its wire layout."""

import fcntl
import struct
from array import array

from nbdresize.storage.sharing import Blocks, places
from nbdresize.storage.syscalls import NOT_SUPPORTED

_FS_IOC_FIEMAP = 0xC020660B
_FLAG_SYNC = 0x1
_HEADER = struct.Struct("=QQIIII")
"""start, length, flags, extents filled in, room for extents, reserved."""

_EXTENT = struct.Struct("=QQQ16xI12x")
"""Offset in the file, offset on the device, length, flags; the rest is reserved."""

_AT_ONCE = 8192
_EVERYTHING = 2**64 - 1

_LAST = 0x1
_NO_PLACE = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400
"""Of an extent whose range on the device is not, or not exactly, its own: not known, not allocated yet, encoded,
encrypted, not aligned, within metadata, packed with others."""


def blocks_of(fd: int) -> Blocks | None:
    """What the file takes, also past its end, after everything written to it has got its place.

    None where the file system does not tell. Raises OSError. Only places of files on one file system can be compared,
    and not those on the two devices of an xfs with a realtime section.
    """
    starts, ends = array("Q"), array("Q")
    alone = 0
    buffer = bytearray(_HEADER.size + _AT_ONCE * _EXTENT.size)
    offset = flags = 0
    while not flags & _LAST:
        try:
            count = _ask(fd, offset, buffer)
        except OSError as error:
            if error.errno in NOT_SUPPORTED:
                return None
            raise
        if count == 0:
            break
        filled = memoryview(buffer)[_HEADER.size : _HEADER.size + count * _EXTENT.size]
        for logical, physical, length, flags in _EXTENT.iter_unpack(filled):  # noqa: B007  the last ones are used below
            if flags & _NO_PLACE:
                alone += length
            elif length:
                starts.append(physical)
                ends.append(physical + length)
        offset = logical + length
    return Blocks(places(starts, ends), alone)


def _ask(fd: int, offset: int, buffer: bytearray) -> int:
    """Fill `buffer` with the extents from `offset` on, and return how many."""
    while True:
        _HEADER.pack_into(buffer, 0, offset, _EVERYTHING - offset, _FLAG_SYNC, 0, _AT_ONCE, 0)
        try:
            fcntl.ioctl(fd, _FS_IOC_FIEMAP, buffer, True)
        except InterruptedError:
            continue
        return int(_HEADER.unpack_from(buffer)[3])
