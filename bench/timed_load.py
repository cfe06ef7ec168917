"""A load that remembers of every request when it was sent, and how long it took.

    python -m bench.timed_load URI --operation read --block 4096 --depth 16 --reach 67108864 --output FILE

A process of its own, so that nothing else in Python holds it up. It prints a line once it goes, keeps `depth` requests
under way until its standard input ends, waits for the last replies, writes its record to FILE (all sending times, then
all latencies, as doubles; seconds of the monotonic clock, which all processes share), and prints how many failed.

`TimedLoad` is how a benchmark runs it.
"""

import argparse
import gc
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from nbdresize.client.opening import open_export
from nbdresize.client.uri import parse_uri
from nbdresize.errors import PeerFailed
from nbdresize.protocol.constants import NBD_CMD_READ, NBD_CMD_WRITE, NBD_REQUEST_MAGIC, NBD_SIMPLE_REPLY_MAGIC
from nbdresize.protocol.negotiated import Mode

_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_INTAKE = 256 << 10
_PATIENCE = 30.0
_SENT_AT_ONCE = 64 << 10
_CHECKOUT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Kind:
    """What the requests are: reads or writes of `block` bytes at random in the first `reach` bytes."""

    writes: bool
    block: int
    depth: int
    reach: int

    @property
    def name(self) -> str:
        return f"{self.block >> 10} KiB {'writes' if self.writes else 'reads'}"


@dataclass(frozen=True)
class Record:
    """Of every request its sending time and its latency in seconds, in the order of the replies."""

    sent: "array[float]"
    latencies: "array[float]"
    failed: int


class TimedLoad:
    """The load as a process beside this one, from `with` until `end`."""

    def __init__(self, uri: str, kind: Kind, output: Path, core: int | None = None) -> None:
        self._output = output
        self._core = core
        self._arguments = [
            *(uri, f"--operation={'write' if kind.writes else 'read'}", f"--block={kind.block}"),
            *(f"--depth={kind.depth}", f"--reach={kind.reach}", f"--output={output}"),
        ]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.timed_load", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=_CHECKOUT,
        )
        try:
            if self._core is not None:
                os.sched_setaffinity(self._process.pid, {self._core})
            assert self._process.stdout is not None
            if not self._process.stdout.readline():
                raise self._broken()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def end(self) -> Record:
        """Wait for the last replies; the record. Raises PeerFailed where the load came to a bad end."""
        try:
            told, _ = self._process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            raise PeerFailed("The load has not ended", "see what the server's log says") from None
        if self._process.returncode:
            raise self._broken()
        values: array[float] = array("d")
        values.frombytes(self._output.read_bytes())
        half = len(values) // 2
        return Record(values[:half], values[half:], int(told))

    def _broken(self) -> PeerFailed:
        _, said = self._process.communicate(timeout=_PATIENCE)
        return PeerFailed(f"The load failed: {said.strip()[-500:]}", "see what the server's log says")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None and not stream.closed:
                stream.close()
        self._process.wait()


def entered(uri: str) -> socket.socket:
    """A connection to the export at `uri`, past the handshake, with simple replies."""
    stream, _ = open_export(parse_uri(uri), _PATIENCE, best=Mode.SIMPLE)
    sock = stream.socket
    sock.settimeout(None)  # which would cost a poll() for every call; so the kernel is to keep time
    limit = struct.pack("ll", int(_PATIENCE), 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    return sock


class Load:
    """The load on one connection. A cookie is the number of a place, of which there are `depth`."""

    def __init__(self, sock: socket.socket, kind: Kind) -> None:
        self.sent: array[float] = array("d")
        self.latencies: array[float] = array("d")
        self.failed = 0
        self._socket = sock
        self._kind = kind
        self._begun = [0.0] * kind.depth
        self._payload = os.urandom(kind.block) if kind.writes else b""
        self._offsets = [block * kind.block for block in range(max(1, kind.reach // kind.block))]

    def run(self, stop: threading.Event) -> None:
        """Until `stop`, and until everything is answered."""
        kind, latencies, sent, begun = self._kind, self.latencies, self.sent, self._begun
        buffer = bytearray(_INTAKE)
        view = memoryview(buffer)
        unpack, monotonic = _REPLY.unpack_from, time.monotonic
        expected = 0 if kind.writes else kind.block
        kept = owed = place = 0
        free = list(range(kind.depth))
        while True:
            if free and not (stop.is_set() and latencies):  # at least once
                self._send(free)
                free.clear()
            elif len(free) == kind.depth:
                return
            received = self._socket.recv_into(view[kept:])
            now = monotonic()
            if not received:
                raise PeerFailed("The server ended the connection")
            end, at = kept + received, 0
            while True:
                if owed:
                    step = min(owed, end - at)
                    owed -= step
                    at += step
                    if owed:
                        break
                    latencies.append(now - begun[place])
                    sent.append(begun[place])
                    free.append(place)
                if end - at < 16:
                    break
                magic, error, place = unpack(buffer, at)
                at += 16
                if magic != NBD_SIMPLE_REPLY_MAGIC or place >= kind.depth:
                    raise PeerFailed("The server sent what is no reply")
                self.failed += error != 0
                owed = 0 if error else expected
                if not owed:
                    latencies.append(now - begun[place])
                    sent.append(begun[place])
                    free.append(place)
            kept = end - at
            buffer[:kept] = buffer[at:end]

    def _send(self, places: list[int]) -> None:
        """A request for each of these places, small ones together."""
        kind, payload = self._kind, self._payload
        command = NBD_CMD_WRITE if kind.writes else NBD_CMD_READ
        together = len(payload) * len(places) <= _SENT_AT_ONCE
        requests = []
        for place in places:
            header = _REQUEST.pack(NBD_REQUEST_MAGIC, 0, command, place, random.choice(self._offsets), kind.block)
            if together:
                requests += [header, payload]
                continue
            self._begun[place] = time.monotonic()
            self._socket.sendall(header, socket.MSG_MORE)
            self._socket.sendall(payload)
        if together:
            now = time.monotonic()
            for place in places:
                self._begun[place] = now
            self._socket.sendall(b"".join(requests))


def _stop_at_end_of_input(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("uri")
    parser.add_argument("--operation", choices=("read", "write"), required=True)
    parser.add_argument("--block", type=int, required=True)
    parser.add_argument("--depth", type=int, required=True)
    parser.add_argument("--reach", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    kind = Kind(given.operation == "write", given.block, given.depth, given.reach)
    stop = threading.Event()
    gc.disable()  # which would be a pause of the load's own, and there is no garbage
    with entered(given.uri) as sock:
        load = Load(sock, kind)
        print("going", flush=True)
        threading.Thread(target=_stop_at_end_of_input, args=(stop,), daemon=True).start()
        load.run(stop)
    with given.output.open("wb") as output:
        load.sent.tofile(output)
        load.latencies.tofile(output)
    print(load.failed)


if __name__ == "__main__":
    main()
