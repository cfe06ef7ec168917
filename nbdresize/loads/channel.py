"""A connected socket for a load: sends without waiting, and receives, which waits and sends what is left meanwhile.

A client that waited for its requests to be taken, while the server waits for its replies to be taken, would wait for
ever.
"""

import select
import socket
import ssl
import struct
import time
from collections.abc import Sequence

from nbdresize.client.stream import ServerGone, Stream
from nbdresize.loads.requests import Buffer

_MOST_PARTS = 1024
"""What one sendmsg takes (IOV_MAX of Linux)."""
_JOINED = 256 << 10
_BUFFERS = 1 << 20


class Channel:
    """Over a unix socket or TCP. Raises OSError: TimeoutError where `patience` seconds bring nothing, ServerGone.

    What the server takes meanwhile is no answer: one that takes byte by byte has no longer than a silent one.
    """

    def __init__(self, sock: socket.socket, patience: float) -> None:
        self._socket = sock
        self._pending: list[Buffer] = []
        self._patience = patience
        # A time limit of the kernel's own: Python's would cost a poll before every receive.
        sock.settimeout(None)
        limit = struct.pack("ll", int(patience), int(patience % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFERS)

    def send(self, parts: Sequence[Buffer]) -> None:
        """Send these, now as far as the socket takes them, the rest while waiting in `receive`."""
        if self._pending:
            self._pending += parts
        elif len(parts) == 1:
            part = parts[0]
            try:
                sent = self._socket.send(part, socket.MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
            if sent < len(part):
                self._pending = [memoryview(part)[sent:]]
        else:
            self._pending = list(parts)
            self._send_pending()

    def receive(self, room: memoryview) -> int:
        """Put what has come into `room`, at least one byte; its length."""
        if self._pending:
            self._wait_and_send()
        try:
            count = self._socket.recv_into(room)
        except BlockingIOError:
            raise TimeoutError from None
        if not count:
            raise ServerGone("the server ended the connection")
        return count

    def _wait_and_send(self) -> None:
        """Send what is pending until something has come."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLOUT)
        end = time.monotonic() + self._patience
        while True:
            ready = poll.poll(_milliseconds(end))
            if not ready:
                raise TimeoutError
            if ready[0][1] & select.POLLOUT:
                self._send_pending()
            if ready[0][1] & ~select.POLLOUT or not self._pending:
                return

    def _send_pending(self) -> None:
        pending = self._pending
        first = 0
        while first < len(pending):
            now = pending[first : first + _MOST_PARTS]
            try:
                sent = self._socket.sendmsg(now, (), socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            taken = 0
            while taken < len(now) and sent >= len(now[taken]):
                sent -= len(now[taken])
                taken += 1
            first += taken
            if taken < len(now):
                pending[first] = memoryview(pending[first])[sent:]
        self._pending = pending[first:]


class SecureChannel(Channel):
    """The same inside TLS, where any sending may first need something received, and the other way round."""

    def __init__(self, sock: ssl.SSLSocket, patience: float) -> None:
        super().__init__(sock, patience)
        self._secured = sock
        sock.setblocking(False)

    def send(self, parts: Sequence[Buffer]) -> None:
        self._pending += _joined(parts)
        self._send_pending()

    def receive(self, room: memoryview) -> int:
        end = 0.0
        while True:
            self._send_pending()
            waits_for = select.POLLIN | (select.POLLOUT if self._pending else 0)
            try:
                count = self._secured.recv_into(room)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLWantWriteError:
                waits_for |= select.POLLOUT
            else:
                if not count:
                    raise ServerGone("the server ended the connection")
                return count
            poll = select.poll()
            poll.register(self._secured, waits_for)
            end = end or time.monotonic() + self._patience
            if not poll.poll(_milliseconds(end)):
                raise TimeoutError

    def _send_pending(self) -> None:
        while self._pending:
            first = memoryview(self._pending[0])
            try:
                sent = self._secured.send(first)
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return
            if sent < len(first):
                self._pending[0] = first[sent:]
            else:
                del self._pending[0]


def channel(stream: Stream, patience: float) -> Channel:
    """The channel for a connection that has been negotiated."""
    sock = stream.socket
    return SecureChannel(sock, patience) if isinstance(sock, ssl.SSLSocket) else Channel(sock, patience)


def _milliseconds(end: float) -> float:
    """Until that moment. Raises TimeoutError once it has passed."""
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left * 1000


def _joined(parts: Sequence[Buffer]) -> list[Buffer]:
    """Few larger parts of many small ones: each would be a record of its own."""
    joined: list[Buffer] = []
    gathered: list[Buffer] = []
    length = 0
    for part in parts:
        if len(part) >= _JOINED:
            joined += [b"".join(gathered), part] if gathered else [part]
            gathered, length = [], 0
            continue
        gathered.append(part)
        length += len(part)
        if length >= _JOINED:
            joined.append(b"".join(gathered))
            gathered, length = [], 0
    return [*joined, b"".join(gathered)] if gathered else joined
