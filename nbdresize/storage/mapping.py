"""A file's pages as memory, to be handed to the kernel, never to be looked at here."""

import mmap
import os
import resource
import stat
import time
from typing import Protocol

from nbdresize.storage.page_cache import PageCache, file_system_type

CHUNK_SHIFT = 18
"""Of a byte's offset, to get the number of its chunk: chunks have 256 KiB."""

_SURE_SECONDS = 0.5
_MOST_CHUNKS = 1 << 16
_MOST_FAULTS = 8192
_FOR_MAPPING = frozenset({0xEF53, 0x58465342, 0x9123683E})
"""ext2 to ext4, xfs, btrfs. Elsewhere a mapping may take memory for holes (tmpfs), or be behind (NFS)."""


class Sized(Protocol):
    """A size in bytes that changes while it is in use."""

    @property
    def size(self) -> int: ...


class Mapping:
    """A file as memory, and which chunks of it may be read there.

    Only system calls may read `view`: what can't be read from the disk, or was cut off, is EFAULT to them, and the end
    of the process (SIGBUS) to whoever looks by himself. A page that is not in memory makes them wait, with everything
    behind them. So `known` has only chunks of which every page was in the page cache within the last half second, asked
    of the kernel once a chunk was read twice; nothing where it does not tell (cachestat(2), since Linux 6.5).

    For one thread. The tables of mapped pages are the kernel's memory, which only the end of a mapping gives back: 32
    MiB at most, then it is made anew.
    """

    def __init__(self, fd: int, live: Sized) -> None:
        self.view: memoryview | None = None
        self.known: set[int] = set()
        self._seen: set[int] = set()
        self._fd = fd
        self._live = live
        self._page_cache = PageCache(fd)
        self._until = 0.0
        self._faults = 0
        self._possible = (
            self._page_cache.known and stat.S_ISREG(os.fstat(fd).st_mode) and file_system_type(fd) in _FOR_MAPPING
        )

    def renew(self) -> None:
        """Before a batch of reads: what was known for too long is not known any more, and the size is looked at."""
        now = time.monotonic()
        if now < self._until or not self._possible:
            return
        self._until = now + _SURE_SECONDS
        self._seen, self.known = (self.known if len(self.known) < _MOST_CHUNKS else set()), set()
        if self.view is not None and (len(self.view) != self._live.size or self._faulted() > _MOST_FAULTS):
            self.view = None

    def read(self, chunks: list[int]) -> None:
        """Of these chunks something was read, and did not have to be waited for."""
        if not self._possible:
            return
        for chunk in chunks:
            if chunk not in self._seen:
                if len(self._seen) < _MOST_CHUNKS:
                    self._seen.add(chunk)
            elif chunk not in self.known and self._is_at_hand(chunk):
                self.known.add(chunk)

    def _is_at_hand(self, chunk: int) -> bool:
        if self.view is None and not self._map():
            return False
        assert self.view is not None
        end = (chunk + 1) << CHUNK_SHIFT
        return end <= len(self.view) and self._page_cache.holds(chunk << CHUNK_SHIFT, 1 << CHUNK_SHIFT)

    def _map(self) -> bool:
        try:
            mapped = mmap.mmap(self._fd, self._live.size, prot=mmap.PROT_READ)
            mapped.madvise(mmap.MADV_RANDOM)
        except (OSError, ValueError, OverflowError):  # no address space or descriptor is left, or it is just being cut
            return False
        self._faults = 0
        self._faults = self._faulted()
        self.view = memoryview(mapped)
        return True

    def _faulted(self) -> int:
        """Page faults of this thread, since the mapping was made."""
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - self._faults
