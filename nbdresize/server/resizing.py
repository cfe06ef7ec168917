"""NBD_CMD_RESIZE on one connection: changes of the size, queries, and a subscription to what others change.

Source: docs/resize-extension.md.
"""

import threading
import time

from nbdresize.control.model import Cause
from nbdresize.errors import InsufficientSpace, InvalidArgument, NbdresizeError, NotAuthorized
from nbdresize.export.backing import ClientResize
from nbdresize.export.disk_export import DiskExport
from nbdresize.protocol.constants import (
    NBD_CMD_FLAG_CANCEL,
    NBD_CMD_FLAG_FIT,
    NBD_CMD_FLAG_NOTIFY,
    NBD_CMD_FLAG_QUERY,
    NBD_CMD_FLAG_SHRINK,
    NBD_CMD_FLAG_SIZE,
)
from nbdresize.protocol.negotiated import Mode
from nbdresize.protocol.server_replies import Replies, SizeReply, wire_errno
from nbdresize.server.lane import Lane
from nbdresize.server.stream import PeerGone, Stream
from nbdresize.units import MAX_SIZE, round_up

_CHANGING = NBD_CMD_FLAG_SIZE | NBD_CMD_FLAG_SHRINK | NBD_CMD_FLAG_FIT
_ALONE = (NBD_CMD_FLAG_QUERY, NBD_CMD_FLAG_NOTIFY, NBD_CMD_FLAG_CANCEL)
_LEAST_INTERVAL = 0.1
"""Seconds between two notifications: at most ten a second."""
_LOOK_EVERY = 1.0


class Resizing:
    """What NBD_CMD_RESIZE does on one connection; called by the connection's own thread."""

    def __init__(self, stream: Stream, disk: DiskExport, replies: Replies, lane: Lane) -> None:
        self._stream = stream
        self._disk = disk
        self._replies = replies
        self._lane = lane
        self._subscription: Subscription | None = None
        self._own_changes: dict[int, Cause] = {}
        self.offered = disk.backing.policy is not ClientResize.OFF

    def answer(self, flags: int, cookie: int, size: int, length: int) -> None:
        """Do one NBD_CMD_RESIZE and reply to it. Raises PeerGone."""
        try:
            reply = self._do(flags, cookie, size, length)
        except (NbdresizeError, OSError) as error:
            number = error.nbd_errno if isinstance(error, NbdresizeError) else (error.errno or 0)
            reply = self._replies.error(cookie, size, wire_errno(number), str(error))
        if reply:
            self._stream.send_message((reply,))

    def extend(self, end: int) -> SizeReply:
        """Grow the disk to reach to `end`, if it does not: a barrier then, as every change of size.

        Raises InsufficientSpace where the budget does not hold it; the disk is as it was.
        """
        disk, backing = self._disk, self._disk.backing
        if disk.read_only:
            raise NotAuthorized(f"{disk.name} is served read-only", "connect to a server that may write")
        backing.refresh()
        if end <= disk.size:
            return self._now(Cause.QUERY)
        if end > MAX_SIZE:
            raise InsufficientSpace(f"{disk.name} can't reach to {end}", "stay within what the budget allows")
        self._lane.drain()
        wanted = round_up(end, backing.granularity)
        try:
            resized = disk.resize(wanted, 0)
        except NotAuthorized:
            if end <= disk.size:  # somebody else has made it larger still
                return self._now(Cause.QUERY)
            raise
        self._own_changes = {resized.generation: Cause.EXTENDED}
        return self._now(Cause.EXTENDED)

    def close(self) -> None:
        """End the subscription, with its last chunk if the client still listens."""
        if self._subscription is not None:
            self._subscription.end()
            self._subscription = None

    def _do(self, flags: int, cookie: int, size: int, length: int) -> bytes | None:
        self._check(flags, size, length)
        if flags & NBD_CMD_FLAG_NOTIFY:
            self._subscribe(cookie)
            return None
        if flags & NBD_CMD_FLAG_CANCEL:
            return self._cancel(cookie, size)
        if flags & NBD_CMD_FLAG_QUERY:
            self._disk.backing.refresh()
            return self._replies.size(cookie, size, self._now(Cause.QUERY))
        self._lane.drain()
        resized = self._disk.resize(size, flags & ~NBD_CMD_FLAG_SIZE)
        self._own_changes = {resized.generation: resized.cause}
        if flags & NBD_CMD_FLAG_SIZE:
            return self._replies.size(cookie, size, self._now(resized.cause))
        return self._replies.success(cookie, size)

    def _check(self, flags: int, size: int, length: int) -> None:
        """The form of a request; what it asks for is checked where it is done."""
        if not self.offered:
            raise InvalidArgument("RESIZE is not offered for this export", "the server's policy is --client-resize off")
        kinds = [flag for flag in _ALONE if flags & flag]
        allowed = _CHANGING if not kinds else kinds[0] | (0 if kinds[0] == NBD_CMD_FLAG_CANCEL else NBD_CMD_FLAG_SIZE)
        if flags & ~allowed:
            raise InvalidArgument(f"RESIZE with flags {flags:#x}", "these do not go together")
        if length:
            raise InvalidArgument(f"RESIZE with a length of {length}", "leave it zero; the size goes into the offset")
        if flags & (NBD_CMD_FLAG_SIZE | NBD_CMD_FLAG_QUERY | NBD_CMD_FLAG_NOTIFY) and (
            self._replies.mode is Mode.SIMPLE
        ):
            raise InvalidArgument("A size can only be told by a structured reply", "negotiate structured replies first")
        if flags & (NBD_CMD_FLAG_QUERY | NBD_CMD_FLAG_NOTIFY) and size:
            raise InvalidArgument(f"A query with an offset of {size}", "leave it zero")

    def _now(self, cause: Cause) -> SizeReply:
        record = self._disk.backing.record(read_only=self._disk.read_only)
        return SizeReply(record.size, record.generation, record.maximum, record.granularity, int(cause))

    def _subscribe(self, cookie: int) -> None:
        if self._subscription is not None:
            raise InvalidArgument("A second subscription", "cancel the first; a connection has one at the most")
        self._subscription = Subscription(self, cookie)

    def _cancel(self, cookie: int, subscribed: int) -> bytes:
        if self._subscription is None or self._subscription.cookie != subscribed:
            raise InvalidArgument(f"No subscription has the cookie {subscribed}", "cancel the one that there is")
        self.close()
        return self._replies.success(cookie, subscribed)

    # What a subscription needs

    @property
    def disk(self) -> DiskExport:
        return self._disk

    def notify(self, cookie: int, generation: int, *, first: bool) -> int:
        """Tell the subscriber the size as it is now; the generation that it has heard of then. Raises PeerGone."""
        own = self._own_changes.get(generation, Cause.CHANGED_BY_ANOTHER)
        size = self._now(Cause.QUERY if first else own)
        self._stream.send_message((self._replies.size(cookie, 0, size, done=False),))
        return size.generation

    def finish(self, cookie: int) -> None:
        self._stream.send_message((self._replies.done(cookie, 0),))

    def break_off(self) -> None:
        self._stream.break_off()


class Subscription:
    """Sends a SIZE chunk now and one per change until it is ended, from a thread of its own.

    Changes that come faster than ten a second are told together, by the size that they have led to.
    """

    def __init__(self, resizing: Resizing, cookie: int) -> None:
        self.cookie = cookie
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
        resizing, live = self._resizing, self._resizing.disk.backing.live
        try:
            known = resizing.notify(self.cookie, 0, first=True)
            while not self._ended.wait(_LEAST_INTERVAL):
                next_look = time.monotonic() + _LOOK_EVERY
                while not live.wait_newer(known, max(0.0, next_look - time.monotonic()), self._ended.is_set):
                    if self._ended.is_set():
                        break
                    resizing.disk.backing.refresh()
                    next_look = time.monotonic() + _LOOK_EVERY
                else:
                    known = resizing.notify(self.cookie, live.generation, first=False)
            resizing.finish(self.cookie)
        except (PeerGone, NbdresizeError, OSError):
            resizing.break_off()
