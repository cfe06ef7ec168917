"""Requests of one connection, one by one: checked, done or handed to the lane, and answered.

The hot loop in `transmission` deals with the commonest requests itself and gives all others here.
"""

from collections.abc import Callable, Sequence

from nbdresize.errors import InsufficientSpace, InvalidArgument, NbdresizeError
from nbdresize.export.disk_export import DiskExport
from nbdresize.protocol.constants import (
    NBD_CMD_BLOCK_STATUS,
    NBD_CMD_CACHE,
    NBD_CMD_FLAG_DF,
    NBD_CMD_FLAG_EXTEND,
    NBD_CMD_FLAG_FAST_ZERO,
    NBD_CMD_FLAG_FUA,
    NBD_CMD_FLAG_NO_HOLE,
    NBD_CMD_FLAG_REQ_ONE,
    NBD_CMD_FLAG_SIZE,
    NBD_CMD_FLUSH,
    NBD_CMD_READ,
    NBD_CMD_RESIZE,
    NBD_CMD_TRIM,
    NBD_CMD_WRITE_ZEROES,
    NBD_STATE_HOLE,
    NBD_STATE_ZERO,
)
from nbdresize.protocol.negotiated import Mode
from nbdresize.protocol.server_replies import Replies, SizeReply
from nbdresize.protocol.transmission import Offer, Request, check_request
from nbdresize.server.lane import Lane
from nbdresize.server.replying import Parts, Replying
from nbdresize.server.resizing import Resizing
from nbdresize.server.transfer import Transfer
from nbdresize.storage.handle import Extent

BASE_ALLOCATION_ID = 1
"""The number of the metadata context `base:allocation` on every connection."""

_MOST_EXTENTS = 2048
_READ_TOGETHER = 8
_LEAST_HOLE = 4096
_MOST_CHUNKS = 32


class Requests:
    """The requests to one disk. Called by the connection's own thread; what it hands to the lane is answered there."""

    def __init__(
        self,
        disk: DiskExport,
        replies: Replies,
        replying: Replying,
        lane: Lane,
        transfer: Transfer,
        resizing: Resizing,
        offer: Offer,
    ) -> None:
        self._disk = disk
        self._replies = replies
        self._replying = replying
        self._lane = lane
        self._transfer = transfer
        self._resizing = resizing
        self._offer = offer
        self._chunks = offer.mode is not Mode.SIMPLE
        self._doing: dict[int, Callable[[Request], None]] = {
            NBD_CMD_READ: self._read,
            NBD_CMD_FLUSH: self._flush,
            NBD_CMD_TRIM: self._trim,
            NBD_CMD_CACHE: self._cache,
            NBD_CMD_WRITE_ZEROES: self._write_zeroes,
            NBD_CMD_BLOCK_STATUS: self._block_status,
            NBD_CMD_RESIZE: resizing.answer,
        }

    def answer(self, request: Request) -> None:
        """Do a request that has no payload, now or later, and reply to it. Raises PeerGone."""
        try:
            check_request(request, self._offer)
            self._doing[request.command](request)
        except (NbdresizeError, OSError) as error:
            self._replying.refuse(request, error)

    def read_slowly(self, requests: list[Request]) -> None:
        """Do READs that wait for the volume, a few to a job: less work for each, and still several at once."""
        for first in range(0, len(requests), _READ_TOGETHER):
            together = requests[first : first + _READ_TOGETHER]
            self._replying.all_later(together, sum(request.length for request in together), self._read_whole)

    def skip(self, request: Request, arrived: int) -> None:
        """Refuse a request whose payload has no meaning, once that has gone by. Raises PeerGone."""
        self._transfer.skip(request.payload_length(self._offer.mode) - arrived)
        self._replying.refuse(
            request, InvalidArgument(f"Command {request.command} with a payload", "only a WRITE has one")
        )

    def write(self, request: Request, payload: memoryview) -> None:
        """Do a WRITE whose payload is here in full; it is not used any more when this returns. Raises PeerGone."""
        try:
            check_request(request, self._offer)
            extended_to = self._extend(request)
            if request.flags & NBD_CMD_FLAG_FUA:
                data = bytes(payload)
                self._replying.later(request, len(data), lambda: self._write_through(request, data, extended_to))
                return
            self._disk.write(payload, request.offset)
        except (NbdresizeError, OSError) as error:
            self._replying.refuse(request, error)
        else:
            self._replying.send(self._written(request, extended_to))

    def receive_write(self, request: Request, head: memoryview) -> None:
        """Do a WRITE of which `head` is what has arrived; takes the rest of the payload off the stream.

        Raises PeerGone, and ProtocolViolation for a payload so long that nobody could mean it.
        """
        request.payload_length(self._offer.mode)
        try:
            check_request(request, self._offer)
            extended_to = self._extend(request)
            self._disk.check(request.length, request.offset, InsufficientSpace)
        except (NbdresizeError, OSError) as error:
            self._transfer.skip(request.length - len(head))
            self._replying.refuse(request, error)
            return
        try:
            failed = self._transfer.receive(head, request.offset, request.length)
        finally:  # also where the client has gone halfway
            self._disk.mark(request.length, request.offset)
        if failed is not None:
            self._replying.refuse(request, failed)
            return
        self._disk.requests += 1
        self._disk.bytes_written += request.length
        if request.flags & NBD_CMD_FLAG_FUA:
            self._replying.later(request, 0, lambda: self._write_through(request, b"", extended_to))
        else:
            self._replying.send(self._written(request, extended_to))

    def _extend(self, request: Request) -> SizeReply | None:
        """Let the disk reach to the request's end, if it asks for that; the size for its reply, if it asks for one."""
        if not request.flags & NBD_CMD_FLAG_EXTEND:
            return None
        return self._resizing.extend(request.offset + request.length, tell=bool(request.flags & NBD_CMD_FLAG_SIZE))

    # Commands

    def _read(self, request: Request) -> None:
        offset, length = request.offset, request.length
        self._disk.check(length, offset)
        in_chunks = self._chunks and not request.flags & NBD_CMD_FLAG_DF and length > _LEAST_HOLE
        if in_chunks and not self._disk.handle.holds_only_data(offset, length):
            extents = self._disk.handle.extents(offset, length, limit=_MOST_CHUNKS)
            if len(extents) < _MOST_CHUNKS and any(extent.zero for extent in extents):
                self._replying.later(request, length, lambda: self._sparse(request, extents))
                return
        header = self._replies.data_header(request.cookie, offset, length)
        if self._transfer.send_cached(header, offset, length):
            self._disk.requests += 1
            self._disk.bytes_read += length
        else:
            self._replying.later(request, length, lambda: self._read_whole(request))

    def _read_whole(self, request: Request) -> Parts:
        data = self._disk.read(request.length, request.offset)
        return (self._replies.data_header(request.cookie, request.offset, request.length), data)

    def _sparse(self, request: Request, extents: Sequence[Extent]) -> Parts:
        """A read as chunks of data and of holes, together covering the range, in its order."""
        parts: list[bytes] = []
        at, end = request.offset, request.offset + request.length
        for extent in extents:
            done = at + extent.length == end
            if extent.zero:
                parts.append(self._replies.hole_chunk(request.cookie, request.offset, at, extent.length, done=done))
            else:
                parts.append(self._replies.data_chunk(request.cookie, request.offset, at, extent.length, done=done))
                parts.append(self._disk.read(extent.length, at))
            at += extent.length
        return parts

    def _flush(self, request: Request) -> None:
        def flush() -> Parts:
            self._disk.flush()
            return (self._replies.success(request.cookie, request.offset),)

        self._replying.later(request, 0, flush)

    def _trim(self, request: Request) -> None:
        def trim() -> Parts:
            self._disk.trim(request.length, request.offset, fua=bool(request.flags & NBD_CMD_FLAG_FUA))
            return (self._replies.success(request.cookie, request.offset),)

        self._replying.later(request, 0, trim)

    def _cache(self, request: Request) -> None:
        def cache() -> Parts:
            self._disk.cache(request.length, request.offset)
            return (self._replies.success(request.cookie, request.offset),)

        self._replying.later(request, 0, cache)

    def _write_zeroes(self, request: Request) -> None:
        present = self._disk.size
        if request.flags & NBD_CMD_FLAG_FAST_ZERO and request.flags & NBD_CMD_FLAG_EXTEND and request.offset < present:
            # what may turn out not to be fast comes first, since the new range is zero anyway
            inside = min(request.length, present - request.offset)
            self._lane.drain()
            self._disk.zero(inside, request.offset, may_trim=not request.flags & NBD_CMD_FLAG_NO_HOLE, fast=True)
        extended_to = self._extend(request)

        def zero() -> Parts:
            self._disk.zero(
                request.length,
                request.offset,
                may_trim=not request.flags & NBD_CMD_FLAG_NO_HOLE,
                fast=bool(request.flags & NBD_CMD_FLAG_FAST_ZERO),
                fua=bool(request.flags & NBD_CMD_FLAG_FUA),
            )
            return (self._written(request, extended_to),)

        self._replying.later(request, 0, zero)

    def _block_status(self, request: Request) -> None:
        def look() -> Parts:
            limit = 1 if request.flags & NBD_CMD_FLAG_REQ_ONE else _MOST_EXTENTS
            found = self._disk.extents(request.length, request.offset, limit=limit)
            extents = [
                (extent.length, (NBD_STATE_HOLE if extent.hole else 0) | (NBD_STATE_ZERO if extent.zero else 0))
                for extent in found
            ]
            return (self._replies.block_status(request.cookie, request.offset, BASE_ALLOCATION_ID, extents),)

        self._replying.later(request, 0, look)

    # Replies

    def _write_through(self, request: Request, data: bytes, extended_to: SizeReply | None) -> Parts:
        if data:
            self._disk.write(data, request.offset, fua=True)
        else:
            self._disk.flush()
        return (self._written(request, extended_to),)

    def _written(self, request: Request, extended_to: SizeReply | None) -> bytes:
        if extended_to is None:
            return self._replies.success(request.cookie, request.offset)
        return self._replies.size(request.cookie, request.offset, extended_to)
