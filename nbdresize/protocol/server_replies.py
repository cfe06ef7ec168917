"""A server's replies to requests, packed: simple, structured, and with extended headers.

Source: the NBD protocol document, "Transmission phase"; `docs/resize-extension.md` for the SIZE chunk.
"""

import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from nbdresize.protocol.constants import (
    NBD_EINVAL,
    NBD_EIO,
    NBD_ENOMEM,
    NBD_ENOSPC,
    NBD_ENOTSUP,
    NBD_EOVERFLOW,
    NBD_EPERM,
    NBD_ESHUTDOWN,
    NBD_EXTENDED_REPLY_MAGIC,
    NBD_REPLY_FLAG_DONE,
    NBD_REPLY_TYPE_BLOCK_STATUS,
    NBD_REPLY_TYPE_BLOCK_STATUS_EXT,
    NBD_REPLY_TYPE_ERROR,
    NBD_REPLY_TYPE_NONE,
    NBD_REPLY_TYPE_OFFSET_DATA,
    NBD_REPLY_TYPE_OFFSET_HOLE,
    NBD_REPLY_TYPE_SIZE,
    NBD_SIMPLE_REPLY_MAGIC,
    NBD_STRUCTURED_REPLY_MAGIC,
)
from nbdresize.protocol.negotiated import Mode
from nbdresize.protocol.strings import pack_message

_SIMPLE = struct.Struct(">IIQ")
_STRUCTURED = struct.Struct(">IHHQI")
_EXTENDED = struct.Struct(">IHHQQQ")
_HOLE = struct.Struct(">QI")
_EXTENT = struct.Struct(">II")
_EXTENDED_EXTENT = struct.Struct(">QQ")
_SIZE = struct.Struct(">QQQII")

_ERRNOS = {
    errno.EPERM: NBD_EPERM,
    errno.EACCES: NBD_EPERM,
    errno.EROFS: NBD_EPERM,
    errno.EIO: NBD_EIO,
    errno.ENOMEM: NBD_ENOMEM,
    errno.EINVAL: NBD_EINVAL,
    errno.ENOSPC: NBD_ENOSPC,
    errno.EDQUOT: NBD_ENOSPC,
    errno.EFBIG: NBD_ENOSPC,
    errno.EOVERFLOW: NBD_EOVERFLOW,
    errno.EOPNOTSUPP: NBD_ENOTSUP,
    errno.ESHUTDOWN: NBD_ESHUTDOWN,
}


@dataclass(frozen=True)
class SizeReply:
    """The payload of a SIZE chunk. Sizes in bytes; `cause` as in the extension's table."""

    size: int
    generation: int
    maximum: int
    granularity: int
    cause: int


def wire_errno(number: int) -> int:
    """The NBD error for one of Linux. What the protocol has no number for is EINVAL, as the document says."""
    return _ERRNOS.get(number, NBD_EINVAL)


@dataclass(frozen=True)
class Replies:
    """Packs the replies of a connection. `cookie` and `offset` are always those of the request."""

    mode: Mode

    def success(self, cookie: int, offset: int) -> bytes:
        """Done, with nothing to tell: a simple reply, or an empty chunk where all replies are chunks."""
        if self.mode is Mode.EXTENDED:
            return self.chunk(NBD_REPLY_TYPE_NONE, cookie, offset, 0)
        return _SIMPLE.pack(NBD_SIMPLE_REPLY_MAGIC, 0, cookie)

    def done(self, cookie: int, offset: int) -> bytes:
        """The last chunk of a reply that came in several."""
        return self.chunk(NBD_REPLY_TYPE_NONE, cookie, offset, 0)

    def error(self, cookie: int, offset: int, number: int, text: str = "") -> bytes:
        """A failure: u32 error, and where replies are chunks u16 length and so many bytes of text."""
        if self.mode is Mode.SIMPLE:
            return _SIMPLE.pack(NBD_SIMPLE_REPLY_MAGIC, number, cookie)
        message = pack_message(text)
        payload = struct.pack(">IH", number, len(message)) + message
        return self.chunk(NBD_REPLY_TYPE_ERROR, cookie, offset, len(payload)) + payload

    def data_header(self, cookie: int, offset: int, length: int) -> bytes:
        """What precedes the bytes of a READ that is answered in one piece."""
        if self.mode is Mode.SIMPLE:
            return _SIMPLE.pack(NBD_SIMPLE_REPLY_MAGIC, 0, cookie)
        return self.data_chunk(cookie, offset, offset, length, done=True)

    def data_chunk(self, cookie: int, offset: int, at: int, length: int, *, done: bool = False) -> bytes:
        """The header of a chunk with data: u64 offset, then the `length` bytes at `at`."""
        return self.chunk(NBD_REPLY_TYPE_OFFSET_DATA, cookie, offset, 8 + length, done=done) + at.to_bytes(8, "big")

    def hole_chunk(self, cookie: int, offset: int, at: int, length: int, *, done: bool = False) -> bytes:
        """A chunk for `length` zero bytes at `at`: u64 offset, u32 length."""
        return self.chunk(NBD_REPLY_TYPE_OFFSET_HOLE, cookie, offset, 12, done=done) + _HOLE.pack(at, length)

    def block_status(self, cookie: int, offset: int, context: int, extents: Sequence[tuple[int, int]]) -> bytes:
        """Extents as (length, flags): u32 context, then u32 length and u32 flags each.

        With extended headers: u32 context, u32 count, then u64 length and u64 flags each.
        """
        if self.mode is Mode.EXTENDED:
            payload = struct.pack(">II", context, len(extents)) + b"".join(
                _EXTENDED_EXTENT.pack(*extent) for extent in extents
            )
            return self.chunk(NBD_REPLY_TYPE_BLOCK_STATUS_EXT, cookie, offset, len(payload)) + payload
        payload = context.to_bytes(4, "big") + b"".join(_EXTENT.pack(*extent) for extent in extents)
        return self.chunk(NBD_REPLY_TYPE_BLOCK_STATUS, cookie, offset, len(payload)) + payload

    def size(self, cookie: int, offset: int, size: SizeReply, *, done: bool = True) -> bytes:
        """A SIZE chunk: u64 size, u64 generation, u64 maximum, u32 granularity, u32 cause."""
        payload = _SIZE.pack(size.size, size.generation, size.maximum, size.granularity, size.cause)
        return self.chunk(NBD_REPLY_TYPE_SIZE, cookie, offset, len(payload), done=done) + payload

    def chunk(self, kind: int, cookie: int, offset: int, length: int, *, done: bool = True) -> bytes:
        """The header of a chunk: u32 magic, u16 flags, u16 type, u64 cookie, u32 length of the payload behind it.

        With extended headers: u32 magic, u16 flags, u16 type, u64 cookie, u64 offset of the request, u64 length.
        """
        flags = NBD_REPLY_FLAG_DONE if done else 0
        if self.mode is Mode.EXTENDED:
            return _EXTENDED.pack(NBD_EXTENDED_REPLY_MAGIC, flags, kind, cookie, offset, length)
        return _STRUCTURED.pack(NBD_STRUCTURED_REPLY_MAGIC, flags, kind, cookie, length)
