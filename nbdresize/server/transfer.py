"""Large payloads: moved by the kernel where it can be done, between the socket and the page cache."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator

from nbdresize.errors import NbdresizeError
from nbdresize.server.stream import PeerGone, Stream, reason
from nbdresize.storage.handle import Handle
from nbdresize.storage.page_cache import PageCache

PIECE = 1 << 20
"""Bytes of the scratch buffer and of the pipe: the most that is under way at a time."""


class Transfer:
    """The large payloads of one connection, for its own thread. The caller has checked the range.

    What a peer can make it hold: the scratch buffer and the pipe, PIECE bytes each.
    """

    def __init__(self, stream: Stream, handle: Handle, nowait: int | None) -> None:
        """`nowait`: the flags with which a read fails rather than waits, if there are such reads."""
        self._stream = stream
        self._handle = handle
        self._fd = handle.fileno()
        self._nowait = nowait
        self._page_cache = PageCache(self._fd)
        self._pipe: tuple[int, int] | None = None
        self._scratch = memoryview(bytearray(0))

    def close(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe[0])
            os.close(self._pipe[1])
            self._pipe = None

    def send_cached(self, header: bytes, offset: int, length: int) -> bool:
        """Send `header` and the range behind it, where no byte of it has to be waited for; whether that was done.

        A failure after the header can only end the connection (PeerGone); that is why only what is in memory goes out
        this way.
        """
        if self._stream.direct and self._page_cache.holds(offset, length):
            with self._stream.sending:
                self._send_file(header, offset, length)
            return True
        if self._nowait is None or length > PIECE:
            return False
        scratch = self._scratch_of(length)
        try:
            got = os.preadv(self._fd, [scratch], offset, self._nowait)
        except OSError:
            return False
        if got != length:
            return False
        self._stream.send_message((header, scratch))
        return True

    def _send_file(self, header: bytes, offset: int, length: int) -> None:
        self._stream.wait_while_held()
        sock = self._stream.sock
        try:
            sent = sock.send(header, socket.MSG_MORE)
            if sent != len(header):
                sock.sendall(header[sent:])
            end = offset + length
            while offset < end:
                moved = os.sendfile(self._stream.fd, self._fd, offset, end - offset)
                if not moved:
                    raise PeerGone("the volume ended within a read")
                offset += moved
        except OSError as error:
            raise PeerGone(reason(error)) from error

    def receive(self, head: memoryview, offset: int, length: int) -> NbdresizeError | None:
        """Write a payload of `length` bytes to `offset`: first `head`, which has arrived, then the rest as it comes.

        Takes the whole payload off the stream whatever happens; the error that writing met, if it met one.
        """
        try:
            if head:
                self._handle.write(head, offset)
        except NbdresizeError as error:
            self.skip(length - len(head))
            return error
        offset, length = offset + len(head), length - len(head)
        pipe = self._own_pipe() if self._stream.direct else None
        if pipe is not None:
            return self._splice(pipe, offset, length)
        return self._copy(offset, length)

    def skip(self, length: int) -> None:
        """Take `length` bytes off the stream and forget them."""
        for _ in self._pieces(length):
            continue

    def _copy(self, offset: int, length: int) -> NbdresizeError | None:
        """Receive the rest of a payload and write it piece by piece, until that fails; the first failure."""
        failed: NbdresizeError | None = None
        for piece in self._pieces(length):
            if failed is None:
                try:
                    self._handle.write(piece, offset)
                except NbdresizeError as error:
                    failed = error
            offset += len(piece)
        return failed

    def _pieces(self, length: int) -> Iterator[memoryview]:
        """The next `length` bytes of the stream, in pieces that are good until the next one."""
        return pieces(self._stream, self._scratch_of(min(length, PIECE)), length)

    def _own_pipe(self) -> tuple[int, int] | None:
        """The pipe, made when it is first needed; None while no descriptors are left for one."""
        if self._pipe is None:
            with contextlib.suppress(OSError):
                self._pipe = _large_pipe()
        return self._pipe

    def _splice(self, pipe: tuple[int, int], offset: int, length: int) -> NbdresizeError | None:
        """Move the rest of a payload from the socket through a pipe into the file, without copying it out."""
        reading, writing = pipe
        while length:
            piped = self._fill(writing, min(length, PIECE))
            length -= piped
            while piped:
                try:
                    moved = os.splice(reading, self._fd, piped, offset_dst=offset)
                except OSError:
                    failed = self._rescue(reading, offset, piped)
                    if failed is not None:
                        self.skip(length)
                        return failed
                    moved = piped
                piped -= moved
                offset += moved
        return None

    def _fill(self, writing: int, most: int) -> int:
        """Wait for bytes, and move all that have come, up to `most`, into the empty pipe; how many those are.

        One write of much takes less than several. A pipe is full too when it has many small pieces; that must not be
        waited for, since nobody else empties it.
        """
        piped = 0
        while piped < most:
            if piped and not self._stream.ready():  # a TCP socket would wait, whatever the flags
                break
            flags = os.SPLICE_F_NONBLOCK if piped else 0
            try:
                moved = os.splice(self._stream.fd, writing, most - piped, flags=flags)
            except OSError as error:
                if piped and error.errno == errno.EAGAIN:
                    break
                raise PeerGone(reason(error)) from error
            if not moved:
                break
            piped += moved
        if not piped:
            raise PeerGone("gone within a payload")
        return piped

    def _rescue(self, reading: int, offset: int, piped: int) -> NbdresizeError | None:
        """Write by hand what the kernel could not move out of the pipe, which tells the error, if it is one."""
        left = b""
        while len(left) < piped:
            left += os.read(reading, piped - len(left))
        try:
            self._handle.write(left, offset)
        except NbdresizeError as error:
            return error
        return None

    def _scratch_of(self, length: int) -> memoryview:
        if len(self._scratch) < length:
            self._scratch = memoryview(bytearray(length))
        return self._scratch[:length]


def pieces(stream: Stream, scratch: memoryview, length: int) -> Iterator[memoryview]:
    """Receive `length` bytes into `scratch`, over and over; each piece is good until the next. Raises PeerGone."""
    while length:
        received = stream.recv_into(scratch[:length])
        if not received:
            raise PeerGone("gone within a payload")
        length -= received
        yield scratch[:received]


def _large_pipe() -> tuple[int, int]:
    reading, writing = os.pipe()
    with contextlib.suppress(OSError):  # a user with many pipes gets small ones: slower, not wrong
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIECE)
    return reading, writing
