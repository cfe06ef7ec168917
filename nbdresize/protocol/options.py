"""What the client sends while it negotiates: its flags, then options, each with a header and data.

Every parser here checks the lengths inside against the one outside, and raises InvalidArgument for data that does
not follow its layout; the server answers that with NBD_REP_ERR_INVALID. Source: the NBD protocol document, "Newstyle
negotiation" and "Option types".
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from nbdresize.errors import InvalidArgument
from nbdresize.protocol.constants import NBD_OPTS_MAGIC
from nbdresize.protocol.strings import pack_string, parse_string
from nbdresize.protocol.violation import ProtocolViolation

_CLIENT_FLAGS = struct.Struct(">I")
_HEADER = struct.Struct(">QII")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")

CLIENT_FLAGS_LENGTH = _CLIENT_FLAGS.size
OPTION_HEADER_LENGTH = _HEADER.size

_EXPORT = "An export name"
_QUERY = "A metadata query"
_WAY_OUT = "the lengths inside an option must add up to the length in its header"


@dataclass(frozen=True)
class ExportQuery:
    """The data of NBD_OPT_INFO and NBD_OPT_GO: which export, and which NBD_INFO_… of it the client wants to hear."""

    name: str
    infos: tuple[int, ...] = ()

    def pack(self) -> bytes:
        """Big-endian:

        u32  length of the name
        the name
        u16  number of information requests
        u16  each of them
        """
        name = pack_string(self.name, _EXPORT)
        return _U32.pack(len(name)) + name + struct.pack(f">H{len(self.infos)}H", len(self.infos), *self.infos)


@dataclass(frozen=True)
class MetaContextQuery:
    """The data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT: which export, and which contexts."""

    name: str
    queries: tuple[str, ...] = ()

    def pack(self) -> bytes:
        """Big-endian:

        u32  length of the name
        the name
        u32  number of queries
        each query: u32 length, the query
        """
        name = pack_string(self.name, _EXPORT)
        packed = [_U32.pack(len(name)), name, _U32.pack(len(self.queries))]
        for query in self.queries:
            data = pack_string(query, _QUERY)
            packed += [_U32.pack(len(data)), data]
        return b"".join(packed)


def pack_client_flags(flags: int) -> bytes:
    """u32: NBD_FLAG_C_FIXED_NEWSTYLE and NBD_FLAG_C_NO_ZEROES."""
    return _CLIENT_FLAGS.pack(flags)


def parse_client_flags(data: bytes) -> int:
    """The flags in these CLIENT_FLAGS_LENGTH bytes; see pack_client_flags."""
    return int(_CLIENT_FLAGS.unpack(data)[0])


def pack_option(option: int, data: bytes = b"") -> bytes:
    """An option, big-endian:

    0   u64  magic, `IHAVEOPT`
    8   u32  option
    12  u32  length of the data
    16  the data
    """
    return _HEADER.pack(NBD_OPTS_MAGIC, option, len(data)) + data


def parse_option_header(data: bytes) -> tuple[int, int]:
    """Option and length of its data, from the OPTION_HEADER_LENGTH bytes laid out as in pack_option.

    Raises ProtocolViolation for a wrong magic.
    """
    magic, option, length = _HEADER.unpack(data)
    if magic != NBD_OPTS_MAGIC:
        raise ProtocolViolation(f"An option starts with {magic:#018x}", "it must start with IHAVEOPT")
    return option, length


def parse_export_name(data: bytes) -> str:
    """The data of NBD_OPT_EXPORT_NAME is the name itself."""
    return parse_string(data, _EXPORT)


def parse_export_query(data: bytes) -> ExportQuery:
    """What ExportQuery.pack lays out. Raises InvalidArgument."""
    fields = _Fields(data)
    name = parse_string(fields.take(fields.u32()), _EXPORT)
    infos = tuple(fields.u16() for _ in range(fields.count(fields.u16(), _U16.size)))
    fields.end()
    return ExportQuery(name, infos)


def parse_meta_context_query(data: bytes) -> MetaContextQuery:
    """What MetaContextQuery.pack lays out. Raises InvalidArgument."""
    fields = _Fields(data)
    name = parse_string(fields.take(fields.u32()), _EXPORT)
    queries = tuple(
        parse_string(fields.take(fields.u32()), _QUERY) for _ in range(fields.count(fields.u32(), _U32.size))
    )
    fields.end()
    return MetaContextQuery(name, queries)


def select_contexts(available: Sequence[str], queries: Sequence[str], *, listing: bool) -> tuple[str, ...]:
    """Which of the contexts `available` on an export the client's queries mean, each once.

    When `listing`, no query at all means every context, and `base:` every one of that namespace; to select a context
    takes its whole name. Queries that mean nothing here are passed over, as the protocol demands.
    """
    if listing and not queries:
        return tuple(available)
    asked = frozenset(queries)
    return tuple(
        context for context in available if context in asked or (listing and context[: context.index(":") + 1] in asked)
    )


class _Fields:
    """Reads one field after the other, and never past the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, length: int) -> bytes:
        end = self._at + length
        if end > len(self._data):
            raise InvalidArgument(f"An option's data ends {end - len(self._data)} bytes early", _WAY_OUT)
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def u16(self) -> int:
        return int(_U16.unpack(self.take(_U16.size))[0])

    def u32(self) -> int:
        return int(_U32.unpack(self.take(_U32.size))[0])

    def count(self, number: int, smallest: int) -> int:
        """`number` items of at least `smallest` bytes each, found impossible before any is looked at."""
        if number * smallest > len(self._data) - self._at:
            raise InvalidArgument(f"An option announces {number} items and has no room for them", _WAY_OUT)
        return number

    def end(self) -> None:
        if self._at != len(self._data):
            raise InvalidArgument(f"An option has {len(self._data) - self._at} bytes too many", _WAY_OUT)
