"""Streams of replies: parsed the same however they are cut, and never taken where anything about them is wrong."""

import itertools
import struct
from collections.abc import Callable, Iterable, Sequence

import pytest

from nbdresize.loads.model import Operation
from nbdresize.loads.replies import BUFFER, Refused, Replies, UniformReplies, VariedReplies
from nbdresize.loads.requests import RequestTable
from nbdresize.protocol.violation import ProtocolViolation
from tests.client import raw_server as raw
from tests.client.raw_server import DATA, DONE, ERROR, HOLE, NONE
from tests.loads.conftest import batch

BLOCK = 64
Taken = tuple[list[int], dict[int, bytearray]]


def table(operation: Operation = Operation.READ) -> RequestTable:
    return RequestTable(batch(operation, BLOCK, 8), 64 * BLOCK)


def content(cookie: int) -> bytes:
    return bytes([cookie % 251]) * BLOCK


def feed(replies: Replies, stream: bytes, cuts: Iterable[int], asked: Iterable[int] = range(1024)) -> list[int]:
    """The cookies, in their order, of a stream that comes in pieces of these lengths, over and over.

    It answers requests with the cookies `asked`.
    """
    replies.outstanding.update(asked)
    taken: list[int] = []
    lengths = itertools.cycle(cuts)
    while stream:
        room = replies.room()
        count = min(next(lengths), len(stream), len(room))
        room[:count] = stream[:count]
        stream = stream[count:]
        taken += replies.take(count)
    return taken


def uniform(stream: bytes, cuts: Iterable[int]) -> list[int]:
    return feed(UniformReplies(BLOCK), stream, cuts)


CUTS: Sequence[Sequence[int]] = ([1], [7], [15, 2], [16], [17, 63], [80], [81], [160, 1], [1000], [BUFFER])


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_uniform_replies_however_they_are_cut(cuts: Sequence[int]) -> None:
    order = [3, 1, 2, 0, 200, 100, *range(300, 400)]
    assert uniform(b"".join(raw.simple(cookie, data=content(cookie)) for cookie in order), cuts) == order
    assert feed(UniformReplies(0), b"".join(map(raw.simple, order)), cuts) == order


def test_a_reply_is_complete_with_its_last_byte() -> None:
    replies = UniformReplies(BLOCK)
    stream = raw.simple(5, data=content(5))
    assert feed(replies, stream[:-1], [100]) == []
    assert feed(replies, stream[-1:], [100]) == [5]


def large(stream: bytes, cuts: Iterable[int]) -> list[int]:
    return feed(UniformReplies(3 * BUFFER), stream, cuts)


def test_replies_larger_than_the_buffer() -> None:
    stream = b"".join(raw.simple(cookie, data=bytes(3 * BUFFER)) for cookie in range(3))
    for cuts in ([BUFFER], [BUFFER - 1, 3], [100_000]):
        assert large(stream, cuts) == [0, 1, 2]


def varied(
    stream: bytes, cuts: Iterable[int], *, structured: bool = False, operation: Operation = Operation.READ
) -> Taken:
    requests = table(operation)
    kept: dict[int, bytearray] = {}

    def deliver(cookie: int, at: int, data: memoryview | None, length: int) -> None:
        piece = kept.setdefault(cookie, bytearray(BLOCK))
        piece[at : at + length] = bytes(length) if data is None else data

    return feed(VariedReplies(requests, structured=structured, deliver=deliver), stream, cuts), kept


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_reads_among_writes(cuts: Sequence[int]) -> None:
    replies = VariedReplies(requests := table(Operation.MIXED), structured=False)
    order = [*range(40, 90), 3, 2]
    stream = b"".join(raw.simple(n, data=content(n) if requests.reads(n) else b"") for n in order)
    assert feed(replies, stream, cuts) == order


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_chunks_of_data_and_holes_in_any_order(cuts: Sequence[int]) -> None:
    requests = table(operation=Operation.READ)
    kept: dict[int, bytearray] = {}

    def deliver(cookie: int, at: int, data: memoryview | None, length: int) -> None:
        kept.setdefault(cookie, bytearray(b"?" * BLOCK))[at : at + length] = bytes(length) if data is None else data

    one, two, three = (requests.offset(cookie) for cookie in (1, 2, 3))
    stream = b"".join(
        [
            raw.data(1, one + 40, b"c" * 24, flags=0),
            raw.data(2, two, b"x" * BLOCK),
            raw.chunk(HOLE, 1, struct.pack(">QI", one + 8, 32), flags=0),
            raw.chunk(HOLE, 3, struct.pack(">QI", three, BLOCK)),
            raw.data(1, one, b"a" * 8, flags=0),
            raw.chunk(NONE, 1),
        ]
    )
    assert feed(VariedReplies(requests, structured=True, deliver=deliver), stream, cuts) == [2, 3, 1]
    assert kept == {1: b"a" * 8 + bytes(32) + b"c" * 24, 2: b"x" * BLOCK, 3: bytes(BLOCK)}


def good(cookie: int) -> bytes:
    return raw.simple(cookie, data=content(cookie))


@pytest.mark.parametrize("bad", [b"\0" * 16, raw.simple(1)[:3] + b"\0" + raw.simple(1)[4:], b"HTTP/1.1 400 Bad"])
@pytest.mark.parametrize("take", [uniform, lambda stream, cuts: varied(stream, cuts)], ids=["uniform", "varied"])
def test_a_wrong_magic_is_noticed_wherever_it_stands(take: Callable[..., object], bad: bytes) -> None:
    for before in (0, 1, 50):
        with pytest.raises(ProtocolViolation, match="starts with"):
            take(b"".join(map(good, range(before))) + bad + good(100), [1000])


@pytest.mark.parametrize("take", [uniform, lambda stream, cuts: varied(stream, cuts)], ids=["uniform", "varied"])
def test_an_error_reply_is_told_with_its_number_and_cookie(take: Callable[..., object]) -> None:
    with pytest.raises(Refused) as caught:
        take(good(0) + good(1) + raw.simple(7, 5) + good(2), [1000])
    assert (caught.value.cookie, caught.value.error.errno) == (7, 5)


def test_an_error_chunk_is_told_with_its_text() -> None:
    with pytest.raises(Refused) as caught:
        varied(raw.error(7, 28, b"no\x1broom"), [3], structured=True)
    assert (caught.value.cookie, caught.value.error.errno, caught.value.error.message) == (7, 28, "no?room")


@pytest.mark.parametrize(
    "make",
    [
        lambda offset: raw.data(1, offset - 1, b"x" * BLOCK),
        lambda offset: raw.data(1, offset + 1, b"x" * BLOCK),
        lambda offset: raw.data(1, offset, b"x" * (BLOCK - 1)),
        lambda offset: raw.data(1, offset, b""),
        lambda offset: raw.data(1, offset, b"x" * (BLOCK - 1), flags=0) + raw.chunk(NONE, 1),
        lambda offset: raw.data(1, offset, b"x" * 32, flags=0) + raw.data(1, offset, b"x" * 32),
        lambda offset: raw.data(1, offset, b"x" * 32, flags=0) + raw.data(1, offset + 31, b"x" * 33),
        lambda offset: raw.chunk(NONE, 1),
        lambda offset: raw.chunk(NONE, 1, flags=0),
        lambda offset: raw.chunk(NONE, 1, b"x"),
        lambda offset: raw.chunk(HOLE, 1, struct.pack(">QI", offset, BLOCK + 1)),
        lambda offset: raw.chunk(HOLE, 1, struct.pack(">QI", offset, 0)),
        lambda offset: raw.chunk(HOLE, 1, struct.pack(">Q", offset)),
        lambda offset: raw.chunk(6, 1, bytes(12)),
        lambda offset: raw.chunk(77, 1),
        lambda offset: raw.chunk(ERROR, 1, b"x"),
        lambda offset: raw.chunk(ERROR, 1, length=1 << 31),
        lambda offset: raw.chunk(DATA, 1, length=3),
        lambda offset: raw.data(1 << 40, offset, b"x" * BLOCK),
        lambda offset: raw.simple(1, data=b"x" * BLOCK),
    ],
)
def test_chunks_that_answer_nothing_are_violations(make: Callable[[int], bytes]) -> None:
    requests = table()
    stream = make(requests.offset(1)).ljust(4096, b"\0")
    with pytest.raises(ProtocolViolation):
        feed(VariedReplies(requests, structured=True), stream, [4096])


Make = Callable[[RequestTable], Replies]
MAKERS: Sequence[Make] = (
    lambda _: UniformReplies(BLOCK),
    lambda requests: VariedReplies(requests, structured=False),
    lambda requests: VariedReplies(requests, structured=True),
)


def reply(replies: Replies, requests: RequestTable, cookie: int) -> bytes:
    """A good one of the form that these parse."""
    structured = isinstance(replies, VariedReplies) and replies._structured
    return raw.data(cookie, requests.offset(cookie), content(cookie)) if structured else good(cookie)


@pytest.mark.parametrize("make", MAKERS, ids=["uniform", "simple", "structured"])
@pytest.mark.parametrize("cookie", [1, 3, 1 << 40], ids=["answered", "not asked", "never asked"])
def test_not_even_a_part_is_taken_for_what_is_not_under_way(make: Make, cookie: int) -> None:
    requests = table()
    for cuts in ([4096], [1]):
        replies = make(requests)
        stream = reply(replies, requests, 1)
        with pytest.raises(ProtocolViolation, match="no request that is under way"):
            feed(replies, stream + begun(replies, requests, cookie), cuts, [1, 2])


def begun(replies: Replies, requests: RequestTable, cookie: int) -> bytes:
    """A reply that lacks its last byte."""
    return reply(replies, requests, 2)[:-1].replace(struct.pack(">Q", 2), struct.pack(">Q", cookie), 1)


@pytest.mark.parametrize("kind", ["data", "hole"])
def test_a_chunk_that_ends_nothing_is_not_delivered_after_the_reply(kind: str) -> None:
    requests = table()
    offset = requests.offset(1)
    late = {
        "data": raw.data(1, offset, b"x" * BLOCK, flags=0),
        "hole": raw.chunk(HOLE, 1, struct.pack(">QI", offset, BLOCK), flags=0),
    }[kind]
    delivered: list[int] = []
    replies = VariedReplies(requests, structured=True, deliver=lambda cookie, *_: delivered.append(cookie))
    with pytest.raises(ProtocolViolation, match="no request"):
        feed(replies, raw.data(1, offset, content(1)) + late, [4096], [1, 2])
    assert delivered == [1]


@pytest.mark.parametrize("make", MAKERS, ids=["uniform", "simple", "structured"])
def test_what_is_not_complete_is_told(make: Make) -> None:
    requests = table()
    replies = make(requests)
    stream = reply(replies, requests, 1)
    for byte in range(len(stream)):
        feed(replies, stream[byte : byte + 1], [1], [1] if byte == 0 else [])
        assert replies.unfinished == (byte < len(stream) - 1)
    assert replies.outstanding == set()


def test_a_reply_in_tiny_chunks_is_not_remembered_without_end() -> None:
    requests = RequestTable(batch(Operation.READ, 1 << 20, 1), 1 << 20)
    replies = VariedReplies(requests, structured=True)
    with pytest.raises(ProtocolViolation, match="A reply has 2049 chunks"):
        for byte in range(3000):
            feed(replies, raw.data(0, requests.offset(0) + byte, b"x", flags=0), [4096], [0] if byte == 0 else [])


def test_flags_other_than_done_change_nothing() -> None:
    requests = table()
    stream = raw.data(1, requests.offset(1), b"x" * BLOCK, flags=DONE | 2)
    assert feed(VariedReplies(requests, structured=True), stream, [1]) == [1]
