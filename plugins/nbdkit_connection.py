"""The sockets of nbdkit's connections, which it shows to no plugin: to drop a client, and to let idle ones go.

nbdkit 1.32 has no call to end a connection. Its socket can be found all the same, without any guess: nbdkit_nanosleep()
waits in ppoll(2) on three descriptors, of which the last is the socket of the connection in whose thread it is called.
While the thread waits there, the kernel tells where in our own memory their array lies (proc(5), /proc/pid/syscall).
"""

import contextlib
import ctypes
import errno
import os
import platform
import select
import socket
import stat
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_PPOLL = {"x86_64": 271, "aarch64": 73, "riscv64": 73, "ppc64le": 281, "s390x": 302}.get(platform.machine(), -1)
_POLLFD = struct.Struct("ihh")
_DESCRIPTORS = 3
_LOOK_SECONDS = 1.0
_SLEEP_NANOSECONDS = 2_000_000
_PEER_CREDENTIALS = struct.Struct("iII")


class ClientSocket:
    """The socket of one connection: known by its inode, so that a later one with its number is never taken for it."""

    def __init__(self, descriptor: int) -> None:
        """Raises OSError where that is no connected socket."""
        connection = _copied(descriptor)
        if connection is None:
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
        with connection:
            connection.getpeername()
            self.peer = _peer(connection)
            self._inode = os.fstat(connection.fileno()).st_ino
        self._descriptor = descriptor

    def drop(self) -> None:
        """End the connection abruptly. Nothing happens once it has ended."""
        with self._copy() as connection:
            if connection is not None:
                connection.shutdown(socket.SHUT_RDWR)

    def alive(self) -> bool:
        """Whether the client is still there."""
        with self._copy() as connection:
            if connection is None:
                return False
            poll = select.poll()
            poll.register(connection, select.POLLRDHUP)
            return not poll.poll(0)

    @contextlib.contextmanager
    def _copy(self) -> Iterator[socket.socket | None]:
        """The socket under a descriptor of our own, which stays what it is; None if the connection has ended."""
        copy = _copied(self._descriptor)
        if copy is None:
            yield None
            return
        with copy:
            yield copy if os.fstat(copy.fileno()).st_ino == self._inode else None


def find_socket() -> ClientSocket | None:
    """The socket of the connection whose thread calls this; None where it can't be found, or has ended already."""
    if _PPOLL < 0:
        return None
    found: list[ClientSocket] = []
    thread = threading.get_native_id()
    watcher = threading.Thread(target=lambda: found.extend(_watch(thread)), name="nbdresize connection", daemon=True)
    watcher.start()
    nbdkit = ctypes.CDLL(None)  # its functions are exported by the program itself; such a call lets other threads run
    while watcher.is_alive():
        if nbdkit.nbdkit_nanosleep(0, _SLEEP_NANOSECONDS) != 0:
            break  # the client has gone
    watcher.join()
    return found[0] if found else None


def _watch(thread: int) -> list[ClientSocket]:
    """The socket that the thread waits on in nbdkit_nanosleep(), if it gets there soon."""
    deadline = time.monotonic() + _LOOK_SECONDS
    try:
        syscall = Path(f"/proc/self/task/{thread}/syscall")
        with Path("/proc/self/mem").open("rb", buffering=0) as memory:
            while time.monotonic() < deadline:
                where = syscall.read_text()
                fields = where.split()
                if len(fields) < 4 or fields[0] != str(_PPOLL) or int(fields[2], 16) != _DESCRIPTORS:
                    time.sleep(0)
                    continue
                memory.seek(int(fields[1], 16))
                polled = memory.read(_POLLFD.size * _DESCRIPTORS)
                if syscall.read_text() == where:  # it was there all the time
                    descriptor = _POLLFD.unpack_from(polled, _POLLFD.size * (_DESCRIPTORS - 1))[0]
                    return [ClientSocket(descriptor)]
    except (OSError, ValueError, struct.error):
        pass  # a kernel that does not tell, or a connection that is no socket: nobody can be dropped then
    return []


def listening_addresses() -> set[object]:
    """The addresses of all sockets of this process that listen, in the form of `address`."""
    return {_address(each) for each in _sockets() if each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)}


def let_idle_clients_go(addresses: set[object]) -> None:
    """Shut all connections to these addresses down for reading: what was asked is answered, and nothing more comes."""
    for connection in _sockets():
        with contextlib.suppress(OSError):
            if not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and _address(connection) in addresses:
                connection.shutdown(socket.SHUT_RD)


def _sockets() -> Iterator[socket.socket]:
    """The stream sockets of this process, each under a descriptor that is closed with the next."""
    for entry in Path("/proc/self/fd").iterdir():
        found = _copied(int(entry.name))
        if found is None:
            continue
        with found:
            if found.type == socket.SOCK_STREAM and found.family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
                yield found


def _copied(descriptor: int) -> socket.socket | None:
    """The socket of that number under a descriptor of our own; None where that is no socket.

    Nothing else is copied, because nothing else may be closed here: SQLite's locks on the ledger belong to the process,
    and the kernel drops them with the first descriptor of that file that is closed, whichever it is.
    """
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return None
        copy = os.dup(descriptor)
    except OSError:
        return None
    if not stat.S_ISSOCK(os.fstat(copy).st_mode):
        return None  # the number was given to another file just now: rather left open than closed
    return socket.socket(fileno=copy)


def _address(connection: socket.socket) -> object:
    """The local address; of an internet one only the port, since a socket that listens may listen on all hosts."""
    address = connection.getsockname()
    return address if connection.family == socket.AF_UNIX else address[1]


def _peer(connection: socket.socket) -> str:
    """The other end, for people."""
    if connection.family == socket.AF_UNIX:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        return f"process {_PEER_CREDENTIALS.unpack(raw)[0]}"
    host, port = connection.getpeername()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
