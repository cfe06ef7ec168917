"""What the server sends while the client negotiates: its greeting, then replies to options.

What comes from a server is checked here on behalf of the client: nonsense raises ProtocolViolation. Source: the NBD
protocol document, "Newstyle negotiation" and "Option reply types".
"""

import struct
from dataclasses import dataclass

from nbdresize.errors import InvalidArgument
from nbdresize.protocol.constants import (
    NBD_MAGIC,
    NBD_MAX_STRING,
    NBD_OLDSTYLE_MAGIC,
    NBD_OPTION_REPLY_MAGIC,
    NBD_OPTS_MAGIC,
    NBD_REP_ERR_BLOCK_SIZE_REQD,
    NBD_REP_ERR_EXT_HEADER_REQD,
    NBD_REP_ERR_INVALID,
    NBD_REP_ERR_PLATFORM,
    NBD_REP_ERR_POLICY,
    NBD_REP_ERR_SHUTDOWN,
    NBD_REP_ERR_TLS_REQD,
    NBD_REP_ERR_TOO_BIG,
    NBD_REP_ERR_UNKNOWN,
    NBD_REP_ERR_UNSUP,
    NBD_REP_META_CONTEXT,
    NBD_REP_SERVER,
)
from nbdresize.protocol.negotiated import MetaContext
from nbdresize.protocol.strings import pack_message, pack_string, parse_message, parse_string
from nbdresize.protocol.violation import ProtocolViolation

_GREETING = struct.Struct(">QQH")
_HEADER = struct.Struct(">QIII")
_U32 = struct.Struct(">I")

GREETING_LENGTH = _GREETING.size
REPLY_HEADER_LENGTH = _HEADER.size

MAX_REPLY_DATA = 65536
"""The longest data of one reply that a client takes, in bytes; two strings of the greatest length fit in many times."""

ERROR_NAMES = {
    NBD_REP_ERR_UNSUP: "the server does not know this option",
    NBD_REP_ERR_POLICY: "the server's configuration forbids it",
    NBD_REP_ERR_INVALID: "the server found the request invalid",
    NBD_REP_ERR_PLATFORM: "the server's platform does not support it",
    NBD_REP_ERR_TLS_REQD: "the server demands TLS",
    NBD_REP_ERR_UNKNOWN: "there is no such export",
    NBD_REP_ERR_SHUTDOWN: "the server is shutting down",
    NBD_REP_ERR_BLOCK_SIZE_REQD: "the server demands that its block sizes be asked for",
    NBD_REP_ERR_TOO_BIG: "the request or its answer is too large",
    NBD_REP_ERR_EXT_HEADER_REQD: "the server demands extended headers",
}
"""What each error reply means, for people, where the server sends no message."""


@dataclass(frozen=True)
class ExportEntry:
    """One export in the answer to NBD_OPT_LIST."""

    name: str
    description: str = ""

    def pack(self) -> bytes:
        """The data of NBD_REP_SERVER: u32 length of the name, the name, and the description up to the end."""
        name = pack_string(self.name, "An export name")
        return _U32.pack(len(name)) + name + pack_string(self.description, "A description")


def pack_greeting(flags: int) -> bytes:
    """The server's first bytes, big-endian:

    0   u64  `NBDMAGIC`
    8   u64  `IHAVEOPT`
    16  u16  handshake flags: bit 0 fixed newstyle, bit 1 no zeroes
    """
    return _GREETING.pack(NBD_MAGIC, NBD_OPTS_MAGIC, flags)


def parse_greeting(data: bytes) -> int:
    """The handshake flags; see pack_greeting. Raises ProtocolViolation where this is no newstyle server."""
    first, second, flags = _GREETING.unpack(data)
    if first != NBD_MAGIC:
        raise ProtocolViolation("That is no NBD server", "an NBD server greets with NBDMAGIC")
    if second == NBD_OLDSTYLE_MAGIC:
        raise ProtocolViolation("The server speaks the oldstyle protocol", "use a server from after 2011")
    if second != NBD_OPTS_MAGIC:
        raise ProtocolViolation("That is no NBD server", "an NBD server greets with IHAVEOPT")
    return int(flags)


def pack_reply(option: int, reply: int, data: bytes = b"") -> bytes:
    """A reply to an option, big-endian:

    0   u64  magic, 0x3e889045565a9
    8   u32  the option that this answers
    12  u32  type of the reply, NBD_REP_…
    16  u32  length of the data
    20  the data
    """
    return _HEADER.pack(NBD_OPTION_REPLY_MAGIC, option, reply, len(data)) + data


def parse_reply_header(data: bytes, option: int) -> tuple[int, int]:
    """Type and length of data of a reply to `option`; see pack_reply.

    Raises ProtocolViolation for a wrong magic, a reply to something else, and data longer than MAX_REPLY_DATA.
    """
    magic, answered, reply, length = _HEADER.unpack(data)
    if magic != NBD_OPTION_REPLY_MAGIC:
        raise ProtocolViolation(f"A reply of the server starts with {magic:#018x}", "it must not")
    if answered != option:
        raise ProtocolViolation(f"The server answered option {answered}", f"{option} was asked")
    if length > MAX_REPLY_DATA:
        raise ProtocolViolation(f"The server sent a reply of {length} bytes", f"{MAX_REPLY_DATA} are plenty")
    return reply, length


def pack_error(option: int, reply: int, message: str = "") -> bytes:
    """An error reply; its data is the message for people."""
    return pack_reply(option, reply, pack_message(message))


def parse_error(reply: int, data: bytes) -> str:
    """The message of an error reply, or in its absence what the error's number means."""
    return parse_message(data) or ERROR_NAMES.get(reply, f"the server answered with error {reply:#x}")


def pack_export_entry(option: int, entry: ExportEntry) -> bytes:
    return pack_reply(option, NBD_REP_SERVER, entry.pack())


def parse_export_entry(data: bytes) -> ExportEntry:
    """What ExportEntry.pack lays out. Raises ProtocolViolation."""
    length = int(_U32.unpack_from(data)[0]) if len(data) >= _U32.size else len(data)
    name, description = data[_U32.size : _U32.size + length], data[_U32.size + length :]
    if len(data) < _U32.size + length:
        raise ProtocolViolation("The server listed an export whose name ends early", "its lengths must add up")
    if len(description) > NBD_MAX_STRING:
        raise ProtocolViolation(f"The server described an export in {len(description)} bytes", "4096 are allowed")
    try:
        return ExportEntry(parse_string(name, "The name of an export"), parse_message(description))
    except InvalidArgument as error:
        raise ProtocolViolation(error.problem, error.way_out) from None


def pack_meta_context(option: int, context: MetaContext) -> bytes:
    """NBD_REP_META_CONTEXT, its data: u32 id (0 when only listed), and the name up to the end."""
    return pack_reply(
        option, NBD_REP_META_CONTEXT, _U32.pack(context.id) + pack_string(context.name, "The name of a context")
    )


def parse_meta_context(data: bytes) -> MetaContext:
    """The data of pack_meta_context. Raises ProtocolViolation."""
    if len(data) < _U32.size:
        raise ProtocolViolation("The server sent a metadata context without its number", "it has 4 bytes")
    try:
        return MetaContext(int(_U32.unpack_from(data)[0]), parse_string(data[_U32.size :], "The name of a context"))
    except InvalidArgument as error:
        raise ProtocolViolation(error.problem, error.way_out) from None
