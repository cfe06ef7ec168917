"""A connection's stream: nobody can make a server wait longer than it means to."""

import socket
import time

import pytest

from nbdresize.server.stream import PeerGone, Stream


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
