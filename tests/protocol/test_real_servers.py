"""The client's side of the protocol against the servers that people run: nbdkit and qemu-nbd."""

import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nbdresize.protocol.client_handshake import Answered, ClientHandshake, Greeted
from nbdresize.protocol.negotiated import Mode, Negotiated
from nbdresize.protocol.replies import ReplyStream
from nbdresize.protocol.reply_check import BlockStatus, Data, Done, Hole, ReplyError, ReplyEvent
from nbdresize.protocol.transmission import Request
from tests.wait import until

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, DF = 1, 4
MIB = 1 << 20


class Connection:
    """A socket with the client's two state machines on it."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self.handshake = ClientHandshake()
        self.cookie = 0
        while not [
            self._send(event.data) for event in self.handshake.feed(self._receive()) if isinstance(event, Greeted)
        ]:
            pass

    def ask(self, option: bytes) -> Answered:
        self._send(option)
        while True:
            for event in self.handshake.feed(self._receive()):
                assert isinstance(event, Answered)
                return event

    def enter(self, name: str) -> Negotiated:
        assert self.ask(self.handshake.go(name, range(5))).error == 0
        assert self.handshake.negotiated is not None
        self.replies = ReplyStream(self.handshake.negotiated)
        return self.handshake.negotiated

    def do(self, command: int, offset: int, length: int, flags: int = 0, payload: bytes = b"") -> list[ReplyEvent]:
        """One request, and the events of its reply."""
        self.cookie += 1
        self._send(self.replies.request(Request(flags, command, self.cookie, offset, length)) + payload)
        events: list[ReplyEvent] = []
        while not events or not isinstance(events[-1], Done):
            events += self.replies.feed(self._receive())
        return events

    def read(self, offset: int, length: int, flags: int = 0) -> bytes:
        content = bytearray(length)
        for event in self.do(READ, offset, length, flags):
            if isinstance(event, Data):
                content[event.offset - offset : event.offset - offset + len(event.data)] = event.data
            else:
                assert isinstance(event, Hole) or event == Done(self.cookie)
        return bytes(content)

    def leave(self) -> None:
        self._send(self.replies.request(Request(0, DISC, 0, 0, 0)))
        assert self.peer.recv(1) == b""

    def _send(self, data: bytes) -> bool:
        self.peer.sendall(data)
        return True

    def _receive(self) -> bytes:
        received = self.peer.recv(1000)
        assert received, "the server has closed the connection"
        return received


@pytest.fixture
def nbdkit() -> Iterator[Connection]:
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    with ours:
        with theirs:
            server = subprocess.Popen(
                ["nbdkit", "--single", "memory", "1M"], stdin=theirs.fileno(), stdout=theirs.fileno()
            )
        try:
            yield Connection(ours)
            ours.close()
            assert server.wait(60) == 0
        finally:
            server.kill()
            server.wait()


@pytest.fixture
def qemu_nbd(tmp_path: Path) -> Iterator[Connection]:
    image, path = tmp_path / "image", tmp_path / "socket"
    image.touch()
    with image.open("r+b") as file:
        file.truncate(MIB)
    command = ["qemu-nbd", "--format=raw", "--discard=unmap", f"--socket={path}", "--export-name=d", str(image)]
    with subprocess.Popen(command) as server:
        try:
            with socket.socket(socket.AF_UNIX) as ours:
                ours.settimeout(60)
                until(lambda: _connects(ours, path), what="qemu-nbd to listen")
                yield Connection(ours)
        finally:
            server.terminate()


def _connects(peer: socket.socket, path: Path) -> bool:
    try:
        peer.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


def test_nbdkit_with_simple_replies(nbdkit: Connection) -> None:
    negotiated = nbdkit.enter("")
    assert (negotiated.mode, negotiated.export.size) == (Mode.SIMPLE, MIB)
    assert nbdkit.do(WRITE, 4096, 5, payload=b"hello") == [Done(1)]
    assert nbdkit.read(4090, 20) == bytes(6) + b"hello" + bytes(9)
    assert nbdkit.do(READ, MIB, 1) == [Done(3, (ReplyError(22),))]
    nbdkit.leave()


def structured(connection: Connection, name: str) -> Negotiated:
    handshake = connection.handshake
    assert connection.ask(handshake.extended_headers()).error in (0, 0x80000001)
    if handshake.mode is Mode.SIMPLE:
        assert connection.ask(handshake.structured_replies()).error == 0
    assert connection.ask(handshake.list_contexts(name)).contexts[0].name == "base:allocation"
    assert [context.name for context in connection.ask(handshake.set_contexts(name, ["base:allocation"])).contexts] == [
        "base:allocation"
    ]
    assert connection.ask(handshake.info(name)).export is not None
    negotiated = connection.enter(name)
    assert [context.name for context in negotiated.contexts] == ["base:allocation"]
    return negotiated


def use(connection: Connection) -> None:
    """Write, zero, trim, flush; read it back, and see what is allocated."""
    assert connection.do(WRITE, 65536, 65536, FUA, b"x" * 65536)[-1] == Done(connection.cookie)
    assert connection.read(0, 3 * 65536) == bytes(65536) + b"x" * 65536 + bytes(65536)
    assert connection.read(65530, 20, DF) == bytes(6) + b"x" * 14
    status = connection.do(BLOCK_STATUS, 0, 131072)[0]
    assert isinstance(status, BlockStatus)
    assert status.extents[0] == (65536, 3)
    assert status.extents[1][1] == 0
    for command, offset, length in ((WRITE_ZEROES, 65536, 4096), (TRIM, 69632, 4096), (FLUSH, 0, 0)):
        assert connection.do(command, offset, length) == [Done(connection.cookie)]
    assert connection.read(65536, 4096) == bytes(4096)
    refused = connection.do(READ, MIB - 1, 2)[-1]
    assert isinstance(refused, Done)
    assert [error.errno for error in refused.errors] == [22]


def test_nbdkit_with_structured_replies_and_block_status(nbdkit: Connection) -> None:
    structured(nbdkit, "")
    use(nbdkit)
    nbdkit.leave()


def test_qemu_nbd_with_structured_replies_and_block_status(qemu_nbd: Connection) -> None:
    handshake = qemu_nbd.handshake
    assert [entry.name for entry in qemu_nbd.ask(handshake.list_exports()).exports] == ["d"]
    refused = qemu_nbd.ask(handshake.go("nothing"))
    assert refused.error == 0x80000006
    assert refused.message
    assert structured(qemu_nbd, "d").export.block_sizes is not None
    use(qemu_nbd)
    qemu_nbd.leave()


@pytest.mark.parametrize("ask", [ClientHandshake.start_tls, ClientHandshake.list_exports])
def test_servers_answer_what_they_do_not_do(nbdkit: Connection, ask: Callable[[ClientHandshake], bytes]) -> None:
    assert nbdkit.ask(ask(nbdkit.handshake)).option in (3, 5)
    assert nbdkit.ask(nbdkit.handshake.abort()).error == 0


def test_export_name_with_both_servers(nbdkit: Connection, qemu_nbd: Connection) -> None:
    for connection, name in ((nbdkit, ""), (qemu_nbd, "d")):
        answered = connection.ask(connection.handshake.export_name(name))
        assert answered.export is not None
        assert answered.export.size == MIB
        assert connection.handshake.negotiated is not None
        connection.replies = ReplyStream(connection.handshake.negotiated)
        connection.leave()
