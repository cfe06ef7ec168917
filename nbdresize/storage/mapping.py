"""A file's pages as memory, to be handed to the kernel, never to be looked at here."""

import mmap
import os
import resource
import stat
from typing import Protocol

from nbdresize.storage.page_cache import file_system_type

_SURE_AFTER = 1024
_LOOK_EVERY = 64
_MOST_FAULTS = 8192
_FOR_MAPPING = frozenset({0xEF53, 0x58465342, 0x9123683E})
"""ext2 to ext4, xfs, btrfs. Elsewhere a mapping may take memory for holes (tmpfs), or be behind (NFS)."""


class Sized(Protocol):
    """A size in bytes that changes while it is in use."""

    @property
    def size(self) -> int: ...


class Mapping:
    """Finds out when all that is read of a file is in the page cache, and maps the file for as long as it is.

    `view` is the file's beginning as memory, and None while reads must not be done that way. Only system calls may
    read it: what can't be read from the disk, or was cut off, is EFAULT to them, and the end of the process (SIGBUS)
    to whoever looks by himself. A page that is not at hand makes them wait, with everything behind them; so the
    mapping begins after 1,024 reads in a row that did not wait, and ends with the first that did.

    For one thread: the kernel tells how often a thread has waited. The tables of mapped pages are the kernel's memory,
    which only the end of a mapping gives back: 32 MiB at most, then it is made anew.
    """

    def __init__(self, fd: int, live: Sized) -> None:
        self.view: memoryview | None = None
        self._fd = fd
        self._live = live
        self._at_hand = 0
        self._unlooked = 0
        self._waits = 0
        self._faults = 0
        self._possible = stat.S_ISREG(os.fstat(fd).st_mode) and file_system_type(fd) in _FOR_MAPPING

    def note(self, reads: int, *, waited: bool) -> None:
        """So many reads were done, by `view` or otherwise; of the latter, one or more had to wait or not."""
        if self.view is None:
            self._at_hand = 0 if waited else self._at_hand + reads
            if self._at_hand >= _SURE_AFTER and self._possible:
                self._map()
            return
        self._unlooked += reads
        if self._unlooked >= _LOOK_EVERY:
            self._unlooked = 0
            self._look(self.view)

    def end(self) -> None:
        self.view = None
        self._at_hand = 0

    def _map(self) -> None:
        try:
            mapped = mmap.mmap(self._fd, self._live.size, prot=mmap.PROT_READ)
            mapped.madvise(mmap.MADV_RANDOM)
        except (OSError, ValueError, OverflowError):  # too large for the address space, or just being cut
            self._possible = False
            return
        usage = resource.getrusage(resource.RUSAGE_THREAD)
        self._waits, self._faults = usage.ru_majflt, usage.ru_minflt
        self.view = memoryview(mapped)

    def _look(self, view: memoryview) -> None:
        usage = resource.getrusage(resource.RUSAGE_THREAD)
        if usage.ru_majflt > self._waits:
            self.end()
        elif usage.ru_minflt - self._faults > _MOST_FAULTS or len(view) != self._live.size:
            self.end()
            self._map()
