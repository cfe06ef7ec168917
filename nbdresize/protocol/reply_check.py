"""One reply held against its request: what its chunks may be, and what they say.

Source: the NBD protocol document, "Structured reply types" and "Request types"; `docs/resize-extension.md`.
"""

import bisect
import struct
from dataclasses import dataclass

from nbdresize.protocol.constants import (
    NBD_CMD_BLOCK_STATUS,
    NBD_CMD_FLAG_DF,
    NBD_CMD_FLAG_NOTIFY,
    NBD_CMD_FLAG_QUERY,
    NBD_CMD_FLAG_REQ_ONE,
    NBD_CMD_FLAG_SIZE,
    NBD_CMD_READ,
    NBD_MAX_STRING,
    NBD_REPLY_TYPE_BLOCK_STATUS,
    NBD_REPLY_TYPE_BLOCK_STATUS_EXT,
    NBD_REPLY_TYPE_ERROR_OFFSET,
    NBD_REPLY_TYPE_NONE,
    NBD_REPLY_TYPE_OFFSET_DATA,
    NBD_REPLY_TYPE_OFFSET_HOLE,
    NBD_REPLY_TYPE_SIZE,
)
from nbdresize.protocol.export_info import MAX_EXPORT_SIZE
from nbdresize.protocol.server_replies import SizeReply
from nbdresize.protocol.strings import parse_message
from nbdresize.protocol.transmission import Request
from nbdresize.protocol.violation import ProtocolViolation

MAX_EXTENTS = 1 << 20
"""The most extents in one chunk; the protocol document tells servers to stay below."""
MAX_CHUNKS = 65536
"""The most chunks in one reply, apart from notifications, which have no end."""
MAX_ERRORS = 1024
"""The most errors in one reply; each may hold a text of 4096 bytes."""
_MAX_ERROR_PAYLOAD = NBD_MAX_STRING + 64
_ERROR_BIT = 1 << 15

_OFFSET = struct.Struct(">Q")
_HOLE = struct.Struct(">QI")
_ERROR = struct.Struct(">IH")
_CONTEXT = struct.Struct(">I")
_EXTENDED_CONTEXT = struct.Struct(">II")
_EXTENT = struct.Struct(">II")
_EXTENDED_EXTENT = struct.Struct(">QQ")
_SIZE = struct.Struct(">QQQII")
_SIZE_FLAGS = NBD_CMD_FLAG_SIZE | NBD_CMD_FLAG_QUERY | NBD_CMD_FLAG_NOTIFY


@dataclass(frozen=True)
class Data:
    """Bytes of a READ, from `offset` of the export on."""

    cookie: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Hole:
    """`length` bytes of a READ that are zero, from `offset` of the export on."""

    cookie: int
    offset: int
    length: int


@dataclass(frozen=True)
class BlockStatus:
    """Consecutive extents from the offset of a BLOCK_STATUS on, each its length in bytes and its flags."""

    cookie: int
    context: int
    extents: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class SizeTold:
    """The size of the export as a RESIZE tells it; for a subscription, one now and one for each change."""

    cookie: int
    size: SizeReply


@dataclass(frozen=True)
class ReplyError:
    """One error of a reply: NBD's number, the server's words, and where known the offset that it happened at."""

    errno: int
    message: str = ""
    offset: int | None = None


@dataclass(frozen=True)
class Done:
    """A request is answered in full; it succeeded where there are no `errors`."""

    cookie: int
    errors: tuple[ReplyError, ...] = ()


ReplyEvent = Data | Hole | BlockStatus | SizeTold | Done


@dataclass(frozen=True)
class Chunk:
    """One chunk of a reply; `done` where it is the last."""

    kind: int
    done: bool
    payload: bytes


def check_chunk_length(kind: int, length: int, request: Request) -> None:
    """Whether a chunk of this type may have a payload of `length` bytes, before any of it is held.

    Raises ProtocolViolation also where such a chunk does not answer such a request at all.
    """
    size_asked = request.flags & _SIZE_FLAGS
    least = most = -1
    if kind & _ERROR_BIT:
        least, most = _ERROR.size, _MAX_ERROR_PAYLOAD
    elif kind == NBD_REPLY_TYPE_NONE:
        least = most = 0
    elif kind == NBD_REPLY_TYPE_OFFSET_DATA and request.command == NBD_CMD_READ:
        least, most = _OFFSET.size + 1, _OFFSET.size + request.length
    elif kind == NBD_REPLY_TYPE_OFFSET_HOLE and request.command == NBD_CMD_READ:
        least = most = _HOLE.size
    elif kind == NBD_REPLY_TYPE_BLOCK_STATUS and request.command == NBD_CMD_BLOCK_STATUS:
        least, most = _CONTEXT.size + _EXTENT.size, _CONTEXT.size + MAX_EXTENTS * _EXTENT.size
    elif kind == NBD_REPLY_TYPE_BLOCK_STATUS_EXT and request.command == NBD_CMD_BLOCK_STATUS:
        least = _EXTENDED_CONTEXT.size + _EXTENDED_EXTENT.size
        most = _EXTENDED_CONTEXT.size + MAX_EXTENTS * _EXTENDED_EXTENT.size
    elif kind == NBD_REPLY_TYPE_SIZE and size_asked:
        least = most = _SIZE.size
    if not least <= length <= most:
        raise ProtocolViolation(
            f"The server answered command {request.command} with {length} bytes in a chunk of type {kind:#x}",
            "such a reply does not exist",
        )


class ReplyCheck:
    """Collects one reply. `contexts` are the ids of the metadata contexts that BLOCK_STATUS answers with."""

    def __init__(self, request: Request, contexts: frozenset[int]) -> None:
        self.request = request
        self._contexts_left = set(contexts)
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._errors: list[ReplyError] = []
        self._chunks = 0
        self._sizes = 0

    def take(self, chunk: Chunk, *, extended: bool) -> list[ReplyEvent]:
        """What a chunk, of a length that check_chunk_length let pass, says. Raises ProtocolViolation."""
        self._chunks += 1
        if self._chunks > MAX_CHUNKS and not self.request.flags & NBD_CMD_FLAG_NOTIFY:
            raise ProtocolViolation(f"A reply of more than {MAX_CHUNKS} chunks", "no request needs so many")
        events: list[ReplyEvent] = []
        if chunk.kind & _ERROR_BIT:
            self._errors.append(self._error(chunk))
            if len(self._errors) > MAX_ERRORS:
                raise ProtocolViolation("A reply of errors without end", "no request has so many")
        elif chunk.kind == NBD_REPLY_TYPE_OFFSET_DATA:
            offset = int(_OFFSET.unpack_from(chunk.payload)[0])
            self._cover(offset, len(chunk.payload) - _OFFSET.size)
            events.append(Data(self.request.cookie, offset, chunk.payload[_OFFSET.size :]))
        elif chunk.kind == NBD_REPLY_TYPE_OFFSET_HOLE:
            offset, length = _HOLE.unpack(chunk.payload)
            self._cover(offset, length)
            events.append(Hole(self.request.cookie, offset, length))
        elif chunk.kind in (NBD_REPLY_TYPE_BLOCK_STATUS, NBD_REPLY_TYPE_BLOCK_STATUS_EXT):
            events.append(self._block_status(chunk, extended))
        elif chunk.kind == NBD_REPLY_TYPE_SIZE:
            events.append(self._size(chunk))
        elif not chunk.done:
            raise ProtocolViolation("The server sent an empty chunk that is not the last", "it must be")
        if chunk.done:
            self.check_complete()
            events.append(Done(self.request.cookie, tuple(self._errors)))
        return events

    def _error(self, chunk: Chunk) -> ReplyError:
        """u32 error, u16 length of the message, the message, and for ERROR_OFFSET a u64 offset."""
        number, length = _ERROR.unpack_from(chunk.payload)
        end = _ERROR.size + length
        if number == 0 or length > NBD_MAX_STRING or end > len(chunk.payload):
            raise ProtocolViolation("The server sent an error chunk that makes no sense", "its fields must add up")
        message = parse_message(chunk.payload[_ERROR.size : end])
        if chunk.kind != NBD_REPLY_TYPE_ERROR_OFFSET:
            return ReplyError(number, message)
        if len(chunk.payload) - end < _OFFSET.size:
            raise ProtocolViolation("The server sent an error without its offset", "it has 8 bytes")
        offset = int(_OFFSET.unpack_from(chunk.payload, end)[0])
        if not self.request.offset <= offset < self.request.offset + self.request.length:
            raise ProtocolViolation(f"The server reports an error at {offset}", "that is outside the request")
        return ReplyError(number, message, offset)

    def _cover(self, offset: int, length: int) -> None:
        """Note that these bytes of a READ have come; neighbouring ranges are kept as one."""
        start, end = self.request.offset, self.request.offset + self.request.length
        if length == 0 or not start <= offset <= offset + length <= end:
            raise ProtocolViolation(f"The server sent {length} bytes at {offset}", "that is outside the request")
        if self._starts and self.request.flags & NBD_CMD_FLAG_DF:
            raise ProtocolViolation("The server sent a READ in pieces", "that it must not be was asked for")
        at = bisect.bisect_right(self._starts, offset)
        if (at and self._ends[at - 1] > offset) or (at < len(self._starts) and self._starts[at] < offset + length):
            raise ProtocolViolation(f"The server sent the bytes at {offset} twice", "chunks must not overlap")
        self._starts.insert(at, offset)
        self._ends.insert(at, offset + length)
        if at + 1 < len(self._starts) and self._ends[at] == self._starts[at + 1]:
            del self._ends[at], self._starts[at + 1]
        if at and self._ends[at - 1] == self._starts[at]:
            del self._ends[at - 1], self._starts[at]

    def _block_status(self, chunk: Chunk, extended: bool) -> BlockStatus:
        """u32 context, then u32 length and u32 flags of each extent.

        BLOCK_STATUS_EXT: u32 context, u32 count or 0, then u64 length and u64 flags of each.
        """
        layout, start = _EXTENT, _CONTEXT.size
        context = count = int(_CONTEXT.unpack_from(chunk.payload)[0])
        if chunk.kind == NBD_REPLY_TYPE_BLOCK_STATUS_EXT:
            if not extended:
                raise ProtocolViolation("The server sent 64-bit extents", "extended headers are not agreed on")
            layout, start = _EXTENDED_EXTENT, _EXTENDED_CONTEXT.size
            context, count = _EXTENDED_CONTEXT.unpack_from(chunk.payload)
        if (len(chunk.payload) - start) % layout.size:
            raise ProtocolViolation(f"The server sent extents in {len(chunk.payload)} bytes", "they don't add up")
        extents = tuple(layout.iter_unpack(memoryview(chunk.payload)[start:]))
        if chunk.kind == NBD_REPLY_TYPE_BLOCK_STATUS_EXT and count not in (0, len(extents)):
            raise ProtocolViolation(f"The server announced {count} extents and sent {len(extents)}", "they must agree")
        if context not in self._contexts_left:
            raise ProtocolViolation(f"The server sent extents of context {context}", "it is not awaited")
        self._contexts_left.remove(context)
        self._check_extents(extents)
        return BlockStatus(self.request.cookie, context, extents)

    def _check_extents(self, extents: tuple[tuple[int, int], ...]) -> None:
        lengths = [length for length, _ in extents]
        if 0 in lengths:
            raise ProtocolViolation("The server sent an extent of 0 bytes", "each has at least one")
        if self.request.flags & NBD_CMD_FLAG_REQ_ONE and (len(lengths) > 1 or lengths[0] > self.request.length):
            raise ProtocolViolation("The server sent more than one extent, or a longer one", "one was asked for")
        if sum(lengths[:-1]) >= self.request.length or self.request.offset + sum(lengths) > 2**64:
            raise ProtocolViolation("The server sent extents from beyond the request", "only the last may reach over")

    def _size(self, chunk: Chunk) -> SizeTold:
        """u64 size, u64 generation, u64 maximum, u32 granularity, u32 cause."""
        size = SizeReply(*_SIZE.unpack(chunk.payload))
        if size.size > MAX_EXPORT_SIZE or size.granularity == 0:
            raise ProtocolViolation(
                f"The server tells a size of {size.size} bytes in steps of {size.granularity}", "there is none such"
            )
        self._sizes += 1
        if self._sizes > 1 and not self.request.flags & NBD_CMD_FLAG_NOTIFY:
            raise ProtocolViolation("The server told the size twice", "one request asks for one")
        return SizeTold(self.request.cookie, size)

    def check_complete(self) -> None:
        """Whether a reply without an error has told all that was asked for."""
        if self._errors:
            return
        request = self.request
        if request.command == NBD_CMD_READ and request.length:
            whole = ([request.offset], [request.offset + request.length])
            if (self._starts, self._ends) != whole:
                raise ProtocolViolation("The server says that a READ is done", "it has not sent all of it")
        if request.command == NBD_CMD_BLOCK_STATUS and self._contexts_left:
            raise ProtocolViolation("The server says that a BLOCK_STATUS is done", "it has not told every context")
        if request.flags & _SIZE_FLAGS and not self._sizes:
            raise ProtocolViolation("The server says that a RESIZE is done", "it has not told the size")
