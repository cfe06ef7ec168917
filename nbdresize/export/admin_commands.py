"""What can be asked of a running server over its admin socket: one JSON object per line each way."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from nbdresize.control.admin_client import LONGEST_HOLD, LONGEST_LINE
from nbdresize.errors import InvalidArgument, NbdresizeError
from nbdresize.export.exports import Exports
from nbdresize.export.hold import Freeze

_LONGEST_ERROR = 1000
_ROOM_FOR_FRAME = 4096


@dataclass(frozen=True)
class ServerInfo:
    """What a server says of itself: the front that runs in this process, and the URIs that it listens on."""

    front: str
    uris: Sequence[str] = ()
    pid: int = field(default_factory=os.getpid)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    def describe(self) -> dict[str, Any]:
        return {"pid": self.pid, "front": self.front, "uris": list(self.uris), "started": self.started.isoformat()}


class AdminCommands:
    """What one connection can ask: each command is a function from its message to its reply.

    What it holds back ends with it.
    """

    def __init__(self, exports: Exports, info: ServerInfo) -> None:
        self._exports = exports
        self._info = info
        self._freeze: Freeze | None = None
        self._commands: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "sizes": self.sizes,
            "clients": self.clients,
            "drop": self.drop,
            "counters": self.counters,
            "freeze": self.freeze,
            "thaw": self.thaw,
        }

    def answer(self, line: bytes) -> bytes:
        """The reply to one line, with its newline, whatever the line holds."""
        try:
            reply = {"ok": True, **self._run(line)}
        except NbdresizeError as error:
            reply = {"ok": False, "error": str(error)[:_LONGEST_ERROR]}
        except Exception as error:  # noqa: BLE001 - a bug in one command must not end the server's disks
            reply = {"ok": False, "error": f"a bug: {type(error).__name__}: {error}"[:_LONGEST_ERROR]}
        return json.dumps(reply).encode() + b"\n"

    def end(self) -> None:
        """The connection has ended."""
        freeze, self._freeze = self._freeze, None
        if freeze is not None:
            freeze.end()

    def _run(self, line: bytes) -> dict[str, Any]:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidArgument("That is not JSON", "send one object on one line") from error
        name = message.get("command") if isinstance(message, dict) else None
        command = self._commands.get(name) if isinstance(name, str) else None
        if command is None:
            raise InvalidArgument("That is no command", "there are " + ", ".join(self._commands))
        return command(message)

    def sizes(self, message: dict[str, Any]) -> dict[str, Any]:
        """`{"command": "sizes", "exports": ["web1/disk0"]}`: look at these sizes again, and for maps of their writes.

        Answers `{"clients": 3, "marking": ["web1/disk0"], "unmarked": []}` once all connections that use them, so
        many, use what is there now: of those exports that are open here, the ones whose every later write will be
        marked before it is answered, and the others.
        """
        refreshed = self._exports.refresh(_names(message))
        return {
            "clients": refreshed.clients,
            "marking": list(refreshed.marking),
            "unmarked": list(refreshed.unmarked),
        }

    def clients(self, message: dict[str, Any]) -> dict[str, Any]:
        """`{"command": "clients"}`: the server and its connections, and how many `more` no line would hold."""
        connections = self._exports.connections()
        described: list[dict[str, Any]] = []
        room = LONGEST_LINE - _ROOM_FOR_FRAME - len(json.dumps(self._info.describe()))
        for connection in connections:
            one = connection.describe()
            room -= len(json.dumps(one)) + 2
            if room < 0:
                break
            described.append(one)
        return {
            "server": self._info.describe(),
            "clients": described,
            "more": len(connections) - len(described),
        }

    def drop(self, message: dict[str, Any]) -> dict[str, Any]:
        """`{"command": "drop", "exports": [...]}`: end the connections to these abruptly. `{"dropped": 2}`."""
        return {"dropped": self._exports.drop(_names(message))}

    def counters(self, message: dict[str, Any]) -> dict[str, Any]:
        """`{"command": "counters"}`: `{"counters": {...}}` since the server's start."""
        return {"counters": self._exports.counters()}

    def freeze(self, message: dict[str, Any]) -> dict[str, Any]:
        """`{"command": "freeze", "exports": [...], "seconds": 1.0}`: hold back all replies to clients of these.

        Answers `{"open": ["web1/disk0"]}`, those that are open here, once that is so. It ends with `thaw`, after its
        seconds, or with this connection.
        """
        names, seconds = _names(message), message.get("seconds")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= LONGEST_HOLD:
            raise InvalidArgument("That is no time to hold replies back for", f"give up to {LONGEST_HOLD:g} s")
        if self._freeze is not None:
            raise InvalidArgument("This connection holds replies back already", "send thaw first")
        self._freeze = self._exports.freeze(names, seconds)
        return {"open": list(self._exports.opened(names))}

    def thaw(self, message: dict[str, Any]) -> dict[str, Any]:
        """`{"command": "thaw"}`: let go what this connection holds back.

        Answers `{"held": true}` where not one reply has left until now.
        """
        freeze, self._freeze = self._freeze, None
        if freeze is None:
            raise InvalidArgument("This connection holds nothing back", "send freeze first")
        return {"held": freeze.end()}


def _names(message: dict[str, Any]) -> frozenset[str]:
    names = message.get("exports")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidArgument("That command lacks its exports", 'add "exports": ["VM/disk0"]')
    return frozenset(names)
