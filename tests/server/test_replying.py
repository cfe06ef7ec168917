"""Replies that come from the lane."""

import socket
import threading

import pytest

from nbdresize.protocol.constants import NBD_CMD_READ
from nbdresize.protocol.negotiated import Mode
from nbdresize.protocol.server_replies import Replies
from nbdresize.protocol.transmission import Request
from nbdresize.server.lane import Lane
from nbdresize.server.replying import Parts, Replying
from nbdresize.server.stream import Stream

SECONDS = 30


def test_a_request_that_can_not_be_answered_at_all_ends_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.settimeout(SECONDS)
        lane = Lane("test")

        def no_memory() -> Parts:
            raise MemoryError

        Replying(Stream(ours), Replies(Mode.SIMPLE), lane).later(Request(0, NBD_CMD_READ, 1, 0, 1), 1, no_memory)
        assert theirs.recv(1) == b"", "the client is not left waiting"
        lane.close()
        ours.close()
