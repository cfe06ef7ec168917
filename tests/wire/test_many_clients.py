"""More clients than a server likes, or has room for."""

import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from tests.wait import until
from tests.wire.conftest import make_image
from tests.wire.layout import (
    ACK,
    CACHE,
    ENOMEM,
    EXTENDED,
    FLUSH,
    FUA,
    GO,
    LIST,
    MIB,
    NOTIFY,
    READ,
    RESIZE,
    SIMPLE,
    STRUCTURED,
    export_query,
    option,
)
from tests.wire.peer import NativeServer, RawClient, many_files

pytestmark = pytest.mark.slow

CLIENTS = 1000


@pytest.mark.timeout(300)
def test_a_thousand_idle_connections_are_held(tmp_path: Path) -> None:
    with (
        many_files(CLIENTS + 500),
        NativeServer("--file", make_image(tmp_path), directory=tmp_path, files=4 * CLIENTS) as server,
        ExitStack() as stack,
    ):
        with server.connect() as first:
            first.read(0, MIB)
        before = server.resident
        modes = (SIMPLE, STRUCTURED, EXTENDED)
        clients = [stack.enter_context(server.connect(mode=modes[n % 3], contexts=())) for n in range(CLIENTS)]
        assert server.counters()["connections"] == CLIENTS
        for client in clients:
            assert client.read(0, 4096)[:3] == b"\1\2\3"
        print("PER", (server.resident - before) // CLIENTS)
        assert (server.resident - before) // CLIENTS < MIB
        with server.connect() as good:
            good.write(MIB, b"good")
            assert good.read(MIB, 4) == b"good"
        stack.close()
        server.wait_alone()
        server.check()


def test_clients_beyond_the_limit_are_hung_up_on_until_others_leave(tmp_path: Path) -> None:
    arguments = ("--file", make_image(tmp_path), "--max-connections", "4")
    with NativeServer(*arguments, directory=tmp_path) as server, ExitStack() as stack:
        clients: list[RawClient] = []
        while len(clients) < 4:
            clients += until(lambda: attached(server), what="a place")
            stack.enter_context(clients[-1])
        for _ in range(3):
            with server.client() as refused:
                refused.expect_end()
        for client in clients:
            assert client.read(0, 3) == b"\1\2\3"
        clients.pop().close()
        until(lambda: greets(server), what="a place to become free")


def attached(server: NativeServer) -> list[RawClient]:
    """One connection, or none where the client before it still has its place."""
    try:
        return [server.connect()]
    except (AssertionError, ConnectionError):
        return []


def greets(server: NativeServer) -> bool:
    with server.client() as client:
        try:
            client.greet()
            return client.ask(LIST)[-1] == (ACK, b"")
        except (AssertionError, ConnectionError):
            return False


def test_a_server_without_descriptors_left_serves_again_once_there_are_some(tmp_path: Path) -> None:
    image = make_image(tmp_path)
    with NativeServer("--file", image, directory=tmp_path, files=64) as server, ExitStack() as stack:
        served = [stack.enter_context(server.connect()) for _ in range(8)]
        for _ in range(100):
            client = stack.enter_context(server.client())
            client.send((3).to_bytes(4, "big") + option(GO, export_query(b"")))
        until(lambda: server.files >= 60, what="descriptors to run out")
        data = bytes(range(250)) * 2000
        for client in served:
            client.write(MIB, data)
            client.write(MIB, data, FUA)
            assert client.read(MIB, len(data)) == data
            assert client.call(FLUSH).error == 0
        stack.close()
        until(lambda: greets(server), what="descriptors to become free")
        server.check()


def test_a_server_without_threads_left_still_answers_the_clients_that_it_has(tmp_path: Path) -> None:
    with NativeServer("--file", make_image(tmp_path), directory=tmp_path) as server, ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(10)]
        with no_more_memory(server.pid):
            for client in clients:
                assert client.call(FLUSH).error == 0
                assert client.call(CACHE, 0, 4096).error == 0
            answers = [client.chunk(client.start(RESIZE, 0, 0, NOTIFY)) for client in clients]
            assert {answer.error for answer in answers} <= {0, ENOMEM}
        for client in clients:
            assert client.call(FLUSH).error == 0
            assert client.read(0, 3) == b"\1\2\3"
        server.check()


@contextmanager
def no_more_memory(process: int) -> Iterator[None]:
    """The process gets no memory for the stack of another thread while this lasts, and very little for anything."""
    before = resource.prlimit(process, resource.RLIMIT_AS)
    resource.prlimit(process, resource.RLIMIT_AS, (psutil.Process(process).memory_info().vms + (300 << 10), before[1]))
    try:
        yield
    finally:
        resource.prlimit(process, resource.RLIMIT_AS, before)


def test_subscribers_by_the_hundred(server: NativeServer) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(100)]
        cookies = [client.start(RESIZE, 0, 0, NOTIFY) for client in clients]
        for client, cookie in zip(clients, cookies, strict=True):
            assert not client.chunk(cookie).done
            assert client.call(READ, 0, 3).data(0, 3) == b"\1\2\3"
