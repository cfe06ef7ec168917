"""Sockets that the parent has opened for us: systemd, or a tool that starts a server for itself (`nbdinfo [ … ]`).

Source: sd_listen_fds(3).
"""

import os
import socket
from urllib.parse import quote

from nbdresize.errors import InvalidArgument
from nbdresize.serving.listening import Listener

_FIRST_DESCRIPTOR = 3


class InheritedListener(Listener):
    """A socket that stays the parent's: it goes on listening there when this server ends."""

    def stop(self) -> None:
        """Nothing: shutting it down would end it for the parent too."""


def inherited_listeners() -> list[Listener]:
    """The listening sockets that LISTEN_FDS and LISTEN_PID hand to this process; to be called once.

    Raises InvalidArgument where one of them is no listening socket.
    """
    count, pid = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if not count.isdecimal() or pid != str(os.getpid()):
        return []
    return [_listener(_FIRST_DESCRIPTOR + number) for number in range(int(count))]


def _listener(descriptor: int) -> Listener:
    try:
        listening = socket.socket(fileno=descriptor)
        if not listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError("it does not listen")
    except OSError as error:
        raise InvalidArgument(
            f"Descriptor {descriptor}, handed over by LISTEN_FDS, can't be used: {error}", "hand over a stream socket"
        ) from error
    os.set_inheritable(descriptor, False)
    address = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return InheritedListener([listening], "nbd+unix", "", f"socket={quote(os.fsdecode(address))}")
    host = f"[{address[0]}]" if listening.family == socket.AF_INET6 else address[0]
    return InheritedListener([listening], "nbd", f"{host}:{address[1]}")
