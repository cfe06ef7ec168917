"""Clients that leave at the wrong moment, or take nothing of what they asked for."""

import socket
from collections.abc import Callable

import pytest

from tests.wait import until
from tests.wire.conftest import SIZE
from tests.wire.layout import (
    BLOCK_STATUS,
    CACHE,
    EXTENDED,
    FLUSH,
    FUA,
    LIST,
    MIB,
    MODES,
    NOTIFY,
    PAYLOAD_LEN,
    READ,
    RESIZE,
    SIMPLE,
    STRUCTURED,
    WRITE,
    WRITE_ZEROES,
    option,
)
from tests.wire.peer import NativeServer, RawClient

pytestmark = pytest.mark.slow

AT = 50 * MIB
"""Where these tests write."""

BUSY = 64 * MIB
"""The memory that one connection may take, in bytes, whatever its client does."""

modes = pytest.mark.parametrize("mode", MODES)


def wait_rid(server: NativeServer) -> None:
    """Wait until the server has given back what the clients before had."""
    until(
        lambda: server.counters()["connections"] == 0 and server.threads < 20 and server.files < 40,
        what="the threads and files of clients that have gone",
    )


def read_small(client: RawClient) -> bytes:
    return client.packed(READ, 0, 32 << 10)[1]


def read_large(client: RawClient) -> bytes:
    return client.packed(READ, 0, 32 * MIB)[1]


def read_middling(client: RawClient) -> bytes:
    return client.packed(READ, 0, 200_000)[1]


def block_status(client: RawClient) -> bytes:
    return client.packed(BLOCK_STATUS, 0, SIZE)[1]


def refused(client: RawClient) -> bytes:
    return client.packed(77, 0, 1)[1]


def flush(client: RawClient) -> bytes:
    return client.packed(FLUSH)[1]


def write_through(client: RawClient) -> bytes:
    flags = FUA | (PAYLOAD_LEN if client.mode == EXTENDED else 0)
    return client.packed(WRITE, AT, 30_000, flags)[1] + bytes(30_000)


def query(client: RawClient) -> bytes:
    return client.packed(RESIZE, 0, 0, 1 << 7)[1]


FLOODS = [
    (SIMPLE, read_small),
    (STRUCTURED, read_large),
    (SIMPLE, read_middling),
    (EXTENDED, block_status),
    (STRUCTURED, refused),
    (SIMPLE, flush),
    (EXTENDED, write_through),
    (STRUCTURED, query),
]


def flood(client: RawClient, server: NativeServer, one: Callable[[RawClient], bytes], most: int = 40 * MIB) -> None:
    """Send requests and read nothing, until the server takes in no more (or `most` bytes have gone)."""
    client.sock.setblocking(False)
    piece = b"".join(one(client) for _ in range(20))
    at = sent = stuck = 0
    while sent < most and stuck < 3:
        try:
            count = client.sock.send(piece[at:])
        except BlockingIOError:
            server.check()  # it has had time to take in more
            stuck += 1
            continue
        stuck = 0
        sent += count
        at = (at + count) % len(piece)


@pytest.mark.parametrize(("mode", "one"), FLOODS)
def test_a_client_that_never_reads_takes_bounded_memory_and_holds_up_nobody(
    server: NativeServer, mode: str, one: Callable[[RawClient], bytes]
) -> None:
    server.check()
    before = server.resident
    with server.connect(mode=mode) as client:
        flood(client, server, one)
        assert server.resident - before < BUSY
        with server.connect() as other:
            other.write(AT + MIB, b"still here")  # where nothing of the flood that is still being written goes
            assert other.read(AT + MIB, 10) == b"still here"
    server.wait_alone()


def test_a_client_that_never_reads_while_it_negotiates_takes_bounded_memory(server: NativeServer) -> None:
    before = server.resident
    with server.client() as client:
        client.send((3).to_bytes(4, "big"))
        for _ in range(20):
            client.send(option(77, bytes(MIB)))
        for _ in range(44):
            client.send(option(LIST))
        server.check()
        assert server.resident - before < BUSY


@modes
def test_gone_with_replies_pending(server: NativeServer, mode: str) -> None:
    wishes = [(READ, 0, MIB), (READ, 0, 4096), (READ, 40 * MIB, MIB), (FLUSH, 0, 0), (WRITE_ZEROES, AT, 4096)]
    for number in range(20):
        with server.connect(mode=mode) as client:
            for _ in range(10):
                for command, offset, length in wishes:
                    client.start(command, offset, length)
            if number % 2:
                client.receive(16 + number * 1000)
    wait_rid(server)


@modes
def test_a_client_that_only_stops_sending_gets_all_its_replies(server: NativeServer, mode: str) -> None:
    with server.connect(mode=mode) as client:
        cookies = [client.start(READ, 0, MIB) for _ in range(20)]
        cookies += [client.start(FLUSH), client.start(CACHE, 0, MIB)]
        cookies += [client.start(WRITE, AT, flags=FUA, payload=bytes(500)) for _ in range(10)]
        client.finish_sending()
        for cookie in cookies:
            assert client.reply(cookie).error == 0
        client.expect_end()


@modes
def test_a_client_that_takes_no_more_replies(server: NativeServer, mode: str) -> None:
    for length in (4096, MIB, 32 * MIB):
        with server.connect(mode=mode) as client:
            client.sock.shutdown(socket.SHUT_RD)
            try:
                for _ in range(100):
                    client.start(READ, 0, length)
                    client.start(FLUSH)
            except ConnectionError:
                continue
    wait_rid(server)


def test_subscribers_may_leave_without_a_word(server: NativeServer) -> None:
    for mode in (STRUCTURED, EXTENDED):
        for half_closed in (True, False):
            with server.connect(mode=mode) as client:
                cookie = client.start(RESIZE, 0, 0, NOTIFY)
                if half_closed:
                    client.finish_sending()
                    assert client.chunk(cookie).done is False
                    assert client.chunk(cookie).done is True
                    client.expect_end()
    wait_rid(server)


@pytest.mark.parametrize("half_closed", [True, False])
def test_waiting_reads_of_the_size_export_end_with_their_client(server: NativeServer, half_closed: bool) -> None:
    with server.connect(b"@size") as client:
        client.read(0, 64)
        for _ in range(20):
            client.start(READ, 1024, 64)
        if half_closed:
            client.finish_sending()
            client.receive_rest()
    wait_rid(server)
