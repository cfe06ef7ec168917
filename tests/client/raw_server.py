"""A server of raw bytes, written out here and independent of the package's own packing: honest until told to lie."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

GIB = 2**30
SIZE = 20 * GIB

GREETING = b"NBDMAGICIHAVEOPT\0\3"
ACK, SERVER, INFO, META_CONTEXT = 1, 2, 3, 4
UNSUP, POLICY, TLS_REQD, UNKNOWN = (1 << 31 | number for number in (1, 2, 5, 6))
EXPORT_NAME, STARTTLS, ASK_INFO, GO, STRUCTURED, SET_META, EXTENDED = 1, 5, 6, 7, 8, 10, 11

HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_DF, SEND_RESIZE = (1 << bit for bit in (0, 1, 2, 3, 7, 9))
FLAGS = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_RESIZE

READ, WRITE, DISC, FLUSH, BLOCK_STATUS, RESIZE = 0, 1, 2, 3, 7, 8
DONE = 1
NONE, DATA, HOLE, STATUS, STATUS_EXT, SIZE_CHUNK, ERROR, ERROR_OFFSET = 0, 1, 2, 5, 6, 7, 0x8001, 0x8002
FUA, F_SIZE, QUERY, NOTIFY, SHRINK, FIT, CANCEL = (1 << bit for bit in (0, 6, 7, 8, 9, 10, 12))


class Request(NamedTuple):
    """The header of a request."""

    magic: int
    flags: int
    command: int
    cookie: int
    offset: int
    length: int


def option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data


def export_info(size: int = SIZE, flags: int = FLAGS) -> bytes:
    return struct.pack(">HQH", 0, size, flags)


def block_sizes(minimum: int, preferred: int, maximum: int) -> bytes:
    return struct.pack(">HIII", 3, minimum, preferred, maximum)


def resize_info(features: int = 0b1011, minimum: int = SIZE, maximum: int = 100 * GIB) -> bytes:
    return struct.pack(">HHIQQ", 4, features, 4096, minimum, maximum)


def simple(cookie: int, error: int = 0, data: bytes = b"") -> bytes:
    return struct.pack(">IIQ", 0x67446698, error, cookie) + data


def chunk(kind: int, cookie: int, payload: bytes = b"", *, flags: int = DONE, length: int | None = None) -> bytes:
    """A structured chunk; `length` is what its header says, if that is to be a lie."""
    told = len(payload) if length is None else length
    return struct.pack(">IHHQI", 0x668E33EF, flags, kind, cookie, told) + payload


def wide_chunk(kind: int, cookie: int, offset: int, payload: bytes = b"", *, flags: int = DONE) -> bytes:
    """A chunk with an extended header."""
    return struct.pack(">IHHQQQ", 0x6E8A278C, flags, kind, cookie, offset, len(payload)) + payload


def data(cookie: int, offset: int, content: bytes, *, flags: int = DONE) -> bytes:
    return chunk(DATA, cookie, struct.pack(">Q", offset) + content, flags=flags)


def size_payload(size: int = SIZE, generation: int = 1, *, cause: int = 0, granularity: int = 4096) -> bytes:
    return struct.pack(">QQQII", size, generation, 100 * GIB, granularity, cause)


def told(cookie: int, size: int = SIZE, generation: int = 1, *, cause: int = 0, flags: int = DONE) -> bytes:
    return chunk(SIZE_CHUNK, cookie, size_payload(size, generation, cause=cause), flags=flags)


def error(cookie: int, number: int, text: bytes = b"", *, length: int | None = None) -> bytes:
    return chunk(ERROR, cookie, struct.pack(">IH", number, len(text) if length is None else length) + text)


class Peer:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.extended = False

    def send(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def receive(self, length: int) -> bytes:
        taken = b""
        while len(taken) < length:
            more = self.socket.recv(length - len(taken))
            if not more:
                raise EOFError
            taken += more
        return taken

    def option(self) -> tuple[int, bytes]:
        magic, option, length = struct.unpack(">QII", self.receive(16))
        assert magic == 0x49484156454F5054
        return option, self.receive(length)

    def request(self) -> Request:
        layout = ">IHHQQQ" if self.extended else ">IHHQQI"
        request = Request(*struct.unpack(layout, self.receive(struct.calcsize(layout))))
        assert request.magic == (0x21E41C71 if self.extended else 0x25609513)
        return request

    def requests(self, answer: Callable[[Request], bytes]) -> None:
        """Answer each with what `answer` says, until the client leaves."""
        while (request := self.request()).command != DISC:
            if request.command == WRITE:
                self.receive(request.length)
            self.send(answer(request))


Script = Callable[[Peer], None]


def _no_script(peer: Peer) -> None:
    peer.receive(1)


@dataclass
class Honest:
    """A script that negotiates as these say, and then goes on as `after` says. `answers` take precedence."""

    after: Script = _no_script
    extended: bool = False
    structured: bool = True
    infos: tuple[bytes, ...] = (export_info(), resize_info())
    answers: dict[int, bytes] = field(default_factory=dict)

    def __call__(self, peer: Peer) -> None:
        peer.send(GREETING)
        peer.receive(4)
        while True:
            option, _ = peer.option()
            peer.send(self.answers[option] if option in self.answers else self._answer(option))
            if option == EXTENDED:
                peer.extended = self.extended
            if option == GO and GO not in self.answers:
                break
        self.after(peer)

    def _answer(self, option: int) -> bytes:
        if option in (GO, ASK_INFO):
            infos = b"".join(option_reply(option, INFO, info) for info in self.infos)
            return infos + option_reply(option, ACK)
        if option == SET_META:
            context = struct.pack(">I", 5) + b"base:allocation"
            return option_reply(option, META_CONTEXT, context) + option_reply(option, ACK)
        known = {EXTENDED: self.extended, STRUCTURED: self.structured}.get(option, False)
        return option_reply(option, ACK if known else UNSUP)


class RawServer:
    """Runs `script` for each client, on a unix socket in `directory`; a connection ends with its script."""

    def __init__(self, directory: Path, script: Script) -> None:
        self.socket = directory / "raw.sock"
        self.uri = f"nbd+unix:///web1/disk0?socket={self.socket}"
        self._script = script
        self._clients: list[tuple[socket.socket, threading.Thread]] = []

    def __enter__(self) -> Self:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.socket))
        self._listener.listen()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for client, thread in self._clients:
            with contextlib.suppress(OSError):  # it may have left
                client.shutdown(socket.SHUT_RDWR)
            thread.join()
            client.close()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._clients.append((client, thread))
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with contextlib.suppress(EOFError, OSError):  # the client has had enough
                self._script(Peer(client))
        finally:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
