"""Whether the server that a block node talks to is one of ours, however its address is written."""

import os
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from nbdresize.client.deadline import Deadline
from nbdresize.protocol.constants import NBD_DEFAULT_PORT

LOOK_UP_TIME = 2.0
"""Seconds for looking up the names of hosts."""

_WILDCARDS = frozenset({"0.0.0.0", "::"})
_File = tuple[int, int]


class Addresses:
    """What our servers listen on, as the process `pid` would see it, which is QEMU."""

    def __init__(self, uris: Sequence[str], pid: int | None, seconds: float = LOOK_UP_TIME) -> None:
        """`seconds` are those for looking up the names of hosts, all of them, from now on."""
        self._pid = pid
        self._known: dict[str, set[str]] = {}
        self._left = Deadline(min(seconds, LOOK_UP_TIME))
        self._paths: set[str] = set()
        self._hosts: set[tuple[str, int]] = set()
        for uri in uris:
            self._take(uri)

    def serve(self, server: Mapping[str, Any]) -> bool:
        """Whether `server`, QEMU's SocketAddress, is one of them. A unix socket is told by its file, not its name."""
        if server.get("type") == "unix":
            return self._serve_path(str(server.get("path", "")), abstract=server.get("abstract") in (True, "on"))
        if server.get("type") == "inet":
            with suppress(ValueError, TypeError):
                return self._serve_host(str(server.get("host", "")), int(server.get("port", NBD_DEFAULT_PORT)))
        return False

    def _take(self, uri: str) -> None:
        parts = urlsplit(uri)
        if parts.scheme.endswith("+unix"):
            self._paths.update(parse_qs(parts.query).get("socket", [])[:1])
        elif parts.hostname:
            self._hosts.add((parts.hostname, parts.port or NBD_DEFAULT_PORT))

    def _serve_path(self, path: str, *, abstract: bool) -> bool:
        if abstract or not path:
            return False
        file = _file(inside(self._pid, path))
        if file is None:
            return path in self._paths
        return any(_file(ours) == file for ours in self._paths)

    def _serve_host(self, host: str, port: int) -> bool:
        ours = [name for name, at in self._hosts if at == port]
        if host in ours:
            return True
        if not ours:
            return False
        meant = self._resolved(host)
        return any(
            any(_is_local(address) for address in meant)
            if name in _WILDCARDS
            else not meant.isdisjoint(self._resolved(name))
            for name in ours
        )

    def _resolved(self, host: str) -> set[str]:
        """The addresses of a name; none of one that nobody knows, or that is not found in the time for all of them."""
        if host not in self._known:
            self._known[host] = _resolved(host, self._left)
        return self._known[host]


def inside(pid: int | None, path: str) -> str:
    """The path by which this process reaches what `path` is for the process `pid`, whatever its directory and root.

    A process that can't be looked into is taken to see what this one sees.
    """
    if pid is None:
        return path
    directory = f"/proc/{pid}/{'root' if path.startswith('/') else 'cwd'}"
    return f"{directory}/{path.lstrip('/')}" if os.access(directory, os.X_OK) else path


def _file(path: str) -> _File | None:
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _resolved(host: str, deadline: Deadline) -> set[str]:
    """As getaddrinfo(3) does it, which nothing can interrupt: a name server that is away takes it half a minute."""
    found: set[str] = set()

    def look_up(flags: int) -> None:
        with suppress(OSError, ValueError):
            answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=flags)
            found.update(str(answer[4][0]) for answer in answers)

    look_up(socket.AI_NUMERICHOST)
    if not found:
        thread = threading.Thread(target=look_up, args=(0,), name="lookup", daemon=True)
        thread.start()
        with suppress(TimeoutError):
            thread.join(deadline.remaining())
    return set(found)


def _is_local(address: str) -> bool:
    """Whether this machine has the address: nobody can bind another."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return True
    return False
