"""A connection's stream: nobody can make a server wait longer than it means to."""

import mmap
import os
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

from nbdresize.server.stream import PeerGone, PipeStream, Stream, TlsStream, after
from nbdresize.server.tls import server_context
from tests.tls_keys import make_certificates


def test_until_its_deadline_a_peer_must_take_what_is_sent() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        stream = Stream(ours)
        stream.set_deadline(time.monotonic() + 0.1)
        with pytest.raises(PeerGone, match="too slow"):
            stream.send(bytes(64 << 20))
        stream.close()


def test_until_its_deadline_a_peer_must_send_something() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        stream = Stream(ours)
        stream.set_deadline(time.monotonic() + 0.1)
        with pytest.raises(PeerGone, match="too slow"):
            stream.recv_into(memoryview(bytearray(1)))
        stream.close()


def test_one_that_leaves_is_nothing_to_tell() -> None:
    ours, theirs = socket.socketpair()
    stream = Stream(ours)
    theirs.close()
    with pytest.raises(PeerGone) as gone:
        stream.send(bytes(1))
    assert str(gone.value) == ""
    stream.close()


def test_tls_runs_over_a_pair_of_pipes_too(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path / "certificates")
    (source, to_server), (from_server, destination) = os.pipe(), os.pipe()
    stream = TlsStream(PipeStream(source, destination), server_context(certificates, verify_peer=False))
    said = bytearray(5)

    def serve() -> None:
        stream.handshake(time.monotonic() + 30)
        stream.recv_into(memoryview(said))
        stream.send(b"world")
        stream.close()

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(cafile=certificates / "ca-cert.pem")
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with os.fdopen(to_server, "wb", buffering=0) as writer, os.fdopen(from_server, "rb", buffering=0) as reader:
        greeted, heard = False, b""
        while not heard:
            try:
                if not greeted:
                    client.do_handshake()
                    client.write(b"hello")
                    greeted = True
                heard = client.read(5)
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                received = reader.read(65536)
                assert received, "the server hung up"
                incoming.write(received)
    server.join(30)
    assert (bytes(said), heard) == (b"hello", b"world")


def test_parts_arrive_whole_and_in_order_however_the_kernel_takes_them() -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    parts: list[bytes | memoryview] = [os.urandom(size) for size in (16, 4096, 1, 300_000, 16, 70_000)]
    whole = b"".join(parts)
    received = bytearray()

    def take() -> None:
        while piece := theirs.recv(1000):
            received.extend(piece)

    with theirs:
        taking = threading.Thread(target=take, daemon=True)
        taking.start()
        stream = Stream(ours)
        stream.send_parts(parts, len(whole))
        stream.close()
        taking.join(30)
    assert received == whole


def test_what_is_left_of_parts_is_what_was_not_sent() -> None:
    parts: list[bytes | memoryview] = [b"ab", b"", memoryview(b"cde"), b"f"]
    for sent in range(6):
        assert b"".join(after(parts, sent)) == b"abcdef"[sent:]


def test_parts_that_nobody_takes_end_at_the_deadline() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        stream = Stream(ours)
        stream.set_deadline(time.monotonic() + 0.1)
        with pytest.raises(PeerGone, match="too slow"):
            stream.send_parts([bytes(16), bytes(64 << 20)], 16 + (64 << 20))
        stream.close()


def test_a_page_that_can_not_be_read_ends_the_connection_with_a_reason(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs, (tmp_path / "file").open("w+b") as file:
        file.truncate(8192)
        pages = memoryview(mmap.mmap(file.fileno(), 8192, prot=mmap.PROT_READ))
        file.truncate(0)
        stream = Stream(ours)
        with pytest.raises(PeerGone, match="could not be read"):
            stream.send_parts([bytes(16), pages], 16 + len(pages))
        stream.close()


def test_lingering_is_given_up_where_it_is_in_vain_and_tried_again_later() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        stream, looks = Stream(ours), Looks()
        stream._poll = looks  # type: ignore[assignment]
        tried = []
        for _ in range(200):
            before = looks.taken
            stream.linger()
            tried.append(looks.taken > before)
        assert tried[:4] == [True] * 4
        assert 2 <= sum(tried[4:]) <= 4
        looks.found = True
        for _ in range(100):
            stream.linger()
        assert looks.taken > 0
        before = looks.taken
        stream.linger()
        assert looks.taken == before + 1
        stream.close()


class Looks:
    """A poll object that counts, and finds something or not."""

    def __init__(self) -> None:
        self.taken = 0
        self.found = False

    def poll(self, timeout: int) -> bool:
        assert timeout == 0
        self.taken += 1
        return self.found
