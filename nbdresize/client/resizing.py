"""The RESIZE command on a connection: asking for the size, following it, changing it.

Source: docs/resize-extension.md.
"""

import contextlib
from collections.abc import Generator

from nbdresize.client.deadline import Deadline
from nbdresize.client.exchange import Exchange
from nbdresize.client.refusals import refusal
from nbdresize.client.values import Cause, Size, told
from nbdresize.errors import InvalidArgument, NbdresizeError, NotAuthorized, PeerFailed
from nbdresize.protocol.constants import (
    NBD_CMD_FLAG_CANCEL,
    NBD_CMD_FLAG_FIT,
    NBD_CMD_FLAG_NOTIFY,
    NBD_CMD_FLAG_QUERY,
    NBD_CMD_FLAG_SHRINK,
    NBD_CMD_FLAG_SIZE,
    NBD_CMD_RESIZE,
    NBD_FLAG_SEND_RESIZE,
    NBD_RESIZE_ALL_THAT_REMAINS,
    NBD_RESIZE_FEATURE_NOTIFY,
    NBD_RESIZE_FEATURE_SIZE_REPLIES,
)
from nbdresize.protocol.export_info import MAX_EXPORT_SIZE, ExportInfo, ResizeInfo
from nbdresize.protocol.reply_check import Done, ReplyEvent, SizeTold
from nbdresize.protocol.server_replies import SizeReply
from nbdresize.units import format_size

_NO_INFO = ResizeInfo(0, 1, 1, MAX_EXPORT_SIZE)


class Resizing:
    """What NBD_CMD_RESIZE can do for one export."""

    def __init__(self, exchange: Exchange, export: ExportInfo, disk: str) -> None:
        self.size = export.size
        """In bytes, as the server told it last."""
        self._exchange = exchange
        self._offered = bool(export.flags & NBD_FLAG_SEND_RESIZE)
        self._info = export.resize
        self._disk = disk or "the default export"
        self._generation = 0
        self._watching = False

    def query(self) -> Size:
        self._need(NBD_RESIZE_FEATURE_SIZE_REPLIES, "tell sizes")
        return self._tell(NBD_CMD_FLAG_QUERY, 0, f"tell the size of {self._disk}")

    def resize(self, size: int | None, *, shrink: bool, fit: bool) -> Size:
        if size is not None and not 0 < size <= MAX_EXPORT_SIZE:
            raise InvalidArgument(f"No disk has {size} bytes", f"ask for 1 to {MAX_EXPORT_SIZE}")
        if not self._offered:
            raise self._lacking("resize")
        what = f"resize {self._disk} to {size_shown(size)}"
        if not self._has(NBD_RESIZE_FEATURE_SIZE_REPLIES):
            return self._resize_by_draft(size, what, shrink=shrink, fit=fit)
        flags = NBD_CMD_FLAG_SIZE | (NBD_CMD_FLAG_SHRINK if shrink else 0)
        flags |= NBD_CMD_FLAG_FIT if fit or size is None else 0
        return self._tell(flags, NBD_RESIZE_ALL_THAT_REMAINS if size is None else size, what)

    def watch(self, check_seconds: float) -> Generator[Size, None, None]:
        self._need(NBD_RESIZE_FEATURE_NOTIFY | NBD_RESIZE_FEATURE_SIZE_REPLIES, "tell of changes")
        self._check_unwatched()
        return self._watch(check_seconds)

    def _check_unwatched(self) -> None:
        if self._watching:
            raise InvalidArgument(
                "The size is watched already on this connection", "a second watch takes a second connection"
            )

    def _watch(self, check_seconds: float) -> Generator[Size, None, None]:
        self._check_unwatched()
        subscription = _Subscription(self._exchange, f"tell of changes of {self._disk}")
        self._watching = True
        known = -1
        try:
            subscription.begin()
            while True:
                reply = subscription.take()
                if reply is not None:
                    size = self._told(reply)
                elif subscription.over():
                    return
                elif subscription.wait(check_seconds):
                    continue
                else:
                    size = self.query()  # whether there is anybody at all who could tell of a change
                if size.generation > known:
                    known = size.generation
                    yield size
        finally:
            self._watching = False
            subscription.cancel()

    def _tell(self, flags: int, offset: int, what: str) -> Size:
        """Send a RESIZE that is answered with a size, of which check_complete has seen to it that there is one."""
        replies: list[SizeReply] = []

        def collect(event: ReplyEvent) -> None:
            if isinstance(event, SizeTold):
                replies.append(event.size)

        self._exchange.perform(NBD_CMD_RESIZE, what, flags=flags, offset=offset, collect=collect)
        return self._told(replies[0])

    def _resize_by_draft(self, size: int | None, what: str, *, shrink: bool, fit: bool) -> Size:
        """Where no size is told in the reply: by a server of the draft, or one without structured replies."""
        if size is None or fit:
            raise InvalidArgument(f"The server at {self._exchange.shown} can't fit a size", "ask for an exact one")
        if size < self.size and not shrink:
            raise NotAuthorized(
                f"{format_size(size)} is less than {self._disk} has, {format_size(self.size)}", "say shrink=True"
            )
        flags = NBD_CMD_FLAG_SHRINK if shrink and self._info is not None else 0
        self._exchange.perform(NBD_CMD_RESIZE, what, flags=flags, offset=size)
        self.size = size
        info = self._info or _NO_INFO
        return Size(size, 0, min(info.minimum, size), info.maximum, info.granularity, info.features, Cause.AS_REQUESTED)

    def _told(self, reply: SizeReply) -> Size:
        if reply.generation >= self._generation:
            self.size, self._generation = reply.size, reply.generation
        return told(reply, self._info or _NO_INFO)

    def _has(self, features: int) -> bool:
        return self._info is not None and self._info.features & features == features

    def _need(self, features: int, what: str) -> None:
        if not self._offered or not self._has(features):
            raise self._lacking(what)

    def _lacking(self, what: str) -> PeerFailed:
        return PeerFailed(
            f"The server at {self._exchange.shown} does not offer to {what} with the RESIZE command",
            "it may have a size export, which connect_resizable() finds",
        )


class _Subscription:
    """One NOTIFY. Holds the latest size only, however many are told."""

    def __init__(self, exchange: Exchange, what: str) -> None:
        self._exchange = exchange
        self._what = what
        self._latest: SizeReply | None = None
        self._done: Done | None = None
        self._cookie = 0

    def begin(self) -> None:
        """Subscribe; returns once the server has told the size, or refused."""
        self._cookie = self._exchange.subscribe(NBD_CMD_RESIZE, NBD_CMD_FLAG_NOTIFY, self._deliver)
        with self._exchange.guarded(self._exchange.timeout) as deadline:
            self._take_in(deadline)

    def take(self) -> SizeReply | None:
        """What has been told since the last time."""
        latest, self._latest = self._latest, None
        return latest

    def over(self) -> bool:
        """Whether the server has ended the subscription. Raises why it refused to subscribe."""
        if self._done is not None and self._done.errors:
            raise refusal(self._done.errors[0], self._what)
        return self._done is not None

    def wait(self, seconds: float) -> bool:
        """Wait until there is something to take, or the end; whether that came in time."""
        with self._exchange.guarded(seconds) as deadline:
            try:
                self._take_in(deadline)
            except TimeoutError:
                return False
        return True

    def cancel(self) -> None:
        """End it, if it has not ended; the server has then sent its last word. Never raises an error."""
        if self._done is not None or self._exchange.ended:
            return
        with contextlib.suppress(NbdresizeError):
            self._exchange.perform(NBD_CMD_RESIZE, "end a subscription", flags=NBD_CMD_FLAG_CANCEL, offset=self._cookie)
        if self._done is None:
            self._exchange.close(politely=False)

    def _take_in(self, deadline: Deadline) -> None:
        while self._latest is None and self._done is None:
            self._exchange.take_in(deadline)

    def _deliver(self, event: ReplyEvent) -> None:
        if isinstance(event, Done):
            self._done = event
        elif isinstance(event, SizeTold):
            self._exchange.count_unasked()
            self._latest = event.size


def size_shown(size: int | None) -> str:
    """A size that is asked for, as messages name it; None is all that remains."""
    return "all that remains" if size is None else format_size(size)
