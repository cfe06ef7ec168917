"""Finding the sockets of nbdkit's connections: always the right one, whatever comes and goes beside it."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import nbd
import pytest

from nbdresize.control.admin_client import ask
from tests.front.conftest import MIB, SIZE, connect, make_ledger
from tests.peers import Serve
from tests.wait import until

pytestmark = pytest.mark.slow

ROUNDS = 20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Serve]:
    root = make_ledger(tmp_path, SIZE, MIB)
    with Serve(directory=tmp_path, root=root, tcp=True) as running:
        yield running


def admin(server: Serve) -> Path:
    [path] = Path(server.environment["NBDRESIZE_ROOT"]).glob("run/*.admin")
    return path


def test_dropping_amid_connections_that_come_and_go_hits_no_other(server: Serve) -> None:
    """Threads open and close connections to disk1 and expect all to work, while those to disk0 are dropped."""
    ended = threading.Event()
    problems: list[str] = []

    def come_and_go(number: int) -> None:
        while not ended.is_set():
            try:
                client = connect(server.uri("web1/disk1", number=number))
                client.pread(512, 0)
                client.shutdown()
            except nbd.Error as error:
                problems.append(str(error))

    threads = [threading.Thread(target=come_and_go, args=(number,), daemon=True) for number in (0, 1)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(ROUNDS):
            clients = [connect(server.uri("web1/disk0", number=number % 2)) for number in range(4)]
            assert ask(admin(server), {"command": "drop", "exports": ["web1/disk0"]}, 30)["dropped"] == 4
            for client in clients:
                with pytest.raises(nbd.Error):
                    client.pread(512, 0)
    finally:
        ended.set()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert problems == []


def test_a_client_under_load_is_dropped_at_once(server: Serve) -> None:
    client = connect(server.uri("web1/disk0"))
    began = threading.Event()

    def load() -> None:
        with contextlib.suppress(nbd.Error):
            while True:
                client.pwrite(bytes(65536), 0)
                began.set()

    thread = threading.Thread(target=load)
    thread.start()
    assert began.wait(60)
    assert ask(admin(server), {"command": "drop", "exports": ["web1/disk0"]}, 30)["dropped"] == 1
    thread.join(60)
    assert not thread.is_alive()
    until(lambda: not ask(admin(server), {"command": "clients"}, 30)["clients"], 60, "the connection to be closed")


def test_peers_are_named(server: Serve) -> None:
    clients = [connect(server.uri("web1/disk0", number=number)) for number in (0, 1)]
    peers = [client["peer"] for client in ask(admin(server), {"command": "clients"}, 30)["clients"]]
    assert peers[0] == f"process {os.getpid()}"
    assert peers[1].startswith(("127.0.0.1:", "[::1]:"))
    for client in clients:
        client.shutdown()


def test_a_waiting_read_of_a_client_that_goes_away_ends(server: Serve) -> None:
    client = connect(server.uri("web1/disk0@size"))
    client.pread(64, 0)
    client.aio_pread(nbd.Buffer(64), 1024)
    assert len(ask(admin(server), {"command": "clients"}, 30)["clients"]) == 1
    del client
    until(lambda: not ask(admin(server), {"command": "clients"}, 30)["clients"], 60, "the connection to be closed")
