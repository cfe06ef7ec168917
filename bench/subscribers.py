"""How soon each of many subscribers knows a new size: seconds since whoever resizes has asked for it.

A disk is grown step by step while clients watch it, each on a connection of its own; the steps are slow enough for
each size to be told by itself. One loop receives for all of them and notes the time first, so that what is measured
is the server's delay, and not how fast this process gets round. That the size is durable before anybody is told is the
server's promise, so its time is in each of these.

The answer to whoever asked is timed too. It is none of the server's promises that this comes first: where a server
tells a hundred subscribers before it sends the answer, they all know by then.
"""

import select
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from bench.ledger_disk import MIB, wait_until
from nbdresize.client import connect_resizable
from nbdresize.client.handshake import the_export, where_it_is_watched
from nbdresize.client.opening import open_export
from nbdresize.client.uri import parse_uri
from nbdresize.errors import PeerFailed
from nbdresize.protocol.constants import NBD_CMD_FLAG_NOTIFY, NBD_CMD_READ, NBD_CMD_RESIZE
from nbdresize.protocol.replies import ReplyStream
from nbdresize.protocol.reply_check import Data, Done, SizeTold
from nbdresize.protocol.size_record import (
    RECORD_LENGTH,
    RECORD_OFFSET,
    WAITING_RECORD_OFFSET,
    parse_record,
)
from nbdresize.protocol.transmission import Request

_STEP = 0.15
_PATIENCE = 30.0
_LOOK_EVERY = 0.1


@dataclass(frozen=True)
class Way:
    """How subscribers are told: by the RESIZE command, or by reads of the size export that wait."""

    name: str
    front: str
    by_command: bool
    quick: bool = False


WAYS = (
    Way("native's RESIZE command", "native", by_command=True, quick=True),
    Way("native's size export", "native", by_command=False),
    Way("nbdkit's size export", "nbdkit", by_command=False, quick=True),
)


@dataclass(frozen=True)
class Told:
    """Of each change, the seconds since it was asked for until each subscriber knew, and until the answer came."""

    known: list[list[float]]
    answered: list[float]
    alone: int
    """Of all these, how many sizes were told by themselves; one that is late is told together with the next one."""

    @property
    def half(self) -> list[float]:
        """Until half of the subscribers knew."""
        return [statistics.median(each) for each in self.known]

    @property
    def all(self) -> list[float]:
        """Until the last one knew."""
        return [max(each) for each in self.known]

    @property
    def expected(self) -> int:
        return sum(map(len, self.known))


def delays(uri: str, way: Way, clients: int, changes: int) -> Told:
    """Grow the disk `changes` times while so many clients watch it."""
    with _watching(uri, way, clients) as watchers, connect_resizable(uri) as resizer:
        start = resizer.query().size
        sizes = [start + number * MIB for number in range(1, changes + 1)]
        asked: dict[int, float] = {}
        answered: list[float] = []
        watchers.wait_for(start)
        for size in sizes:
            wait_until(time.monotonic() + _STEP)
            asked[size] = time.monotonic()
            resizer.resize(size)
            answered.append(time.monotonic() - asked[size])
        watchers.wait_for(sizes[-1])
        known = [[each.knew(size) - asked[size] for each in watchers.all] for size in sizes]
        alone = sum(size in each.heard for each in watchers.all for size in sizes)
    return Told(known, answered, alone)


@dataclass
class _Subscriber:
    """One connection, and when it was told which size."""

    connection: socket.socket
    replies: ReplyStream
    by_command: bool
    heard: dict[int, float] = field(default_factory=dict)
    cookie: int = 0

    def ask(self, *, first: bool) -> None:
        """Subscribe, or send the next read that waits; the first one does not."""
        self.cookie += 1
        if self.by_command:
            request = Request(NBD_CMD_FLAG_NOTIFY, NBD_CMD_RESIZE, self.cookie, 0, 0)
        else:
            offset = RECORD_OFFSET if first else WAITING_RECORD_OFFSET
            request = Request(0, NBD_CMD_READ, self.cookie, offset, RECORD_LENGTH)
        self.connection.sendall(self.replies.request(request))

    def knew(self, size: int) -> float:
        """When it was told this size, or a larger one that came after it."""
        return min(moment for told, moment in self.heard.items() if told >= size)

    def take(self, data: bytes, now: float) -> None:
        for event in self.replies.feed(data):
            if isinstance(event, SizeTold):
                self.heard.setdefault(event.size.size, now)
            elif isinstance(event, Data):
                self.heard.setdefault(parse_record(event.data).size, now)
            elif isinstance(event, Done):
                if event.errors or self.by_command:
                    raise PeerFailed(f"A subscription has ended: {event.errors}")
                self.ask(first=False)


class _Watchers:
    """Receives for all subscribers, in a thread."""

    def __init__(self, subscribers: list[_Subscriber]) -> None:
        self.all = subscribers
        self._ended = threading.Event()
        self._news = threading.Condition()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="watchers")
        self._thread.start()

    def wait_for(self, size: int) -> None:
        """Until all have been told `size`. Raises PeerFailed."""
        with self._news:
            known = self._news.wait_for(lambda: self._failure or self._all_know(size), _PATIENCE)
        if self._failure is not None:
            raise PeerFailed(f"A subscriber failed: {self._failure}") from self._failure
        if not known:
            raise PeerFailed(f"Not all subscribers were told of {size} bytes within {_PATIENCE:g} s")

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _all_know(self, size: int) -> bool:
        return all(size in each.heard for each in self.all)

    def _run(self) -> None:
        try:
            self._receive()
        except Exception as error:  # noqa: BLE001  told to whoever waits
            with self._news:
                self._failure = error
                self._news.notify_all()

    def _receive(self) -> None:
        poll = select.poll()
        by_descriptor = {each.connection.fileno(): each for each in self.all}
        for descriptor in by_descriptor:
            poll.register(descriptor, select.POLLIN)
        while not self._ended.is_set():
            received = []
            for descriptor, _ in poll.poll(_LOOK_EVERY * 1e3):
                subscriber = by_descriptor[descriptor]
                data = subscriber.connection.recv(65536)
                received.append((subscriber, data, time.monotonic()))
            with self._news:
                for subscriber, data, now in received:
                    if not data:
                        raise PeerFailed("The server ended the connection")
                    subscriber.take(data, now)
                self._news.notify_all()


@contextmanager
def _watching(uri: str, way: Way, clients: int) -> Iterator[_Watchers]:
    with ExitStack() as stack:
        subscribers = []
        for _ in range(clients):
            choose = the_export if way.by_command else where_it_is_watched
            stream, negotiated = open_export(parse_uri(uri), _PATIENCE, choose)
            stack.callback(stream.close)
            subscribers.append(_Subscriber(stream.socket, ReplyStream(negotiated), way.by_command))
        for each in subscribers:
            each.connection.settimeout(_PATIENCE)
            each.ask(first=True)
        watchers = _Watchers(subscribers)
        try:
            yield watchers
        finally:
            watchers.end()
