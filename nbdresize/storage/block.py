"""Volumes that are block devices: a disk, a partition, a logical volume, a loop device, a zvol."""

import os
import stat
from pathlib import Path

from nbdresize.errors import VolumeFailed
from nbdresize.storage import syscalls
from nbdresize.storage.failures import failure
from nbdresize.storage.handle import Handle
from nbdresize.storage.opening import open_as
from nbdresize.storage.volume import Progress, Volume, no_progress
from nbdresize.units import format_size

_STEP = 1 << 30
"""A new range is zeroed in pieces, so that a signal does not have to wait for terabytes."""


class BlockVolume(Volume):
    """A block device. Nothing here changes its size: whoever owns it does, and this notices.

    `known_size` is the size up to which its bytes are the disk's; what lies behind may be anything that was there
    before. Without it, all of the device as it is now is taken for the disk's.
    """

    def __init__(self, path: Path, known_size: int | None = None) -> None:
        self.path = path
        self.known_size = known_size

    def open(self, *, read_only: bool = False) -> Handle:
        fd = open_as(self.path, stat.S_IFBLK, read_only=read_only)
        try:
            protected = not read_only and syscalls.device_is_read_only(fd)
            handle = Handle(fd, self.path, read_only=read_only)
        except OSError as error:
            os.close(fd)
            raise failure("Opening", self.path, error) from error
        if protected:
            handle.close()
            raise VolumeFailed(f"{self.path} is write-protected", "open it for reading only, or see blockdev --setrw")
        return handle

    def size(self) -> int:
        with self.open(read_only=True) as handle:
            return handle.size()

    def allocated(self) -> int:
        """All of the device: it is this disk's, whatever is written on it."""
        return self.size()

    def grow(self, size: int, progress: Progress = no_progress) -> None:
        """Zero what lies between the known size and `size`, durably, and take it into the disk.

        Only after that may anybody be told that the disk is larger. Killed in between, nothing is lost by beginning
        again from the same known size; so it is when `progress` raises. Raises VolumeFailed where the device is smaller
        than `size`.
        """
        with self.open() as handle:
            actual = handle.size()
            self._check(size, actual)
            start = actual if self.known_size is None else self.known_size
            for offset in range(start, size, _STEP):
                handle.zero(offset, min(_STEP, size - offset))
                progress(min(offset + _STEP, size) - start, size - start)
            handle.flush()
        self.known_size = max(size, start)

    def shrink(self, size: int) -> None:
        """Leave out what lies behind `size`; a later grow zeroes it. The device stays as large as it is."""
        self._check(size, self.size())
        self.known_size = size

    def _check(self, size: int, actual: int) -> None:
        if size > actual:
            raise VolumeFailed(
                f"{self.path} has {format_size(actual)}, less than the {format_size(size)} asked for",
                "enlarge the device first, then ask again",
            )
