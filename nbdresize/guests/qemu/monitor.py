"""A session with a running QEMU's monitor (QMP), synchronous, each step within its time."""

import asyncio
import logging
import socket
import stat
import struct
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from qemu.qmp import ExecInterruptedError, ExecuteError, Message, QMPClient, QMPError, Runstate

from nbdresize.client.deadline import Deadline
from nbdresize.control.admin_client import reachable
from nbdresize.errors import InvalidArgument, PeerFailed, ResourceNotFound

CONNECT_TIME = 2.0
"""Seconds for QEMU to take the connection and to greet."""

STEP_TIME = 10.0
"""Seconds for one command. One that waits for requests in flight takes as long as the slowest of them."""

_END_TIME = 1.0
_AT_ONCE = 0.01
"""Seconds to end a session, and one whose time is over already."""
_LONGEST_SHOWN = 300
_ATTACH_AGAIN = "start QEMU with -qmp unix:PATH,server=on,wait=off and attach the guest with that path"
_BUSY = "another client uses it, since QEMU serves one at a time,"
_OTHER = "end the other, or give QEMU another -qmp socket and attach the guest with that"
_PAUSE = 0.02

# A failed session is told by an exception; the library would print each as well.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())

Result = TypeVar("Result")


class Refused(PeerFailed):
    """QEMU answered a command with an error."""


@contextmanager
def reading(command: str) -> Iterator[None]:
    """Inside, the answer to a command is read. Raises PeerFailed where it has not the form that QEMU gives it."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError):
        raise PeerFailed(
            f"QEMU answered {command} with what is no answer", "see whether it is QEMU itself that listens there"
        ) from None


class _Client(QMPClient):
    """The library's client, which takes an event for a wrong answer where it comes right before the session's first."""

    async def _do_recv(self) -> Message:
        message = await super()._do_recv()
        while self.runstate is Runstate.CONNECTING and "event" in message:
            message = await super()._do_recv()
        return message


class Monitor:
    """A QMP session; one thread may use it. Made by `connect`.

    QEMU serves one client at a time on each monitor: two sessions on one socket never run side by side.
    """

    def __init__(self, path: Path, connection: socket.socket, deadline: Deadline) -> None:
        """Takes over a connected socket. Raises as `connect` does."""
        self.path = path
        self.pid = _peer(connection)
        self._loop = asyncio.new_event_loop()
        self._client = _Client("nbdresize")
        # Nobody takes events out of its queue, which has no end.
        self._client.events.event_filter = lambda event: False
        try:
            _check_first_byte(path, connection, deadline)
            connection.setblocking(False)
            self._run(self._client.connect(connection), deadline.remaining())
        except TimeoutError:
            self._abandon(connection, _AT_ONCE)
            raise self._silent(deadline.seconds) from None
        except (QMPError, OSError, EOFError) as error:
            self._abandon(connection, _AT_ONCE)
            raise _not_qmp(path) from error
        except BaseException:
            self._abandon(connection, _AT_ONCE)
            raise

    @classmethod
    def connect(cls, path: Path, timeout: float = CONNECT_TIME) -> Self:
        """A session with the QEMU that listens at `path`, within `timeout` seconds.

        Raises ResourceNotFound where there is nothing, InvalidArgument where it is no monitor, and PeerFailed where
        nobody listens (any more), or does not answer: QEMU hangs, or serves another client.
        """
        _check_socket(path)
        deadline = Deadline(timeout)
        try:
            connection = _connected(path, deadline)
        except (ConnectionRefusedError, FileNotFoundError):
            raise PeerFailed(
                f"No QEMU listens on {path} any more", "start the guest, or detach it with nbdresize guest detach"
            ) from None
        except (BlockingIOError, TimeoutError):
            raise PeerFailed(
                f"The monitor at {path} takes no client within {timeout:g} s", f"{_BUSY} or QEMU hangs; {_OTHER}"
            ) from None
        except OSError as error:
            raise PeerFailed(
                f"The monitor at {path} can't be reached: {error.strerror or error}", "see whether QEMU runs"
            ) from None
        return cls(path, connection, deadline)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session. Nothing happens the second time."""
        if not self._loop.is_closed():
            self._abandon(None)

    @property
    def version(self) -> str:
        """QEMU's version, such as `7.2.22`, as it greeted us; empty where it didn't tell."""
        greeting = self._client.greeting
        version = greeting.QMP.version.get("qemu") if greeting else None
        if not isinstance(version, Mapping):
            return ""
        return ".".join(str(version[part]) for part in ("major", "minor", "micro") if part in version)

    def left(self) -> float:
        """The seconds that there are for something beside the commands, such as a look at the network."""
        return STEP_TIME

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, timeout: float = STEP_TIME) -> Any:
        """What QEMU returns to `command`, within `timeout` seconds.

        Raises Refused where it answers with an error, PeerFailed where it does not answer or is gone: then this
        session is over, and the command may still be carried out later.
        """
        if self._loop.is_closed():
            raise PeerFailed(f"The session with {self.path} is over", "connect again")
        try:
            return self._run(self._client.execute(command, arguments), timeout)
        except TimeoutError:
            self._abandon(None, _AT_ONCE)
            raise self._silent(timeout, command) from None
        except ExecuteError as error:
            raise Refused(f"QEMU refused {command}: {_bounded(error)}") from None
        except (ExecInterruptedError, EOFError, OSError):
            self.close()
            raise PeerFailed(f"QEMU ended the session on {self.path} during {command}", "see whether it runs") from None
        except QMPError as error:
            self.close()
            raise PeerFailed(f"The session on {self.path} failed during {command}: {_bounded(error)}") from None

    def _run(self, step: Coroutine[Any, Any, Result], timeout: float) -> Result:
        return self._loop.run_until_complete(asyncio.wait_for(step, timeout))

    def _silent(self, timeout: float, command: str = "") -> PeerFailed:
        """Why there is no answer, as far as that can be seen from outside."""
        during = f" {command}" if command else ""
        if self.pid is not None and _is_stopped(self.pid):
            return PeerFailed(
                f"QEMU (process {self.pid}) is stopped by a signal and did not answer{during} within {timeout:g} s",
                f"continue it with kill -CONT {self.pid}",
            )
        if command:
            return PeerFailed(f"QEMU did not answer {command} within {timeout:g} s", "see what it waits for")
        return PeerFailed(
            f"The monitor at {self.path} did not answer within {timeout:g} s",
            f"{_BUSY} QEMU hangs, or it is no monitor; {_OTHER}",
        )

    def _abandon(self, connection: socket.socket | None, seconds: float = _END_TIME) -> None:
        """End whatever runs; the other end has so many seconds. `connection` is one that the session may lack still."""
        with suppress(Exception):  # a session that failed tells of its failure once more here
            self._run(self._client.disconnect(), seconds)
        self._loop.run_until_complete(_cancel_others())
        self._loop.close()
        if connection is not None:
            connection.close()


async def _cancel_others() -> None:
    """End what else runs on this loop: a session whose other end hangs leaves tasks behind."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _check_socket(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ResourceNotFound(f"There is no monitor at {path}", f"is QEMU running? {_ATTACH_AGAIN}") from None
    except OSError as error:
        raise InvalidArgument(f"{path} can't be looked at: {error.strerror}", _ATTACH_AGAIN) from None
    if not stat.S_ISSOCK(mode):
        raise InvalidArgument(f"{path} is not a socket", _ATTACH_AGAIN)


def _connected(path: Path, deadline: Deadline) -> socket.socket:
    """A connected socket. Raises OSError; BlockingIOError or TimeoutError where the queue of clients stays full."""
    while True:
        left = deadline.remaining()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(left)
        try:
            with reachable(path) as address:
                connection.connect(address)
            return connection
        except BlockingIOError:  # a full queue of a unix socket is told at once, and nothing tells when it has room
            connection.close()
            time.sleep(min(_PAUSE, deadline.remaining()))
        except BaseException:
            connection.close()
            raise


def _check_first_byte(path: Path, connection: socket.socket, deadline: Deadline) -> None:
    """Wait until the other end says something: QMP greets with a JSON object, on one line.

    What says something else may never end its line. Raises TimeoutError, OSError, and InvalidArgument.
    """
    connection.settimeout(deadline.remaining())
    if connection.recv(1, socket.MSG_PEEK) != b"{":
        raise _not_qmp(path)


def _not_qmp(path: Path) -> InvalidArgument:
    return InvalidArgument(f"What listens on {path} does not speak QMP", _ATTACH_AGAIN)


def _peer(connection: socket.socket) -> int | None:
    """The process that listens there, unix(7) SO_PEERCRED; None where it lives in another world of process ids."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid if pid > 0 else None


def _is_stopped(pid: int) -> bool:
    """Whether a signal has stopped the process: state T in proc(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):
        return False


def _bounded(error: object) -> str:
    shown = " ".join(str(error).split()).rstrip(".")
    return shown if len(shown) <= _LONGEST_SHOWN else shown[:_LONGEST_SHOWN] + "…"
