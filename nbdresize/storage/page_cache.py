"""What of a file is in the page cache, asked without waiting for anything."""

import ctypes
import errno
import os
import platform

_CACHESTAT = 451
"""The number of cachestat(2), since Linux 6.5 and on every architecture but Alpha."""

_syscall = ctypes.PyDLL(None, use_errno=True).syscall  # keeps the interpreter's lock: the call takes half a microsecond
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TMPFS_MAGIC = 0x01021994


class _Range(ctypes.Structure):
    """struct cachestat_range of <linux/mman.h>."""

    _fields_ = (("off", ctypes.c_uint64), ("len", ctypes.c_uint64))


class _Statistics(ctypes.Structure):
    """struct cachestat of <linux/mman.h>; counts of pages."""

    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


class PageCache:
    """Tells of one open file whether a range can be read without waiting. For one thread at a time."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._range = _Range(0, 0)
        self._statistics = _Statistics()
        self._arguments = (
            ctypes.c_long(_CACHESTAT),
            ctypes.c_int(fd),
            ctypes.byref(self._range),
            ctypes.byref(self._statistics),
            ctypes.c_uint(0),
        )
        self.known = platform.machine() != "alpha" and self._ask(0, 1)

    def holds(self, offset: int, length: int) -> bool:
        """Whether all pages of the range are in the page cache; False too where the kernel can't tell."""
        if not self.known or not self._ask(offset, length):
            return False
        return int(self._statistics.cached) == (offset + length - 1) // _PAGE - offset // _PAGE + 1

    def _ask(self, offset: int, length: int) -> bool:
        self._range.off, self._range.len = offset, length
        return bool(_syscall(*self._arguments) == 0)


def nowait_flags(fd: int) -> int | None:
    """The flags with which preadv reads only what is at hand, and fails with EAGAIN otherwise.

    None where the file system has no such reads, so that any read may wait.
    """
    try:
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return os.RWF_NOWAIT
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            return None
        return 0 if file_system_type(fd) == _TMPFS_MAGIC else None
    return os.RWF_NOWAIT


class _Statfs(ctypes.Structure):
    """The beginning of struct statfs of <sys/vfs.h>, which is all that is read, and room for the rest."""

    _fields_ = (("type", ctypes.c_long), ("rest", ctypes.c_byte * 248))


def file_system_type(fd: int) -> int:
    """The magic number of the file system that an open file is on, as statfs(2) lists them; 0 where it isn't told."""
    answer = _Statfs()
    if ctypes.CDLL(None).fstatfs(ctypes.c_int(fd), ctypes.byref(answer)) != 0:
        return 0
    return int(answer.type)
