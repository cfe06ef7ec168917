"""The transmission phase of one connection: many requests in by one receive, their replies out by one send."""

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nbdresize.protocol.constants import (
    NBD_CMD_DISC,
    NBD_CMD_FLAG_DF,
    NBD_CMD_FLAG_PAYLOAD_LEN,
    NBD_CMD_READ,
    NBD_CMD_WRITE,
    NBD_EXTENDED_REPLY_MAGIC,
    NBD_EXTENDED_REQUEST_MAGIC,
    NBD_REPLY_FLAG_DONE,
    NBD_REPLY_TYPE_NONE,
    NBD_REPLY_TYPE_OFFSET_DATA,
    NBD_REQUEST_MAGIC,
    NBD_SIMPLE_REPLY_MAGIC,
    NBD_STRUCTURED_REPLY_MAGIC,
)
from nbdresize.protocol.negotiated import Mode
from nbdresize.protocol.transmission import Request
from nbdresize.server.stream import PeerGone, Stream
from nbdresize.storage.mapping import CHUNK_SHIFT, Mapping
from nbdresize.storage.write_map import WriteMap

SMALL = 32 << 10
"""Up to this length the bytes of a read or write pass through the buffers; longer ones go by sendfile and splice."""

BATCH = 128 << 10
"""The most that one send returns, in bytes; small enough to stay in the processor's cache."""

_MOST_PARTS = 512
_SHARE = 4
_LEAST_SHARE = 100
"""Replies go out after each such part of the requests that have come, or so many bytes of them, so that the client
works on the first while the last are done: with all at the end, the two would take turns."""

FIRST_INTAKE = 4 << 10
LARGEST_INTAKE = 256 << 10
"""Bytes of the receive buffer: of a connection that has done little yet, and at the most."""

_REQUEST = struct.Struct(">IHHQQI")
_EXTENDED_REQUEST = struct.Struct(">IHHQQQ")
_SIMPLE_REPLY = struct.Struct(">IIQ")
_DATA_CHUNK = struct.Struct(">IHHQIQ")
_EXTENDED_DATA_CHUNK = struct.Struct(">IHHQQQQ")
_EXTENDED_NONE_CHUNK = struct.Struct(">IHHQQQ")


class Counters(Protocol):
    """What a connection has done; read by the admin socket while it goes on."""

    requests: int
    bytes_read: int
    bytes_written: int


class Sized(Protocol):
    """A size in bytes that changes while it is in use."""

    @property
    def size(self) -> int: ...


class Marked(Protocol):
    """Something whose writes may have to be marked, which may begin and end at any time."""

    @property
    def write_map(self) -> WriteMap | None: ...


@dataclass(frozen=True)
class QuickPath:
    """What the hot loop needs to serve small requests by itself: the volume's descriptor and the export's live size.

    `mapping` is the file as memory, and what of it may be handed to the kernel as such; None where nothing may.
    `marked` is where its writes are marked, each before it is answered, in the map that is there after the write.
    `nowait`: the preadv flags with which a read fails rather than waits.
    """

    fd: int
    live: Sized
    marked: Marked
    nowait: int
    may_write: bool
    mapping: Mapping | None


class Answers(Protocol):
    """Whoever deals with what the hot loop does not. Every method replies by itself, and raises PeerGone."""

    def answer(self, request: Request) -> None:
        """A request without a payload."""

    def read_slowly(self, requests: list[Request]) -> None:
        """READs within the size, none of which was in the page cache; reading them ahead has begun."""

    def write(self, request: Request, payload: memoryview) -> None:
        """A WRITE whose payload is here."""

    def receive_write(self, request: Request, head: memoryview) -> None:
        """A WRITE of which only the beginning of the payload is here; the rest is taken off the stream."""

    def skip(self, request: Request, arrived: int) -> None:
        """Some other request with a payload, of which so many bytes have arrived; the rest is taken off too."""


def serve_requests(
    stream: Stream,
    mode: Mode,
    quick: QuickPath | None,
    answers: Answers,
    counters: Counters,
    early: bytes = b"",
    ending: Callable[[], bool] = lambda: False,
) -> None:
    """Answer requests until the client says NBD_CMD_DISC, the stream ends, or `ending` tells so. Raises PeerGone.

    `early` is what came with the end of the handshake.

    One long function, since each step out of it costs a call per request: a small read that is in the page cache and
    a small write whose payload has arrived are dealt with right here, in a few microseconds; all else goes to
    `answers`, after the replies that were gathered before it.

    Wire layout of a request, big-endian: u32 magic, u16 flags, u16 command, u64 cookie, u64 offset, u32 length (u64
    with extended headers), then the payload of a WRITE. Source: the NBD protocol document, "Request message".
    """
    extended, structured = mode is Mode.EXTENDED, mode is not Mode.SIMPLE
    header = _EXTENDED_REQUEST if extended else _REQUEST
    right_magic = NBD_EXTENDED_REQUEST_MAGIC if extended else NBD_REQUEST_MAGIC
    header_size, unpack = header.size, header.unpack_from
    plain_write = NBD_CMD_FLAG_PAYLOAD_LEN if extended else 0
    plain_read = NBD_CMD_FLAG_DF if structured else 0
    simple_reply, data_chunk = _SIMPLE_REPLY.pack, _DATA_CHUNK.pack
    extended_data_chunk, extended_none_chunk = _EXTENDED_DATA_CHUNK.pack, _EXTENDED_NONE_CHUNK.pack
    preadv, pwrite = os.preadv, os.pwrite
    fd = quick.fd if quick else -1
    nowait = quick.nowait if quick else 0
    marked = quick.marked if quick else None
    may_read, may_write = quick is not None, quick is not None and quick.may_write
    read_reply = (_EXTENDED_DATA_CHUNK if extended else _DATA_CHUNK if structured else _SIMPLE_REPLY).size
    write_reply = (_EXTENDED_NONE_CHUNK if extended else _SIMPLE_REPLY).size
    mapping = quick.mapping if quick else None
    mapped: memoryview | None = None
    data: memoryview | None = None
    known: set[int] = set()

    intake = bytearray(max(FIRST_INTAKE, len(early)))
    intake[: len(early)] = early
    view = memoryview(intake)
    replies: list[bytes | memoryview] = []
    room = memoryview(bytearray(0))
    start = gathered = filled = 0
    end = len(early)

    while True:
        size = quick.live.size if quick else 0
        done = read = written = 0
        if mapping is not None:
            mapping.renew()
            known = mapping.known
            if mapped is not mapping.view:
                mapped, data = mapping.view, None  # nothing keeps the old one
        chunks: list[int] = []
        slow: list[Request] = []
        spliced = False
        share = max((end - start) // _SHARE, _LEAST_SHARE)
        turn = start + share
        while end - start >= header_size:
            if start >= turn or gathered >= BATCH or len(replies) >= _MOST_PARTS:
                turn = start + share
                if replies:
                    with stream.sending:
                        stream.send_parts(replies, gathered)
                    replies = []
                    gathered = filled = 0
            magic, flags, command, cookie, offset, length = unpack(intake, start)
            if magic != right_magic:
                if replies:
                    with stream.sending:
                        stream.send_parts(replies, gathered)
                raise PeerGone(f"a request with the magic {magic:#x}")
            if command == NBD_CMD_READ:
                if may_read and 0 < length <= SMALL and offset + length <= size and not flags & ~plain_read:
                    chunk = offset >> CHUNK_SHIFT
                    if chunk in known and (offset + length - 1) >> CHUNK_SHIFT == chunk:
                        data = mapped[offset : offset + length]  # type: ignore[index]
                    else:
                        if filled + length > len(room):
                            room = memoryview(bytearray(BATCH + SMALL))
                            filled = 0
                        data = room[filled : filled + length]
                        try:
                            got = preadv(fd, (data,), offset, nowait)
                        except OSError:
                            got = -1  # not at hand, or broken: found out later, at leisure
                        if got != length:
                            slow.append(Request(flags, command, cookie, offset, length))
                            start += header_size
                            continue
                        filled += length
                        chunks.append(chunk)
                    if extended:
                        replies.append(
                            extended_data_chunk(
                                NBD_EXTENDED_REPLY_MAGIC,
                                NBD_REPLY_FLAG_DONE,
                                NBD_REPLY_TYPE_OFFSET_DATA,
                                cookie,
                                offset,
                                length + 8,
                                offset,
                            )
                        )
                    elif structured:
                        replies.append(
                            data_chunk(
                                NBD_STRUCTURED_REPLY_MAGIC,
                                NBD_REPLY_FLAG_DONE,
                                NBD_REPLY_TYPE_OFFSET_DATA,
                                cookie,
                                length + 8,
                                offset,
                            )
                        )
                    else:
                        replies.append(simple_reply(NBD_SIMPLE_REPLY_MAGIC, 0, cookie))
                    replies.append(data)
                    gathered += read_reply + length
                    start += header_size
                    done += 1
                    read += length
                    continue
            elif command == NBD_CMD_WRITE and (not extended or flags & NBD_CMD_FLAG_PAYLOAD_LEN):
                payload = start + header_size
                arrived = end - payload
                if arrived < length:
                    if length <= SMALL:
                        break
                elif may_write and 0 < length <= SMALL and offset + length <= size and flags == plain_write:
                    try:
                        put = pwrite(fd, view[payload : payload + length], offset)
                    except OSError:
                        put = -1  # found out below
                    if put == length:
                        if marked is not None and (write_map := marked.write_map) is not None:
                            write_map.mark(offset, length)
                        replies.append(
                            extended_none_chunk(
                                NBD_EXTENDED_REPLY_MAGIC,
                                NBD_REPLY_FLAG_DONE,
                                NBD_REPLY_TYPE_NONE,
                                cookie,
                                offset,
                                0,
                            )
                            if extended
                            else simple_reply(NBD_SIMPLE_REPLY_MAGIC, 0, cookie)
                        )
                        gathered += write_reply
                        start = payload + length
                        done += 1
                        written += length
                        continue
            # everything else, one by one
            if slow:
                answers.read_slowly(slow)
                slow = []
            if replies:
                with stream.sending:
                    stream.send_parts(replies, gathered)
                replies = []
                gathered = filled = 0
            request = Request(flags, command, cookie, offset, length)
            start += header_size
            if flags & NBD_CMD_FLAG_PAYLOAD_LEN if extended else command == NBD_CMD_WRITE:
                arrived = min(length, end - start)
                if command != NBD_CMD_WRITE:
                    answers.skip(request, arrived)
                elif arrived == length:
                    answers.write(request, view[start : start + length])
                else:
                    answers.receive_write(request, view[start:end])
                    spliced = stream.direct
                start += arrived
            elif command == NBD_CMD_DISC:
                return
            else:
                answers.answer(request)
            size = quick.live.size if quick else 0
        if replies:
            with stream.sending:
                stream.send_parts(replies, gathered)
            replies = []
            gathered = filled = 0
        if slow:
            answers.read_slowly(slow)
        if chunks and mapping is not None:
            mapping.read(chunks)
            mapped = mapping.view
        counters.requests += done
        counters.bytes_read += read
        counters.bytes_written += written
        if ending():
            return
        if start == end:
            start = end = 0
        if len(intake) - end < header_size + SMALL and len(intake) < LARGEST_INTAKE and end > FIRST_INTAKE // 2:
            larger = bytearray(LARGEST_INTAKE)
            larger[: end - start] = view[start:end]
            intake, view = larger, memoryview(larger)
            start, end = 0, end - start
        elif start and len(intake) - start < header_size + SMALL:
            left = bytes(view[start:end])  # the beginning of a request moves to the front, so that its rest has room
            start, end = 0, len(left)
            view[:end] = left
        if done == 1:  # with more under way, there is no hurry
            stream.linger()
        # Behind a long write there often is another one: only its header is taken in, so that all else can be spliced.
        received = stream.recv_into(view[end : end + header_size] if spliced and not end else view[end:])
        if not received:
            return
        end += received
