"""A session with the QEMU guest agent of a running guest. What answers there is the guest's: it is believed nothing.

The agent speaks JSON, one object on a line, over a serial port; QEMU has the other end of that as a unix socket. A port
knows no connections: what an earlier session asked may be answered in this one, so that each begins with
`guest-sync-delimited`, and reads over all that comes before its answer.
"""

import base64
import binascii
import json
import secrets
import socket
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nbdresize.client.deadline import Deadline
from nbdresize.control.admin_client import reachable
from nbdresize.errors import InvalidArgument, PeerFailed, ResourceNotFound

CONNECT_TIME = 3.0
"""Seconds for an agent to answer the first time."""
STEP_TIME = 10.0
"""Seconds for one command."""
LONGEST_REPLY = 4 << 20
"""Bytes of a reply, and of what an earlier session may have left in the port."""

_DELIMITER = b"\xff"
_PIECE = 1 << 16
_PAUSES = (0.02, 0.5)
_LONGEST_SHOWN = 300
_ATTACH_AGAIN = (
    "give QEMU -device virtio-serial -chardev socket,id=agent,path=PATH,server=on,wait=off "
    "-device virtserialport,chardev=agent,name=org.qemu.guest_agent.0, and attach the guest with that path"
)
_START = "start qemu-guest-agent in the guest, and see that nothing else uses that socket"


class Refused(PeerFailed):
    """The agent answered a command with an error."""


class NotAllowed(Refused):
    """The agent has no such command, or whoever set up the guest has disabled it."""


@dataclass(frozen=True)
class Finished:
    """How a program in the guest ended: `code` is None where a signal ended it. Output that is no text shows as �."""

    code: int | None
    output: str
    errors: str


class Agent:
    """A session; one thread may use it. Made by `connect`.

    After an error other than Refused it is over: a reply that comes late would be taken for that of the next command.
    """

    def __init__(self, path: Path, connection: socket.socket) -> None:
        """Takes over a connected socket, of which nothing is known yet: see `connect`."""
        self.path = path
        self._socket = connection
        self._received = bytearray()

    @classmethod
    def connect(cls, path: Path, timeout: float = CONNECT_TIME) -> Self:
        """A session with the agent whose socket QEMU has at `path`, which has answered within `timeout` seconds.

        Raises ResourceNotFound where there is nothing, InvalidArgument where it is no socket, and PeerFailed where no
        agent answers: none runs in the guest, the guest is paused, or somebody else is talking to it.
        """
        _check_socket(path)
        deadline = Deadline(timeout)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(deadline.remaining())
            with reachable(path) as address:
                connection.connect(address)
        except OSError as error:  # a full queue of clients too: QEMU takes one at a time
            connection.close()
            told = "nobody listens" if isinstance(error, ConnectionRefusedError | FileNotFoundError) else str(error)
            raise PeerFailed(f"The guest agent at {path} can't be reached: {told}", "see whether QEMU runs") from None
        agent = cls(path, connection)
        try:
            agent._synchronize(deadline)
        except BaseException:
            agent.close()
            raise
        return agent

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session. What runs in the guest goes on."""
        self._socket.close()

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, timeout: float = STEP_TIME) -> Any:
        """What the agent returns to `command`, within `timeout` seconds. What that is made of, the caller has to check.

        Raises NotAllowed or Refused where it answers with an error, PeerFailed where it does not answer, or not what
        an agent says; then this session is over, and the command may still be carried out later.
        """
        try:
            deadline = Deadline(timeout)
            self._send(command, arguments, deadline)
            return self._result(self._line(deadline), command)
        except TimeoutError:
            self.close()
            raise PeerFailed(f"The guest agent did not answer {command} within {timeout:g} s", _START) from None
        except OSError as error:
            self.close()
            raise PeerFailed(f"The guest agent at {self.path} is gone: {error}", "see whether QEMU runs") from None

    def run(self, program: str, arguments: Sequence[str], script: bytes, timeout: float) -> Finished:
        """Run a program in the guest with `script` as its input, to its end.

        Raises as `execute` does, and PeerFailed when it has not ended after `timeout` seconds: it goes on by itself.
        """
        end = time.monotonic() + timeout
        given = {"path": program, "arg": list(arguments), "capture-output": True}
        given["input-data"] = base64.b64encode(script).decode()
        started = self.execute("guest-exec", given, min(timeout, STEP_TIME))
        pid = started.get("pid") if isinstance(started, dict) else None
        if not isinstance(pid, int):
            raise self._nonsense("guest-exec", started)
        pause, longest = _PAUSES
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise PeerFailed(
                    f"{program} has been running in the guest for {timeout:g} s, and goes on", "ask again later"
                )
            told = self.execute("guest-exec-status", {"pid": pid}, min(left, STEP_TIME))
            if not isinstance(told, dict) or not isinstance(told.get("exited"), bool):
                raise self._nonsense("guest-exec-status", told)
            if told["exited"]:
                return self._finished(told)
            time.sleep(min(pause, left))
            pause = min(pause * 2, longest)

    def _finished(self, told: Mapping[str, Any]) -> Finished:
        code = told.get("exitcode")
        try:
            data = [base64.b64decode(told.get(key, ""), validate=True) for key in ("out-data", "err-data")]
        except (binascii.Error, TypeError, ValueError):
            raise self._nonsense("guest-exec-status", told) from None
        return Finished(code if isinstance(code, int) else None, *(each.decode(errors="replace") for each in data))

    def _synchronize(self, deadline: Deadline) -> None:
        """Read over what is left of other sessions. Raises PeerFailed where no agent says what it was told to say."""
        number = secrets.randbelow(1 << 31)
        try:
            # The delimiter ends what another session may have left unfinished in the agent.
            self._socket.settimeout(deadline.remaining())
            self._socket.sendall(_DELIMITER)
            self._send("guest-sync-delimited", {"id": number}, deadline)
            skipped = 0
            while True:
                skipped += self._skip(_DELIMITER, deadline, LONGEST_REPLY - skipped)
                line = self._line(deadline)
                skipped += len(line)
                if _decoded(line) == {"return": number}:
                    return
        except TimeoutError:
            raise PeerFailed(
                f"No guest agent answered on {self.path} within {deadline.seconds:g} s", f"{_START}, or the guest hangs"
            ) from None
        except OSError as error:
            raise PeerFailed(f"The guest agent at {self.path} is gone: {error}", "see whether QEMU runs") from None

    def _send(self, command: str, arguments: Mapping[str, Any] | None, deadline: Deadline) -> None:
        message: dict[str, Any] = {"execute": command}
        if arguments is not None:
            message["arguments"] = dict(arguments)
        self._socket.settimeout(deadline.remaining())
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _line(self, deadline: Deadline) -> bytes:
        """The next line, whole."""
        while (end := self._received.find(b"\n")) < 0:
            if len(self._received) > LONGEST_REPLY:
                self.close()
                raise PeerFailed(f"The guest agent's reply is longer than {LONGEST_REPLY} bytes", _START)
            self._receive(deadline)
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    def _skip(self, mark: bytes, deadline: Deadline, most: int) -> int:
        """Read over all up to and with `mark`, and return how many bytes that were."""
        skipped = 0
        while (end := self._received.find(mark)) < 0:
            skipped += len(self._received)
            self._received.clear()
            if skipped > most:
                raise PeerFailed(f"What listens on {self.path} is no guest agent, or one that is out of order", _START)
            self._receive(deadline)
        del self._received[: end + 1]
        return skipped + end + 1

    def _receive(self, deadline: Deadline) -> None:
        self._socket.settimeout(deadline.remaining())
        data = self._socket.recv(_PIECE)
        if not data:
            raise ConnectionResetError("it ended the session")
        self._received += data

    def _result(self, line: bytes, command: str) -> Any:
        reply = _decoded(line)
        if isinstance(reply, dict) and "return" in reply:
            return reply["return"]
        error = reply.get("error") if isinstance(reply, dict) else None
        if not isinstance(error, dict):
            raise self._nonsense(command, line.decode(errors="replace"))
        text = bounded(str(error.get("desc", "")))
        if error.get("class") == "CommandNotFound":
            raise NotAllowed(f"The guest agent does not allow {command}: {text}")
        raise Refused(f"The guest agent refused {command}: {text}")

    def _nonsense(self, command: str, told: object) -> PeerFailed:
        self.close()
        return PeerFailed(f"The guest agent answered {command} with what is no answer: {bounded(str(told))}", _START)


def bounded(text: str) -> str:
    """Text of a guest, fit to be shown: one short line, of characters that do nothing to a terminal."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text[: 8 * _LONGEST_SHOWN])
    shown = " ".join(shown.split()).rstrip(".")
    return shown if len(shown) <= _LONGEST_SHOWN else shown[:_LONGEST_SHOWN] + "…"


def _decoded(line: bytes) -> Any:
    """What a line says; None if it is no JSON."""
    try:
        return json.loads(line.rpartition(_DELIMITER)[2])
    except (ValueError, RecursionError):
        return None


def _check_socket(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ResourceNotFound(f"There is no guest agent at {path}", f"is QEMU running? {_ATTACH_AGAIN}") from None
    except OSError as error:
        raise InvalidArgument(f"{path} can't be looked at: {error.strerror}", _ATTACH_AGAIN) from None
    if not stat.S_ISSOCK(mode):
        raise InvalidArgument(f"{path} is not a socket", _ATTACH_AGAIN)
