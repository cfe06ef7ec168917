"""The `@size` control export of a disk: its size record, requests, and the read that waits for news."""

import threading
import time
from collections.abc import Callable

from nbdresize.errors import InvalidArgument, NbdresizeError, NotAuthorized
from nbdresize.export.backing import Backing
from nbdresize.protocol.constants import NBD_CMD_FLAG_QUERY
from nbdresize.protocol.size_record import (
    DEVICE_SIZE,
    RECORD_LENGTH,
    RECORD_OFFSET,
    REQUEST_LENGTH,
    REQUEST_OFFSET,
    SIZE_SUFFIX,
    WAITING_RECORD_OFFSET,
    parse_request,
)

PATIENCE = 30.0
"""Seconds that a waiting read waits at most."""

_ASK_EVERY = 0.1
_NOTHING_READ = -1


class SizeDevice:
    """One per connection; several threads may call it at once. See protocol.size_record for what lies where.

    It holds no lease: looking at a disk's size is not using the disk. So a client may shrink a disk through it only
    while nobody has the disk itself attached, its own other connections included.

    A waiting read holds up the connection's later requests where the front runs them one after the other.
    """

    size = DEVICE_SIZE
    block_size = 1

    def __init__(
        self,
        backing: Backing,
        *,
        read_only: bool = False,
        alive: Callable[[], bool] = lambda: True,
        patience: float = PATIENCE,
    ) -> None:
        """`alive` tells a waiting read whether anybody still waits for it; it is asked every 100 ms."""
        self.name = backing.name + SIZE_SUFFIX
        self.read_only = read_only
        self.requests = 0
        self.bytes_read = 0
        self.bytes_written = 0
        self._backing = backing
        self._alive = alive
        self._patience = patience
        self._last_read = _NOTHING_READ
        self._lock = threading.Lock()
        self._closing = False
        self._waits = 0

    @property
    def description(self) -> str:
        return f"the size of {self._backing.description}"

    @property
    def waiting(self) -> bool:
        """Whether a read waits for news."""
        return self._waits > 0

    @property
    def backing(self) -> Backing:
        return self._backing

    def close(self) -> None:
        """End a read that waits, with the record as it is."""
        self._closing = True
        self._backing.live.wake()

    def read(self, length: int, offset: int) -> bytes:
        """The `length` bytes at `offset`. Raises InvalidArgument outside of it, VolumeFailed where the disk is gone."""
        end = offset + length
        if not 0 <= offset <= end <= DEVICE_SIZE:
            raise InvalidArgument(f"{length} bytes at {offset} of {self.name}", f"it has {DEVICE_SIZE} bytes")
        waits = _touches(offset, end, WAITING_RECORD_OFFSET)
        content = bytearray(DEVICE_SIZE)
        if waits:
            self._waits_by(1)
            try:
                self._wait_for_news()
            finally:
                self._waits_by(-1)
        if waits or _touches(offset, end, RECORD_OFFSET):
            record = self._record()
            content[RECORD_OFFSET : RECORD_OFFSET + RECORD_LENGTH] = record
            content[WAITING_RECORD_OFFSET : WAITING_RECORD_OFFSET + RECORD_LENGTH] = record
        self.requests += 1
        self.bytes_read += length
        return bytes(content[offset:end])

    def read_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        """Fill `buffer`, of bytes, from `offset` on. Raises as read()."""
        buffer[:] = self.read(len(buffer), offset)

    def write(self, data: bytes | bytearray | memoryview, offset: int, *, fua: bool = False) -> None:
        """Do the request that is written; that it is done, durably, is what success means, with `fua` or without.

        Raises InvalidArgument where the 64 bytes at 512 are not written in one piece, and as Backing.resize.
        """
        if offset != REQUEST_OFFSET or len(data) != REQUEST_LENGTH:
            raise InvalidArgument(
                f"{len(data)} bytes at {offset} of {self.name} can't be written",
                f"write a request of {REQUEST_LENGTH} bytes at {REQUEST_OFFSET}",
            )
        wish = parse_request(bytes(data))
        self.requests += 1
        self.bytes_written += len(data)
        if self.read_only and not wish.flags & NBD_CMD_FLAG_QUERY:
            raise NotAuthorized(f"{self.name} is served read-only", "connect to a server that may write")
        self._backing.resize(wish.size, wish.flags, wanted=self._alive)

    def flush(self) -> None:
        """Nothing is ever pending."""
        self.requests += 1

    def _record(self) -> bytes:
        record = self._backing.record(read_only=self.read_only)
        with self._lock:
            self._last_read = max(self._last_read, record.generation)
        return record.pack()

    def _waits_by(self, more: int) -> None:
        with self._lock:
            self._waits += more

    def _wait_for_news(self) -> None:
        """Until the generation is newer than the last one read here, if one was; or until nobody waits any more.

        Somebody who changed the size tells this server; should that message get lost, a look now and then finds out.
        """
        live = self._backing.live
        deadline = time.monotonic() + self._patience
        next_look = 0.0
        while not self._closing and self._alive():
            now = time.monotonic()
            if now >= deadline:
                return
            if now >= next_look:
                next_look = now + self._backing.look_every
                if not self._look():
                    return
            if live.wait_newer(self._last_read, min(_ASK_EVERY, deadline - now), lambda: self._closing):
                return

    def _look(self) -> bool:
        """Whether the disk can be looked at; if not, the record that is read next says why."""
        try:
            self._backing.refresh()
        except NbdresizeError:
            return False
        return True


def _touches(offset: int, end: int, record: int) -> bool:
    """Whether a read of bytes `offset` to `end` gets any byte of the record at `record`."""
    return offset < record + RECORD_LENGTH and end > record and end > offset
