"""A program that serves one connection after the other with the native server, to be run under a tool that counts.

    valgrind --tool=callgrind … python -m bench.hot_loop --file DISK --control N

On descriptor N, a unix socket, it is handed connections (SCM_RIGHTS), each with an order. It serves each in a fork of
itself, so that what starting takes is paid once, and tells the fork's process id when that has ended.
What runs in the fork is the server's own `Connection`, from the handshake on.
"""

import argparse
import ctypes
import functools
import math
import os
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from nbdresize.export.exports import Exports
from nbdresize.protocol.server_events import HandshakeSettings
from nbdresize.server.connection import Connection
from nbdresize.server.handshaking import Access
from nbdresize.server.stream import Stream
from nbdresize.server.transmission import LARGEST_INTAKE, SMALL
from nbdresize.storage import mapping, page_cache
from nbdresize.storage.mapping import CHUNK_SHIFT

READY = b"ready"
NUMBER = 8
"""Bytes of a process id on the control socket, big-endian; it is 0 for a fork that failed."""

_PAGE = os.sysconf("SC_PAGE_SIZE")
_ORDER = struct.Struct(">QQ")


@dataclass(frozen=True)
class Order:
    """What is said of a connection: the length of its requests, and for how many bytes to wait each time, or 0."""

    block: int
    gathered: int

    def pack(self) -> bytes:
        return _ORDER.pack(self.block, self.gathered)


class Gathering(Stream):
    """A stream that receives `gathered` bytes at least, each time, from when the buffer has its full size and is empty.

    The kernel does that, so it costs nothing that would be counted. It never lingers: how often it would look whether
    there is more depends on the time.
    """

    def __init__(self, sock: socket.socket, gathered: int) -> None:
        super().__init__(sock)
        self._gathered = gathered
        if gathered:
            self.recv_into = self._recv_first  # type: ignore[method-assign]

    def linger(self) -> None:
        return

    def _recv_first(self, buffer: memoryview) -> int:
        if len(buffer) == LARGEST_INTAKE:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, self._gathered)
            del self.recv_into
        return super().recv_into(buffer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--pretend-cached", action="store_true", help="as if cachestat(2) said that all is in memory")
    options = parser.parse_args()
    mapping._SURE_SECONDS = math.inf  # what is counted must not depend on the time
    access = Access(Exports.of_file(options.file), HandshakeSettings())
    with socket.socket(fileno=options.control) as control:
        control.sendall(READY)
        while True:
            message, descriptors, _, _ = socket.recv_fds(control, _ORDER.size, 1)
            if not descriptors:
                return
            order = Order(*_ORDER.unpack(message))
            pid = served_in_a_fork(descriptors[0], order, access, pretend=options.pretend_cached)
            control.sendall(pid.to_bytes(NUMBER, "big"))


def served_in_a_fork(descriptor: int, order: Order, access: Access, *, pretend: bool) -> int:
    """The process id of the fork that has served it, or 0."""
    pid = os.fork()
    if pid == 0:
        if pretend:
            pretend_cached(order.block)
        os._exit(serve(Gathering(socket.socket(fileno=descriptor), order.gathered), access))
    os.close(descriptor)
    _, status = os.waitpid(pid, 0)
    return 0 if status else pid


def serve(stream: Stream, access: Access) -> int:
    """Until the client leaves; an exit code."""
    said: list[str] = []
    Connection(stream, "bench", access, said.append).run()
    for line in said:
        print(line, file=sys.stderr, flush=True)
    return 1 if said else 0


def pretend_cached(length: int) -> None:
    """Answer in place of cachestat(2), which valgrind does not know, for aligned requests of that length, or chunks.

    The same instructions of our own run, up to a call that returns 0 as that one does: isatty() of a bad descriptor.
    """
    pages = (length if length > SMALL else 1 << CHUNK_SHIFT) // _PAGE
    page_cache._syscall = ctypes.PyDLL(None, use_errno=True).isatty
    page_cache._Statistics = functools.partial(page_cache._Statistics, cached=pages)  # type: ignore[assignment,misc]


if __name__ == "__main__":
    main()
