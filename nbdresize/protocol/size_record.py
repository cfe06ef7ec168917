"""The `@size` control export as bytes: the size record that clients read, and the request that they write.

`VM/diskN@size` is a device of 4096 bytes, for clients and servers without the RESIZE command: stock nbdkit and stock
libnbd carry the extension in ordinary reads and writes.

    0-63        the size record, fresh at each read
    512-575     a request, written in one piece; reads as zeroes
    1024-1087   the size record again, but the read waits until it is news
    the rest    zeroes
"""

import struct
from dataclasses import dataclass

from nbdresize.errors import InvalidArgument
from nbdresize.protocol.constants import (
    NBD_CMD_FLAG_FIT,
    NBD_CMD_FLAG_QUERY,
    NBD_CMD_FLAG_SHRINK,
    NBD_RESIZE_ALL_THAT_REMAINS,
    NBD_RESIZE_FEATURE_EXTEND,
    NBD_RESIZE_FEATURE_NOTIFY,
    NBD_RESIZE_FEATURE_SHRINK,
    NBD_RESIZE_FEATURE_SIZE_REPLIES,
)

SIZE_SUFFIX = "@size"
"""What the name of a control export ends with; before it stands the name of the disk's export."""

DEVICE_SIZE = 4096
RECORD_LENGTH = 64
REQUEST_LENGTH = 64
RECORD_OFFSET = 0
REQUEST_OFFSET = 512
WAITING_RECORD_OFFSET = 1024

RECORD_MAGIC = b"NBDRESZ1"
REQUEST_MAGIC = b"NBDRESZQ"

FEATURE_SIZE_REPLIES = NBD_RESIZE_FEATURE_SIZE_REPLIES
"""The RESIZE command answers with a size chunk. Never set in a record, which says what can be done through it."""
FEATURE_NOTIFY = NBD_RESIZE_FEATURE_NOTIFY
"""Changes are told: the waiting read works."""
FEATURE_SHRINK = NBD_RESIZE_FEATURE_SHRINK
"""A smaller size may be asked for; it is refused while anybody has the disk attached."""
FEATURE_EXTEND = NBD_RESIZE_FEATURE_EXTEND
"""Writes past the end may extend the disk. Never set in a record: that takes the wire's own flag."""

REQUEST_FLAGS = NBD_CMD_FLAG_QUERY | NBD_CMD_FLAG_SHRINK | NBD_CMD_FLAG_FIT
"""The flags that mean something in a request; any other is refused."""

_RECORD = struct.Struct(">8s4QIH18x")
_REQUEST = struct.Struct(">8sQH46s")
_PADDING = bytes(46)


@dataclass(frozen=True)
class SizeRecord:
    """How large a disk is, and may become. Sizes in bytes.

    `generation` rises with each change of size. `minimum` is the smallest size that may be asked for, which is
    `size` itself where nothing may shrink; `maximum` is the largest that the budget allows now. A size that is no
    multiple of `granularity` is rounded up to one. `features`: FEATURE_… bits.
    """

    size: int
    generation: int
    minimum: int
    maximum: int
    granularity: int
    features: int

    def pack(self) -> bytes:
        """The record's 64 bytes, big-endian:

        0   8 bytes  `NBDRESZ1`
        8   u64      size
        16  u64      generation
        24  u64      minimum
        32  u64      maximum
        40  u32      granularity
        44  u16      features: bit 0 size replies, 1 notify, 2 shrink, 3 extend
        46  18 zero bytes
        """
        return _RECORD.pack(
            RECORD_MAGIC, self.size, self.generation, self.minimum, self.maximum, self.granularity, self.features
        )


def parse_record(data: bytes) -> SizeRecord:
    """The record in `data`, laid out as SizeRecord.pack says; the padding is left for later versions.

    Raises InvalidArgument where it is not one, which is what a server without `@size` exports gives.
    """
    if len(data) != RECORD_LENGTH or not data.startswith(RECORD_MAGIC):
        raise InvalidArgument("That is not a size record", f"its {RECORD_LENGTH} bytes start with NBDRESZ1")
    return SizeRecord(*_RECORD.unpack(data)[1:])


@dataclass(frozen=True)
class SizeWish:
    """A request to change the size, in bytes. `flags`: NBD_CMD_FLAG_QUERY, _SHRINK and _FIT, as on the wire.

    QUERY changes nothing, whatever the size. SHRINK allows a smaller size. FIT grows as far as the budget reaches;
    with it the size 2^64-1 asks for all that remains.
    """

    size: int
    flags: int = 0

    def pack(self) -> bytes:
        """The request's 64 bytes, big-endian:

        0   8 bytes  `NBDRESZQ`
        8   u64      size
        16  u16      flags: bit 7 query, 9 shrink, 10 fit
        18  46 zero bytes

        Raises InvalidArgument where the size is no u64 or the flags no u16.
        """
        if not (0 <= self.size < 2**64 and 0 <= self.flags < 2**16):
            raise InvalidArgument(f"A size of {self.size} bytes can't be asked for", "give one below 2^64")
        return _REQUEST.pack(REQUEST_MAGIC, self.size, self.flags, _PADDING)


def parse_request(data: bytes) -> SizeWish:
    """The request in `data`, laid out as SizeWish.pack says.

    Raises InvalidArgument for everything that makes no sense whatever the state: another length or magic, flags
    without a meaning here, padding that is not zero (later versions may need it), a size of nothing, and 2^64-1
    without FIT.
    """
    if len(data) != REQUEST_LENGTH or not data.startswith(REQUEST_MAGIC):
        raise InvalidArgument("That is not a size request", f"its {REQUEST_LENGTH} bytes start with NBDRESZQ")
    _, size, flags, padding = _REQUEST.unpack(data)
    if padding != _PADDING:
        raise InvalidArgument("A size request has bytes after its flags", "leave them zero")
    check_resize(size, flags)
    return SizeWish(size, flags)


def check_resize(size: int, flags: int) -> None:
    """The form of a request for `size` bytes with these flags of the wire. Raises InvalidArgument, as parse_request."""
    if flags & ~REQUEST_FLAGS:
        raise InvalidArgument(
            f"A size request with flags {flags:#x}",
            "only QUERY (bit 7), SHRINK (bit 9) and FIT (bit 10) mean something",
        )
    if flags & NBD_CMD_FLAG_QUERY:
        return
    if size == 0:
        raise InvalidArgument("A size of 0 bytes is nothing", "ask for at least one byte")
    if size == NBD_RESIZE_ALL_THAT_REMAINS and not flags & NBD_CMD_FLAG_FIT:
        raise InvalidArgument("A size of 2^64-1 bytes is no size", "with FIT it asks for all that remains")
