"""How a file or a block device gives space back, and how it turns a range into zeroes without writing them.

What a file system or a device can't do is found out by trying, once per handle.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from nbdresize.storage import syscalls

Way = Callable[[int, int, int], None]


class Space(ABC):
    """The ways of one open descriptor, given with each call. Ranges are not empty and lie on `block_size`.

    Raises OSError.
    """

    block_size: int
    keeps_allocation: bool
    """The space was reserved on purpose: nothing gives it back."""

    def __init__(self) -> None:
        self._lacking: set[Way] = set()

    @abstractmethod
    def size(self, fd: int) -> int:
        """The size in bytes, looked at now."""

    @abstractmethod
    def trim(self, fd: int, offset: int, length: int) -> None:
        """Give the range back as far as that can be done; what it reads as afterwards is not promised."""

    @abstractmethod
    def zero(self, fd: int, offset: int, length: int, *, may_trim: bool, fast: bool) -> bool:
        """Make the range read as zeroes; False, with nothing changed, where they have to be written.

        Unless `may_trim`, the range is backed by space afterwards. Unless `fast`, it is also good if the kernel has
        to write the zeroes.
        """

    def _works(self, fd: int, way: Way, offset: int, length: int) -> bool:
        if way in self._lacking:
            return False
        try:
            way(fd, offset, length)
        except OSError as error:
            if error.errno not in syscalls.NOT_SUPPORTED:
                raise
            self._lacking.add(way)
            return False
        return True


class FileSpace(Space):
    """A file, by fallocate(2). Nothing here changes its size."""

    block_size = 1

    def __init__(self, *, keeps_allocation: bool) -> None:
        super().__init__()
        self.keeps_allocation = keeps_allocation

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def trim(self, fd: int, offset: int, length: int) -> None:
        if self.keeps_allocation:
            self.zero(fd, offset, length, may_trim=False, fast=True)
        else:
            self._works(fd, syscalls.punch_hole, offset, length)

    def zero(self, fd: int, offset: int, length: int, *, may_trim: bool, fast: bool) -> bool:
        if may_trim and not self.keeps_allocation and self._works(fd, syscalls.punch_hole, offset, length):
            return True
        if self._works(fd, syscalls.zero_range, offset, length):
            return True
        # tmpfs has no zero-range; a hole that is backed again at once comes to the same. The first call finds out
        # whether that can be done, and whether there is room, while the data is still there.
        return (
            syscalls.punch_hole not in self._lacking
            and self._works(fd, syscalls.allocate, offset, length)
            and self._works(fd, syscalls.punch_hole, offset, length)
            and self._works(fd, syscalls.allocate, offset, length)
        )


class DeviceSpace(Space):
    """A block device, by ioctl(2) and by fallocate(2), which for devices means the kernel's zero-out."""

    keeps_allocation = False

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.block_size = syscalls.logical_sector_size(fd)

    def size(self, fd: int) -> int:
        return syscalls.device_size(fd)

    def trim(self, fd: int, offset: int, length: int) -> None:
        self._works(fd, syscalls.discard, offset, length)

    def zero(self, fd: int, offset: int, length: int, *, may_trim: bool, fast: bool) -> bool:
        if may_trim and self._works(fd, syscalls.punch_hole, offset, length):
            return True
        if fast and not _zeroes_by_itself(fd):
            return False
        return self._works(fd, syscalls.zero_out, offset, length)


def _zeroes_by_itself(fd: int) -> bool:
    """Whether the device writes zeroes by a command of its own. The kernel corrects the number when one fails."""
    number = os.fstat(fd).st_rdev
    node = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    disk = node.parent if (node / "partition").exists() else node
    try:
        return int((disk / "queue" / "write_zeroes_max_bytes").read_text()) > 0
    except (OSError, ValueError):
        return False
