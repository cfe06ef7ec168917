"""One connection under load: always `depth` requests under way, each reply checked before the next request goes out."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nbdresize.client.exchange import failure
from nbdresize.client.refusals import refusal
from nbdresize.errors import NbdresizeError
from nbdresize.loads.channel import Channel
from nbdresize.loads.latencies import Latencies
from nbdresize.loads.model import Operation
from nbdresize.loads.replies import Deliver, Refused, Replies, UniformReplies, VariedReplies, unknown
from nbdresize.loads.requests import RequestTable
from nbdresize.protocol.violation import ProtocolViolation

_WATCHED = 16
"""At depth this and more, the latency of one request of so many is measured."""
_LARGE = 64 << 10
"""Requests of this and more are all measured: what that costs does not show."""


@dataclass(frozen=True)
class Counted:
    """What one connection came to. `begun` and `ended` are moments of time.monotonic."""

    requests: int
    begun: float
    ended: float
    latencies: Latencies


class Pipeline:
    """The requests of `table`, again and again, from number `first` on.

    Raises PeerFailed for a server that goes away, breaks the protocol or lets `patience` seconds pass in silence, and
    the error of the table that it refuses a request with.
    """

    def __init__(
        self, channel: Channel, table: RequestTable, replies: Replies, shown: str, patience: float, first: int = 0
    ) -> None:
        load = table.load
        self._channel, self._table, self._replies = channel, table, replies
        self._shown, self._patience = shown, patience
        self._depth = load.depth
        # Any `depth` requests in a row hold a watched one, so that no pause of the server goes unnoticed.
        self._watched_of = 1 if load.block >= _LARGE else min(load.depth, _WATCHED)
        self._position = first
        self._outstanding = replies.outstanding
        self._watched: dict[int, float] = {}
        self._idle = load.depth
        self._now = 0.0
        self._latencies = Latencies()

    def run(self, begin: float, warm_up: float, seconds: float) -> Counted:
        """Put the load on from the moment `begin` on, and count what comes after `warm_up` seconds.

        All that was asked is answered at the end, and counted, as is the time that this took.
        """
        time.sleep(max(0.0, begin - time.monotonic()))
        with self._guarded():
            return self._run(time.monotonic(), warm_up, seconds)

    def once(self) -> int:
        """Each request of the table once; how many that were. Within `patience` seconds, one has to be answered."""
        with self._guarded():
            return self._once()

    def _run(self, begun: float, warm_up: float, seconds: float) -> Counted:
        self._now = begun
        if warm_up:
            self._loop(begun + warm_up)
            self._latencies = Latencies()
            begun = self._now
        answered = self._loop(begun + seconds) + self._drain()
        return Counted(answered, begun, self._now, self._latencies)

    def _once(self) -> int:
        self._now = time.monotonic()
        end = self._now + self._patience
        length = len(self._table)
        answered = sent = 0
        while sent < length:
            count = min(self._idle, length - sent)
            self._send(count)
            self._idle -= count
            sent += count
            done = self._receive()
            self._idle += done
            answered += done
            if done:
                end = self._now + self._patience
            elif self._now > end:
                raise TimeoutError
        return answered + self._drain()

    def _loop(self, until: float) -> int:
        """Keep `depth` requests under way until that moment; how many were answered. Hot: see docs/bench.md."""
        self._send(self._idle)
        self._idle = 0
        answered = 0
        receive, send = self._receive, self._send
        while True:
            done = receive()
            answered += done
            if self._now >= until:
                self._idle = done
                return answered
            if done:
                send(done)

    def _drain(self) -> int:
        """Take the replies to all that was asked; the server has `patience` for all of them together."""
        answered = 0
        end = time.monotonic() + self._patience
        while self._outstanding:
            answered += self._receive()
            if self._now > end:
                raise TimeoutError
        if self._replies.unfinished:
            raise ProtocolViolation("Something more came after the last reply", "nothing else was asked")
        return answered

    def _receive(self) -> int:
        """Wait for something to come; how many requests that answered."""
        replies = self._replies
        count = self._channel.receive(replies.room())
        self._now = now = time.monotonic()
        cookies = replies.take(count)
        watched = self._watched
        if self._watched_of == 1:
            for cookie in cookies:
                self._latencies.add(now - watched.pop(cookie))
        elif not watched.keys().isdisjoint(cookies):
            for cookie in watched.keys() & cookies:
                self._latencies.add(now - watched.pop(cookie))
        return len(cookies)

    def _send(self, count: int) -> None:
        """Send the next requests of the table."""
        length = len(self._table)
        while count:
            first = self._position
            behind = min(first + count, length)
            numbers = range(first, behind)
            if not self._outstanding.isdisjoint(numbers):  # the table has come round, and one is still unanswered
                first = self._first_free(first)
                behind = first + 1
                numbers = range(first, behind)
            self._outstanding.update(numbers)
            parts = self._table.parts(first, behind)
            watched_of = self._watched_of
            now = time.monotonic()  # not that of the last reply: what was done since is no latency of the server's
            for number in range(-(-first // watched_of) * watched_of, behind, watched_of):
                self._watched[number] = now
            self._channel.send(parts)
            self._position = behind if behind < length else 0
            count -= behind - first

    def _first_free(self, first: int) -> int:
        """The first number from `first` on that is not under way; there are more numbers than requests under way."""
        while first in self._outstanding:
            first = (first + 1) % len(self._table)
        return first

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn what ends the connection into errors of the table."""
        try:
            yield
        except Refused as refused:
            raise self._refusal(refused) from None
        except (OSError, ProtocolViolation) as error:
            raise failure(error, self._shown, self._patience) from error

    def _refusal(self, refused: Refused) -> NbdresizeError:
        if refused.cookie not in self._outstanding:
            return failure(unknown(refused.cookie), self._shown, self._patience)
        table = self._table
        does = "read" if table.reads(refused.cookie) else "write"
        return refusal(refused.error, f"{does} {table.load.block} bytes at {table.offset(refused.cookie)}")


def replies_for(table: RequestTable, *, structured: bool, deliver: Deliver | None = None) -> Replies:
    """What parses the replies to these requests at the least cost."""
    load = table.load
    if structured or deliver is not None or load.operation is Operation.MIXED:
        return VariedReplies(table, structured=structured, deliver=deliver)
    return UniformReplies(load.block if load.operation is Operation.READ else 0)
