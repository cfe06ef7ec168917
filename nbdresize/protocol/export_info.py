"""What a server tells of an export: the answer to NBD_OPT_INFO, NBD_OPT_GO and NBD_OPT_EXPORT_NAME.

Source: the NBD protocol document, `NBD_REP_INFO`; for NBD_INFO_RESIZE `docs/resize-extension.md`.
"""

import struct
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

from nbdresize.errors import InvalidArgument
from nbdresize.protocol.constants import (
    NBD_FLAG_HAS_FLAGS,
    NBD_FLAG_SEND_DF,
    NBD_FLAG_SEND_RESIZE,
    NBD_INFO_BLOCK_SIZE,
    NBD_INFO_DESCRIPTION,
    NBD_INFO_EXPORT,
    NBD_INFO_NAME,
    NBD_INFO_RESIZE,
    NBD_MAX_PAYLOAD,
    NBD_RESIZE_FEATURE_NOTIFY,
    NBD_RESIZE_FEATURE_SIZE_REPLIES,
)
from nbdresize.protocol.strings import pack_string, parse_string
from nbdresize.protocol.violation import ProtocolViolation

MAX_EXPORT_SIZE = 2**63 - 1
"""The largest export in bytes; file offsets are signed, and clients compute with them."""

_TYPE = struct.Struct(">H")
_EXPORT = struct.Struct(">HQH")
_BLOCK_SIZE = struct.Struct(">HIII")
_RESIZE = struct.Struct(">HHIQQ")
_EXPORT_NAME_REPLY = struct.Struct(">QH")
_ZEROES = bytes(124)

EXPORT_NAME_REPLY_LENGTH = _EXPORT_NAME_REPLY.size
EXPORT_NAME_ZEROES_LENGTH = len(_ZEROES)


@dataclass(frozen=True)
class BlockSizes:
    """Which offsets and lengths suit an export, in bytes; `maximum` is the longest payload of one request."""

    minimum: int = 1
    preferred: int = 4096
    maximum: int = NBD_MAX_PAYLOAD


@dataclass(frozen=True)
class ResizeInfo:
    """What the RESIZE command can do on an export: `features` are NBD_RESIZE_FEATURE_… bits, the rest is in bytes.

    `minimum` and `maximum` bound the sizes that may be asked for, as they were when the server answered.
    """

    features: int
    granularity: int
    minimum: int
    maximum: int


@dataclass(frozen=True)
class ExportInfo:
    """An export as a server describes it. `size` in bytes; `flags` are the transmission flags.

    `name` is the canonical one. None stands for what the server does not have, or the client did not ask for.
    """

    size: int
    flags: int
    name: str | None = None
    description: str | None = None
    block_sizes: BlockSizes | None = None
    resize: ResizeInfo | None = None

    def offered(self, *, chunks: bool) -> "ExportInfo":
        """This export as a client sees it that has (`chunks`) or has not negotiated structured or extended replies.

        DF needs them, and so do size replies and notifications of RESIZE. SEND_RESIZE stands where `resize` does.
        """
        flags = self.flags & ~(NBD_FLAG_SEND_DF | NBD_FLAG_SEND_RESIZE) | NBD_FLAG_HAS_FLAGS
        if chunks:
            flags |= NBD_FLAG_SEND_DF
        resize = self.resize
        if resize is not None:
            flags |= NBD_FLAG_SEND_RESIZE
            if not chunks:
                without = ~(NBD_RESIZE_FEATURE_SIZE_REPLIES | NBD_RESIZE_FEATURE_NOTIFY)
                resize = replace(resize, features=resize.features & without)
        return replace(self, flags=flags, resize=resize)

    def pack_infos(self, asked: Container[int]) -> list[bytes]:
        """The payloads of NBD_REP_INFO, big-endian: NBD_INFO_EXPORT always, of the others those `asked` for.

        NBD_INFO_EXPORT       u16 type 0, u64 size, u16 transmission flags
        NBD_INFO_NAME         u16 type 1, the name
        NBD_INFO_DESCRIPTION  u16 type 2, the description
        NBD_INFO_BLOCK_SIZE   u16 type 3, u32 minimum, u32 preferred, u32 maximum
        NBD_INFO_RESIZE       u16 type 4, u16 features, u32 granularity, u64 minimum, u64 maximum
        """
        infos = [_EXPORT.pack(NBD_INFO_EXPORT, self.size, self.flags)]
        if self.name is not None and NBD_INFO_NAME in asked:
            infos.append(_TYPE.pack(NBD_INFO_NAME) + pack_string(self.name, "An export name"))
        if self.description is not None and NBD_INFO_DESCRIPTION in asked:
            infos.append(_TYPE.pack(NBD_INFO_DESCRIPTION) + pack_string(self.description, "A description"))
        if self.block_sizes is not None and NBD_INFO_BLOCK_SIZE in asked:
            sizes = self.block_sizes
            infos.append(_BLOCK_SIZE.pack(NBD_INFO_BLOCK_SIZE, sizes.minimum, sizes.preferred, sizes.maximum))
        if self.resize is not None and NBD_INFO_RESIZE in asked:
            resize = self.resize
            infos.append(
                _RESIZE.pack(NBD_INFO_RESIZE, resize.features, resize.granularity, resize.minimum, resize.maximum)
            )
        return infos

    def pack_export_name_reply(self, *, zeroes: bool) -> bytes:
        """The answer to NBD_OPT_EXPORT_NAME, big-endian:

        0   u64        size
        8   u16        transmission flags
        10  124 bytes  zeroes, left out where both sides set NO_ZEROES (`zeroes` is then false)
        """
        return _EXPORT_NAME_REPLY.pack(self.size, self.flags) + (_ZEROES if zeroes else b"")


def parse_info_type(payload: bytes) -> int:
    """Which information an NBD_REP_INFO holds. Raises ProtocolViolation where it is too short to say."""
    if len(payload) < _TYPE.size:
        raise ProtocolViolation(f"The server sent information of {len(payload)} bytes", "it needs a type of 2 bytes")
    return int(_TYPE.unpack_from(payload)[0])


def parse_infos(payloads: Mapping[int, bytes]) -> ExportInfo:
    """The export that these payloads of NBD_REP_INFO, by their type, describe; laid out as in ExportInfo.pack_infos.

    Types that nobody knows are left aside. Raises ProtocolViolation where NBD_INFO_EXPORT is missing, a length is
    wrong, or what is told can't be true.
    """
    if NBD_INFO_EXPORT not in payloads:
        raise ProtocolViolation("The server accepted the export without telling its size", "it must")
    _, size, flags = _unpack(_EXPORT, payloads[NBD_INFO_EXPORT], "NBD_INFO_EXPORT")
    _check_export(size, flags)
    block_sizes = resize = None
    if NBD_INFO_BLOCK_SIZE in payloads:
        block_sizes = _parse_block_sizes(payloads[NBD_INFO_BLOCK_SIZE])
    if NBD_INFO_RESIZE in payloads:
        resize = _parse_resize(payloads[NBD_INFO_RESIZE])
    return ExportInfo(
        size=size,
        flags=flags,
        name=_text(payloads.get(NBD_INFO_NAME), "export name"),
        description=_text(payloads.get(NBD_INFO_DESCRIPTION), "description"),
        block_sizes=block_sizes,
        resize=resize if flags & NBD_FLAG_SEND_RESIZE else None,
    )


def parse_export_name_reply(data: bytes) -> ExportInfo:
    """The first 10 bytes of the answer to NBD_OPT_EXPORT_NAME; see ExportInfo.pack_export_name_reply."""
    size, flags = _EXPORT_NAME_REPLY.unpack(data)
    _check_export(size, flags)
    return ExportInfo(size, flags)


def _check_export(size: int, flags: int) -> None:
    if size > MAX_EXPORT_SIZE:
        raise ProtocolViolation(f"The server says that the export has {size} bytes", "no export is larger than 2^63-1")
    if not flags & NBD_FLAG_HAS_FLAGS:
        raise ProtocolViolation("The server's transmission flags lack HAS_FLAGS", "it must be set")


def _parse_block_sizes(payload: bytes) -> BlockSizes:
    _, minimum, preferred, maximum = _unpack(_BLOCK_SIZE, payload, "NBD_INFO_BLOCK_SIZE")
    if not (_is_power_of_two(minimum) and _is_power_of_two(preferred) and minimum <= preferred and minimum <= 65536):
        raise ProtocolViolation(
            f"The server's block sizes are {minimum} at least and {preferred} preferably",
            "both must be powers of two, the first at most 65536 and the second no smaller",
        )
    if maximum < minimum:
        raise ProtocolViolation(f"The server's largest block is {maximum} bytes", f"its smallest is {minimum}")
    return BlockSizes(minimum, preferred, maximum)


def _parse_resize(payload: bytes) -> ResizeInfo:
    _, features, granularity, minimum, maximum = _unpack(_RESIZE, payload, "NBD_INFO_RESIZE")
    if granularity == 0 or minimum > maximum:
        raise ProtocolViolation(
            f"The server offers sizes from {minimum} to {maximum} bytes in steps of {granularity}", "that is none"
        )
    return ResizeInfo(features, granularity, minimum, maximum)


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def _unpack(layout: struct.Struct, payload: bytes, what: str) -> tuple[int, ...]:
    if len(payload) != layout.size:
        raise ProtocolViolation(f"The server sent {what} of {len(payload)} bytes", f"it has {layout.size}")
    return layout.unpack(payload)


def _text(payload: bytes | None, what: str) -> str | None:
    if payload is None:
        return None
    try:
        return parse_string(payload[_TYPE.size :], f"The server's {what}")
    except InvalidArgument as error:
        raise ProtocolViolation(error.problem, error.way_out) from None
