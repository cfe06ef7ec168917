"""NBD_CMD_RESIZE on one connection: changes of the size, queries, and a subscription to what others change.

Source: docs/resize-extension.md.
"""

import errno
import threading
from contextlib import suppress
from dataclasses import replace

from nbdresize.control.model import Cause
from nbdresize.errors import InsufficientSpace, InvalidArgument, NbdresizeError, NotAuthorized
from nbdresize.export.backing import Resized
from nbdresize.export.disk_export import DiskExport
from nbdresize.protocol.constants import (
    NBD_CMD_FLAG_CANCEL,
    NBD_CMD_FLAG_FIT,
    NBD_CMD_FLAG_NOTIFY,
    NBD_CMD_FLAG_QUERY,
    NBD_CMD_FLAG_SHRINK,
    NBD_CMD_FLAG_SIZE,
)
from nbdresize.protocol.server_replies import Replies, SizeReply
from nbdresize.protocol.transmission import Request
from nbdresize.server.lane import Lane
from nbdresize.server.replying import Replying
from nbdresize.server.stream import PeerGone, Stream
from nbdresize.units import MAX_SIZE, round_up

_LEAST_INTERVAL = 0.1
"""Seconds between two notifications: at most ten a second."""


class Resizing:
    """What NBD_CMD_RESIZE does on one connection; called by the connection's own thread."""

    def __init__(self, stream: Stream, disk: DiskExport, replies: Replies, replying: Replying, lane: Lane) -> None:
        self._stream = stream
        self._disk = disk
        self._replies = replies
        self._replying = replying
        self._lane = lane
        self._subscription: Subscription | None = None
        self._own_changes: dict[int, Cause] = {}
        self._changing = threading.Lock()
        """Held from before a change of its own until its cause is known, so that no notification tells another."""

    def answer(self, request: Request) -> None:
        """Do one NBD_CMD_RESIZE, whose form is right, and reply to it. Raises PeerGone, and why it can't be done."""
        if request.flags & NBD_CMD_FLAG_NOTIFY:
            self._subscribe(request.cookie)
        elif request.flags & NBD_CMD_FLAG_CANCEL:
            self._cancel(request.offset)
            self._replying.send(self._replies.success(request.cookie, request.offset))
        elif request.flags & NBD_CMD_FLAG_QUERY:
            self._disk.backing.refresh()
            self._replying.send(self._replies.size(request.cookie, request.offset, self._now(Cause.QUERY)))
        else:
            self._replying.send(self._change(request))

    def extend(self, end: int, *, tell: bool) -> SizeReply | None:
        """Grow the disk to reach to `end`, if it does not: a barrier then, as every change of size.

        The size that this has led to, where that is to be told. Raises InsufficientSpace where the budget does not
        hold it; the disk is as it was.
        """
        disk, backing = self._disk, self._disk.backing
        if disk.read_only:
            raise NotAuthorized(f"{disk.name} is served read-only", "connect to a server that may write")
        backing.refresh()
        if end <= disk.size:
            return self._now(Cause.QUERY) if tell else None
        if end > MAX_SIZE:
            raise InsufficientSpace(f"{disk.name} can't reach to {end}", "stay within what the budget allows")
        self._lane.drain()
        wanted = round_up(end, backing.granularity)
        try:
            resized = self._resize(wanted, 0, Cause.EXTENDED)
        except NotAuthorized:
            if end <= disk.size:  # somebody else has made it larger still
                return self._now(Cause.QUERY) if tell else None
            raise
        return self._outcome(resized) if tell else None

    def close(self) -> None:
        """End the subscription, with its last chunk if the client still listens."""
        if self._subscription is not None:
            self._subscription.end()
            self._subscription = None

    def _change(self, request: Request) -> bytes:
        """Change the size, once everything before is done; the reply."""
        self._lane.drain()
        resized = self._resize(request.offset, request.flags & (NBD_CMD_FLAG_SHRINK | NBD_CMD_FLAG_FIT))
        if request.flags & NBD_CMD_FLAG_SIZE:
            return self._replies.size(request.cookie, request.offset, self._outcome(resized))
        return self._replies.success(request.cookie, request.offset)

    def _resize(self, size: int, flags: int, cause: Cause | None = None) -> Resized:
        """Change the size; `cause` is that of the change, where it is not the one that the disk tells."""
        with self._changing:
            resized = self._disk.resize(size, flags)
            if cause is not None:
                resized = replace(resized, cause=cause)
            self._own_changes = {resized.generation: resized.cause}
        return resized

    def _outcome(self, resized: Resized) -> SizeReply:
        """What a change has led to, though somebody else may have changed the size again since."""
        now = self._now(resized.cause)
        return replace(now, size=resized.size, generation=resized.generation, maximum=max(resized.size, now.maximum))

    def _now(self, cause: Cause) -> SizeReply:
        record = self._disk.backing.record(read_only=self._disk.read_only)
        return SizeReply(record.size, record.generation, record.maximum, record.granularity, int(cause))

    def _subscribe(self, cookie: int) -> None:
        if self._subscription is not None:
            raise InvalidArgument("A second subscription", "cancel the first; a connection has one at the most")
        try:
            self._subscription = Subscription(self, cookie, self._now(Cause.QUERY))
        except RuntimeError as error:  # no more threads
            raise OSError(errno.ENOMEM, "The server has no thread left for a subscription") from error

    def _cancel(self, subscribed: int) -> None:
        if self._subscription is None or self._subscription.cookie != subscribed:
            raise InvalidArgument(f"No subscription has the cookie {subscribed}", "cancel the one that there is")
        self.close()

    # What a subscription needs

    @property
    def disk(self) -> DiskExport:
        return self._disk

    def news(self) -> SizeReply:
        """The size as it is now, with the cause of its last change. Raises VolumeFailed, StateUnusable."""
        with self._changing:
            size = self._now(Cause.CHANGED_BY_ANOTHER)
            return replace(size, cause=int(self._own_changes.get(size.generation, Cause.CHANGED_BY_ANOTHER)))

    def notify(self, cookie: int, size: SizeReply) -> None:
        """Tell the subscriber. Raises PeerGone."""
        self._replying.send(self._replies.size(cookie, 0, size, done=False))

    def finish(self, cookie: int) -> None:
        self._replying.send(self._replies.done(cookie, 0))

    def break_off(self) -> None:
        self._stream.break_off()


class Subscription:
    """Sends a SIZE chunk now and one per change until it is ended, from a thread of its own.

    Changes that come faster than ten a second are told together, by the size that they have led to. While the size
    can't be found out (the ledger is held, no descriptors are left), nothing is told; the connection goes on.
    """

    def __init__(self, resizing: Resizing, cookie: int, now: SizeReply) -> None:
        """Raises RuntimeError where no thread can be started."""
        self.cookie = cookie
        self._first = now
        self._resizing = resizing
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="subscription", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop, with the last chunk sent when this returns (or the connection broken)."""
        self._ended.set()
        self._resizing.disk.backing.live.wake()
        self._thread.join()

    def _run(self) -> None:
        resizing, known = self._resizing, self._first
        try:
            resizing.notify(self.cookie, known)
            while not self._ended.wait(_LEAST_INTERVAL):
                news = self._wait_for_news(known.generation)
                if news is not None:
                    resizing.notify(self.cookie, news)
                    known = news
            resizing.finish(self.cookie)
        except PeerGone:
            resizing.break_off()

    def _wait_for_news(self, known: int) -> SizeReply | None:
        """The size, once its generation is newer than `known`; None where it is not after a while, or at the end."""
        backing = self._resizing.disk.backing
        with suppress(NbdresizeError, OSError):
            if not backing.live.wait_newer(known, backing.look_every, self._ended.is_set) and not self._ended.is_set():
                backing.refresh()
            if backing.live.generation > known:
                return self._resizing.news()
        return None
