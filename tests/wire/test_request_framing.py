"""Requests cut into pieces, run together, ended early, with a wrong magic, and with payloads whose lengths lie."""

from collections.abc import Iterator

import pytest

from tests.wire.conftest import SIZE
from tests.wire.layout import (
    BLOCK_STATUS,
    CACHE,
    CANCEL,
    DISC,
    EINVAL,
    ENOSPC,
    EXTEND,
    EXTENDED,
    FLUSH,
    FUA,
    MIB,
    MODES,
    PAYLOAD_LEN,
    QUERY,
    READ,
    RESIZE,
    SIMPLE,
    STRUCTURED,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    request,
)
from tests.wire.layout import SIZE as SIZE_FLAG
from tests.wire.peer import NativeServer, RawClient

AT = 24 * MIB
"""Where these tests write, always the same bytes."""

WRITTEN = bytes(range(200)) * 2

modes = pytest.mark.parametrize("mode", MODES)


def write(mode: str, offset: int, payload: bytes, flags: int = 0, length: int | None = None, cookie: int = 1) -> bytes:
    """A WRITE with its payload; `length` is what its header says, where that is to be a lie."""
    flags |= PAYLOAD_LEN if mode == EXTENDED else 0
    return request(mode, WRITE, offset, len(payload) if length is None else length, flags, cookie) + payload


REQUESTS = {
    "READ": lambda mode: request(mode, READ, 0, 100),
    "WRITE": lambda mode: write(mode, AT, WRITTEN),
    "WRITE with FUA": lambda mode: write(mode, AT, WRITTEN, FUA),
    "WRITE past the end": lambda mode: write(mode, SIZE, WRITTEN),
    "FLUSH": lambda mode: request(mode, FLUSH, 0, 0),
    "TRIM": lambda mode: request(mode, TRIM, AT + MIB, 4096),
    "CACHE": lambda mode: request(mode, CACHE, 0, 4096),
    "WRITE_ZEROES": lambda mode: request(mode, WRITE_ZEROES, AT + MIB, 4096),
    "BLOCK_STATUS": lambda mode: request(mode, BLOCK_STATUS, SIZE - 4096, 4096),
    "RESIZE": lambda mode: request(mode, RESIZE, SIZE, 0),
    "RESIZE with SIZE": lambda mode: request(mode, RESIZE, SIZE, 0, SIZE_FLAG),
    "RESIZE with QUERY": lambda mode: request(mode, RESIZE, 0, 0, QUERY),
    "RESIZE with CANCEL": lambda mode: request(mode, RESIZE, 99, 0, CANCEL),
    "unknown": lambda mode: request(mode, 77, 0, 0),
    "READ with a payload": lambda mode: (
        request(mode, READ, 0, 5, PAYLOAD_LEN) + (b"extra" if mode == EXTENDED else b"")
    ),
}
requests = pytest.mark.parametrize("kind", REQUESTS)


@pytest.fixture
def client(server: NativeServer, mode: str) -> Iterator[RawClient]:
    with server.connect(mode=mode) as client:
        yield client


def replies(server: NativeServer, mode: str, said: bytes) -> bytes:
    """All that a client gets who says this and then leaves in good order."""
    with server.connect(mode=mode) as client:
        client.send(said + request(mode, DISC, 0, 0))
        return client.receive_rest()


@modes
@requests
def test_each_request_may_come_byte_by_byte(server: NativeServer, client: RawClient, mode: str, kind: str) -> None:
    said = REQUESTS[kind](mode)
    whole = replies(server, mode, said)
    assert len(whole) >= 16
    client.send_slowly(said)
    client.send(request(mode, DISC, 0, 0))
    assert client.receive_rest() == whole


@modes
@requests
def test_each_request_may_end_in_the_next_piece(server: NativeServer, client: RawClient, mode: str, kind: str) -> None:
    said = REQUESTS[kind](mode)
    whole = replies(server, mode, said)
    for cut in range(1, len(said)):
        client.send(said[:cut])
        client.send(said[cut:])
        assert client.receive(len(whole)) == whole


@modes
@requests
def test_each_request_may_have_the_next_attached(server: NativeServer, mode: str, kind: str) -> None:
    said = REQUESTS[kind](mode)
    whole = replies(server, mode, said)
    one_by_one = b"".join(replies(server, mode, each) for each in (said, write(mode, AT, WRITTEN), said))
    if kind in (
        "RESIZE",
        "RESIZE with SIZE",
        "RESIZE with QUERY",
        "RESIZE with CANCEL",
        "unknown",
        "WRITE past the end",
    ):
        assert replies(server, mode, said + write(mode, AT, WRITTEN) + said) == one_by_one
    assert len(replies(server, mode, said * 50)) == 50 * len(whole)


@modes
@requests
def test_a_connection_may_be_cut_anywhere(server: NativeServer, mode: str, kind: str) -> None:
    said = REQUESTS[kind](mode)
    whole = replies(server, mode, said)
    header = 32 if mode == EXTENDED else 28
    cuts = [*range(header), *range(header, len(said), 100)]
    for cut in cuts:
        with server.connect(mode=mode) as client:
            client.send(said[:cut])
            client.finish_sending()
            assert whole.startswith(client.receive_rest())
    for cut in cuts[::3]:
        with server.connect(mode=mode) as client:
            client.send(said[:cut])


@modes
def test_requests_that_came_before_the_end_are_answered(server: NativeServer, mode: str) -> None:
    said = b"".join(REQUESTS[kind](mode) for kind in ("READ", "WRITE", "FLUSH", "WRITE_ZEROES"))
    with server.connect(mode=mode) as client:
        client.send(said)
        client.finish_sending()
        assert sorted(client.receive_rest()) == sorted(replies(server, mode, said))


@modes
def test_a_wrong_magic_ends_the_connection(server: NativeServer, mode: str) -> None:
    said = request(mode, READ, 0, 3)
    wrong = [(int.from_bytes(said[:4], "big") ^ 1 << bit).to_bytes(4, "big") + said[4:] for bit in range(32)]
    wrong += [request(STRUCTURED if mode == EXTENDED else EXTENDED, READ, 0, 3) + bytes(4)]
    wrong += [bytes(32), b"\xff" * 32, b"IHAVEOPT" + bytes(24), b"GET / HTTP/1.1\r\nHost: nbd\r\n\r\n\r\n\r\n"]
    for each in wrong:
        with server.connect(mode=mode) as client:
            client.send(each)
            client.expect_end()


@modes
@pytest.mark.parametrize("kinds", [("READ", "WRITE", "FLUSH"), ("READ", "WRITE")])
def test_what_came_before_a_wrong_magic_is_answered(server: NativeServer, mode: str, kinds: tuple[str, ...]) -> None:
    said = b"".join(REQUESTS[kind](mode) for kind in kinds)
    with server.connect(mode=mode) as client:
        client.send(said + bytes(64))
        assert sorted(client.receive_rest()) == sorted(replies(server, mode, said))


# Payloads


@modes
@pytest.mark.parametrize("length", [1, 512, 32 << 10, (32 << 10) + 1, 300_000])
def test_the_payload_of_a_refused_write_is_skipped(client: RawClient, length: int) -> None:
    for offset, flags, error in (
        (SIZE, 0, ENOSPC),
        (2**64 - 1, 0, ENOSPC),
        (2**64 - 1, FUA, ENOSPC),
        (AT, 1 << 14, EINVAL),
        (AT, SIZE_FLAG, EINVAL),
        (2**63, EXTEND, ENOSPC),
    ):
        assert client.call(WRITE, offset, flags=flags, payload=b"\x25\x60\x95\x13" * length).error == error
        assert client.read(0, 3) == b"\1\2\3"


@modes
def test_the_largest_payload_is_written(client: RawClient) -> None:
    data = b"\xa5" * (32 * MIB)
    client.write(SIZE - 32 * MIB, data)
    assert client.read(SIZE - 32 * MIB, 32 * MIB) == data
    assert client.call(WRITE_ZEROES, SIZE - 32 * MIB, 32 * MIB).error == 0


@pytest.mark.parametrize(("mode", "length"), [(SIMPLE, 32 * MIB + 1), (STRUCTURED, 64 * MIB), (EXTENDED, 33 * MIB)])
def test_a_payload_that_is_too_long_is_skipped_and_refused(client: RawClient, length: int) -> None:
    assert client.call(WRITE, 0, payload=bytes(length)).error == EINVAL
    assert client.read(0, 3) == b"\1\2\3"


@modes
@pytest.mark.parametrize("length", [64 * MIB + 1, 2**31, 2**32 - 1, 2**64 - 1])
def test_a_payload_that_nobody_means_ends_the_connection(client: RawClient, mode: str, length: int) -> None:
    if mode != EXTENDED and length >= 2**32:
        length = 2**32 - 4096
    client.send(write(mode, AT, WRITTEN, length=length))
    client.expect_end()


@pytest.mark.parametrize("mode", [EXTENDED])
@pytest.mark.parametrize("command", [READ, FLUSH, RESIZE, DISC, BLOCK_STATUS, 77])
def test_a_needless_payload_that_nobody_means_ends_the_connection(client: RawClient, command: int) -> None:
    client.send(request(EXTENDED, command, 0, 2**64 - 1, PAYLOAD_LEN))
    client.expect_end()


@modes
@pytest.mark.parametrize("announced", [401, 32 << 10, (32 << 10) + 1, MIB, 32 * MIB, 64 * MIB])
def test_a_client_may_be_gone_in_mid_payload(server: NativeServer, mode: str, announced: int) -> None:
    for half_closed in (True, False):
        with server.connect(mode=mode) as client:
            client.send(write(mode, AT, WRITTEN, length=announced))
            if half_closed:
                client.finish_sending()
                client.expect_end()


@modes
def test_a_payload_that_is_too_short_takes_in_the_next_request(client: RawClient, mode: str) -> None:
    swallowed = request(mode, READ, 0, 3)
    client.send(write(mode, AT + 2 * MIB, b"", length=len(swallowed), cookie=client.packed(WRITE)[0]) + swallowed)
    client.send(request(mode, DISC, 0, 0))
    assert len(client.receive_rest()) == (32 if mode == EXTENDED else 16)


@modes
def test_a_payload_that_is_too_long_for_its_header_ends_the_connection(client: RawClient, mode: str) -> None:
    client.send(write(mode, AT + 2 * MIB, WRITTEN + bytes(100), length=len(WRITTEN)))
    assert len(client.receive_rest()) in (0, 32 if mode == EXTENDED else 16)
