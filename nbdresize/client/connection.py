"""A connection to an NBD export through libnbd, in which no silent server can hold anybody up.

libnbd's own blocking calls wait for ever, so this drives its asynchronous ones with a deadline.
"""

import errno
import os
import queue
import select
import threading
import time
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any, Self

from nbdresize.errors import InvalidArgument, PeerFailed, ProgramMissing, ResourceNotFound

_PARTING_SECONDS = 1.0
_LONGEST_SHOWN = 300


class CommandRefused(Exception):
    """The server answered a command with an error; the connection goes on. `errno` as NBD defines it."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.errno = number


class Connection:
    """A connection to the export at an NBD URI.

    Every method raises PeerFailed where the server can't be reached, breaks the protocol, goes away, or does not
    answer within `timeout` seconds.
    """

    def __init__(self, uri: str, timeout: float) -> None:
        """Connect. Raises ResourceNotFound where the server has no such export, InvalidArgument for a malformed URI,
        ProgramMissing without libnbd."""
        self.uri = uri
        self.shown = uri if len(uri) <= _LONGEST_SHOWN else uri[:_LONGEST_SHOWN] + "…"
        self.timeout = timeout
        self._nbd = libnbd()
        self._handle: Any = self._nbd.NBD()
        self._handle.set_uri_allow_local_file(True)  # the user's own URI may name the user's own certificates
        self._ready = False
        self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(politely=error is None)

    @property
    def size(self) -> int:
        """Of the export, in bytes, as the server told it at the start."""
        size: int = self._handle.get_size()
        return size

    def read(self, length: int, offset: int, *, patience: float = 0.0) -> bytes:
        """These bytes; the server may take `patience` seconds longer than usual. Raises CommandRefused."""
        buffer = self._nbd.Buffer(length)
        self._run(lambda: self._handle.aio_pread(buffer, offset), patience)
        return bytes(buffer.to_bytearray())

    def write(self, data: bytes, offset: int) -> None:
        """Write these bytes. Raises CommandRefused."""
        buffer = self._nbd.Buffer.from_bytearray(bytearray(data))
        self._run(lambda: self._handle.aio_pwrite(buffer, offset), 0.0)

    def close(self, *, politely: bool = True) -> None:
        """End the connection; `politely` tells the server first, which gets a second to take it."""
        handle = self._handle
        if politely and self._ready:
            try:
                handle.aio_disconnect()
                self._until(lambda: self._gone(), time.monotonic() + _PARTING_SECONDS)
            except (self._nbd.Error, TimeoutError):
                pass  # it was to end, and it ends with the handle
        self._ready = False
        self._handle = None

    def _connect(self) -> None:
        deadline = time.monotonic() + self.timeout
        negotiating = False  # in contrast to finding the server: what libnbd's errno means depends on it
        try:
            self._begin(deadline)
            negotiating = True
            self._until(lambda: self._handle.aio_is_ready() or self._gone(), deadline)
        except TimeoutError:
            raise PeerFailed(
                f"No NBD server answered at {self.shown} within {self.timeout:g} s",
                "check that it runs, or give --timeout",
            ) from None
        except self._nbd.Error as error:
            raise self._connecting_failed(error, negotiating) from None
        if not self._handle.aio_is_ready():
            raise PeerFailed(f"The server at {self.shown} ended the connection", "check its log")
        self._ready = True

    def _begin(self, deadline: float) -> None:
        """Start connecting: in a thread, since looking up a host name blocks and has no deadline of its own."""
        outcome: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        handle, uri, failure = self._handle, self.uri, self._nbd.Error

        def begin() -> None:
            try:
                handle.aio_connect_uri(uri)
            except failure as error:
                outcome.put(error)
            else:
                outcome.put(None)

        threading.Thread(target=begin, name="connect", daemon=True).start()
        try:
            error = outcome.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise TimeoutError from None
        if error is not None:
            raise error

    def _connecting_failed(self, error: Any, negotiating: bool) -> Exception:
        reason = _reason(error)
        if error.errnum == errno.EINVAL and not negotiating:
            return InvalidArgument(f"{self.shown} is not a URI that libnbd takes ({reason})", "see nbd_connect_uri(3)")
        if error.errnum == errno.ENOENT and negotiating:
            return ResourceNotFound(
                f"The server has no export for {self.shown}", "nbdinfo --list shows what it has, and its log why"
            )
        return PeerFailed(
            f"The server at {self.shown} can't be used ({reason})", "check that it runs and what it offers"
        )

    def _run(self, begin: Callable[[], int], patience: float) -> None:
        """Run one command to its end."""
        limit = self.timeout + patience
        try:
            cookie = begin()
            self._until(
                lambda: self._gone() or self._handle.aio_peek_command_completed() == cookie, time.monotonic() + limit
            )
        except TimeoutError:
            self._ready = False
            raise PeerFailed(
                f"The server at {self.shown} did not answer within {limit:g} s", "check it, or give --timeout"
            ) from None
        except self._nbd.Error as error:
            raise self._lost(error) from None
        try:
            completed = self._handle.aio_command_completed(cookie)
        except self._nbd.Error as error:
            if self._gone():
                raise self._lost(error) from None
            raise CommandRefused(error.errnum) from None
        if not completed:
            raise PeerFailed(f"The server at {self.shown} ended the connection", "check its log")

    def _lost(self, error: Any) -> PeerFailed:
        self._ready = False
        return PeerFailed(f"The connection to {self.shown} was lost ({_reason(error)})", "check the server and its log")

    def _gone(self) -> bool:
        return bool(self._handle.aio_is_dead() or self._handle.aio_is_closed())

    def _until(self, done: Callable[[], bool], deadline: float) -> None:
        """Let libnbd work until `done`. Raises TimeoutError, and libnbd's error where the connection fails."""
        handle = self._handle
        reading, writing = self._nbd.AIO_DIRECTION_READ, self._nbd.AIO_DIRECTION_WRITE
        while not done():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            direction = handle.aio_get_direction()
            wanted = (select.POLLIN if direction & reading else 0) | (select.POLLOUT if direction & writing else 0)
            poll = select.poll()
            poll.register(handle.aio_get_fd(), wanted)  # anew each time: the next address has a new socket
            for _, events in poll.poll(max(1, int(remaining * 1000))):
                if direction & reading and events & ~select.POLLOUT:
                    handle.aio_notify_read()
                else:
                    handle.aio_notify_write()


def libnbd() -> ModuleType:
    """libnbd's Python module. Raises ProgramMissing: it comes with the system, not from PyPI."""
    try:
        import nbd
    except ImportError:
        raise ProgramMissing(
            "libnbd's Python module, nbd, is missing", "install the package python3-libnbd (libnbd's Python bindings)"
        ) from None
    module: ModuleType = nbd
    return module


def _reason(error: Any) -> str:
    """What libnbd says, without the name of its function."""
    text: str = error.string
    function, separator, rest = text.partition(": ")
    return rest if separator and function.startswith("nbd_") else text
