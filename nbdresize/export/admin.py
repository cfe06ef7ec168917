"""The admin socket of a running server: told of new sizes, asked for its clients, told to drop them.

One JSON object per line each way. The socket belongs to the server's user,
and everything that comes in is bounded all the same: a client that is stuck or mad takes nothing from the others.
"""

import contextlib
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from nbdresize.config import StateDirectory
from nbdresize.control.admin_client import LONGEST_LINE, SUFFIX, reachable
from nbdresize.errors import StateUnusable
from nbdresize.export.admin_commands import AdminCommands, ServerInfo
from nbdresize.export.exports import Exports

LINE_TIME = 2.0
"""Seconds for a request to arrive, and for its reply to be taken."""

MOST_AT_ONCE = 16
_BACKLOG = 64
_PIECE = 65536
_PAUSE_AFTER_FAILURE = 0.1
_JOIN_TIME = 5.0


class AdminSocket:
    """Listens in the state directory's `run/` until it is closed; then the socket is gone.

    Start it in the process that serves: threads don't survive a fork.
    """

    def __init__(self, directory: Path, exports: Exports, info: ServerInfo) -> None:
        """Raises StateUnusable where the directory can't hold a socket. Ready when this returns."""
        self.path = directory / f"{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
        self._exports = exports
        self._info = info
        self._free = threading.Semaphore(MOST_AT_ONCE)
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._closing = False
        self._listener = _listen(self.path)
        self._inode = self.path.lstat().st_ino
        self._acceptor = threading.Thread(target=self._accept, name="nbdresize admin", daemon=True)
        self._acceptor.start()

    @classmethod
    def start(cls, state: StateDirectory, exports: Exports, info: ServerInfo) -> Self:
        """The admin socket of a server of this state directory."""
        return cls(state.run, exports, info)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the socket and end; requests under way may still be answered. Nothing happens the second time."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            threads = list(self._connections.items())
        with contextlib.suppress(OSError):
            if self.path.lstat().st_ino == self._inode:
                self.path.unlink()
        for connection, _ in threads:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RD)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(_JOIN_TIME)
        self._listener.close()
        for _, thread in threads:
            thread.join(_JOIN_TIME)

    def _accept(self) -> None:
        while not self._closing:
            self._free.acquire()
            try:
                connection, _ = self._listener.accept()
            except OSError:
                self._free.release()
                if self._closing:
                    return
                time.sleep(_PAUSE_AFTER_FAILURE)  # no descriptors or memory left: others may free some
                continue
            self._begin(connection)

    def _begin(self, connection: socket.socket) -> None:
        thread = threading.Thread(target=self._serve, args=(connection,), name="nbdresize admin client", daemon=True)
        with self._lock:
            self._connections[connection] = thread
        try:
            thread.start()
        except RuntimeError:  # no more threads
            self._end(connection)

    def _serve(self, connection: socket.socket) -> None:
        commands = AdminCommands(self._exports, self._info)
        try:
            received = bytearray()
            while not self._closing and (line := _receive_line(connection, received)) is not None:
                connection.settimeout(LINE_TIME)
                connection.sendall(commands.answer(line))
        except OSError:
            pass  # it went away, or was too slow
        finally:
            commands.end()
            self._end(connection)

    def _end(self, connection: socket.socket) -> None:
        with self._lock:
            del self._connections[connection]
        connection.close()
        self._free.release()


def _receive_line(connection: socket.socket, received: bytearray) -> bytes | None:
    """The next line, without its newline; what comes after it stays in `received`. None at the end of the connection.

    Raises TimeoutError where it does not arrive within LINE_TIME, OSError where it is too long.
    """
    deadline = time.monotonic() + LINE_TIME
    searched = 0
    while (end := received.find(b"\n", searched)) < 0:
        searched = len(received)
        if searched >= LONGEST_LINE:
            raise OSError("a line without end")
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        piece = connection.recv(_PIECE)
        if not piece:
            return None
        received += piece
    line = bytes(received[:end])
    del received[: end + 1]
    return line


def _listen(path: Path) -> socket.socket:
    """A socket that listens at `path`, where it appears only then: whoever finds one that refuses takes it for dead."""
    unnamed = path.with_name(f".{path.name}.new")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), 0o600)
        with reachable(unnamed) as address:
            listener.bind(address)
        try:
            listener.listen(_BACKLOG)
            unnamed.rename(path)
        except OSError:
            unnamed.unlink(missing_ok=True)
            raise
    except OSError as error:
        listener.close()
        raise StateUnusable(
            f"The admin socket can't be made in {path.parent}: {error.strerror or error}",
            "make the directory writable for this user",
        ) from error
    return listener
