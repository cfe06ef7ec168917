"""Replies taken from the stream, every one checked, most of their payload never looked at.

Where all replies of a load look alike, a whole receive of them is parsed in one step (UniformReplies); else one by one
(VariedReplies): reads among writes, chunks of structured replies, payload that somebody wants to see.
"""

import struct
from collections.abc import Callable, Sequence

from nbdresize.loads.requests import RequestTable
from nbdresize.protocol.constants import (
    NBD_MAX_STRING,
    NBD_REPLY_FLAG_DONE,
    NBD_REPLY_TYPE_ERROR,
    NBD_REPLY_TYPE_ERROR_OFFSET,
    NBD_REPLY_TYPE_NONE,
    NBD_REPLY_TYPE_OFFSET_DATA,
    NBD_REPLY_TYPE_OFFSET_HOLE,
    NBD_SIMPLE_REPLY_MAGIC,
    NBD_STRUCTURED_REPLY_MAGIC,
)
from nbdresize.protocol.reply_check import ReplyError
from nbdresize.protocol.violation import ProtocolViolation

BUFFER = 256 << 10
"""What is received at once: small enough to stay in a processor's own cache."""

_HEADER = 16
_SUCCESS = NBD_SIMPLE_REPLY_MAGIC << 32
_SIMPLE = struct.Struct(">IIQ")
_CHUNK = struct.Struct(">IHHQI")
_MAGIC = struct.Struct(">I")
_OFFSET = struct.Struct(">Q")
_HOLE = struct.Struct(">QI")
_ERROR = struct.Struct(">IH")
_SECTOR, _SOME_CHUNKS = 512, 64
"""A reply has no more chunks than its block has sectors, or these few where it is small."""
_LONGEST_ERROR = _ERROR.size + NBD_MAX_STRING + _OFFSET.size

Deliver = Callable[[int, int, memoryview | None, int], None]
"""Takes a piece of what a READ brought: its cookie, where in its block, the bytes (None for zeroes), their length."""


class Refused(Exception):
    """The server answered a request with an error."""

    def __init__(self, cookie: int, error: ReplyError) -> None:
        super().__init__(cookie, error)
        self.cookie = cookie
        self.error = error


class Replies:
    """Receive into `room()`, then `take` what came: the cookies of the replies that are complete now.

    `outstanding` are the cookies of the requests that are under way. Who sends a request adds its cookie; the reply
    takes it away. Nothing is taken for any other cookie, not even the beginning of a reply: not before its request, and
    not after its first reply, whose bytes a second one could replace.

    Raises ProtocolViolation, and Refused.
    """

    def __init__(self) -> None:
        self.outstanding: set[int] = set()
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        self._kept = 0

    def room(self) -> memoryview:
        return self._view[self._kept :] if self._kept else self._view

    def take(self, count: int) -> Sequence[int]:
        raise NotImplementedError

    @property
    def unfinished(self) -> bool:
        """Whether something has come that is not complete."""
        return bool(self._kept)

    def _keep(self, position: int, have: int) -> None:
        """The beginning of something that has not come in full moves to the front."""
        self._kept = have - position
        if self._kept:
            self._buffer[: self._kept] = self._buffer[position:have]


class UniformReplies(Replies):
    """Simple replies, each followed by `payload` bytes.

    The layout of a reply: u32 magic, u32 error, u64 cookie; magic and error are one number here, as only one is good.
    """

    def __init__(self, payload: int) -> None:
        super().__init__()
        self._stride = _HEADER + payload
        self._layouts: dict[int, struct.Struct] = {}
        self._next = 0
        """Where the next header begins, from the front of the buffer."""
        self._begun: tuple[int, ...] = ()
        """The cookie of the reply whose payload is still coming."""

    def take(self, count: int) -> Sequence[int]:
        have, at = self._kept + count, self._next
        cookies: tuple[int, ...] = ()
        if have - at >= _HEADER:
            headers = (have - at - _HEADER) // self._stride + 1
            fields = (self._layouts.get(headers) or self._layout(headers)).unpack_from(self._buffer, at)
            if fields.count(_SUCCESS) != headers:
                _explain(fields)
            cookies = fields[1::2]
            at += headers * self._stride
        if at > have:  # the last one is not complete
            self._next = at - have
            self._kept = 0
            if not cookies:
                return ()
            done = self._begun + cookies[:-1]
            self._begun = cookies[-1:]
        else:
            if at < have:
                self._keep(at, have)
            else:
                self._kept = 0
            self._next = 0
            done = self._begun + cookies
            self._begun = ()
        outstanding = self.outstanding
        left = len(outstanding) - len(done)
        outstanding.difference_update(done)
        if len(outstanding) != left:
            raise unknown(max(done))
        if self._begun and self._begun[0] not in outstanding:
            raise unknown(self._begun[0])
        return done

    @property
    def unfinished(self) -> bool:
        return bool(self._kept or self._begun)

    def _layout(self, headers: int) -> struct.Struct:
        between = self._stride - _HEADER
        layout = struct.Struct(">QQ" + f"{between}xQQ" * (headers - 1))
        self._layouts[headers] = layout
        return layout


def _explain(fields: Sequence[int]) -> None:
    """Raise what is wrong with the first bad one of these."""
    for first, cookie in zip(fields[::2], fields[1::2], strict=True):
        _check_simple(first >> 32, first & 0xFFFFFFFF, cookie)


def _check_simple(magic: int, error: int, cookie: int) -> None:
    if magic != NBD_SIMPLE_REPLY_MAGIC:
        raise _wrong_magic(magic)
    if error:
        raise Refused(cookie, ReplyError(error))


class VariedReplies(Replies):
    """Replies to the requests of a table, simple or in chunks; `deliver` gets what reads bring."""

    def __init__(self, table: RequestTable, *, structured: bool, deliver: Deliver | None = None) -> None:
        super().__init__()
        self._table = table
        self._block = table.load.block
        self._most_chunks = max(_SOME_CHUNKS, self._block // _SECTOR)
        self._structured = structured
        self._deliver = deliver
        self._cookie = self._at = self._left = 0
        """Of the payload that is coming: whose it is, where in its block, and how much is still to come."""
        self._last = True
        """Whether that ends the reply."""
        self._covered: dict[int, list[tuple[int, int]]] = {}
        """Of reads whose chunks are coming: beginnings and ends of what came, within the block."""

    def take(self, count: int) -> Sequence[int]:
        have, position = self._kept + count, 0
        done: list[int] = []
        while True:
            if self._left:
                taken = min(self._left, have - position)
                if self._deliver is not None and taken:
                    self._deliver(self._cookie, self._at, self._view[position : position + taken], taken)
                position += taken
                self._at += taken
                self._left -= taken
                if self._left:
                    break
                if self._last:
                    self._finish(self._cookie, done)
            following = self._header(position, have, done)
            if following is None:
                break
            position = following
        self._keep(position, have)
        return done

    def _header(self, position: int, have: int, done: list[int]) -> int | None:
        """Take in the header at `position`; where it ends, or None where it has not come in full."""
        if have - position < _HEADER:
            return None
        (magic,) = _MAGIC.unpack_from(self._buffer, position)
        if magic == NBD_STRUCTURED_REPLY_MAGIC and self._structured:
            return self._chunk(position, have, done)
        magic, error, cookie = _SIMPLE.unpack_from(self._buffer, position)
        _check_simple(magic, error, cookie)
        if self._reads(cookie):
            if self._structured:
                raise ProtocolViolation("A READ is answered by a simple reply", "structured replies were agreed on")
            self._expect(cookie, 0, self._block, last=True)
        else:
            self._finish(cookie, done)
        return position + _HEADER

    def _chunk(self, position: int, have: int, done: list[int]) -> int | None:
        if have - position < _CHUNK.size:
            return None
        _, flags, kind, cookie, length = _CHUNK.unpack_from(self._buffer, position)
        body = position + _CHUNK.size
        needed = _OFFSET.size if kind == NBD_REPLY_TYPE_OFFSET_DATA else length
        if needed > _LONGEST_ERROR:
            raise ProtocolViolation(f"A chunk of type {kind} has {length} bytes", "none is that long")
        if have - body < needed:
            return None
        reads, last = self._reads(cookie), bool(flags & NBD_REPLY_FLAG_DONE)
        if kind in (NBD_REPLY_TYPE_ERROR, NBD_REPLY_TYPE_ERROR_OFFSET) and length >= _ERROR.size:
            error, told = _ERROR.unpack_from(self._buffer, body)
            text = self._buffer[body + _ERROR.size : body + min(length, _ERROR.size + told)]
            message = "".join(c if c.isprintable() else "?" for c in text.decode(errors="replace"))
            raise Refused(cookie, ReplyError(error, message))
        if kind == NBD_REPLY_TYPE_OFFSET_DATA and reads and length > _OFFSET.size:
            (offset,) = _OFFSET.unpack_from(self._buffer, body)
            self._cover(cookie, offset, length - _OFFSET.size, last=last)
            return body + _OFFSET.size
        if kind == NBD_REPLY_TYPE_OFFSET_HOLE and reads and length == _HOLE.size:
            offset, hole = _HOLE.unpack_from(self._buffer, body)
            self._cover(cookie, offset, hole, last=last)
            if self._deliver is not None:
                self._deliver(cookie, self._at, None, hole)
            self._left = 0
        elif kind == NBD_REPLY_TYPE_NONE and not length and last:
            self._complete(cookie, reads=reads)
        else:
            raise ProtocolViolation(f"A chunk of type {kind} with {length} bytes", "that answers nothing asked here")
        if last:
            self._finish(cookie, done)
        return body + int(length)

    @property
    def unfinished(self) -> bool:
        return bool(self._kept or self._left or self._covered)

    def _finish(self, cookie: int, done: list[int]) -> None:
        self.outstanding.remove(cookie)
        done.append(cookie)

    def _reads(self, cookie: int) -> bool:
        """Whether it is a read's. Raises ProtocolViolation where nothing with that cookie is under way."""
        if cookie not in self.outstanding:
            raise unknown(cookie)
        return self._table.reads(cookie)

    def _cover(self, cookie: int, offset: int, length: int, *, last: bool) -> None:
        """A chunk brings these bytes of the disk, or says that they are zeroes."""
        at = offset - self._table.offset(cookie)
        if at < 0 or not length or at + length > self._block:
            raise ProtocolViolation(f"A chunk brings {length} bytes at {offset}", "those were not asked for")
        if not (last and length == self._block and cookie not in self._covered):
            self._covered.setdefault(cookie, []).append((at, at + length))
            if len(self._covered[cookie]) > self._most_chunks:
                raise ProtocolViolation(f"A reply has {len(self._covered[cookie])} chunks", "nobody sends so many")
            if last:
                self._complete(cookie, reads=True)
        self._expect(cookie, at, length, last=last)

    def _complete(self, cookie: int, *, reads: bool) -> None:
        """Whether a reply in chunks brought all of its block, and nothing twice."""
        reached = 0
        for begin, end in sorted(self._covered.pop(cookie, [])):
            if begin != reached:
                break
            reached = end
        if reads and reached != self._block:
            raise ProtocolViolation("The chunks of a reply are not what was asked for", "each byte has to come once")

    def _expect(self, cookie: int, at: int, length: int, *, last: bool) -> None:
        self._cookie, self._at, self._left, self._last = cookie, at, length, last


def unknown(cookie: int) -> ProtocolViolation:
    """What to raise for anything that answers a request which is not under way: not asked, or answered before."""
    return ProtocolViolation(f"A reply answers no request that is under way (cookie {cookie:#x})", "each gets one")


def _wrong_magic(magic: int) -> ProtocolViolation:
    return ProtocolViolation(f"A reply starts with {magic:#010x}", "that is not the magic agreed on")
