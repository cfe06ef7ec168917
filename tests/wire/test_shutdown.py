"""The end of a worker while clients are connected, whatever they are doing."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.wait import until
from tests.wire.conftest import make_image
from tests.wire.layout import CACHE, FLUSH, FUA, GO, MIB, MODES, READ, SIMPLE, WRITE, WRITE_ZEROES, export_query, option
from tests.wire.peer import NativeServer

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NativeServer]:
    """A worker for one test, which tells it to end."""
    with NativeServer("--file", make_image(tmp_path), directory=tmp_path) as server:
        yield server
        assert server.wait() == 0
        assert "Traceback" not in server.said()


@pytest.mark.parametrize("mode", MODES)
def test_requests_that_it_has_taken_in_are_answered(server: NativeServer, mode: str) -> None:
    data = os.urandom(20_000)
    with server.connect(mode=mode) as client:
        cookies = [client.start(WRITE, MIB, flags=FUA, payload=data)]
        cookies += [client.start(command, MIB, 4096) for command in (CACHE, WRITE_ZEROES)]
        cookies += [client.start(FLUSH), client.start(READ, 0, 100_000)]
        until(lambda: client.untaken == 0, what="the server to take in everything")
        server.process.send_signal(signal.SIGTERM)
        for cookie in cookies:
            assert client.reply(cookie).error == 0
        client.expect_end()


def test_idle_clients_and_half_requests_hold_up_nothing(server: NativeServer) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(5)]
        clients[1].start(WRITE, MIB, 100_000)
        clients[2].send(b"\x25\x60\x95")
        clients[3].start(READ, 1024, 64)
        negotiating = [stack.enter_context(server.client()) for _ in range(5)]
        for number, client in enumerate(negotiating):
            client.greet()
            client.send(option(GO, export_query(b""))[: number * 5])
        server.process.send_signal(signal.SIGTERM)
        for client in (*clients, *negotiating):
            client.receive_rest()


def test_a_waiting_read_of_the_size_export_is_answered(server: NativeServer) -> None:
    with server.connect(b"@size", SIMPLE) as client:
        record = client.read(0, 64)
        cookie = client.start(READ, 1024, 64)
        until(lambda: client.untaken == 0, what="the server to take in everything")
        server.process.send_signal(signal.SIGTERM)
        assert client.reply(cookie).data(1024, 64) == record
        client.expect_end()


def test_a_client_that_never_reads_is_given_up(server: NativeServer) -> None:
    """After the seconds that a server gives to requests in flight."""
    with server.connect() as silent, server.connect() as other:
        for _ in range(50):
            silent.start(READ, 0, MIB)
        until(lambda: silent.untaken == 0, what="the server to take in everything")
        server.process.send_signal(signal.SIGTERM)
        other.expect_end()
        assert server.wait() == 0
