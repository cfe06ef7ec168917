"""The bytes of a connection: a plain socket or one under TLS, blocking, and safe to send on from several threads."""

import errno
import os
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Sequence

from nbdresize.export.hold import Hold

SEND_SECONDS = 300
"""How long a peer may leave a reply unread before it is given up."""

_TLS_PIECE = 256 << 10
_LINGER_SECONDS = 50e-6
_MOST_IN_VAIN = 4
_LINGERS_AGAIN_AFTER = 64


class PeerGone(Exception):
    """The peer closed the connection, broke it, or took too long; nothing more can be said to it.

    It has a text where that is worth telling; a client that just leaves is not.
    """


class Stream:
    """A blocking stream socket. One thread receives; any number send, each whole message under `sending`.

    `direct` tells that the file descriptor carries the bytes as they are, so that the kernel may move them
    (sendfile, splice) without their passing through here.

    What is sent while `hold` is on waits until it is off, or until `break_off`.
    """

    direct = True
    hold: Hold | None = None
    _broken = False

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(None)
        self.sock = sock
        self.fd = sock.fileno()
        self.sending = threading.Lock()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._in_vain = 0
        _limit(sock, socket.SO_SNDTIMEO, SEND_SECONDS)

    def recv_into(self, buffer: memoryview) -> int:
        """Wait for bytes and take in what is there; 0 at the end of the stream. Raises PeerGone."""
        try:
            return self.sock.recv_into(buffer)
        except OSError as error:
            raise PeerGone(reason(error)) from error

    def ready(self) -> bool:
        """Whether there is something to receive, or the end of the stream."""
        return bool(self._poll.poll(0))

    def linger(self) -> None:
        """Wait for more for some microseconds without sleeping, since being woken takes longer, and costs more.

        Where that was in vain a few times in a row, it is not done for a while.
        """
        if self._in_vain >= _MOST_IN_VAIN:
            self._in_vain += 1
            if self._in_vain < _LINGERS_AGAIN_AFTER:
                return
            self._in_vain = _MOST_IN_VAIN - 1
        poll, now = self._poll.poll, time.perf_counter
        until = now() + _LINGER_SECONDS
        while not poll(0):
            if now() > until:
                self._in_vain += 1
                return
        self._in_vain = 0

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; the caller holds `sending` or is alone. Raises PeerGone."""
        hold = self.hold
        if hold is not None and hold.on:
            self.wait_while_held()
        self._put(data)

    def send_parts(self, parts: list[bytes | memoryview], length: int) -> None:
        """Send `parts`, `length` bytes in all, as `send`; if `direct`, some may be for system calls only to read."""
        hold = self.hold
        if hold is not None and hold.on:
            self.wait_while_held()
        self._put_parts(parts, length)

    def wait_while_held(self) -> None:
        """Wait until something may be sent. Raises PeerGone where it may not any more, since the connection ends."""
        if self.hold is not None and not self.hold.wait(lambda: self._broken):
            raise PeerGone

    def _put(self, data: bytes | bytearray | memoryview) -> None:
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise PeerGone(reason(error)) from error

    def _put_parts(self, parts: list[bytes | memoryview], length: int) -> None:
        try:
            sent = self.sock.sendmsg(parts)
            while sent < length:  # interrupted, or out of time and then refused below
                length -= sent
                parts = after(parts, sent)
                sent = self.sock.sendmsg(parts)
        except OSError as error:
            if error.errno == errno.EFAULT:
                raise PeerGone("the volume could not be read in the middle of a reply") from error
            raise PeerGone(reason(error)) from error

    def send_message(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        """Send one whole message that stands in several parts. Raises PeerGone."""
        with self.sending:
            for part in parts:
                self.send(part)

    def set_deadline(self, deadline: float | None) -> None:
        """Let each wait for the peer end at `deadline` (of time.monotonic); or, as from the start, only sending.

        Without a deadline, receiving waits for ever and sending for SEND_SECONDS.
        """
        seconds = 0.0 if deadline is None else max(deadline - time.monotonic(), 0.001)
        _limit(self.sock, socket.SO_RCVTIMEO, seconds)
        _limit(self.sock, socket.SO_SNDTIMEO, seconds or SEND_SECONDS)

    def finish_receiving(self) -> None:
        """From any thread: what has arrived is the last; whoever waits for more gets the end of the stream."""
        self._shutdown(socket.SHUT_RD)

    def break_off(self) -> None:
        """From any thread: end both directions at once, in the middle of whatever is under way."""
        self._broken = True
        self._break_off()
        if self.hold is not None:
            self.hold.wake()

    def _break_off(self) -> None:
        self._shutdown(socket.SHUT_RDWR)

    def _shutdown(self, how: int) -> None:
        try:
            self.sock.shutdown(how)
        except OSError:
            return  # the peer was faster

    def close(self) -> None:
        self.sock.close()


class TlsStream(Stream):
    """A stream under TLS, server side.

    The TLS engine works on buffers in memory and is touched only under a lock, since OpenSSL's objects may not be
    read and written by two threads at once; waiting for the socket happens outside of it.
    """

    direct = False

    def __init__(self, plain: Stream, context: ssl.SSLContext) -> None:
        self.sending = threading.Lock()
        self._plain = plain
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._engine = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._lock = threading.Lock()
        self._received = bytearray(_TLS_PIECE)

    def handshake(self, deadline: float) -> None:
        """Agree on keys before `deadline`. Raises PeerGone, also for a certificate that does not verify."""
        while True:
            try:
                self._engine.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self.set_deadline(deadline)
                if not self._take_in():
                    raise PeerGone("closed in the TLS handshake") from None
                if time.monotonic() > deadline:
                    raise PeerGone("too slow in the TLS handshake") from None
            except ssl.SSLError as error:
                self._flush()
                raise PeerGone(f"TLS: {error.reason or error}") from error
            else:
                return self._flush()

    def recv_into(self, buffer: memoryview) -> int:
        while True:
            try:
                with self._lock:
                    return self._engine.read(len(buffer), buffer)  # type: ignore[return-value]
            except ssl.SSLWantReadError:
                if not self._take_in():
                    return 0
            except ssl.SSLZeroReturnError:
                return 0
            except ssl.SSLError as error:
                raise PeerGone(f"TLS: {error.reason or error}") from error

    def _put(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        for start in range(0, len(view), _TLS_PIECE):
            try:
                with self._lock:
                    self._engine.write(view[start : start + _TLS_PIECE])
                    sealed = self._outgoing.read()
            except ssl.SSLError as error:
                raise PeerGone(f"TLS: {error.reason or error}") from error
            self._plain.send(sealed)

    def _put_parts(self, parts: list[bytes | memoryview], length: int) -> None:
        self._put(b"".join(parts))

    def linger(self) -> None:
        """Nothing: what has arrived may be in the engine already."""

    def set_deadline(self, deadline: float | None) -> None:
        self._plain.set_deadline(deadline)

    def finish_receiving(self) -> None:
        self._plain.finish_receiving()

    def _break_off(self) -> None:
        self._plain.break_off()

    def close(self) -> None:
        self._plain.close()

    def _take_in(self) -> int:
        received = self._plain.recv_into(memoryview(self._received))
        with self._lock:
            self._incoming.write(memoryview(self._received)[:received])
        return received

    def _flush(self) -> None:
        sealed = self._outgoing.read()
        if sealed:
            self._plain.send(sealed)


class PipeStream(Stream):
    """A connection on two file descriptors, such as the pipes of an inetd or a parent process (`--stdio`)."""

    direct = False

    def __init__(self, source: int, destination: int) -> None:
        self.sending = threading.Lock()
        self._source = source
        self._destination = destination
        self._end = os.eventfd(0, os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(source, select.POLLIN)
        self._poll.register(self._end, select.POLLIN)

    def recv_into(self, buffer: memoryview) -> int:
        try:
            ready = self._poll.poll()
            if any(fd == self._end for fd, _ in ready):
                return 0
            return os.readv(self._source, [buffer])
        except OSError as error:
            raise PeerGone(reason(error)) from error

    def _put(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._destination, view) :]
        except OSError as error:
            raise PeerGone(reason(error)) from error

    def _put_parts(self, parts: list[bytes | memoryview], length: int) -> None:
        self._put(b"".join(parts))

    def linger(self) -> None:
        """Nothing: whoever is at the other end of a pipe is in no hurry."""

    def set_deadline(self, deadline: float | None) -> None:
        """Nothing: the parent that made the pipes decides how long it waits."""

    def finish_receiving(self) -> None:
        os.eventfd_write(self._end, 1)

    def _break_off(self) -> None:
        """The same: a write that waits is ended by the process's own end."""
        self.finish_receiving()

    def close(self) -> None:
        os.close(self._source)
        os.close(self._destination)


def after(parts: list[bytes | memoryview], count: int) -> list[bytes | memoryview]:
    """What is left of `parts` behind the first `count` bytes."""
    for number, part in enumerate(parts):
        if count < len(part):
            return [memoryview(part)[count:], *parts[number + 1 :]]
        count -= len(part)
    return []


def _limit(sock: socket.socket, option: int, seconds: float) -> None:
    """Bound a direction of a blocking socket by the kernel: a call that waits longer fails with EAGAIN."""
    whole = int(seconds)
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", whole, int((seconds - whole) * 1_000_000)))


def reason(error: OSError) -> str:
    """Why a peer that met `error` is gone, as PeerGone tells it."""
    if isinstance(error, BlockingIOError):
        return "too slow"
    if isinstance(error, ConnectionError):
        return ""
    return error.strerror or str(error)
