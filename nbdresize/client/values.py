"""What the client library answers with."""

import enum
from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

from nbdresize.protocol.constants import NBD_RESIZE_FEATURE_SHRINK
from nbdresize.protocol.export_info import ResizeInfo
from nbdresize.protocol.server_replies import SizeReply


class Cause(enum.IntEnum):
    """Why a size is what it is, numbered as in docs/resize-extension.md."""

    QUERY = 0
    """Nothing was changed."""
    AS_REQUESTED = 1
    ROUNDED_UP = 2
    FITTED = 3
    """Less than was asked for: all that there was."""
    CHANGED_BY_ANOTHER = 4
    EXTENDED = 5
    """By a write past the end."""
    UNKNOWN = -1
    """A cause from a later version of the extension."""

    @classmethod
    def of(cls, number: int) -> "Cause":
        return cls(number) if number in range(6) else cls.UNKNOWN


@dataclass(frozen=True)
class Size:
    """How large a disk is, and may become. Sizes in bytes.

    `generation` rises with each change. `minimum` and `maximum` are what this client may ask for at this moment; a
    size that is no multiple of `granularity` is rounded up to one. `features`: NBD_RESIZE_FEATURE_… bits.
    """

    size: int
    generation: int
    minimum: int
    maximum: int
    granularity: int
    features: int
    cause: Cause = Cause.QUERY


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes of one kind: `hole` where no space is allocated, `zero` where they read as zeroes."""

    length: int
    hole: bool
    zero: bool


class Resizable(Protocol):
    """A disk of a server whose size can be asked for, followed and changed, by whichever means the server has."""

    @property
    def disk(self) -> str:
        """The name of the disk's export; empty for the default export."""

    def query(self) -> Size:
        """The size now."""

    def resize(self, size: int | None, *, shrink: bool = False, fit: bool = False) -> Size:
        """Change the size; None is all that remains. The size then, and why it is what it is."""

    def watch(self) -> Generator[Size, None, None]:
        """The size now, and each later one, as it happens."""


def told(reply: SizeReply, info: ResizeInfo) -> Size:
    """What a SIZE chunk says, completed by what the handshake told."""
    minimum = min(info.minimum, reply.size) if info.features & NBD_RESIZE_FEATURE_SHRINK else reply.size
    return Size(
        reply.size,
        reply.generation,
        minimum,
        reply.maximum,
        reply.granularity,
        info.features,
        Cause.of(reply.cause),
    )
