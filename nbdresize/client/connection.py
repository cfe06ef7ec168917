"""A connection to one export of an NBD server."""

import threading
from collections.abc import Generator
from types import TracebackType
from typing import Self

from nbdresize.client.exchange import Exchange
from nbdresize.client.handshake import Chooser, the_export
from nbdresize.client.opening import open_export
from nbdresize.client.resizing import Resizing
from nbdresize.client.uri import parse_uri
from nbdresize.client.values import Extent, Size
from nbdresize.errors import InvalidArgument, NotAuthorized
from nbdresize.protocol.constants import (
    NBD_CMD_BLOCK_STATUS,
    NBD_CMD_FLAG_FUA,
    NBD_CMD_FLAG_PAYLOAD_LEN,
    NBD_CMD_FLUSH,
    NBD_CMD_READ,
    NBD_CMD_WRITE,
    NBD_FLAG_READ_ONLY,
    NBD_FLAG_SEND_FLUSH,
    NBD_FLAG_SEND_FUA,
    NBD_STATE_HOLE,
    NBD_STATE_ZERO,
)
from nbdresize.protocol.export_info import MAX_EXPORT_SIZE, BlockSizes
from nbdresize.protocol.negotiated import Mode, Negotiated
from nbdresize.protocol.reply_check import BlockStatus, Data, ReplyEvent

TIMEOUT = 10.0
CHECK_SECONDS = 30.0
"""How long a watched server may be silent before it is asked whether it is there."""

_PIECE = 2 << 20
"""Longer reads and writes go in pieces, so that each can be expected in time, and costs bounded memory."""
_MOST_COMPACT = 2**32 - 65536
"""The longest range of one request without extended headers; still a multiple of every block size."""


class Connection:
    """A connection to the export at an NBD URI, for one thread at a time; a context manager.

    Every method raises PeerFailed where the server goes away, breaks the protocol, or does not answer within
    `timeout` seconds, and the connection is of no use then. Where the server refuses a request, the connection goes
    on, and its error is one of the table, with its text: InsufficientSpace, NotAuthorized, InvalidArgument,
    VolumeFailed; PeerFailed where it is shutting down.
    """

    def __init__(self, uri: str, timeout: float = TIMEOUT, *, choose: Chooser = the_export) -> None:
        """Connect, `timeout` seconds at most. Raises InvalidArgument for the URI, ResourceNotFound where the server
        has no such export, NotAuthorized where this client may not use it, and PeerFailed."""
        _check_timeout(timeout)
        self.target = parse_uri(uri)
        stream, self._negotiated = open_export(self.target, timeout, choose)
        self._exchange = Exchange(stream, self._negotiated, self.target.shown, timeout)
        self._resizing = Resizing(self._exchange, self._negotiated.export, self.disk)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(politely=error is None or isinstance(error, Exception))

    @property
    def timeout(self) -> float:
        """How many seconds the server may take for each answer; may be set."""
        return self._exchange.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        _check_timeout(seconds)
        self._exchange.timeout = seconds

    @property
    def export(self) -> str:
        """The name of the export that is used."""
        return self._negotiated.name

    @property
    def disk(self) -> str:
        """The name of the disk's export, also where its `@size` export is used; empty for the default export."""
        return self.target.disk

    @property
    def negotiated(self) -> Negotiated:
        """What the handshake led to: form of replies, flags, block sizes, what RESIZE can do."""
        return self._negotiated

    @property
    def size(self) -> int:
        """Of the export in bytes, as the server told it last. Others may have changed it since; see `query`."""
        return self._resizing.size

    @property
    def read_only(self) -> bool:
        return bool(self._negotiated.export.flags & NBD_FLAG_READ_ONLY)

    # The size

    def query(self) -> Size:
        """The size now. Raises PeerFailed where the server does not offer that."""
        return self._resizing.query()

    def resize(self, size: int | None, *, shrink: bool = False, fit: bool = False) -> Size:
        """Change the size to `size` bytes, or with None to all that remains; the size then, and its cause.

        It may be rounded up. With `fit`, the disk grows as far as its budget reaches where that is less; it becomes
        smaller only with `shrink`, and while no other client uses it. The reply of a server that knows only the draft
        of 2017 has no size, so its generation is 0, and `fit` does not work there.
        """
        return self._resizing.resize(size, shrink=shrink, fit=fit)

    def watch(self, *, check_seconds: float = CHECK_SECONDS) -> Generator[Size, None, None]:
        """The size now, and each later one, as it happens; ends when the server shuts down.

        Of changes that come faster than they are taken, the latest is told. Other requests may be made meanwhile. A
        server that is silent for `check_seconds` is asked for the size, and has `timeout` to answer. The server is
        told when the generator is closed, as it is at the end of a `for` that holds the only reference to it.

        Raises InvalidArgument where the size is watched already, PeerFailed also for a server that tells of more than
        100 changes in a second.
        """
        return self._resizing.watch(check_seconds)

    # The bytes

    def read(self, length: int, offset: int, *, patience: float = 0.0, what: str = "") -> bytes:
        """These bytes. The server may take `patience` seconds longer than usual; a refusal is one to do `what`."""
        self._check_range(length, offset)
        result = memoryview(bytearray(length))

        def collect(event: ReplyEvent) -> None:
            if isinstance(event, Data):  # a hole is zeroes, which are there already
                start = event.offset - offset
                result[start : start + len(event.data)] = event.data

        for at, piece in self._pieces(length):
            self._exchange.perform(
                NBD_CMD_READ,
                what or f"read {piece} bytes at {offset + at}",
                offset=offset + at,
                length=piece,
                patience=patience,
                collect=collect,
            )
        return bytes(result)

    def write(self, data: bytes | bytearray | memoryview, offset: int, *, fua: bool = False, what: str = "") -> None:
        """Write these bytes, in pieces where they are many; with `fua`, durably. A refusal is one to do `what`."""
        content = memoryview(data).cast("B")
        self._check_range(len(content), offset)
        if self.read_only:
            raise NotAuthorized(f"{self.target.shown} is served read-only", "connect to a server that may write")
        flags = NBD_CMD_FLAG_PAYLOAD_LEN if self._negotiated.mode is Mode.EXTENDED else 0
        by_flag = fua and self._negotiated.export.flags & NBD_FLAG_SEND_FUA
        for at, piece in self._pieces(len(content)):
            self._exchange.perform(
                NBD_CMD_WRITE,
                what or f"write {piece} bytes at {offset + at}",
                flags=flags | (NBD_CMD_FLAG_FUA if by_flag else 0),
                offset=offset + at,
                length=piece,
                payload=content[at : at + piece],
            )
        if fua and not by_flag:
            self.flush()

    def flush(self) -> None:
        """Make every write that was answered durable. Raises InvalidArgument where the server does not offer that."""
        if not self._negotiated.export.flags & NBD_FLAG_SEND_FLUSH:
            raise InvalidArgument(f"The server at {self.target.shown} offers no flush", "it can't promise durability")
        self._exchange.perform(NBD_CMD_FLUSH, "flush")

    def block_status(self, length: int, offset: int) -> list[Extent]:
        """What is allocated, from `offset` on: consecutive extents, at least one.

        They may end before `length` bytes are told, and never after; ask again from there. Raises InvalidArgument
        where the server does not offer that.
        """
        self._check_range(length, offset)
        if not self._negotiated.contexts:
            raise InvalidArgument(f"The server at {self.target.shown} offers no block status", "take it for data")
        if self._negotiated.mode is not Mode.EXTENDED:
            length = min(length, _MOST_COMPACT)
        extents: list[Extent] = []

        def collect(event: ReplyEvent) -> None:
            if not isinstance(event, BlockStatus):
                return
            left = length
            for told, flags in event.extents:
                extents.append(Extent(min(told, left), bool(flags & NBD_STATE_HOLE), bool(flags & NBD_STATE_ZERO)))
                left -= told

        self._exchange.perform(
            NBD_CMD_BLOCK_STATUS,
            f"tell what is allocated of {length} bytes at {offset}",
            offset=offset,
            length=length,
            collect=collect,
        )
        return extents

    def close(self, *, politely: bool = True) -> None:
        """End the connection; may be called again. `politely` tells the server, which gets a second to end it too."""
        self._exchange.close(politely=politely)

    def _check_range(self, length: int, offset: int) -> None:
        """Whether the server could take it at all; where the export ends, it knows better."""
        block = self._block_sizes.minimum
        if length <= 0 or offset < 0 or offset + length > MAX_EXPORT_SIZE:
            raise InvalidArgument(f"{length} bytes at {offset} are no range of a disk", "give at least one byte")
        if length % block or offset % block:
            raise InvalidArgument(f"{length} bytes at {offset} are not whole blocks", f"each has {block} bytes here")

    def _pieces(self, length: int) -> list[tuple[int, int]]:
        """Where the parts of a longer read or write begin, and their lengths."""
        sizes = self._block_sizes
        longest = max(min(_PIECE, sizes.maximum) // sizes.minimum, 1) * sizes.minimum
        return [(at, min(longest, length - at)) for at in range(0, length, longest)]

    @property
    def _block_sizes(self) -> BlockSizes:
        return self._negotiated.export.block_sizes or BlockSizes()


def _check_timeout(seconds: float) -> None:
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise InvalidArgument(f"A time limit of {seconds} s", "give some seconds")
