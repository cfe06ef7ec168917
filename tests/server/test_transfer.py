"""Large payloads between a socket and a file."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nbdresize.server.stream import PeerGone, Stream
from nbdresize.server.transfer import Transfer
from nbdresize.storage.file import FileVolume
from tests.wait import until

SECONDS = 30
PAYLOAD = bytes(range(1, 251)) * 800


@pytest.fixture(params=["unix", "tcp"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The peer's end of a connection, and the server's."""
    if request.param == "unix":
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            ours = socket.create_connection(listening.getsockname())
            theirs, _ = listening.accept()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(len(PAYLOAD)))
    return path


def test_what_has_come_of_a_payload_is_written_while_the_rest_is_awaited(
    pair: tuple[socket.socket, socket.socket], file: Path
) -> None:
    peer, ours = pair
    half = len(PAYLOAD) // 2
    with FileVolume(file).open() as handle, ThreadPoolExecutor(1) as pool:
        transfer = Transfer(Stream(ours), handle, None)
        received = pool.submit(transfer.receive, memoryview(b""), 0, len(PAYLOAD))
        try:
            peer.sendall(PAYLOAD[:half])
            until(lambda: file.read_bytes()[:half] == PAYLOAD[:half], what="the first half to be written")
            assert not received.done()
            peer.sendall(PAYLOAD[half:])
            assert received.result(SECONDS) is None
        finally:
            peer.close()
            transfer.close()
    assert file.read_bytes() == PAYLOAD


def test_a_peer_that_goes_within_a_payload_leaves_what_has_come(
    pair: tuple[socket.socket, socket.socket], file: Path
) -> None:
    peer, ours = pair
    with FileVolume(file).open() as handle, ThreadPoolExecutor(1) as pool:
        transfer = Transfer(Stream(ours), handle, None)
        received = pool.submit(transfer.receive, memoryview(b""), 0, len(PAYLOAD))
        peer.sendall(PAYLOAD[:1000])
        peer.close()
        with pytest.raises(PeerGone, match="within a payload"):
            received.result(SECONDS)
        transfer.close()
    assert file.read_bytes()[:1000] == PAYLOAD[:1000]
