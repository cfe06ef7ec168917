"""The batch client on real servers: everything is counted once, over every transport and in every shape."""

import contextlib
import os
import socket
import threading
from pathlib import Path

import pytest

from nbdresize.errors import InvalidArgument, NotAuthorized, PeerFailed, ResourceNotFound
from nbdresize.loads.model import Engine, Load, Operation
from nbdresize.loads.running import run
from tests.client import raw_server as raw
from tests.client.conftest import qemu_nbd
from tests.client.raw_server import Honest, Peer, RawServer
from tests.loads.conftest import MIB, SIZE, Counting, batch
from tests.peers import Serve

pytestmark = pytest.mark.slow

SECONDS = 0.1


@pytest.mark.parametrize("structured", [False, True], ids=["simple", "structured"])
def test_every_shape_over_every_transport(uri: str, structured: bool) -> None:
    for operation in Operation:
        for block, depth, connections in ((4096, 1, 1), (4096, 64, 2), (MIB, 4, 1), (512, 3, 1)):
            load = batch(operation, block, depth, connections=connections, structured=structured)
            measured = run(load, uri, SECONDS, warm_up=0.02, patience=60)
            assert measured.requests > 0
            assert measured.payload == measured.requests * block
            assert measured.seconds >= SECONDS
            latency = measured.latency
            assert latency is not None
            assert 0 < latency.median <= latency.p99 <= latency.p999 <= latency.slowest
            assert measured.rate == measured.requests / measured.seconds


@pytest.mark.parametrize(
    ("operation", "kinds"),
    [(Operation.READ, {"read"}), (Operation.WRITE, {"write"}), (Operation.MIXED, {"read", "write"})],
)
@pytest.mark.parametrize("connections", [1, 3])
def test_as_many_requests_are_told_as_the_server_has_counted(
    counting: Counting, operation: Operation, kinds: set[str], connections: int
) -> None:
    with counting:
        measured = run(batch(operation, 4096, 7, connections=connections), counting.uri(), SECONDS)
    counts = counting.counts()
    assert set(counts) == kinds
    assert sum(counts.values()) == measured.requests


def test_what_comes_before_the_end_of_the_warm_up_is_not_counted(counting: Counting) -> None:
    with counting:
        measured = run(batch(), counting.uri(), SECONDS, warm_up=SECONDS)
    assert 0 < measured.requests < counting.counts()["read"]


def test_servers_that_answer_out_of_order(tmp_path: Path) -> None:
    with qemu_nbd(tmp_path) as server:
        for structured in (False, True):
            for operation in Operation:
                load = batch(operation, 4096, 32, connections=2, structured=structured)
                assert run(load, server.uri("disk"), SECONDS).requests > 0


def test_so_many_requests_are_always_under_way_and_no_more(tmp_path: Path) -> None:
    depth, more = 5, []

    def script(peer: Peer) -> None:
        while (first := peer.request()).command == raw.WRITE:
            waiting = [first]
            peer.receive(1)
            while len(waiting) < depth:
                waiting.append(peer.request())
                peer.receive(1)
            with contextlib.suppress(BlockingIOError):
                more.append(peer.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
            # Short enough to be received by one call, so that the client sends as many anew.
            peer.send(b"".join(raw.simple(request.cookie) for request in reversed(waiting)))

    with RawServer(tmp_path, Honest(script, structured=False)) as server:
        measured = run(batch(Operation.WRITE, 1, depth), server.uri, SECONDS)
    assert measured.requests >= depth
    assert measured.requests % depth == 0
    assert more == []


def test_the_connections_are_all_there_at_the_same_time(tmp_path: Path) -> None:
    together = threading.Barrier(3)

    def script(peer: Peer) -> None:
        first = peer.request()
        together.wait(60)
        peer.send(raw.simple(first.cookie, data=bytes(first.length)))
        peer.requests(lambda request: raw.simple(request.cookie, data=bytes(request.length)))

    with RawServer(tmp_path, Honest(script, structured=False)) as server:
        assert run(batch(depth=1, connections=3), server.uri, SECONDS).requests >= 3


def test_pinned_to_a_core(native: str) -> None:
    core = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    for engine in Engine:
        assert run(Load(engine, Operation.READ, 4096, 4), native, SECONDS, core=core).requests > 0
    assert os.sched_getaffinity(0) == before


# What makes no sense


@pytest.mark.parametrize(
    ("load", "told"),
    [
        (batch(depth=0), "A depth of 0"),
        (batch(depth=10**6), "A depth of 1000000"),
        (batch(connections=0), "0 connections"),
        (batch(connections=10**6), "1000000 connections"),
        (batch(block=0), "Requests of 0 bytes"),
        (batch(block=33 * MIB), "Requests of 33 MiB"),
        (batch(block=16 * MIB), "less than one block"),
        (Load(Engine.NBDCOPY, Operation.READ, 5000, 1), "nbdcopy with requests of 5000 bytes"),
    ],
)
def test_loads_that_make_no_sense(native: str, load: Load, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        run(load, native, SECONDS)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_times_that_make_no_sense(native: str, seconds: float) -> None:
    with pytest.raises(InvalidArgument, match="A load of"):
        run(batch(), native, seconds)


def test_a_read_only_disk_is_not_written(image: Path, tmp_path: Path) -> None:
    with Serve("--file", image, "--read-only", directory=tmp_path, front="native") as server:
        assert run(batch(), server.uri(), SECONDS).requests > 0
        for engine in Engine:
            with pytest.raises(NotAuthorized, match="read-only"):
                run(Load(engine, Operation.WRITE, 4096, 4), server.uri(), SECONDS)


def test_no_server_and_no_such_export(native: str, tmp_path: Path) -> None:
    for engine in Engine:
        load = Load(engine, Operation.READ, 4096, 4)
        with pytest.raises(PeerFailed):
            run(load, f"nbd+unix:///?socket={tmp_path}/none.sock", SECONDS)
        with pytest.raises(ResourceNotFound):
            run(load, native.replace(":///", ":///nothing"), SECONDS)


def test_blocks_that_the_server_does_not_take(tmp_path: Path) -> None:
    infos = (raw.export_info(size=SIZE), raw.block_sizes(4096, 4096, 65536))
    with RawServer(tmp_path, Honest(infos=infos, structured=False)) as server:
        for block in (512, 6000, 128 << 10):
            with pytest.raises(InvalidArgument, match="takes no requests of"):
                run(batch(block=block), server.uri, SECONDS)
