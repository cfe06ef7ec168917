"""Generic netlink as bytes: the messages that set the size of an NBD device, packed, and the kernel's answers, parsed.

All numbers are in the machine's own byte order, and everything is padded to 4 bytes. Sources: netlink(7), the kernel's
headers linux/netlink.h, linux/genetlink.h and linux/nbd-netlink.h.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4

GENL_ID_CTRL = 0x10
"""The message type of the controller, which knows the message types of all families."""
CTRL_CMD_GETFAMILY = 3
CTRL_ATTR_FAMILY_ID = 1
CTRL_ATTR_FAMILY_NAME = 2

NBD_FAMILY = "nbd"
NBD_VERSION = 1
NBD_CMD_RECONFIGURE = 3
NBD_ATTR_INDEX = 1
NBD_ATTR_SIZE_BYTES = 2
NBD_ATTR_BACKEND_IDENTIFIER = 10

MOST_BYTES = 1 << 16
"""The longest datagram that the kernel is given room for; its answers here have a few hundred bytes."""

_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
_U16 = struct.Struct("=H")
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
_TYPE_MASK = 0x3FFF
"""The two bits above are flags: nested, and in the network's byte order."""


class Malformed(Exception):
    """The kernel's answer is not laid out as netlink is."""


@dataclass(frozen=True)
class Message:
    """A netlink message: `kind` is NLMSG_… or the type of a family, `sequence` that of the request it answers."""

    kind: int
    sequence: int
    payload: bytes


def pack_get_family(name: str, sequence: int) -> bytes:
    """The question which message type the family `name` has:

    0   16 bytes  header, type GENL_ID_CTRL
    16  4 bytes   command CTRL_CMD_GETFAMILY, version 1
    20  attribute CTRL_ATTR_FAMILY_NAME: the name and a zero byte
    """
    attribute = _attribute(CTRL_ATTR_FAMILY_NAME, name.encode() + b"\0")
    return _request(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 1, sequence, attribute)


def pack_set_size(family: int, index: int, size: int, backend: bytes, sequence: int) -> bytes:
    """The request that /dev/nbd`index` has `size` bytes from now on:

    0   16 bytes  header, type `family`
    16  4 bytes   command NBD_CMD_RECONFIGURE, version 1
    20  attribute NBD_ATTR_INDEX: u32
    28  attribute NBD_ATTR_SIZE_BYTES: u64
    40  attribute NBD_ATTR_BACKEND_IDENTIFIER: `backend` and a zero byte, where it is not empty

    A device that was set up with a backend identifier refuses every request without that same identifier.
    """
    attributes = _attribute(NBD_ATTR_INDEX, _U32.pack(index)) + _attribute(NBD_ATTR_SIZE_BYTES, _U64.pack(size))
    if backend:
        attributes += _attribute(NBD_ATTR_BACKEND_IDENTIFIER, backend + b"\0")
    return _request(family, NBD_CMD_RECONFIGURE, NBD_VERSION, sequence, attributes)


def parse_messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram, each after this header and padded to 4 bytes:

    0   u32  length with the header and without the padding
    4   u16  type
    6   u16  flags
    8   u32  sequence
    12  u32  port

    Raises Malformed.
    """
    at = 0
    while at < len(data):
        if len(data) - at < _HEADER.size:
            raise Malformed("a header is cut")
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
        if not _HEADER.size <= length <= len(data) - at:
            raise Malformed(f"a message of {length} bytes in {len(data) - at}")
        yield Message(kind, sequence, data[at + _HEADER.size : at + length])
        at += _padded(length)


def parse_error(payload: bytes) -> int:
    """The errno in a message NLMSG_ERROR, 0 where it says that all went well:

    0   i32  0 or the negative errno
    4   the header of the request, and whatever follows

    Raises Malformed.
    """
    if len(payload) < _ERROR.size:
        raise Malformed("an error without a number")
    (number,) = _ERROR.unpack_from(payload)
    return -int(number)


def parse_family(payload: bytes) -> int:
    """The message type of a family, from the controller's answer:

    0   4 bytes  command CTRL_CMD_NEWFAMILY, version, 2 zero bytes
    4   attributes, CTRL_ATTR_FAMILY_ID among them: u16

    Raises Malformed.
    """
    for kind, value in _attributes(payload[_GENERIC.size :]):
        if kind == CTRL_ATTR_FAMILY_ID and len(value) == _U16.size:
            return int(_U16.unpack(value)[0])
    raise Malformed("a family without a number")


def _request(kind: int, command: int, version: int, sequence: int, attributes: bytes) -> bytes:
    """A message as `parse_messages` says, with this before its attributes: u8 command, u8 version, 2 zero bytes."""
    body = _GENERIC.pack(command, version, 0) + attributes
    return _HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | NLM_F_ACK, sequence, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    """An attribute: u16 length with these 4 bytes and without the padding, u16 type, the value, padding."""
    length = _ATTRIBUTE.size + len(value)
    return (_ATTRIBUTE.pack(length, kind) + value).ljust(_padded(length), b"\0")


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The types and values of attributes, as `_attribute` lays them out. Raises Malformed."""
    at = 0
    while at < len(data):
        if len(data) - at < _ATTRIBUTE.size:
            raise Malformed("an attribute is cut")
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if not _ATTRIBUTE.size <= length <= len(data) - at:
            raise Malformed(f"an attribute of {length} bytes in {len(data) - at}")
        yield kind & _TYPE_MASK, data[at + _ATTRIBUTE.size : at + length]
        at += _padded(length)


def _padded(length: int) -> int:
    return (length + 3) & ~3
