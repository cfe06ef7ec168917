"""A disk's size asked for, followed and changed through its `@size` control export, by ordinary reads and writes.

That works with any server that has the export; see `protocol/size_record.py` for what it holds.
"""

import time
from collections.abc import Generator
from dataclasses import replace

from nbdresize.client.connection import Connection
from nbdresize.client.exchange import too_many
from nbdresize.client.handshake import NO_SIZE_EXPORT
from nbdresize.client.rate import RateCap
from nbdresize.client.resizing import size_shown
from nbdresize.client.values import Cause, Size
from nbdresize.errors import InvalidArgument, PeerFailed
from nbdresize.protocol.constants import NBD_CMD_FLAG_FIT, NBD_CMD_FLAG_SHRINK, NBD_RESIZE_ALL_THAT_REMAINS
from nbdresize.protocol.export_info import MAX_EXPORT_SIZE, BlockSizes
from nbdresize.protocol.size_record import (
    DEVICE_SIZE,
    RECORD_LENGTH,
    RECORD_OFFSET,
    REQUEST_OFFSET,
    WAITING_RECORD_OFFSET,
    SizeWish,
    parse_record,
)

WAITING_SECONDS = 30.0
"""How long the waiting read waits at most; then it answers with what there is."""


class SizeExport:
    """The control export that a connection uses. Raises as the connection does."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        blocks = connection.negotiated.export.block_sizes or BlockSizes()
        if connection.size < DEVICE_SIZE or blocks.minimum > RECORD_LENGTH:
            raise PeerFailed(f"The server at {connection.target.shown} has no size export there", NO_SIZE_EXPORT)

    @property
    def disk(self) -> str:
        return self._connection.disk

    def query(self) -> Size:
        return self._read(RECORD_OFFSET, 0.0)

    def resize(self, size: int | None, *, shrink: bool = False, fit: bool = False) -> Size:
        """See Connection.resize. Two requests, so another's change in between is told as if it were this one's."""
        if size is not None and not 0 < size <= MAX_EXPORT_SIZE:
            raise InvalidArgument(f"No disk has {size} bytes", f"ask for 1 to {MAX_EXPORT_SIZE}")
        flags = (NBD_CMD_FLAG_SHRINK if shrink else 0) | (NBD_CMD_FLAG_FIT if fit or size is None else 0)
        wish = SizeWish(NBD_RESIZE_ALL_THAT_REMAINS if size is None else size, flags)
        self._connection.write(wish.pack(), REQUEST_OFFSET, what=f"resize {self._shown} to {size_shown(size)}")
        now = self.query()
        if size is None or now.size < size:
            return replace(now, cause=Cause.FITTED)
        return replace(now, cause=Cause.ROUNDED_UP if now.size > size else Cause.AS_REQUESTED)

    def watch(self) -> Generator[Size, None, None]:
        """The size now, and each later one; without an end. Raises PeerFailed for a server that tells too many."""
        cap = RateCap(time.monotonic())
        size = self.query()
        yield size
        while True:
            newer = self._read(WAITING_RECORD_OFFSET, WAITING_SECONDS)
            cap.pass_time(time.monotonic(), drained=True)
            if not cap.allows():
                raise too_many(self._connection.target.shown)
            if newer.generation != size.generation:
                size = newer
                yield size

    @property
    def _shown(self) -> str:
        return self.disk or "the default export"

    def _read(self, offset: int, patience: float) -> Size:
        data = self._connection.read(RECORD_LENGTH, offset, patience=patience, what=f"tell the size of {self._shown}")
        shown = self._connection.target.shown
        try:
            record = parse_record(data)
        except InvalidArgument:
            raise PeerFailed(f"The server at {shown} answers with no size record", NO_SIZE_EXPORT) from None
        if not (record.minimum <= record.size <= MAX_EXPORT_SIZE and record.granularity > 0):
            raise PeerFailed(f"The server at {shown} answers with a size record that makes no sense", NO_SIZE_EXPORT)
        return Size(record.size, record.generation, record.minimum, record.maximum, record.granularity, record.features)
