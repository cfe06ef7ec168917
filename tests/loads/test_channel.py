"""What a load sends and receives by: nothing that a server does takes longer than it may."""

import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

from nbdresize.loads.channel import Channel, SecureChannel
from tests.tls_keys import make_certificates

MIB = 1 << 20
SHORT = 0.5
"""Nothing depends on how long that takes."""


def test_a_server_that_takes_requests_bit_by_bit_has_no_longer_than_a_silent_one() -> None:
    """After some seconds it would even answer."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        left = 64 * MIB
        while left:
            taken = len(theirs.recv(min(left, MIB // 2)))
            if not taken:
                return
            left -= taken
            time.sleep(0.02)
        theirs.send(b"!")

    with ours, theirs:
        thread = threading.Thread(target=serve)
        thread.start()
        through = Channel(ours, SHORT)
        through.send([bytes(64 * MIB)])
        try:
            with pytest.raises(TimeoutError):
                through.receive(memoryview(bytearray(100)))
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_server_that_sends_a_record_bit_by_bit_has_no_longer_than_a_silent_one(tmp_path: Path) -> None:
    """The bytes of a record are of no use before its last one."""
    keys = make_certificates(tmp_path / "keys")
    theirs_to_be = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs_to_be.load_cert_chain(keys / "server-cert.pem", keys / "server-key.pem")
    ours_to_be = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ours_to_be.load_verify_locations(keys / "ca-cert.pem")
    client, server = socket.socketpair()
    done = threading.Event()

    def serve() -> None:
        taken, given = ssl.MemoryBIO(), ssl.MemoryBIO()
        secured = theirs_to_be.wrap_bio(taken, given, server_side=True)
        while True:
            try:
                secured.do_handshake()
                break
            except ssl.SSLWantReadError:
                server.sendall(given.read())
                taken.write(server.recv(MIB))
        secured.write(bytes(300))
        for byte in given.read():
            if done.wait(0.01):
                return
            server.send(bytes([byte]))

    with client, server:
        thread = threading.Thread(target=serve)
        thread.start()
        with ours_to_be.wrap_socket(client, server_hostname="localhost") as secured:
            try:
                through = SecureChannel(secured, SHORT)
                with pytest.raises(TimeoutError):
                    through.receive(memoryview(bytearray(1000)))
            finally:
                done.set()
                thread.join()
