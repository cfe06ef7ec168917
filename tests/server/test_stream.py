"""A connection's stream: nobody can make a server wait longer than it means to."""

import os
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

from nbdresize.server.stream import PeerGone, PipeStream, Stream, TlsStream
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
