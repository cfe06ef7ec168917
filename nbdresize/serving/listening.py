"""The sockets that a server listens on, held by the supervisor: workers come and go, the sockets stay."""

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nbdresize.errors import InvalidArgument, ResourceInUse, StateUnusable

NBD_PORT = 10809
LONGEST_PATH = 107
"""Bytes of a unix socket's path: sun_path holds 108 with the NUL at its end."""

_BACKLOG = 1024
_ANSWER_SECONDS = 5.0
_ATTEMPTS = 20
_START_WAIT = 10.0
_END_WAIT = 1.0
_LOCK_EVERY = 0.01

_Address = tuple[socket.AddressFamily, tuple[Any, ...]]


class Listener:
    """Listening sockets that clients reach under one URI.

    `authority` and `query` are the parts of the URI between `nbd://` or `nbd+unix://` and the export's name, and
    after it.
    """

    def __init__(self, sockets: list[socket.socket], scheme: str, authority: str, query: str = "") -> None:
        self.sockets = sockets
        self.scheme = scheme
        self.authority = authority
        self.query = query

    @property
    def path(self) -> Path | None:
        """The path of a unix socket."""
        return None

    def stop(self) -> None:
        """Accept nobody any more, and end every accept(2) that waits on the sockets, in whichever process."""
        for listening in self.sockets:
            with suppress(OSError):  # done already
                listening.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the sockets back."""
        for listening in self.sockets:
            listening.close()


class UnixListener(Listener):
    """A unix socket at `path`. One that a dead server left is replaced; a live one is not.

    Raises ResourceInUse where somebody listens there, InvalidArgument where the path can't be that of a socket,
    StateUnusable where the directory can't be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        _check_path(self._path)
        with _locked(self._path.parent, _START_WAIT):
            _remove_stale(self._path)
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                listening.bind(str(self._path))
                listening.listen(_BACKLOG)
                self._identity = _identity(self._path)
            except OSError as error:
                listening.close()
                raise StateUnusable(
                    f"No socket can be made at {self._path}: {error.strerror}", "give another path with --socket"
                ) from error
        super().__init__([listening], "nbd+unix", "", f"socket={quote(str(self._path))}")

    @property
    def path(self) -> Path:
        return self._path

    def stop(self) -> None:
        self._unlink()
        super().stop()

    def _unlink(self) -> None:
        """Remove the socket, unless it is another server's by now."""
        try:
            with _locked(self._path.parent, _END_WAIT):
                if _identity(self._path) == self._identity:
                    self._path.unlink()
        except (OSError, StateUnusable):
            return  # the directory is gone, or read-only by now: a socket left there is stale, and found to be

    def close(self) -> None:
        self._unlink()
        super().close()


def listen_tcp(text: str) -> Listener:
    """Listen on `HOST:PORT`: a name, an IPv4 address, an IPv6 address in brackets; no host means all addresses.

    Port 0 takes a free one, the same for all addresses of a name. Raises InvalidArgument for what can't be read or
    resolved or isn't an address of this machine, ResourceInUse for a port that is taken.
    """
    host, port = _split(text)
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_ADDRCONFIG
        )
    except (socket.gaierror, UnicodeError) as error:
        raise InvalidArgument(f"{text!r} has no address: {error}", "give --tcp an address of this machine") from error
    addresses: list[_Address] = list(dict.fromkeys((entry[0], entry[4]) for entry in found))
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            sockets = _bind_all(addresses, text)
            break
        except ResourceInUse:  # with port 0: the one that the first address got is taken on the second
            if port or attempt == _ATTEMPTS:
                raise
    shown = f"[{host}]" if ":" in host else host or "localhost"
    return Listener(sockets, "nbd", f"{shown}:{sockets[0].getsockname()[1]}")


def _bind_all(addresses: list[_Address], text: str) -> list[socket.socket]:
    """A listening socket on each address; where no port is given, the port that the first one got.

    Of several addresses, those may be missing that this machine doesn't have: `localhost` is also ::1 by name where
    IPv6 is switched off.
    """
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, address in addresses:
            try:
                sockets.append(_bind(family, address, sockets[0].getsockname()[1] if sockets else 0))
            except OSError as error:
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
                missing = error
        if missing is not None and not sockets:
            raise missing
    except OSError as error:
        for made in sockets:
            made.close()
        if error.errno == errno.EADDRINUSE:
            raise ResourceInUse(f"{text} is taken by another program", "give another port with --tcp") from error
        raise InvalidArgument(
            f"Nobody can listen on {text}: {error.strerror}", "give --tcp an address of this machine"
        ) from error
    return sockets


def _bind(family: socket.AddressFamily, address: tuple[Any, ...], port: int) -> socket.socket:
    """A socket listening on the address, on `port` where the address has none. Raises OSError."""
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((address[0], address[1] or port, *address[2:]))
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _split(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, `[IPV6]:PORT`, `:PORT`, or a host alone."""
    wrong = InvalidArgument(f"{text!r} is not HOST:PORT", "such as localhost:10809, 0.0.0.0:10809 or [::1]:10809")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise wrong
        number = rest[1:]
    elif text.count(":") > 1:
        raise wrong
    else:
        host, _, number = text.partition(":")
    if not text or not number.isascii() or (number and not number.isdigit()) or len(number) > 5:
        raise wrong
    port = int(number) if number else NBD_PORT
    if port > 65535 or any(c.isspace() or not c.isprintable() for c in host):
        raise wrong
    return host, port


def _check_path(path: Path) -> None:
    length = len(os.fsencode(path))
    if length > LONGEST_PATH:
        raise InvalidArgument(
            f"The socket's path has {length} bytes, and at most {LONGEST_PATH} are possible: {path}",
            "give a shorter one with --socket",
        )
    if "\0" in str(path):
        raise InvalidArgument("The socket's path has a NUL in it", "give another one with --socket")


@contextmanager
def _locked(directory: Path, seconds: float) -> Iterator[None]:
    """Keep other servers from looking for stale sockets in `directory` at the same time.

    Raises StateUnusable where the directory can't be used, or is locked by others for so many seconds.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StateUnusable(
            f"The directory of the socket can't be used: {directory}: {error.strerror}", "make it, or give another path"
        ) from error
    try:
        deadline = time.monotonic() + seconds
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise StateUnusable(f"Another program keeps {directory} locked", "give another path with --socket")
            time.sleep(_LOCK_EVERY)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_stale(path: Path) -> None:
    """Remove the socket of a dead server. Raises ResourceInUse if it is alive, InvalidArgument if it is no socket."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StateUnusable(
            f"{path} can't be looked at: {error.strerror}", "give another path with --socket"
        ) from error
    if not stat.S_ISSOCK(status.st_mode):
        raise InvalidArgument(f"{path} exists and is not a socket", "give another path with --socket")
    if _answers(path):
        raise ResourceInUse(f"A server listens on {path} already", "end it, or give another path with --socket")
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StateUnusable(
            f"The socket of a dead server can't be removed: {path}: {error.strerror}", "give another path with --socket"
        ) from error


def _answers(path: Path) -> bool:
    """Whether a process has the socket open; one whose queue is full counts as well."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_ANSWER_SECONDS)
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
        return True


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino
