"""The bytes of the NBD protocol, written out from its document and not from the package under test.

Everything is big-endian. Names are those of the document, without their NBD_ prefix.
"""

import struct
from collections.abc import Sequence

IHAVEOPT = b"IHAVEOPT"
GREETING = b"NBDMAGIC" + IHAVEOPT + b"\x00\x03"
"""Fixed newstyle, and NO_ZEROES."""

# Options, and what they are answered with
EXPORT_NAME, ABORT, LIST, PEEK_EXPORT, STARTTLS, INFO, GO = 1, 2, 3, 4, 5, 6, 7
STRUCTURED_REPLY, LIST_META_CONTEXT, SET_META_CONTEXT, EXTENDED_HEADERS = 8, 9, 10, 11

ACK, SERVER, REP_INFO, META_CONTEXT = 1, 2, 3, 4
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_PLATFORM, ERR_TLS_REQD = (0x80000000 | number for number in (1, 2, 3, 4, 5))
ERR_UNKNOWN, ERR_SHUTDOWN, ERR_BLOCK_SIZE_REQD, ERR_TOO_BIG, ERR_EXT_HEADER_REQD = (
    0x80000000 | number for number in (6, 7, 8, 9, 10)
)

INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE, INFO_RESIZE = 0, 1, 2, 3, 4

# Transmission flags
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, ROTATIONAL, SEND_TRIM, SEND_WRITE_ZEROES = (1 << bit for bit in range(7))
SEND_DF, CAN_MULTI_CONN, SEND_RESIZE, SEND_CACHE, SEND_FAST_ZERO = (1 << bit for bit in range(7, 12))

# Commands, and their flags
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, RESIZE = range(9)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = (1 << bit for bit in range(6))
SIZE, QUERY, NOTIFY, SHRINK, FIT, EXTEND, CANCEL = (1 << bit for bit in range(6, 13))

# Chunks
NONE, OFFSET_DATA, OFFSET_HOLE, STATUS, STATUS_EXT, SIZE_CHUNK = 0, 1, 2, 5, 6, 7
ERROR, ERROR_OFFSET = 0x8001, 0x8002

EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP = 1, 5, 12, 22, 28, 75, 95

SIMPLE, STRUCTURED, EXTENDED = "simple", "structured", "extended"
MODES = (SIMPLE, STRUCTURED, EXTENDED)
"""How a connection's requests and replies look."""

ALL_THAT_REMAINS = 2**64 - 1
MIB = 1 << 20


def option(number: int, data: bytes = b"", *, length: int | None = None, magic: bytes = IHAVEOPT) -> bytes:
    """An option; `length` is what its header says of its data, where that is to be a lie."""
    return magic + struct.pack(">II", number, len(data) if length is None else length) + data


def export_query(name: bytes, infos: Sequence[int] = ()) -> bytes:
    """The data of INFO and GO."""
    return struct.pack(">I", len(name)) + name + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def context_query(name: bytes, queries: Sequence[bytes] = ()) -> bytes:
    """The data of LIST_META_CONTEXT and SET_META_CONTEXT."""
    packed = struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
    return packed + b"".join(struct.pack(">I", len(query)) + query for query in queries)


def request(mode: str, command: int, offset: int, length: int, flags: int = 0, cookie: int = 1) -> bytes:
    """The header of a request in this mode."""
    if mode == EXTENDED:
        return struct.pack(">IHHQQQ", 0x21E41C71, flags, command, cookie, offset, length)
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)
