"""The Linux system calls and ioctls that Python's `os` lacks.

All take a descriptor, and ranges in bytes. All raise OSError with the kernel's errno, and retry after EINTR.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import struct

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10

# As on x86, Arm, RISC-V and s390; the few architectures whose ioctl numbers are built differently are not supported.
BLKROGET = 0x125E
BLKSSZGET = 0x1268
BLKDISCARD = 0x1277
BLKZEROOUT = 0x127F
BLKGETSIZE64 = 0x80081272
FICLONE = 0x40049409
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_NOCOW_FL = 0x00800000

NOT_SUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY})
"""What a file system or a device answers to an operation that it does not have."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fallocate.restype = ctypes.c_int


def allocate(fd: int, offset: int, length: int) -> None:
    """Back a range of a file with space, past its end too; what it reads as, and its size, stay.

    `os.posix_fallocate` would change the size, and write zeroes by itself on file systems that can't allocate.
    """
    _fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, length)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Make a range read as zeroes and give its space back. On a block device: only where the device does it fast."""
    _fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)


def zero_range(fd: int, offset: int, length: int) -> None:
    """Make a range of a file read as zeroes, backed by space, without writing them."""
    _fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length)


def clone(source: int, target: int) -> None:
    """Make all of the file `target` share the blocks of `source`, as it is at one instant (FICLONE)."""
    while True:
        try:
            fcntl.ioctl(target, FICLONE, source)
        except InterruptedError:
            continue
        return


def write_in_place(fd: int) -> None:
    """Have an empty file's blocks written where they are, on file systems that otherwise move them (FS_NOCOW_FL)."""
    with contextlib.suppress(OSError):  # the others do, and don't know the flag
        (flags,) = struct.unpack("=I4x", _ioctl(fd, FS_IOC_GETFLAGS, bytes(8)))
        _ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=I4x", flags | FS_NOCOW_FL))


def device_size(fd: int) -> int:
    """The size of a block device, as it is now (BLKGETSIZE64)."""
    (size,) = struct.unpack("=Q", _ioctl(fd, BLKGETSIZE64, bytes(8)))
    return int(size)


def logical_sector_size(fd: int) -> int:
    """The smallest unit that a block device addresses: 512 or 4096 (BLKSSZGET)."""
    (size,) = struct.unpack("=i", _ioctl(fd, BLKSSZGET, bytes(4)))
    return int(size)


def device_is_read_only(fd: int) -> bool:
    """Whether a block device refuses writes, which opening it for writing does not tell (BLKROGET)."""
    (flag,) = struct.unpack("=i", _ioctl(fd, BLKROGET, bytes(4)))
    return bool(flag)


def discard(fd: int, offset: int, length: int) -> None:
    """Tell a block device that whole sectors are not needed (BLKDISCARD). What they read as then is not defined."""
    _ioctl(fd, BLKDISCARD, struct.pack("=QQ", offset, length))


def zero_out(fd: int, offset: int, length: int) -> None:
    """Make whole sectors read as zeroes and keep their space (BLKZEROOUT); the kernel writes the zeroes if it must."""
    _ioctl(fd, BLKZEROOUT, struct.pack("=QQ", offset, length))


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    while _libc.fallocate(fd, mode, offset, length) != 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def _ioctl(fd: int, request: int, argument: bytes) -> bytes:
    while True:
        try:
            return fcntl.ioctl(fd, request, argument)
        except InterruptedError:  # unlike os.read and its kin, fcntl.ioctl does not retry by itself
            continue
