"""Servers that lie, die or fall silent under load: a clear error in bounded time, and nothing left running."""

import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nbdresize.errors import NbdresizeError, PeerFailed, VolumeFailed
from nbdresize.loads.batch import Order
from nbdresize.loads.model import Operation
from nbdresize.loads.running import run
from tests.client import raw_server as raw
from tests.client.raw_server import Honest, Peer, RawServer, Request
from tests.loads.conftest import batch, directly
from tests.peers import CHECKOUT, alive, children
from tests.wait import until

pytestmark = pytest.mark.slow

LONG = 3600.0
SHORT = 0.3
"""Where nothing comes at all; nothing depends on how long that takes."""


def honest(request: Request) -> bytes:
    return raw.simple(request.cookie, data=bytes(request.length) if request.command == raw.READ else b"")


def after(count: int, bad: Callable[[Request], bytes]) -> raw.Script:
    """A server that is honest to so many requests, and answers the next one so, and nothing more."""

    def script(peer: Peer) -> None:
        for _ in range(count):
            request = peer.request()
            if request.command == raw.WRITE:
                peer.receive(request.length)
            peer.send(honest(request))
        peer.send(bad(peer.request()))
        while True:
            peer.receive(1)

    return Honest(script, structured=False)


LIES = {
    "wrong magic": (lambda request: bytes(16), "starts with"),
    "garbage": (lambda request: b"\xff" * 10000, "starts with"),
    "unknown cookie": (lambda request: raw.simple(request.cookie + 1000, data=bytes(4096)), "no request"),
    "huge cookie": (lambda request: raw.simple(2**64 - 1, data=bytes(4096)), "no request"),
    "twice": (lambda request: 2 * honest(request), "no request"),
    "an old one again": (lambda request: raw.simple(0, data=bytes(4096)), "no request"),
    "an unfinished second one": (lambda request: honest(request) + raw.simple(request.cookie, data=b"x"), "no request"),
    "one before its request": (lambda request: raw.simple(request.cookie + 500, data=b"x"), "no request"),
}


@pytest.mark.parametrize("operation", [Operation.READ, Operation.MIXED])
@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("count", [0, 1, 100])
def test_lies_break_the_connection(tmp_path: Path, operation: Operation, lie: str, count: int) -> None:
    bad, told = LIES[lie]
    if lie == "an old one again" and count == 0:
        count = 5
    with RawServer(tmp_path, after(count, bad)) as server, pytest.raises(PeerFailed, match=told):
        directly(batch(operation, depth=4), server.uri, LONG)


@pytest.mark.parametrize("operation", list(Operation))
def test_a_refused_request_ends_the_load_and_says_which(tmp_path: Path, operation: Operation) -> None:
    refused: list[Request] = []

    def refuse(request: Request) -> bytes:
        refused.append(request)
        return raw.simple(request.cookie, 5)

    with RawServer(tmp_path, after(20, refuse)) as server, pytest.raises(VolumeFailed) as caught:
        directly(batch(operation, depth=4), server.uri, LONG)
    does = "read" if refused[0].command == raw.READ else "write"
    assert f"refused to {does} 4096 bytes at {refused[0].offset}" in str(caught.value)


def test_a_refusal_of_what_was_never_asked(tmp_path: Path) -> None:
    with (
        RawServer(tmp_path, after(3, lambda request: raw.simple(12345678, 5))) as server,
        pytest.raises(PeerFailed, match="no request"),
    ):
        directly(batch(depth=4), server.uri, LONG)


def test_an_error_chunk_is_told_with_the_servers_words(tmp_path: Path) -> None:
    script = Honest(lambda peer: peer.requests(lambda request: raw.error(request.cookie, 28, b"all full")))
    with RawServer(tmp_path, script) as server, pytest.raises(NbdresizeError, match="all full"):
        directly(batch(structured=True), server.uri, LONG)


def test_structured_replies_where_there_are_none(tmp_path: Path) -> None:
    with RawServer(tmp_path, Honest(structured=False)) as server, pytest.raises(PeerFailed, match="no structured"):
        directly(batch(structured=True), server.uri, LONG)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 4111])
@pytest.mark.parametrize("connections", [1, 2])
def test_a_stream_that_ends_within_a_reply(tmp_path: Path, length: int, connections: int) -> None:
    def script(peer: Peer) -> None:
        peer.send(honest(peer.request()))
        peer.send(honest(peer.request())[:length])

    with RawServer(tmp_path, Honest(script, structured=False)) as server, pytest.raises(PeerFailed, match="was lost"):
        run(batch(depth=4, connections=connections), server.uri, LONG)


@pytest.mark.parametrize("operation", list(Operation))
@pytest.mark.parametrize("replies", [0, 1, 50])
def test_a_server_that_falls_silent(tmp_path: Path, operation: Operation, replies: int) -> None:
    with (
        RawServer(tmp_path, after(replies, lambda request: b"")) as server,
        pytest.raises(PeerFailed, match=f"did not answer within {SHORT:g} s"),
    ):
        directly(batch(operation, depth=4), server.uri, LONG, SHORT)


def test_a_server_that_takes_no_requests_while_its_replies_are_not_taken(tmp_path: Path) -> None:
    """As an honest one with little memory does; a client that only sent would wait for ever."""
    block = 1 << 20

    def script(peer: Peer) -> None:
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.requests(honest)

    with RawServer(tmp_path, Honest(script, structured=False)) as server:
        assert directly(batch(Operation.MIXED, block, 8), server.uri, 0.2).requests >= 8


def test_a_server_that_sends_byte_by_byte_at_the_end_is_given_up(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        begin = struct.pack(">IIQ", 0x67446698, 0, peer.request().cookie)
        for byte in begin + bytes(1 << 25):
            peer.send(bytes([byte]))

    with RawServer(tmp_path, Honest(script, structured=False)) as server, pytest.raises(PeerFailed, match="answer"):
        directly(batch(block=1 << 25, depth=2), server.uri, 0.05, SHORT)


def test_more_than_was_asked_for_at_the_end(tmp_path: Path) -> None:
    """Too little of it to say what it answers."""

    def script(peer: Peer) -> None:
        first = peer.request()
        peer.receive(3 * 28)
        late = [raw.simple(first.cookie + number, data=bytes(first.length)) for number in range(4)]
        peer.send(b"".join(late) + raw.simple(0)[:15])
        peer.receive(1)

    with RawServer(tmp_path, Honest(script, structured=False)) as server, pytest.raises(PeerFailed, match="more came"):
        directly(batch(depth=4), server.uri, 1e-9, LONG)


def test_requests_that_stay_unanswered_while_all_others_come_round(tmp_path: Path) -> None:
    seen: list[int] = []

    def script(peer: Peer) -> None:
        """Hold the first one back until its number would be used again, twice; at the end, refuse one."""
        held = peer.request()
        for _ in range(2 * 1024 + 10):
            request = peer.request()
            seen.append(request.cookie)
            peer.send(honest(request))
        assert held.cookie not in seen
        peer.send(honest(held))
        peer.send(raw.simple(peer.request().cookie, 5))
        peer.receive(1)

    infos = (raw.export_info(size=16 * 4096),)
    with RawServer(tmp_path, Honest(script, infos=infos, structured=False)) as server, pytest.raises(VolumeFailed):
        directly(batch(depth=3), server.uri, LONG)
    assert len(seen) == 2 * 1024 + 10


# Nothing left behind


def begun(uri: str) -> "subprocess.Popen[bytes]":
    """A process that runs a long load."""
    order = Order(batch(connections=2), uri, LONG)
    program = "import sys; from nbdresize.loads.batch import Order, run; run(Order.from_json(sys.argv[1]))"
    return subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-c", program, order.to_json()],
        cwd=CHECKOUT,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_processes_end_with_whoever_started_them(native: str, number: signal.Signals) -> None:
    process = begun(native)
    try:
        leader = until(lambda: children(process.pid))[0]
        workers = until(lambda: len(children(leader)) == 2 and children(leader))
        assert workers
        process.send_signal(number)
        process.wait(60)
        for pid in (leader, *workers):
            until(lambda pid=pid: not alive(pid), what=f"process {pid} to end")  # type: ignore[misc]
    finally:
        process.kill()
        process.wait()


def test_a_process_that_is_killed_is_no_result(native: str) -> None:
    process = begun(native)
    try:
        leader = until(lambda: children(process.pid))[0]
        os.kill(until(lambda: children(leader))[0], signal.SIGKILL)
        assert process.wait(60) == 1
        until(lambda: not alive(leader))
    finally:
        process.kill()
        process.wait()
