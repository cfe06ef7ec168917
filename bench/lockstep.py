"""A client that sends requests in batches of a fixed number, and waits for all replies before it sends the next.

What a server receives at once is the same each time it is run, which is what counting takes: nothing here is timed.
"""

import itertools
import random
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from nbdresize.errors import ServerFailed
from nbdresize.loads.model import Operation
from nbdresize.protocol.client_handshake import Answered, ClientHandshake, Event, Greeted
from nbdresize.protocol.constants import (
    NBD_CMD_DISC,
    NBD_CMD_FLAG_PAYLOAD_LEN,
    NBD_CMD_READ,
    NBD_CMD_WRITE,
    NBD_EXTENDED_REPLY_MAGIC,
    NBD_EXTENDED_REQUEST_MAGIC,
    NBD_REPLY_FLAG_DONE,
    NBD_REPLY_TYPE_NONE,
    NBD_REPLY_TYPE_OFFSET_DATA,
    NBD_REQUEST_MAGIC,
    NBD_SIMPLE_REPLY_MAGIC,
    NBD_STRUCTURED_REPLY_MAGIC,
)
from nbdresize.protocol.negotiated import Mode

SECONDS = 120.0
"""How long any wait for the server may take: under a tool that counts it is a hundred times as slow."""

_REQUEST = struct.Struct(">IHHQQI")
_EXTENDED_REQUEST = struct.Struct(">IHHQQQ")
_SIMPLE_REPLY = 16
_DATA_CHUNK = 28
_EXTENDED_CHUNK = 32
_EXTENDED_DATA_CHUNK = 40
_BEGINNING = struct.Struct(">IHH")
_MOST_GATHERED = 128 << 10
"""Bytes of a batch up to which the server can be made to wait for all of it: they fit every buffer on the way."""
_WARM_UP = 2
_SEED = 1


@dataclass(frozen=True)
class Case:
    """Reads or writes of `block` bytes, `depth` to a batch, with replies of that form."""

    operation: Operation
    block: int
    depth: int
    mode: Mode


class Lockstep:
    """The client's end of one connection."""

    def __init__(self, sock: socket.socket, case: Case) -> None:
        sock.settimeout(SECONDS)
        self._sock = sock
        self._case = case
        self._handshake()
        self._payload = random.Random(_SEED).randbytes(case.block) if _writes(case) else b""
        self._beginning = _reply_beginning(case)
        self._reply = memoryview(bytearray(_reply_length(case) * case.depth))

    def run(self, requests: int, size: int) -> None:
        """So many requests, a multiple of the depth, on an export of that size.

        Raises ServerFailed for any answer but the one that was asked for, and for none in time.
        """
        singles = self._singles(size)
        try:
            self._exchange(next(singles), 1)  # the server's buffers grow, and it gathers batches from here on
            for _ in range(_WARM_UP + requests // self._case.depth):
                self._exchange(b"".join(itertools.islice(singles, self._case.depth)), self._case.depth)
        except OSError as error:
            raise ServerFailed(f"{self._case}: {error}") from error

    def end(self) -> None:
        """Tell the server that this was all, and that nothing follows for which it could wait."""
        self._sock.sendall(self._request(NBD_CMD_DISC, 0, 0))
        self._sock.shutdown(socket.SHUT_WR)

    def _exchange(self, batch: bytes, count: int) -> None:
        self._sock.sendall(batch)
        reply = self._reply[: len(self._reply) // self._case.depth * count]
        received = 0
        while received < len(reply):
            more = self._sock.recv_into(reply[received:])
            if not more:
                raise ServerFailed(f"{self._case}: the server ended the connection")
            received += more
            if received >= len(self._beginning) and reply[: len(self._beginning)] != self._beginning:
                raise ServerFailed(f"{self._case}: the server answered {bytes(reply[:received][:32]).hex()}")

    def _singles(self, size: int) -> Iterator[bytes]:
        """Requests all over the export, the same each time."""
        places = random.Random(_SEED)
        command = NBD_CMD_WRITE if _writes(self._case) else NBD_CMD_READ
        while True:
            offset = places.randrange(size // self._case.block) * self._case.block
            yield self._request(command, offset, self._case.block) + self._payload

    def _request(self, command: int, offset: int, length: int) -> bytes:
        if self._case.mode is not Mode.EXTENDED:
            return _REQUEST.pack(NBD_REQUEST_MAGIC, 0, command, 1, offset, length)
        flags = NBD_CMD_FLAG_PAYLOAD_LEN if command == NBD_CMD_WRITE else 0
        return _EXTENDED_REQUEST.pack(NBD_EXTENDED_REQUEST_MAGIC, flags, command, 1, offset, length)

    def _handshake(self) -> None:
        machine = ClientHandshake()
        greeted = self._event(machine)
        assert isinstance(greeted, Greeted)
        first = greeted.data  # goes with the first option, so that the server receives as often each time
        if self._case.mode is Mode.STRUCTURED:
            self._ask(machine, first + machine.structured_replies())
            first = b""
        elif self._case.mode is Mode.EXTENDED:
            self._ask(machine, first + machine.extended_headers())
            first = b""
        self._ask(machine, first + machine.go(""))

    def _ask(self, machine: ClientHandshake, option: bytes) -> None:
        self._sock.sendall(option)
        answered = self._event(machine)
        if not isinstance(answered, Answered) or answered.error:
            raise ServerFailed(f"{self._case}: the handshake failed: {answered}")

    def _event(self, machine: ClientHandshake) -> Event:
        while True:
            data = self._sock.recv(1 << 16)
            if not data:
                raise ServerFailed(f"{self._case}: the server ended the handshake")
            for event in machine.feed(data):
                return event


def gathered(case: Case) -> int:
    """For how many bytes the server is to wait each time, so that it receives whole batches; 0: for whatever comes.

    Requests without a payload come in one piece anyway.
    """
    length = case.depth * (case.block + _header_length(case))
    return length if _writes(case) and length <= _MOST_GATHERED else 0


def _writes(case: Case) -> bool:
    return case.operation is Operation.WRITE


def _header_length(case: Case) -> int:
    return (_EXTENDED_REQUEST if case.mode is Mode.EXTENDED else _REQUEST).size


def _reply_beginning(case: Case) -> bytes:
    """Magic, and what says that nothing failed: the error, or flags and type of the only chunk.

    Without extended headers, what has no data is answered in the simple form.
    """
    if case.mode is Mode.SIMPLE or (_writes(case) and case.mode is Mode.STRUCTURED):
        return _BEGINNING.pack(NBD_SIMPLE_REPLY_MAGIC, 0, 0)
    magic = NBD_EXTENDED_REPLY_MAGIC if case.mode is Mode.EXTENDED else NBD_STRUCTURED_REPLY_MAGIC
    kind = NBD_REPLY_TYPE_NONE if _writes(case) else NBD_REPLY_TYPE_OFFSET_DATA
    return _BEGINNING.pack(magic, NBD_REPLY_FLAG_DONE, kind)


def _reply_length(case: Case) -> int:
    """Of one whole reply, where nothing fails and nothing is a hole."""
    if _writes(case):
        return _EXTENDED_CHUNK if case.mode is Mode.EXTENDED else _SIMPLE_REPLY
    header = {Mode.SIMPLE: _SIMPLE_REPLY, Mode.STRUCTURED: _DATA_CHUNK, Mode.EXTENDED: _EXTENDED_DATA_CHUNK}
    return header[case.mode] + case.block
