"""Requests and replies on a connection: each within its time limit, and every way to fail told apart."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nbdresize.client.deadline import Deadline
from nbdresize.client.rate import MOST_A_SECOND, RateCap
from nbdresize.client.refusals import refusal
from nbdresize.client.stream import Stream
from nbdresize.errors import PeerFailed
from nbdresize.protocol.constants import NBD_CMD_DISC
from nbdresize.protocol.negotiated import Negotiated
from nbdresize.protocol.replies import ReplyStream
from nbdresize.protocol.reply_check import Done, ReplyEvent
from nbdresize.protocol.transmission import Request
from nbdresize.protocol.violation import ProtocolViolation

_PARTING_SECONDS = 1.0

Deliver = Callable[[ReplyEvent], None]
"""Takes each event of a reply."""


class Exchange:
    """Sends requests and gives each reply to whom it belongs.

    After PeerFailed, or anything that comes from outside (Ctrl-C), the connection is closed: what the server sends
    next could not be told apart any more.
    """

    def __init__(self, stream: Stream, negotiated: Negotiated, shown: str, timeout: float) -> None:
        self.shown = shown
        self.mode = negotiated.mode
        self.timeout = timeout
        self._unasked: RateCap | None = None
        self._stream = stream
        self._replies = ReplyStream(negotiated)
        self._waiting: dict[int, Deliver] = {}
        self._last_cookie = 0
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._ended

    def perform(
        self,
        command: int,
        what: str,
        *,
        flags: int = 0,
        offset: int = 0,
        length: int = 0,
        payload: bytes | memoryview = b"",
        patience: float = 0.0,
        collect: Deliver | None = None,
    ) -> None:
        """One request to its end; the server may take `patience` seconds longer than usual.

        `what` the server is asked to do, for the error that is raised where it refuses; `collect` gets what it tells.
        Raises PeerFailed.
        """
        answered: list[Done] = []

        def deliver(event: ReplyEvent) -> None:
            if isinstance(event, Done):
                answered.append(event)
            elif collect is not None:
                collect(event)

        with self.guarded(self.timeout + patience) as deadline:
            self.begin(Request(flags, command, self._cookie(), offset, length), payload, deliver, deadline)
            while not answered:
                self.take_in(deadline)
        if answered[0].errors:
            raise refusal(answered[0].errors[0], what)

    def subscribe(self, command: int, flags: int, deliver: Deliver) -> int:
        """Send a request without a payload whose reply goes on; its cookie. Raises PeerFailed."""
        cookie = self._cookie()
        self._unasked = self._unasked or RateCap(time.monotonic())
        with self.guarded(self.timeout) as deadline:
            self.begin(Request(flags, command, cookie, 0, 0), b"", deliver, deadline)
        return cookie

    def count_unasked(self) -> None:
        """Count what a subscription was told. Raises PeerFailed for more than anybody can want to hear."""
        if self._unasked is not None and not self._unasked.allows():
            raise too_many(self.shown)

    def begin(self, request: Request, payload: bytes | memoryview, deliver: Deliver, deadline: Deadline) -> None:
        """Send a request, within `guarded`."""
        header = self._replies.request(request)
        self._waiting[request.cookie] = deliver
        self._stream.send(header, deadline)
        self._stream.send(payload, deadline)

    def take_in(self, deadline: Deadline) -> None:
        """Wait for something to come, and deliver it; within `guarded`. Raises TimeoutError."""
        if self._unasked is None:
            data = self._stream.receive(deadline)
        else:
            drained = not self._stream.pending()
            self._unasked.pass_time(time.monotonic(), drained=drained)
            data = self._stream.receive(deadline)
            self._unasked.pass_time(time.monotonic(), drained=drained)
        for event in self._replies.feed(data):
            deliver = self._waiting[event.cookie]
            if isinstance(event, Done):
                del self._waiting[event.cookie]
            deliver(event)

    @contextmanager
    def guarded(self, seconds: float) -> Iterator[Deadline]:
        """For a step that takes `seconds` at most, and that ends the connection if it does not come to its end."""
        if self._ended:
            raise PeerFailed(f"The connection to {self.shown} has ended", "connect anew")
        try:
            yield Deadline(seconds)
        except BaseException as error:
            self.close(politely=False)
            if isinstance(error, OSError | ProtocolViolation):
                raise failure(error, self.shown, seconds) from error
            raise

    def close(self, *, politely: bool = True) -> None:
        """End the connection; `politely` tells the server first, which gets a second to end it too."""
        if self._ended:
            return
        self._ended = True
        if politely:
            last = self._replies.request(Request(0, NBD_CMD_DISC, 0, 0, 0))
            self._stream.part(last, Deadline(_PARTING_SECONDS))
        else:
            self._stream.close()

    def _cookie(self) -> int:
        self._last_cookie += 1
        return self._last_cookie


def too_many(shown: str) -> PeerFailed:
    """The error for a server that tells of changes faster than it may."""
    return PeerFailed(
        f"The server at {shown} tells of more than {MOST_A_SECOND} changes in a second", "an honest one sends ten"
    )


def failure(error: OSError | ProtocolViolation, shown: str, seconds: float) -> PeerFailed:
    """What ended the connection to the server at `shown`, in words. `seconds` were the limit."""
    if isinstance(error, ProtocolViolation):
        return PeerFailed(f"The server at {shown} breaks the protocol: {error.problem}", error.way_out)
    if isinstance(error, TimeoutError):
        return PeerFailed(
            f"The server at {shown} did not answer within {seconds:g} s", "check it, or give it more with --timeout"
        )
    return PeerFailed(
        f"The connection to {shown} was lost ({error.strerror or error})", "check the server, and what its log says"
    )
