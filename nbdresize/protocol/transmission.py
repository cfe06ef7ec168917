"""Requests of the transmission phase: their headers, and the one check of their form.

What depends on the live size and on other clients (ranges, budgets, who may shrink) is checked where the request is
done. Source: the NBD protocol document, "Request message" and "Request types"; `docs/resize-extension.md`.
"""

import errno
import struct
from dataclasses import dataclass

from nbdresize.errors import InvalidArgument, NotAuthorized
from nbdresize.protocol.constants import (
    NBD_CMD_BLOCK_STATUS,
    NBD_CMD_CACHE,
    NBD_CMD_FLAG_CANCEL,
    NBD_CMD_FLAG_DF,
    NBD_CMD_FLAG_EXTEND,
    NBD_CMD_FLAG_FAST_ZERO,
    NBD_CMD_FLAG_FIT,
    NBD_CMD_FLAG_FUA,
    NBD_CMD_FLAG_NO_HOLE,
    NBD_CMD_FLAG_NOTIFY,
    NBD_CMD_FLAG_PAYLOAD_LEN,
    NBD_CMD_FLAG_QUERY,
    NBD_CMD_FLAG_REQ_ONE,
    NBD_CMD_FLAG_SHRINK,
    NBD_CMD_FLAG_SIZE,
    NBD_CMD_FLUSH,
    NBD_CMD_READ,
    NBD_CMD_RESIZE,
    NBD_CMD_TRIM,
    NBD_CMD_WRITE,
    NBD_CMD_WRITE_ZEROES,
    NBD_EXTENDED_REQUEST_MAGIC,
    NBD_FLAG_READ_ONLY,
    NBD_FLAG_SEND_CACHE,
    NBD_FLAG_SEND_DF,
    NBD_FLAG_SEND_FAST_ZERO,
    NBD_FLAG_SEND_FLUSH,
    NBD_FLAG_SEND_FUA,
    NBD_FLAG_SEND_TRIM,
    NBD_FLAG_SEND_WRITE_ZEROES,
    NBD_MAX_PAYLOAD,
    NBD_REQUEST_MAGIC,
    NBD_RESIZE_ALL_THAT_REMAINS,
    NBD_RESIZE_FEATURE_EXTEND,
    NBD_RESIZE_FEATURE_NOTIFY,
    NBD_RESIZE_FEATURE_SIZE_REPLIES,
)
from nbdresize.protocol.negotiated import Mode, Negotiated
from nbdresize.protocol.violation import ProtocolViolation

MAX_SKIPPED_PAYLOAD = 2 * NBD_MAX_PAYLOAD
"""A payload longer than NBD_MAX_PAYLOAD is skipped and refused; one longer than this ends the connection. In bytes."""

_COMPACT = struct.Struct(">IHHQQI")
_EXTENDED = struct.Struct(">IHHQQQ")

_WRITING = frozenset({NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES})
_SUBJECTS = (NBD_CMD_FLAG_QUERY, NBD_CMD_FLAG_NOTIFY, NBD_CMD_FLAG_CANCEL)
_CHANGING = NBD_CMD_FLAG_SHRINK | NBD_CMD_FLAG_FIT
_EXPOSED_BY = {
    NBD_CMD_READ: 0,
    NBD_CMD_WRITE: 0,
    NBD_CMD_FLUSH: NBD_FLAG_SEND_FLUSH,
    NBD_CMD_TRIM: NBD_FLAG_SEND_TRIM,
    NBD_CMD_CACHE: NBD_FLAG_SEND_CACHE,
    NBD_CMD_WRITE_ZEROES: NBD_FLAG_SEND_WRITE_ZEROES,
    NBD_CMD_BLOCK_STATUS: 0,
    NBD_CMD_RESIZE: 0,
}
"""Each command, with the transmission flag that the server must have sent for it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request. Offset and length in bytes; NBD_CMD_RESIZE has the new size in `offset`."""

    flags: int
    command: int
    cookie: int
    offset: int
    length: int

    def pack(self, mode: Mode) -> bytes:
        """The header, big-endian; the payload of a WRITE follows it:

        0   u32  magic, 0x25609513
        4   u16  flags
        6   u16  command
        8   u64  cookie
        16  u64  offset
        24  u32  length

        With extended headers the magic is 0x21e41c71, and the length a u64.
        """
        layout, magic = (
            (_EXTENDED, NBD_EXTENDED_REQUEST_MAGIC) if mode is Mode.EXTENDED else (_COMPACT, NBD_REQUEST_MAGIC)
        )
        return layout.pack(magic, self.flags, self.command, self.cookie, self.offset, self.length)

    def payload_length(self, mode: Mode) -> int:
        """How many bytes follow the header: with extended headers, the flag PAYLOAD_LEN says whether any do.

        Raises ProtocolViolation for more than anybody could mean.
        """
        has = self.flags & NBD_CMD_FLAG_PAYLOAD_LEN if mode is Mode.EXTENDED else self.command == NBD_CMD_WRITE
        if has and self.length > MAX_SKIPPED_PAYLOAD:
            raise ProtocolViolation(f"A payload of {self.length} bytes", f"at most {NBD_MAX_PAYLOAD} are taken")
        return self.length if has else 0


def request_length(mode: Mode) -> int:
    """The length of a request's header in bytes."""
    return _EXTENDED.size if mode is Mode.EXTENDED else _COMPACT.size


def parse_request(header: bytes | bytearray | memoryview, mode: Mode) -> Request:
    """The request whose header, of request_length bytes, is laid out as Request.pack says.

    Raises ProtocolViolation for a wrong magic: where the next request starts can't be told any more.
    """
    extended = mode is Mode.EXTENDED
    magic, flags, command, cookie, offset, length = (_EXTENDED if extended else _COMPACT).unpack(header)
    if magic != (NBD_EXTENDED_REQUEST_MAGIC if extended else NBD_REQUEST_MAGIC):
        raise ProtocolViolation(f"A request starts with {magic:#010x}", "that is not the magic agreed on")
    return Request(flags, command, cookie, offset, length)


@dataclass(frozen=True)
class Offer:
    """What a connection may ask for, as the handshake left it. `features` is None where RESIZE is not offered."""

    mode: Mode
    flags: int
    block_status: bool
    features: int | None

    @classmethod
    def of(cls, negotiated: Negotiated) -> "Offer":
        export = negotiated.export
        features = export.resize.features if export.resize is not None else None
        return cls(negotiated.mode, export.flags, bool(negotiated.contexts), features)


def check_request(request: Request, offer: Offer) -> None:
    """Whether a request is one that this connection may make, whatever the export's size is at the moment.

    Raises InvalidArgument for an unknown command, a flag that does not belong there, a length of nothing, and a read
    or payload that is too long; NotAuthorized for a write to a read-only export; OSError with EOVERFLOW for a read
    that is too long for one chunk. In this order, so that a malformed request is told so wherever it goes. The caller
    deals with NBD_CMD_DISC, which gets no reply.
    """
    exposed_by = _EXPOSED_BY.get(request.command)
    if (
        exposed_by is None
        or offer.flags & exposed_by != exposed_by
        or (request.command == NBD_CMD_BLOCK_STATUS and not offer.block_status)
        or (request.command == NBD_CMD_RESIZE and offer.features is None)
    ):
        raise InvalidArgument(f"Command {request.command} is not offered", "see the export's transmission flags")
    allowed = _allowed_flags(request, offer)
    if request.flags & ~allowed:
        raise InvalidArgument(
            f"Command {request.command} with flags {request.flags:#x}", f"it may have those of {allowed:#x}"
        )
    if request.command == NBD_CMD_RESIZE:
        _check_resize(request, offer)
    elif request.command == NBD_CMD_FLUSH:
        if request.offset or request.length:
            raise InvalidArgument("A flush of a range", "leave offset and length zero")
    else:
        _check_range(request, offer)


def _allowed_flags(request: Request, offer: Offer) -> int:
    """The flags that may stand in a request of this command; plain numbers, so that no unknown bit is ever masked."""
    command = request.command
    allowed = NBD_CMD_FLAG_FUA if offer.flags & NBD_FLAG_SEND_FUA else 0
    if command == NBD_CMD_READ and offer.flags & NBD_FLAG_SEND_DF:
        allowed |= NBD_CMD_FLAG_DF
    elif command == NBD_CMD_BLOCK_STATUS:
        allowed |= NBD_CMD_FLAG_REQ_ONE
    elif command == NBD_CMD_WRITE_ZEROES:
        allowed |= NBD_CMD_FLAG_NO_HOLE
        if offer.flags & NBD_FLAG_SEND_FAST_ZERO:
            allowed |= NBD_CMD_FLAG_FAST_ZERO
    elif command == NBD_CMD_WRITE and offer.mode is Mode.EXTENDED:
        allowed |= NBD_CMD_FLAG_PAYLOAD_LEN
    features = offer.features or 0
    sizes = NBD_CMD_FLAG_SIZE if features & NBD_RESIZE_FEATURE_SIZE_REPLIES else 0
    if command == NBD_CMD_RESIZE:
        allowed |= _CHANGING | NBD_CMD_FLAG_CANCEL | sizes | (NBD_CMD_FLAG_QUERY if sizes else 0)
        if features & NBD_RESIZE_FEATURE_NOTIFY:
            allowed |= NBD_CMD_FLAG_NOTIFY
    elif command in (NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES) and features & NBD_RESIZE_FEATURE_EXTEND:
        allowed |= NBD_CMD_FLAG_EXTEND | (sizes if request.flags & NBD_CMD_FLAG_EXTEND else 0)
    return allowed


def _check_range(request: Request, offer: Offer) -> None:
    command, length = request.command, request.length
    if command == NBD_CMD_WRITE and offer.mode is Mode.EXTENDED and not request.flags & NBD_CMD_FLAG_PAYLOAD_LEN:
        raise InvalidArgument("A WRITE without a payload", "set PAYLOAD_LEN, and send one")
    if length == 0:
        raise InvalidArgument("A request for 0 bytes", "ask for at least one")
    if command == NBD_CMD_WRITE and length > NBD_MAX_PAYLOAD:
        raise InvalidArgument(f"A payload of {length} bytes", f"at most {NBD_MAX_PAYLOAD} are taken")
    if command in _WRITING and offer.flags & NBD_FLAG_READ_ONLY:
        raise NotAuthorized("The export is served read-only", "connect to a server that may write")
    if command == NBD_CMD_READ and length > NBD_MAX_PAYLOAD:
        if request.flags & NBD_CMD_FLAG_DF:
            raise OSError(errno.EOVERFLOW, f"{length} bytes in one chunk; at most {NBD_MAX_PAYLOAD} fit")
        raise InvalidArgument(f"{length} bytes at once", f"at most {NBD_MAX_PAYLOAD} may be read")


def _check_resize(request: Request, offer: Offer) -> None:
    """The form of NBD_CMD_RESIZE; see the extension's table of errors."""
    flags, size = request.flags, request.offset
    subjects = [flag for flag in _SUBJECTS if flags & flag]
    if request.length:
        raise InvalidArgument(f"RESIZE with a length of {request.length}", "leave it zero; the size is in the offset")
    if len(subjects) > 1 or (subjects and flags & _CHANGING):
        raise InvalidArgument(f"RESIZE with flags {flags:#x}", "they do not go together")
    if flags & NBD_CMD_FLAG_CANCEL:
        if flags & NBD_CMD_FLAG_SIZE:
            raise InvalidArgument("RESIZE with CANCEL and SIZE", "query the size by itself")
        return
    if subjects:
        if size:
            raise InvalidArgument(f"A query with an offset of {size}", "leave it zero")
        return
    if size == 0:
        raise InvalidArgument("A size of 0 bytes is nothing", "ask for at least one byte")
    if size == NBD_RESIZE_ALL_THAT_REMAINS and not flags & NBD_CMD_FLAG_FIT:
        raise InvalidArgument("A size of 2^64-1 bytes is no size", "with FIT it asks for all that remains")
    if offer.flags & NBD_FLAG_READ_ONLY:
        raise NotAuthorized("The export is served read-only", "connect to a server that may write")
