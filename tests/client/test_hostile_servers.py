"""The client meets servers that are silent, die, lie, never stop, or are something else altogether."""

import struct
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from nbdresize.client import Connection, connect
from nbdresize.errors import InsufficientSpace, PeerFailed
from tests.client import raw_server as raw
from tests.client.raw_server import DONE, GIB, SIZE, Honest, Peer, RawServer, Request, Script

pytestmark = pytest.mark.slow

LONG = 60.0
SHORT = 0.3
"""Where nothing comes at all; nothing depends on how long that takes."""

Ask = Callable[[Connection], object]


def read(connection: Connection) -> bytes:
    return connection.read(4096, 8192)


def answered(answer: Callable[[Request], bytes]) -> Script:
    """A server that answers each request so."""
    return Honest(lambda peer: peer.requests(answer))


def broken(server: RawServer, ask: Ask, told: str = "breaks the protocol", timeout: float = LONG) -> None:
    """`ask` fails, and the connection with it."""
    with connect(server.uri, LONG) as connection:
        connection.timeout = timeout
        with pytest.raises(PeerFailed, match=told) as caught:
            ask(connection)
        assert type(caught.value) is PeerFailed
        with pytest.raises(PeerFailed, match="has ended"):
            connection.flush()


# Before the handshake is over


@pytest.mark.parametrize("first", [b"", b"NBDMAGIC", raw.GREETING], ids=["nothing", "half-a-greeting", "greeting-only"])
def test_a_silent_server_is_given_up(tmp_path: Path, first: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.send(first)
        while True:
            peer.receive(1)

    with RawServer(tmp_path, script) as server, pytest.raises(PeerFailed, match=f"within {SHORT:g} s"):
        connect(server.uri, SHORT)


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"NBDMAGIC",
        b"HTTP/1.1 400 Bad Request\r\n\r\n" * 20,
        b"NBDMAGIC" + bytes(8) + b"\0\3",
        b"NBDMAGIC" + (0x0000420281861253).to_bytes(8) + bytes(200),
        raw.GREETING + b"more",
    ],
    ids=["nothing", "half-a-greeting", "http", "other-magic", "oldstyle", "more"],
)
def test_a_server_that_hangs_up_or_speaks_something_else_is_told(tmp_path: Path, first: bytes) -> None:
    with RawServer(tmp_path, lambda peer: peer.send(first)) as server, pytest.raises(PeerFailed) as caught:
        connect(server.uri, LONG)
    assert type(caught.value) is PeerFailed


def drip(peer: Peer, content: bytes) -> None:
    """Send it, byte by byte, each well in time."""
    for byte in content:
        peer.send(bytes([byte]))
        threading.Event().wait(SHORT / 30)


def drip_answer(peer: Peer) -> None:
    peer.send(raw.GREETING)
    peer.receive(4)
    drip(peer, raw.option_reply(peer.option()[0], raw.UNSUP, b"no" * 2000))


@pytest.mark.parametrize("script", [drip_answer, Honest(answers={raw.EXTENDED: b""})], ids=["drip", "no-answer"])
def test_a_server_that_does_not_come_to_the_end_of_an_answer_is_given_up(tmp_path: Path, script: Script) -> None:
    with RawServer(tmp_path, script) as server, pytest.raises(PeerFailed, match=f"within {SHORT:g} s"):
        connect(server.uri, SHORT)


SET_ACK = raw.option_reply(raw.SET_META, raw.ACK)
GO_INFO = raw.option_reply(raw.GO, raw.INFO, raw.export_info())


@pytest.mark.parametrize(
    "answers",
    [
        {raw.EXTENDED: raw.option_reply(raw.STRUCTURED, raw.ACK)},
        {raw.EXTENDED: bytes(20)},
        {raw.EXTENDED: raw.option_reply(raw.EXTENDED, raw.ACK, b"data")},
        {raw.EXTENDED: raw.option_reply(raw.EXTENDED, raw.ACK) * 2},
        {raw.EXTENDED: struct.pack(">QIII", 0x3E889045565A9, raw.EXTENDED, raw.UNSUP, 2**32 - 1)},
        {raw.SET_META: raw.option_reply(raw.SET_META, raw.META_CONTEXT, b"\0\0") + SET_ACK},
        {raw.SET_META: raw.option_reply(raw.SET_META, raw.META_CONTEXT, b"\0\0\0\1base:allocation") * 2 + SET_ACK},
        {raw.GO: raw.option_reply(raw.GO, raw.ACK)},
        {raw.GO: raw.option_reply(raw.GO, raw.INFO, raw.export_info(2**64 - 1)) + raw.option_reply(raw.GO, raw.ACK)},
        {raw.GO: GO_INFO * 2 + raw.option_reply(raw.GO, raw.ACK)},
        {raw.GO: raw.option_reply(raw.GO, raw.INFO, b"\0\0\1") + raw.option_reply(raw.GO, raw.ACK)},
        {
            raw.GO: GO_INFO
            + raw.option_reply(raw.GO, raw.INFO, raw.block_sizes(3, 4096, 65536))
            + raw.option_reply(raw.GO, raw.ACK)
        },
        {
            raw.GO: GO_INFO
            + raw.option_reply(raw.GO, raw.INFO, raw.resize_info(minimum=2, maximum=1))
            + raw.option_reply(raw.GO, raw.ACK)
        },
    ],
    ids=[
        "other-option",
        "other-magic",
        "ack-with-data",
        "answered-twice",
        "lying-length",
        "short-context",
        "context-twice",
        "no-size",
        "absurd-size",
        "information-twice",
        "short-information",
        "odd-blocks",
        "minimum-above-maximum",
    ],
)
def test_a_handshake_that_breaks_the_protocol_is_told(tmp_path: Path, answers: dict[int, bytes]) -> None:
    script = Honest(answers=answers)
    # What follows GO is never reached, whatever the script: the client leaves.
    with RawServer(tmp_path, script) as server, pytest.raises(PeerFailed, match="breaks the protocol"):
        connect(server.uri, LONG)


@pytest.mark.parametrize("option", [raw.SET_META, raw.GO])
def test_answers_to_an_option_without_end_are_cut_off(tmp_path: Path, option: int) -> None:
    def script(peer: Peer) -> None:
        peer.send(raw.GREETING)
        peer.receive(4)
        while (asked := peer.option()[0]) != option:
            peer.send(raw.option_reply(asked, raw.ACK if asked == raw.STRUCTURED else raw.UNSUP))
        endless = raw.option_reply(option, raw.META_CONTEXT if option == raw.SET_META else raw.INFO, b"\0\0\0\7x" * 200)
        while True:
            peer.send(endless * 64)

    with RawServer(tmp_path, script) as server, pytest.raises(PeerFailed, match="longer than"):
        connect(server.uri, LONG)


# Replies


def extended(kind: int, offset: int, payload: bytes = b"", flags: int = DONE) -> Callable[[Request], bytes]:
    return lambda request: raw.wide_chunk(kind, request.cookie, offset, payload, flags=flags)


@pytest.mark.parametrize(
    "answer",
    [
        lambda request: bytes(16),
        lambda request: raw.simple(request.cookie, 0, bytes(4096)),
        lambda request: raw.wide_chunk(raw.NONE, request.cookie, request.offset),
        lambda request: raw.data(request.cookie + 1, 8192, bytes(4096)),
        lambda request: raw.data(request.cookie, 8191, bytes(4096)),
        lambda request: raw.data(request.cookie, 8193, bytes(4096)),
        lambda request: raw.data(request.cookie, 2**64 - 1, bytes(4096)),
        lambda request: raw.data(request.cookie, 0, bytes(4096)),
        lambda request: raw.data(request.cookie, 8192, bytes(4097)),
        lambda request: raw.chunk(raw.DATA, request.cookie, length=2**32 - 1),
        lambda request: raw.chunk(raw.DATA, request.cookie, bytes(8)),
        lambda request: raw.chunk(raw.DATA, request.cookie, bytes(3)),
        lambda request: raw.data(request.cookie, 8192, bytes(4095)),
        lambda request: raw.data(request.cookie, 8192, bytes(8), flags=0) * 2,
        lambda request: raw.chunk(raw.HOLE, request.cookie, struct.pack(">QI", 8192, 2**32 - 1)),
        lambda request: raw.chunk(raw.HOLE, request.cookie, struct.pack(">QI", 8192, 0)),
        lambda request: raw.chunk(raw.NONE, request.cookie),
        lambda request: raw.chunk(raw.NONE, request.cookie, b"x"),
        lambda request: raw.told(request.cookie),
        lambda request: raw.chunk(77, request.cookie),
        lambda request: raw.chunk(raw.ERROR, request.cookie, b"\0"),
        lambda request: raw.error(request.cookie, 0, b"nothing"),
        lambda request: raw.error(request.cookie, 5, b"text", length=5000),
        lambda request: raw.chunk(raw.ERROR, request.cookie, length=2**31),
    ],
    ids=[
        "wrong-magic",
        "simple",
        "extended",
        "other-cookie",
        "before",
        "behind",
        "overflow",
        "elsewhere",
        "too-long",
        "lying-length",
        "empty",
        "no-offset",
        "incomplete",
        "twice",
        "hole-too-long",
        "hole-of-nothing",
        "none",
        "none-with-payload",
        "size",
        "unknown",
        "short-error",
        "error-of-0",
        "lying-error",
        "endless-error",
    ],
)
def test_a_reply_to_a_read_that_is_none_ends_the_connection(tmp_path: Path, answer: Callable[[Request], bytes]) -> None:
    with RawServer(tmp_path, answered(answer)) as server:
        broken(server, read)


@pytest.mark.parametrize(
    "answer",
    [
        lambda request: raw.data(request.cookie, 8192, bytes(4096)),
        lambda request: raw.simple(request.cookie, 0, bytes(4096)),
        extended(raw.DATA, 0, struct.pack(">Q", 8192) + bytes(4096)),
        lambda request: struct.pack(">IHHQQQ", 0x6E8A278C, DONE, raw.DATA, request.cookie, 8192, 2**64 - 1),
    ],
    ids=["structured", "simple", "other-offset", "lying-length"],
)
def test_with_extended_headers_everything_else_ends_the_connection(
    tmp_path: Path, answer: Callable[[Request], bytes]
) -> None:
    script = Honest(lambda peer: peer.requests(answer), extended=True)
    with RawServer(tmp_path, script) as server:
        broken(server, read)


@pytest.mark.parametrize(
    "extents",
    [
        b"",
        struct.pack(">II", 0, 0),
        struct.pack(">IIII", 65536, 0, 1, 0),
        struct.pack(">II", 65536, 0) + b"x",
    ],
    ids=["none", "empty", "behind-the-end", "odd"],
)
def test_block_status_that_makes_no_sense_ends_the_connection(tmp_path: Path, extents: bytes) -> None:
    def answer(request: Request) -> bytes:
        return raw.chunk(raw.STATUS, request.cookie, struct.pack(">I", 5) + extents)

    with RawServer(tmp_path, answered(answer)) as server:
        broken(server, lambda connection: connection.block_status(65536, 0))


def test_block_status_of_another_context_ends_the_connection(tmp_path: Path) -> None:
    def answer(request: Request) -> bytes:
        return raw.chunk(raw.STATUS, request.cookie, struct.pack(">III", 6, 65536, 0))

    with RawServer(tmp_path, answered(answer)) as server:
        broken(server, lambda connection: connection.block_status(65536, 0))


@pytest.mark.parametrize(
    "answer",
    [
        lambda request: raw.chunk(raw.SIZE_CHUNK, request.cookie, raw.size_payload(2**63)),
        lambda request: raw.chunk(raw.SIZE_CHUNK, request.cookie, raw.size_payload(granularity=0)),
        lambda request: raw.chunk(raw.SIZE_CHUNK, request.cookie, raw.size_payload()[:31]),
        lambda request: raw.told(request.cookie, flags=0) * 2,
        lambda request: raw.chunk(raw.NONE, request.cookie),
        lambda request: raw.simple(request.cookie),
    ],
    ids=["absurd-size", "no-granularity", "short", "twice", "none", "simple"],
)
def test_a_size_that_is_none_ends_the_connection(tmp_path: Path, answer: Callable[[Request], bytes]) -> None:
    with RawServer(tmp_path, answered(answer)) as server:
        broken(server, lambda connection: connection.query())
        broken(server, lambda connection: connection.resize(30 * GIB))


@pytest.mark.parametrize("ask", [read, lambda connection: connection.query(), lambda connection: connection.flush()])
def test_a_server_that_never_answers_is_given_up(tmp_path: Path, ask: Ask) -> None:
    with RawServer(tmp_path, answered(lambda request: b"")) as server:
        broken(server, ask, f"within {SHORT:g} s", SHORT)


def test_a_server_that_drips_a_reply_is_given_up(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        drip(peer, raw.data(peer.request().cookie, 8192, bytes(4096)))

    with RawServer(tmp_path, Honest(script)) as server:
        broken(server, read, f"within {SHORT:g} s", SHORT)


def test_a_server_that_does_not_take_what_is_written_is_given_up(tmp_path: Path) -> None:
    gone = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        gone.wait()

    with RawServer(tmp_path, Honest(script)) as server:
        try:
            broken(server, lambda connection: connection.write(bytes(64 << 20), 0), f"within {SHORT:g} s", SHORT)
        finally:
            gone.set()


@pytest.mark.parametrize("length", [0, 4, 19, 20, 28, 2000])
def test_a_server_gone_in_the_middle_of_a_reply_is_told(tmp_path: Path, length: int) -> None:
    def script(peer: Peer) -> None:
        peer.send(raw.data(peer.request().cookie, 8192, bytes(4096))[:length])

    with RawServer(tmp_path, Honest(script)) as server:
        broken(server, read, "was lost")


def test_chunks_without_end_are_cut_off(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        errors = raw.chunk(raw.ERROR, peer.request().cookie, struct.pack(">IH", 5, 0), flags=0) * 1000
        while True:
            peer.send(errors)

    with RawServer(tmp_path, Honest(script)) as server:
        broken(server, read, "breaks the protocol")


def test_the_server_does_not_decide_how_much_memory_a_reply_takes(tmp_path: Path) -> None:
    """A chunk that promises 4 GiB is refused by its header; and the size of an export costs nothing."""
    script = Honest(
        lambda peer: peer.requests(lambda request: raw.chunk(raw.DATA, request.cookie, bytes(8), length=2**32 - 1)),
        infos=(raw.export_info(2**63 - 1), raw.resize_info()),
    )
    tracemalloc.start()
    try:
        with RawServer(tmp_path, script) as server:
            broken(server, read)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_extents_without_number_are_refused_by_their_length(tmp_path: Path) -> None:
    def answer(request: Request) -> bytes:
        return raw.chunk(raw.STATUS, request.cookie, struct.pack(">I", 5), length=4 + 8 * ((1 << 20) + 1))

    with RawServer(tmp_path, answered(answer)) as server:
        broken(server, lambda connection: connection.block_status(GIB, 0))


# Subscriptions


def test_a_flood_of_notifications_ends_the_connection(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        cookie, generation = peer.request().cookie, 1
        while True:
            peer.send(b"".join(raw.told(cookie, SIZE, generation + more, flags=0) for more in range(100)))
            generation += 100

    with RawServer(tmp_path, Honest(script)) as server:
        broken(server, lambda connection: list(connection.watch()), "more than 100 changes in a second")


def test_a_flood_while_something_else_is_asked_ends_the_connection(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        cookie = peer.request().cookie
        peer.send(raw.told(cookie, flags=0))
        peer.request()
        while True:
            peer.send(raw.told(cookie, flags=0) * 100)

    def ask(connection: Connection) -> None:
        watching = connection.watch()
        next(watching)
        read(connection)

    with RawServer(tmp_path, Honest(script)) as server:
        broken(server, ask, "more than 100 changes in a second")


def test_a_subscription_that_is_never_answered_is_given_up(tmp_path: Path) -> None:
    with RawServer(tmp_path, answered(lambda request: b"")) as server:
        broken(server, lambda connection: next(connection.watch()), f"within {SHORT:g} s", SHORT)


def test_a_watched_server_that_falls_silent_is_given_up(tmp_path: Path) -> None:
    """No news is no fault; but whether anybody is there at all is asked after a while."""
    asked: list[int] = []

    def script(peer: Peer) -> None:
        peer.send(raw.told(peer.request().cookie, flags=0))
        while True:
            asked.append(peer.request().flags)

    def ask(connection: Connection) -> None:
        sizes = connection.watch(check_seconds=SHORT)
        next(sizes)
        connection.timeout = SHORT
        next(sizes)

    with RawServer(tmp_path, Honest(script)) as server:
        broken(server, ask, f"within {SHORT:g} s")
    assert asked == [raw.QUERY]


@pytest.mark.parametrize(
    "after",
    [
        lambda cookie: raw.simple(cookie),
        lambda cookie: raw.chunk(raw.NONE, cookie),
        lambda cookie: raw.error(cookie, 22, b"never heard of it"),
    ],
    ids=["simple", "chunk", "error"],
)
def test_a_subscription_that_can_not_be_ended_ends_with_the_connection(
    tmp_path: Path, after: Callable[[int], bytes]
) -> None:
    """The server answers the CANCEL, but leaves the subscription without its last chunk."""

    def script(peer: Peer) -> None:
        peer.send(raw.told(peer.request().cookie, flags=0))
        cancel = peer.request()
        assert (cancel.flags, cancel.offset) == (raw.CANCEL, 1)
        peer.send(after(cancel.cookie))
        peer.receive(1)

    with RawServer(tmp_path, Honest(script)) as server, connect(server.uri, LONG) as connection:
        watching = connection.watch()
        assert next(watching).size == SIZE
        watching.close()
        with pytest.raises(PeerFailed, match="has ended"):
            connection.flush()


def test_texts_of_a_server_are_harmless(tmp_path: Path) -> None:
    """Control characters, invalid UTF-8, and more than anybody wants to read."""
    text = b"\x1b[2J\n\0\xff" + b"x" * 4000

    with (
        RawServer(tmp_path, answered(lambda request: raw.error(request.cookie, 28, text))) as server,
        connect(server.uri, LONG) as connection,
        pytest.raises(InsufficientSpace) as caught,
    ):
        connection.resize(30 * GIB)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_many_connections_that_fail_leave_no_descriptor_behind(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with RawServer(tmp_path, lambda peer: peer.send(b"no")) as server:
        for _ in range(50):
            with pytest.raises(PeerFailed):
                connect(server.uri, LONG)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


def test_errors_without_end_take_bounded_memory(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        payload = struct.pack(">IH", 5, 4096) + b"x" * 4096
        errors = raw.chunk(raw.ERROR, peer.request().cookie, payload, flags=0) * 16
        while True:
            peer.send(errors)

    tracemalloc.start()
    try:
        with RawServer(tmp_path, Honest(script)) as server:
            broken(server, read)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
