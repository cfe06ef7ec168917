"""A disk's size asked for, followed and changed over NBD, through its `@size` control export.

That works with stock libnbd and any server that has the export; see `protocol/size_record.py` for what it holds.
"""

import errno
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from nbdresize.client.connection import CommandRefused, Connection
from nbdresize.client.uri import size_uri
from nbdresize.errors import (
    InsufficientSpace,
    InvalidArgument,
    NbdresizeError,
    NotAuthorized,
    PeerFailed,
    VolumeFailed,
)
from nbdresize.protocol.constants import NBD_CMD_FLAG_FIT, NBD_RESIZE_ALL_THAT_REMAINS
from nbdresize.protocol.size_record import (
    DEVICE_SIZE,
    RECORD_LENGTH,
    RECORD_OFFSET,
    REQUEST_OFFSET,
    WAITING_RECORD_OFFSET,
    SizeRecord,
    SizeWish,
    parse_record,
)
from nbdresize.units import MAX_SIZE, SizeRequest, format_size

WAITING_SECONDS = 30.0
"""How long the waiting read waits at most; then it answers with what there is."""

_NO_RECORD = "only a server of nbdresize has size exports; 'nbdinfo --size URI' asks any other"


@dataclass(frozen=True)
class Growth:
    """What a grow did: the disk's records before and after."""

    before: SizeRecord
    after: SizeRecord
    asked: int | None
    """The size that was asked for, in bytes; None for all that remained."""

    @property
    def cause(self) -> str:
        """`as_requested`, `rounded_up` or `fitted`, as in the outcome of a resize."""
        if self.asked is None or self.after.size < self.asked:
            return "fitted"
        return "rounded_up" if self.after.size > self.asked else "as_requested"


class SizeExport:
    """The control export of the disk at an NBD URI. Every method raises PeerFailed where the server fails."""

    def __init__(self, disk_uri: str, timeout: float) -> None:
        """Connect; each answer may take `timeout` seconds. Raises as Connection does, and InvalidArgument for a URI."""
        self._where = size_uri(disk_uri)
        self.connection = Connection(self._where.uri, timeout)
        if self.connection.size < DEVICE_SIZE:
            self.connection.close()
            raise PeerFailed(f"The server at {self.connection.shown} has no size export there", _NO_RECORD)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.connection.close(politely=error is None)

    @property
    def disk(self) -> str:
        """The name of the disk's export; empty for the default export."""
        return self._where.disk

    def record(self) -> SizeRecord:
        """The size now."""
        return self._read(RECORD_OFFSET, 0.0)

    def next_record(self) -> SizeRecord:
        """Wait for a size newer than the one read last, 30 seconds at most; the size then, changed or not."""
        return self._read(WAITING_RECORD_OFFSET, WAITING_SECONDS)

    def grow(self, request: SizeRequest, *, fit: bool = False) -> Growth:
        """Grow the disk; with `fit`, as far as its budget reaches where that is less than asked for.

        Raises InvalidArgument for a smaller size, InsufficientSpace, NotAuthorized where the server does not let
        clients resize, VolumeFailed.
        """
        before = self.record()
        asked = self._asked(request, before)
        flags = NBD_CMD_FLAG_FIT if fit or asked is None else 0
        wish = SizeWish(NBD_RESIZE_ALL_THAT_REMAINS if asked is None else asked, flags)
        try:
            self.connection.write(wish.pack(), REQUEST_OFFSET)
        except CommandRefused as refusal:
            raise self._refused(refusal, asked) from None
        return Growth(before, self.record(), asked)

    def _asked(self, request: SizeRequest, now: SizeRecord) -> int | None:
        """The bytes that are asked for; None for all that remains."""
        if request.remaining:
            return None
        size = request.exact if request.exact is not None else now.size + (request.relative or 0)
        if size < now.size:
            raise InvalidArgument(
                f"{format_size(size)} is less than {self._where.shown} has, {format_size(now.size)}",
                "'nbdresize disk resize' with --dangerous-allow-shrink makes a disk smaller",
            )
        if size > MAX_SIZE:
            raise InvalidArgument(
                f"{format_size(size)} is more than the largest disk, {format_size(MAX_SIZE)}", "ask for less"
            )
        return size

    def _refused(self, refusal: CommandRefused, asked: int | None) -> NbdresizeError:
        """The server's errno as an error that says what there is."""
        disk = self._where.shown
        wanted = "all that remains" if asked is None else format_size(asked)
        if refusal.errno == errno.ENOSPC:
            return self._no_space(asked, wanted)
        if refusal.errno == errno.EPERM:
            return NotAuthorized(
                f"The server does not let this client resize {disk}",
                "serve with --client-resize grow, or use 'nbdresize disk resize' on the server's machine",
            )
        if refusal.errno == errno.EINVAL:
            return InvalidArgument(f"The server takes {wanted} for no size of {disk}", "ask for another size")
        if refusal.errno == errno.EIO:
            return VolumeFailed(f"The server could not change the volume of {disk}", "see the server's log")
        return PeerFailed(f"The server refused to resize {disk} ({refusal})", "see the server's log")

    def _no_space(self, asked: int | None, wanted: str) -> InsufficientSpace:
        now = self.record()
        problem = f"{self._where.shown} can't have {wanted}: it has {format_size(now.size)}"
        if asked is not None and asked > now.maximum:
            return InsufficientSpace(
                f"{problem}, and the server allows {format_size(now.maximum)} at most",
                f"ask for at most {now.maximum} bytes, or add --fit",
            )
        return InsufficientSpace(f"{problem}, and the server has no space for it", "free some space in its pool")

    def _read(self, offset: int, patience: float) -> SizeRecord:
        try:
            data = self.connection.read(RECORD_LENGTH, offset, patience=patience)
        except CommandRefused as refusal:
            raise PeerFailed(
                f"The server refused to tell the size of {self._where.shown} ({refusal})", "see the server's log"
            ) from None
        try:
            record = parse_record(data)
        except InvalidArgument:
            raise PeerFailed(f"The server at {self.connection.shown} answers with no size record", _NO_RECORD) from None
        if not (record.minimum <= record.size <= 2**63 and record.granularity > 0):
            raise PeerFailed(
                f"The server at {self.connection.shown} answers with a size record that makes no sense", _NO_RECORD
            )
        return record
