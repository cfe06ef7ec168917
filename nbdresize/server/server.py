"""A worker of the native front: connections accepted from listening sockets that it was given, a thread for each."""

import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from nbdresize.server.connection import Connection, peer_name
from nbdresize.server.handshaking import Access
from nbdresize.server.stream import Stream

MOST_CONNECTIONS = 2048
"""Of one worker, those in their handshake included; more are closed at once."""

END_SECONDS = 8.0
"""How long requests in flight may take when the server ends; less than the supervisor's patience."""

_PAUSE_AFTER_FAILURE = 0.1
_YIELD = 0.0005
_LONGEST_YIELD = 0.005
"""Seconds by which a worker holds back for each connection that it has, and at the most."""

_STACK = 512 << 10
_SEND_BUFFER = 2 << 20
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))


class Server:
    """Accepts connections until `end`. Its threads are daemons: a process that must end at once just does."""

    def __init__(
        self,
        listening: Sequence[socket.socket],
        access: Access,
        log: Callable[[str], None],
        most_connections: int = MOST_CONNECTIONS,
        *,
        shared: bool = False,
    ) -> None:
        """`shared`: other workers accept from the same sockets, and whoever has the fewest connections should."""
        self._listening = listening
        self._access = access
        self._log = log
        self._most = most_connections
        self._shared = shared
        self._lock = threading.Lock()
        self._connections: dict[Connection, threading.Thread] = {}
        self._ending = False
        self._wake_reading, self._wake_writing = socket.socketpair()
        threading.stack_size(_STACK)

    def start(self) -> None:
        """Accept connections from now on, in threads of their own."""
        for listening in self._listening:
            listening.setblocking(False)
            threading.Thread(target=self._accept, args=(listening,), name="accept", daemon=True).start()

    def end(self) -> None:
        """Accept nobody any more, finish the requests in flight, and return within END_SECONDS."""
        with self._lock:
            self._ending = True
            connections = dict(self._connections)
        self._wake_writing.close()
        for connection in connections:
            connection.finish()
        self._access.exports.end_waits()
        deadline = time.monotonic() + END_SECONDS
        for connection, thread in connections.items():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                connection.drop()

    def _accept(self, listening: socket.socket) -> None:
        poll = select.poll()
        poll.register(listening, select.POLLIN)
        poll.register(self._wake_reading, select.POLLIN)
        while not self._ending:
            poll.poll()
            if self._ending:
                return
            if self._shared and self._connections:
                time.sleep(min(len(self._connections) * _YIELD, _LONGEST_YIELD))  # a worker with fewer goes first
            try:
                sock, _ = listening.accept()
            except BlockingIOError:
                continue  # another worker was faster
            except OSError as error:
                if self._ending:
                    return
                self._log(f"accepting a connection: {error.strerror}")
                time.sleep(_PAUSE_AFTER_FAILURE)  # no descriptors or memory left: others may free some
                continue
            self._begin(sock)

    def _begin(self, sock: socket.socket) -> None:
        try:
            _tune(sock)
            connection = Connection(Stream(sock), peer_name(sock), self._access, self._log)
        except OSError:
            sock.close()  # gone already
            return
        thread = threading.Thread(target=self._run, args=(connection,), name=connection.peer, daemon=True)
        refused = self._start(connection, thread)
        if refused is not None:
            self._log(f"{connection.peer}: refused, {refused}")
            sock.close()

    def _start(self, connection: Connection, thread: threading.Thread) -> str | None:
        """Serve one more client, or why not. `end` finds either no thread or one that runs, which it can wait for."""
        with self._lock:
            if self._ending:
                return "the server ends"
            if len(self._connections) >= self._most:
                return f"there are {self._most} connections already"
            try:
                thread.start()
            except RuntimeError:
                return "no more threads can be started"
            self._connections[connection] = thread
        return None

    def _run(self, connection: Connection) -> None:
        try:
            connection.run()
        finally:
            self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        with self._lock:
            self._connections.pop(connection, None)


def _tune(sock: socket.socket) -> None:
    """What suits request and reply: room for several large replies, nothing held back, a dead peer found out."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        with suppress(OSError):
            for option, value in _KEEPALIVE:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
