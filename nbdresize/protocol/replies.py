"""A server's replies to requests, from the client's side: bytes in, events out, nothing believed.

    replies = ReplyStream(negotiated)
    send(replies.request(Request(0, NBD_CMD_READ, cookie, offset, length)))
    for event in replies.feed(receive()): ...

Each reply is held against the request that it claims to answer. A server that breaks the protocol gets
ProtocolViolation raised at the caller, who drops the connection; so does one that sends more than a reply can need.
Source: the NBD protocol document, "Simple reply message" to "Structured reply types".
"""

import struct
from collections.abc import Iterator

from nbdresize.protocol.constants import (
    NBD_CMD_DISC,
    NBD_CMD_READ,
    NBD_EXTENDED_REPLY_MAGIC,
    NBD_REPLY_FLAG_DONE,
    NBD_SIMPLE_REPLY_MAGIC,
    NBD_STRUCTURED_REPLY_MAGIC,
)
from nbdresize.protocol.negotiated import Mode, Negotiated
from nbdresize.protocol.reply_check import (
    Chunk,
    Data,
    Done,
    ReplyCheck,
    ReplyError,
    ReplyEvent,
    check_chunk_length,
)
from nbdresize.protocol.transmission import Request
from nbdresize.protocol.violation import ProtocolViolation

_MAGIC = struct.Struct(">I")
_SIMPLE = struct.Struct(">IIQ")
_STRUCTURED = struct.Struct(">IHHQI")
_EXTENDED = struct.Struct(">IHHQQQ")

MAX_OUTSTANDING = 1024
"""How many requests may wait for their replies at once."""


class ReplyStream:
    """What one connection receives in transmission. Holds one chunk at a time, and what the caller fed at once."""

    def __init__(self, negotiated: Negotiated) -> None:
        self._mode = negotiated.mode
        self._contexts = frozenset(context.id for context in negotiated.contexts)
        self._received = bytearray()
        self._outstanding: dict[int, ReplyCheck] = {}

    @property
    def outstanding(self) -> int:
        """How many requests are not fully answered."""
        return len(self._outstanding)

    def request(self, request: Request) -> bytes:
        """The header to send for `request`, whose reply is expected from now on; the payload of a WRITE follows it.

        Raises RuntimeError where its cookie is that of an outstanding request, or there are too many of these.
        """
        if request.command == NBD_CMD_DISC:
            return request.pack(self._mode)
        if request.cookie in self._outstanding:
            raise RuntimeError(f"A request with the cookie {request.cookie} is outstanding already")
        if len(self._outstanding) >= MAX_OUTSTANDING:
            raise RuntimeError(f"{MAX_OUTSTANDING} requests are outstanding already")
        self._outstanding[request.cookie] = ReplyCheck(request, self._contexts)
        return request.pack(self._mode)

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[ReplyEvent]:
        """Take in what was received; the events that follow from it. Raises ProtocolViolation."""
        self._received += data
        return self._events()

    def _events(self) -> Iterator[ReplyEvent]:
        while len(self._received) >= _MAGIC.size:
            magic = int(_MAGIC.unpack_from(self._received)[0])
            if magic == NBD_SIMPLE_REPLY_MAGIC and self._mode is not Mode.EXTENDED:
                events = self._take_simple()
            elif magic == NBD_STRUCTURED_REPLY_MAGIC and self._mode is Mode.STRUCTURED:
                events = self._take_chunk(_STRUCTURED)
            elif magic == NBD_EXTENDED_REPLY_MAGIC and self._mode is Mode.EXTENDED:
                events = self._take_chunk(_EXTENDED)
            else:
                raise ProtocolViolation(f"A reply starts with {magic:#010x}", "that is not what was agreed on")
            if events is None:
                return
            yield from events

    def _take_simple(self) -> list[ReplyEvent] | None:
        """A simple reply: u32 magic, u32 error, u64 cookie, and after a successful READ the data."""
        if len(self._received) < _SIMPLE.size:
            return None
        _, error, cookie = _SIMPLE.unpack_from(self._received)
        check = self._find(cookie)
        request = check.request
        if request.command == NBD_CMD_READ and self._mode is not Mode.SIMPLE:
            raise ProtocolViolation("The server sent a simple reply to a READ", "chunks are agreed on")
        length = request.length if request.command == NBD_CMD_READ and not error else 0
        if not error and self._mode is not Mode.SIMPLE:
            check.check_complete()
        if len(self._received) < _SIMPLE.size + length:
            return None
        data = self._take(_SIMPLE.size, length)
        del self._outstanding[cookie]
        events: list[ReplyEvent] = [Data(cookie, request.offset, data)] if length else []
        return [*events, Done(cookie, (ReplyError(error),) if error else ())]

    def _take_chunk(self, layout: struct.Struct) -> list[ReplyEvent] | None:
        """A chunk: u32 magic, u16 flags, u16 type, u64 cookie, u32 length, payload.

        With extended headers, u64 offset of the request stands before the length, which is a u64.
        """
        if len(self._received) < layout.size:
            return None
        _, flags, kind, cookie, *offset, length = layout.unpack_from(self._received)
        check = self._find(cookie)
        if offset and offset[0] != check.request.offset:
            raise ProtocolViolation(f"A chunk says that its request was at {offset[0]}", "it was not")
        check_chunk_length(kind, length, check.request)
        if len(self._received) < layout.size + length:
            return None
        done = bool(flags & NBD_REPLY_FLAG_DONE)
        events = check.take(Chunk(kind, done, self._take(layout.size, length)), extended=self._mode is Mode.EXTENDED)
        if done:
            del self._outstanding[cookie]
        return events

    def _find(self, cookie: int) -> ReplyCheck:
        check = self._outstanding.get(cookie)
        if check is None:
            raise ProtocolViolation(f"The server replied to a request with the cookie {cookie:#x}", "there is none")
        return check

    def _take(self, start: int, length: int) -> bytes:
        taken = bytes(memoryview(self._received)[start : start + length])
        del self._received[: start + length]
        return taken
