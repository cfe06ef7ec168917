"""Connecting a socket to a server, within a time limit that also holds for finding its address."""

import queue
import socket
import threading
import time
from typing import Any

from nbdresize.client.deadline import Deadline
from nbdresize.client.uri import Target, Transport
from nbdresize.errors import InvalidArgument

_BUSY_SECONDS = 0.02

Address = tuple[int, Any]
"""A family, and an address in it."""


def dial(target: Target, deadline: Deadline) -> socket.socket:
    """A connected socket. Raises OSError, TimeoutError among them, where that can't be, and InvalidArgument."""
    if target.transport is Transport.UNIX:
        return _dial_unix(target.socket, deadline)
    if target.transport is Transport.VSOCK:
        return _connected((socket.AF_VSOCK, (int(target.host), target.port)), deadline.remaining())
    return _dial_tcp(_addresses(target.host, target.port, deadline), deadline)


def _dial_unix(path: str, deadline: Deadline) -> socket.socket:
    while True:
        try:
            return _connected((socket.AF_UNIX, path), deadline.remaining())
        except BlockingIOError:  # too many are waiting to be accepted, and the kernel tells nobody when that is over
            time.sleep(min(_BUSY_SECONDS, deadline.remaining()))
        except OSError as error:
            if error.errno is None and not isinstance(error, TimeoutError):  # Python's own, of what is no address
                raise InvalidArgument(f"{path[:60]!r}… is too long a path for a socket", "use a shorter one") from None
            raise


def _dial_tcp(addresses: list[Address], deadline: Deadline) -> socket.socket:
    """The first of these that answers. None may take up the time of those after it."""
    failure: OSError = OSError("the name has no address")
    for place, address in enumerate(addresses):
        try:
            connected = _connected(address, deadline.remaining() / (len(addresses) - place))
        except OSError as error:
            failure = error
        else:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connected
    raise failure


def _connected(address: Address, seconds: float) -> socket.socket:
    family, where = address
    connecting = socket.socket(family, socket.SOCK_STREAM)
    try:
        connecting.settimeout(seconds)
        connecting.connect(where)
    except BaseException:
        connecting.close()
        raise
    return connecting


def _addresses(host: str, port: int, deadline: Deadline) -> list[Address]:
    """Where `host` is. Looked up in a thread, since that blocks and has no time limit of its own."""
    outcome: queue.SimpleQueue[list[Address] | OSError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            outcome.put(error)
        except UnicodeError:
            outcome.put(OSError("that is no name of a host"))
        else:
            outcome.put([(family, where) for family, _, _, _, where in found])

    threading.Thread(target=look_up, name="look-up", daemon=True).start()
    try:
        found = outcome.get(timeout=deadline.remaining())
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(found, OSError):
        raise found
    return found
