"""Bytes to and from a server, each step within its time limit."""

import contextlib
import select
import socket
import ssl

from nbdresize.client.deadline import Deadline

_INTAKE = 256 << 10
_PARTING_BYTES = 1 << 20


class ServerGone(OSError):
    """The server ended the connection."""


class Stream:
    """A connected socket, with TLS on it or not.

    `send` and `receive` raise OSError: TimeoutError at the deadline, ServerGone at the connection's end, ssl.SSLError.
    After any of them, or an interruption, the stream is of no use but to be closed; only `receive` may be repeated
    after a TimeoutError.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._secured: ssl.SSLSocket | None = None

    @property
    def socket(self) -> socket.socket:
        """What carries it, TLS included: for whoever goes on by other means."""
        return self._socket

    def start_tls(self, context: ssl.SSLContext, hostname: str | None, deadline: Deadline) -> None:
        """Go on inside TLS; `hostname` for the server to choose its certificate by."""
        self._socket.settimeout(deadline.remaining())
        self._secured = context.wrap_socket(self._socket, server_hostname=hostname, do_handshake_on_connect=False)
        self._socket = self._secured
        self._secured.settimeout(deadline.remaining())
        self._secured.do_handshake()

    def send(self, data: bytes | memoryview, deadline: Deadline) -> None:
        """Send all of it."""
        left = memoryview(data)
        while left:
            self._socket.settimeout(deadline.remaining())
            left = left[self._socket.send(left) :]

    def receive(self, deadline: Deadline) -> bytes:
        """Whatever has come, at least one byte."""
        self._socket.settimeout(deadline.remaining())
        data = self._socket.recv(_INTAKE)
        if not data:
            raise ServerGone("the server ended the connection")
        return data

    def pending(self) -> bool:
        """Whether something has come that was not received yet."""
        if self._secured is not None and self._secured.pending():
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def part(self, last: bytes, deadline: Deadline) -> None:
        """Send the last words, and wait for the server to end the connection; it may be gone already."""
        with contextlib.suppress(OSError, ValueError):
            self.send(last, deadline)
            for _ in range(_PARTING_BYTES // 64):
                self.receive(deadline)
        self.close()

    def close(self) -> None:
        """End the connection; may be called again."""
        self._socket.close()
