"""Replies that are not sent by the hot loop: refusals, and what the lane has done."""

from collections.abc import Callable, Sequence

from nbdresize.errors import NbdresizeError
from nbdresize.protocol.constants import NBD_EINVAL
from nbdresize.protocol.server_replies import Replies, wire_errno
from nbdresize.protocol.transmission import Request
from nbdresize.server.lane import Job, Lane
from nbdresize.server.stream import PeerGone, Stream

Parts = Sequence[bytes | bytearray | memoryview]
"""One whole reply, in pieces."""


class Replying:
    """Sends the replies of one connection that come one at a time, now or from the lane."""

    def __init__(self, stream: Stream, replies: Replies, lane: Lane) -> None:
        self._stream = stream
        self._replies = replies
        self._lane = lane

    def send(self, *parts: bytes | bytearray | memoryview) -> None:
        """Send one whole reply. Raises PeerGone."""
        self._stream.send_message(parts)

    def refuse(self, request: Request, error: NbdresizeError | OSError) -> None:
        """Reply that a request failed, and why. Raises PeerGone."""
        if isinstance(error, NbdresizeError):
            number, text = error.nbd_errno, str(error)
        else:
            number, text = error.errno or NBD_EINVAL, error.strerror or ""
        self.send(self._replies.error(request.cookie, request.offset, wire_errno(number), text))

    def later(self, request: Request, cost: int, work: Callable[[], Parts]) -> None:
        """Have the lane do `work`, and send the reply that it returns, or why it failed.

        `cost`: the bytes of memory that it holds until then. Waits while the lane is full.
        """

        def run() -> None:
            try:
                try:
                    parts = work()
                except (NbdresizeError, OSError) as error:
                    self.refuse(request, error)
                else:
                    self._stream.send_message(parts)
            except PeerGone:
                self._stream.break_off()

        self._lane.submit(Job(run, cost))
