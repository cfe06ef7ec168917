"""Asking the running servers of a state directory, over their admin sockets.

Each server listens on `run/<pid>-<8 hex>.admin`. A request and its reply are one JSON object on one line of at most
1 MiB each. A socket that nobody listens on any more was left by a dead server; whoever finds it removes it.
"""

import json
import os
import socket
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nbdresize.config import StateDirectory
from nbdresize.control.model import Stage
from nbdresize.errors import ServerFailed

LONGEST_LINE = 1 << 20
"""Bytes of a request or a reply, with its newline."""

TIME_LIMIT = 2.0
"""Seconds for one server to answer."""

LONGEST_HOLD = 1.0
"""Seconds for which a server holds replies back at the most, if it is asked to."""

SUFFIX = ".admin"
_LONGEST_SOCKET_PATH = 100
_MOST_AT_ONCE = 32


@dataclass(frozen=True)
class Answer:
    """What the server at `path` said: its `reply`, or else the `problem` with it."""

    path: Path
    reply: dict[str, Any] | None = None
    problem: str = ""


class NoServer(Exception):
    """Nobody listens on the socket any more."""


def servers(state: StateDirectory) -> list[Path]:
    """The admin sockets there are, in order; those of dead servers too, until somebody asks them."""
    try:
        with os.scandir(state.run) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(SUFFIX) and not entry.name.startswith(".")]
    except OSError:
        return []
    return [state.run / name for name in sorted(names)]


def ask(path: Path, message: Mapping[str, Any], timeout: float = TIME_LIMIT) -> dict[str, Any]:
    """The reply of the server at `path` to `message`, within `timeout` seconds in all.

    Raises ServerFailed where there is none, where it is none of the protocol, and where the server refuses.
    """
    try:
        reply = _converse(path, message, timeout)
    except NoServer:
        raise ServerFailed(f"No server listens on {path}", "it has ended; start one with nbdresize serve") from None
    if reply.get("ok") is not True:
        raise ServerFailed(f"The server at {path} refused: {_bounded(reply.get('error', 'no reason given'))}")
    return reply


def ask_all(state: StateDirectory, message: Mapping[str, Any], timeout: float = TIME_LIMIT) -> list[Answer]:
    """What every running server answers, asked side by side; sockets of dead servers are removed and left out."""
    paths = servers(state)
    if not paths:
        return []
    if len(paths) == 1:
        answers = [_answer(paths[0], message, timeout)]
    else:
        from concurrent.futures import ThreadPoolExecutor  # imported here: most commands find one server or none

        with ThreadPoolExecutor(min(len(paths), _MOST_AT_ONCE)) as threads:
            answers = list(threads.map(lambda path: _answer(path, message, timeout), paths))
    return [answer for answer in answers if answer is not None]


def publish(state: StateDirectory, exports: Sequence[str], timeout: float = TIME_LIMIT) -> Stage:
    """Have every server read the sizes of these exports again, and wait until all their connections use them.

    Never raises because of a server: one that does not answer leaves the stage not done, with the reason in `detail`.
    Its connections find a new size by themselves when they next need it.
    """
    start = time.monotonic()
    answers = ask_all(state, {"command": "sizes", "exports": list(exports)}, timeout)
    clients = sum(_count(answer.reply, "clients") for answer in answers if answer.reply)
    problems = [f"{answer.path.name}: {answer.problem}" for answer in answers if answer.problem]
    detail = f"{_plural(len(answers), 'server')}, {_plural(clients, 'client')}" if answers else "no server runs"
    if problems:
        detail += "; " + "; ".join(problems)
    return Stage("servers", time.monotonic() - start, detail, done=not problems)


def _answer(path: Path, message: Mapping[str, Any], timeout: float) -> Answer | None:
    try:
        reply = _converse(path, message, timeout)
    except NoServer:
        return None
    except ServerFailed as error:
        return Answer(path, problem=str(error))
    if reply.get("ok") is not True:
        return Answer(path, problem=f"it refused: {_bounded(reply.get('error', 'no reason given'))}")
    return Answer(path, reply)


def _converse(path: Path, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    deadline = time.monotonic() + timeout
    line = _line(message)
    with Conversation(path, deadline) as conversation:
        conversation.send(line, deadline)
        return conversation.answer(deadline)


class Conversation:
    """A connection to the server at `path`, for as many requests as one likes, one after the other.

    What a server holds back for it ends with it. Every method raises NoServer where nobody listens there any more, and
    ServerFailed where the server takes too long or does what the protocol does not know.
    """

    def __init__(self, path: Path, deadline: float) -> None:
        """Connect before `deadline`, of time.monotonic()."""
        self.path = path
        self._began = time.monotonic()
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:  # no descriptor is left for one
            raise _not_asked(path, error) from error
        try:
            with self._talking(deadline), reachable(path) as address:
                self._socket.connect(address)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def tell(self, message: Mapping[str, Any], deadline: float) -> None:
        """Send a request, before `deadline`."""
        self.send(_line(message), deadline)

    def send(self, line: bytes, deadline: float) -> None:
        """Send a request that is a line already, before `deadline`."""
        with self._talking(deadline):
            self._socket.sendall(line)

    def answer(self, deadline: float) -> dict[str, Any]:
        """What the server says to it, before `deadline`."""
        with self._talking(deadline):
            received = _receive_line(self._socket, deadline)
        return _parsed(self.path, received)

    @contextmanager
    def _talking(self, deadline: float) -> Iterator[None]:
        """What may go wrong with the socket, told as what it means; no call waits beyond the deadline."""
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            yield
        except (ConnectionRefusedError, FileNotFoundError) as error:
            if isinstance(error, ConnectionRefusedError):
                _remove_dead(self.path)
            raise NoServer from error
        except (TimeoutError, BlockingIOError) as error:
            seconds = f"{deadline - self._began:.2g} s"
            raise ServerFailed(f"The server at {self.path} did not answer within {seconds}") from error
        except OSError as error:
            raise _not_asked(self.path, error) from error


def _not_asked(path: Path, error: OSError) -> ServerFailed:
    return ServerFailed(f"The server at {path} can't be asked: {error.strerror or error}")


def _line(message: Mapping[str, Any]) -> bytes:
    line = json.dumps(message).encode() + b"\n"
    if len(line) > LONGEST_LINE:
        raise ServerFailed(f"A request of {len(line)} bytes is more than a server takes")
    return line


def _receive_line(connection: socket.socket, deadline: float) -> bytes:
    """The reply's bytes: a line with its newline, or what came before the connection ended or the bound was met."""
    received = bytearray()
    while b"\n" not in received[-65536:] and len(received) <= LONGEST_LINE:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        piece = connection.recv(65536)
        if not piece:
            break
        received += piece
    return bytes(received)


def _parsed(path: Path, received: bytes) -> dict[str, Any]:
    line, newline, _ = received.partition(b"\n")
    if len(line) >= LONGEST_LINE:
        raise ServerFailed(f"The server at {path} answered with more than {LONGEST_LINE} bytes")
    if not newline:
        problem = f"The server at {path} ended the connection without an answer"
        raise ServerFailed(problem) from ConnectionAbortedError(problem)
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        reply = None
    if not isinstance(reply, dict):
        raise ServerFailed(f"The server at {path} answered with something that is no JSON object")
    return reply


@contextmanager
def reachable(path: Path) -> Iterator[str]:
    """An address of the socket at `path` that fits in sockaddr_un, which holds 107 bytes."""
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _remove_dead(path: Path) -> None:
    """Remove a socket that nobody listens on. Servers listen before their socket gets its name, so it is a dead one."""
    with suppress(OSError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            path.unlink()


def _count(reply: Mapping[str, Any] | None, key: str) -> int:
    value = (reply or {}).get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _bounded(text: object) -> str:
    shown = str(text)
    return (shown if len(shown) <= 200 else shown[:200] + "…").encode("utf-8", "backslashreplace").decode()
