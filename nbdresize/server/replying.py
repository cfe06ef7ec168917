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
        self.send(self.refusal(request, error))

    def refusal(self, request: Request, error: NbdresizeError | OSError) -> bytes:
        """The reply that tells that a request failed, and why."""
        if isinstance(error, NbdresizeError):
            number, text = error.nbd_errno, str(error)
        else:
            number, text = error.errno or NBD_EINVAL, error.strerror or ""
        return self._replies.error(request.cookie, request.offset, wire_errno(number), text)

    def later(self, request: Request, cost: int, work: Callable[[], Parts]) -> None:
        """Have the lane do `work`, and send the reply that it returns, or why it failed.

        `cost`: the bytes of memory that it holds until then. Waits while the lane is full.
        """
        self.all_later((request,), cost, lambda _request: work())

    def all_later(self, requests: Sequence[Request], cost: int, work: Callable[[Request], Parts]) -> None:
        """Have the lane do `work` for one request after the other, and send all their replies together."""

        def run() -> None:
            try:
                self._answer_all(requests, work)
            except PeerGone:
                self._stream.break_off()
            except BaseException:  # no memory left, or a mistake of ours: a client must not wait for ever
                self._stream.break_off()
                raise

        self._lane.submit(Job(run, cost))

    def _answer_all(self, requests: Sequence[Request], work: Callable[[Request], Parts]) -> None:
        parts: list[bytes | bytearray | memoryview] = []
        for request in requests:
            try:
                parts += work(request)
            except (NbdresizeError, OSError) as error:
                parts.append(self.refusal(request, error))
        self._stream.send_message(parts if len(requests) == 1 else (b"".join(parts),))
