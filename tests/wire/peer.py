"""The two peers of the wire tests: a worker of the native front, and a client that sends whatever it is told to."""

import array
import contextlib
import fcntl
import json
import resource
import select
import socket
import struct
import sys
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tests.peers import Server
from tests.wait import until
from tests.wire import layout
from tests.wire.layout import EXTENDED, SIMPLE, STRUCTURED
from tests.wire.replies import Chunk, Reply

SECONDS = 30.0
"""How long a client waits for bytes before the test fails."""

_LAUNCH = """
import os, resource, socket, sys
path, files, *command = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_NOFILE, (int(files), int(files)))
listening = socket.socket(socket.AF_UNIX)
listening.bind(path + ".new")
listening.listen(2048)
os.rename(path + ".new", path)
os.dup2(listening.fileno(), 3)
os.set_inheritable(3, True)
os.environ["LISTEN_FDS"] = "1"
os.execv(command[0], command)
"""
"""Hands a listening socket over as descriptor 3, as the supervisor does."""

_FILES = 1024
_AGREEING = {SIMPLE: None, STRUCTURED: layout.STRUCTURED_REPLY, EXTENDED: layout.EXTENDED_HEADERS}


class NativeServer(Server):
    """One worker, on a unix socket in `directory`; its `arguments` say what it serves. Ready once it greets."""

    def __init__(self, *arguments: str | Path, directory: Path, run: Path | None = None, files: int = _FILES) -> None:
        """`run` is where its admin socket is made: that of the state directory, if it serves one."""
        self.socket = directory / "nbd.sock"
        self._run = run or directory / "run"
        self._run.mkdir(exist_ok=True)
        launch: list[str | Path] = [sys.executable, "-I", "-S", "-c", _LAUNCH, self.socket, str(files)]
        worker: list[str | Path] = [sys.executable, "-m", "nbdresize.server", "--run", self._run, *arguments]
        super().__init__([*launch, *worker], directory / "worker.log")

    def wait_ready(self) -> None:
        until(lambda: self.process.poll() is not None or self.socket.exists(), what="the worker's socket")
        if self.process.poll() is None:
            with contextlib.suppress(OSError), self.client() as client:
                client.greet()
                return
        raise AssertionError(f"It did not become ready: {self.said()}")

    def client(self) -> "RawClient":
        """A connection on which nothing has been sent yet."""
        return RawClient(self.socket)

    def connect(
        self,
        name: bytes = b"",
        mode: str = STRUCTURED,
        *,
        infos: Sequence[int] = (),
        contexts: Sequence[bytes] = (b"base:allocation",),
    ) -> "RawClient":
        """A connection to an export, ready for requests."""
        client = self.client()
        try:
            client.enter(name, mode, infos=infos, contexts=contexts)
        except BaseException:
            client.close()
            raise
        return client

    def check(self) -> None:
        """It serves the next client as if nothing had happened, and has nothing to tell of a mistake of its own."""
        with self.client() as client:
            client.greet()
            assert client.ask(layout.LIST)[-1][0] in (layout.ACK, layout.ERR_TLS_REQD)
            assert client.ask(layout.ABORT) == [(layout.ACK, b"")]
            client.expect_end()
        said = self.said()
        assert "Traceback" not in said and "Exception" not in said, said

    def counters(self) -> dict[str, int]:
        """What its admin socket says that it has done."""
        [admin] = self._run.glob(f"{self.pid}-*.admin")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(SECONDS)
            sock.connect(str(admin))
            sock.sendall(b'{"command": "counters"}\n')
            with sock.makefile("rb") as lines:
                reply: dict[str, Any] = json.loads(lines.readline())
        counters: dict[str, int] = reply["counters"]
        return counters

    def wait_alone(self) -> None:
        """Wait until it has closed the exports of all clients that have left."""
        until(lambda: self.counters()["connections"] == 0, what="the exports of earlier clients to be closed")

    @property
    def threads(self) -> int:
        """How many threads it has."""
        return int(psutil.Process(self.pid).num_threads())

    @property
    def files(self) -> int:
        """How many files and sockets it has open."""
        return int(psutil.Process(self.pid).num_fds())

    @property
    def resident(self) -> int:
        """The memory that it has, in bytes."""
        return int(psutil.Process(self.pid).memory_info().rss)


class RawClient:
    """A socket, and what it takes to be a client on it. Each method that waits fails after SECONDS."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(SECONDS)
        try:
            self.sock.connect(str(path))
        except BaseException:
            self.sock.close()
            raise
        self.mode = SIMPLE
        self.infos: dict[int, bytes] = {}
        """What GO told of the export, by its type."""
        self._cookie = 0
        self._asked: dict[int, tuple[int, int, int]] = {}
        self._replies: dict[int, Reply] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    # Bytes

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send_slowly(self, data: bytes) -> None:
        """Send byte by byte, each once the server has taken in the one before."""
        for number in range(len(data)):
            self.send(data[number : number + 1])
            until(lambda: self.untaken == 0 or self.ended, what="the server to take in a byte")

    @property
    def untaken(self) -> int:
        """Memory that holds what was sent and the server has not taken in yet, in bytes."""
        count = array.array("i", [0])
        fcntl.ioctl(self.sock, termios.TIOCOUTQ, count)
        return count[0]

    @property
    def ended(self) -> bool:
        """The server has closed the connection, and everything that it sent has been received."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        if not poll.poll(0):
            return False
        try:
            return self.sock.recv(1, socket.MSG_PEEK) == b""
        except ConnectionError:
            return True

    def receive(self, length: int) -> bytes:
        received = bytearray(length)
        view = memoryview(received)
        while view:
            count = self.sock.recv_into(view)
            assert count, f"The server closed the connection {len(view)} bytes before the end of {length}"
            view = view[count:]
        return bytes(received)

    def receive_rest(self) -> bytes:
        """All that the server still sends until it closes the connection."""
        rest = b""
        with contextlib.suppress(ConnectionError):
            while data := self.sock.recv(65536):
                rest += data
        return rest

    def expect_end(self) -> None:
        """The server closes the connection, and says nothing more."""
        assert self.receive_rest() == b""

    def finish_sending(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    # Handshake

    def greet(self, flags: int = 3) -> None:
        """Take the server's greeting, and answer it."""
        assert self.receive(18) == layout.GREETING
        self.send(struct.pack(">I", flags))

    def option_reply(self, option: int) -> tuple[int, bytes]:
        """Type and data of the next reply, which must answer `option`."""
        magic, answered, kind, length = struct.unpack(">QIII", self.receive(20))
        assert (magic, answered) == (0x3E889045565A9, option)
        return kind, self.receive(length)

    def option_replies(self, option: int) -> list[tuple[int, bytes]]:
        """All replies to an option, up to its ACK or error."""
        replies = [self.option_reply(option)]
        while replies[-1][0] != layout.ACK and not replies[-1][0] & 0x80000000:
            replies.append(self.option_reply(option))
        return replies

    def ask(self, option: int, data: bytes = b"", **lies: Any) -> list[tuple[int, bytes]]:
        """Send an option; all its replies."""
        self.send(layout.option(option, data, **lies))
        return self.option_replies(option)

    def error_of(self, option: int, data: bytes = b"", **lies: Any) -> int:
        """Send an option that is to be refused, with a text where there is something to say; the error's number."""
        [(kind, text)] = self.ask(option, data, **lies)
        assert kind & 0x80000000 and len(text) <= 4096, (kind, text)
        text.decode()
        return kind

    def info(self, name: bytes, infos: Sequence[int] = (), *, option: int = layout.INFO) -> dict[int, bytes]:
        """What INFO or GO tells of an export, by its type."""
        self.send(layout.option(option, layout.export_query(name, infos)))
        return self._told(option)

    def _told(self, option: int) -> dict[int, bytes]:
        *told, (last, data) = self.option_replies(option)
        assert last == layout.ACK, (last, data)
        assert {kind for kind, _ in told} == {layout.REP_INFO}
        found = {int.from_bytes(payload[:2], "big"): payload[2:] for _, payload in told}
        assert len(found) == len(told)
        return found

    def agree(self, mode: str) -> None:
        """Agree on how requests and replies look."""
        if (wanted := _AGREEING[mode]) is not None:
            assert self.ask(wanted) == [(layout.ACK, b"")]
        self.mode = mode

    def enter(self, name: bytes, mode: str, *, infos: Sequence[int] = (), contexts: Sequence[bytes] = ()) -> None:
        """The whole handshake, up to the first request; all of it in one go."""
        said = struct.pack(">I", 3)
        if (wanted := _AGREEING[mode]) is not None:
            said += layout.option(wanted)
        selects = bool(contexts) and mode != SIMPLE
        if selects:
            said += layout.option(layout.SET_META_CONTEXT, layout.context_query(name, contexts))
        self.send(said + layout.option(layout.GO, layout.export_query(name, infos)))
        assert self.receive(18) == layout.GREETING
        if wanted is not None:
            assert self.option_replies(wanted) == [(layout.ACK, b"")]
        self.mode = mode
        if selects:
            assert self.option_replies(layout.SET_META_CONTEXT)[-1][0] == layout.ACK
        self.infos = self._told(layout.GO)

    @property
    def size(self) -> int:
        """The export's size, as GO told it."""
        return int.from_bytes(self.infos[layout.INFO_EXPORT][:8], "big")

    @property
    def flags(self) -> int:
        """The export's transmission flags."""
        return int.from_bytes(self.infos[layout.INFO_EXPORT][8:], "big")

    # Requests

    def packed(self, command: int, offset: int = 0, length: int = 0, flags: int = 0) -> tuple[int, bytes]:
        """The header of a request, and its cookie, whose reply is awaited from now on."""
        self._cookie += 1
        cookie = 0xC00C1E0000000000 + self._cookie
        self._asked[cookie] = (command, offset, length)
        return cookie, layout.request(self.mode, command, offset, length, flags, cookie)

    def start(
        self, command: int, offset: int = 0, length: int = 0, flags: int = 0, *, payload: bytes | None = None
    ) -> int:
        """Send a request with its payload; its cookie. In extended mode, a payload sets PAYLOAD_LEN by itself."""
        if payload is not None:
            length = length or len(payload)
            flags |= layout.PAYLOAD_LEN if self.mode == EXTENDED else 0
        cookie, header = self.packed(command, offset, length, flags)
        self.send(header + (payload or b""))
        return cookie

    def call(
        self, command: int, offset: int = 0, length: int = 0, flags: int = 0, *, payload: bytes | None = None
    ) -> Reply:
        """Send a request; its reply."""
        return self.reply(self.start(command, offset, length, flags, payload=payload))

    def read(self, offset: int, length: int, flags: int = 0) -> bytes:
        reply = self.call(layout.READ, offset, length, flags)
        assert not reply.error, reply
        return reply.data(offset, length)

    def write(self, offset: int, payload: bytes, flags: int = 0) -> None:
        reply = self.call(layout.WRITE, offset, flags=flags, payload=payload)
        assert not reply.error, reply

    def reply(self, cookie: int) -> Reply:
        """All that answers this request; what answers others is kept for them."""
        while True:
            got = self._replies.get(cookie)
            if got is not None and got.chunks[-1].done:
                del self._asked[cookie]
                return self._replies.pop(cookie)
            self._keep(self._receive_chunk())

    def chunk(self, cookie: int) -> Chunk:
        """The next chunk of a reply that may go on."""
        while not (got := self._replies.get(cookie)):
            self._keep(self._receive_chunk())
        chunk = got.chunks.pop(0)
        if not got.chunks:
            del self._replies[cookie]
        if chunk.done:
            del self._asked[cookie]
        return chunk

    def next_done(self) -> int:
        """The cookie of the reply that ends next; it is kept for who asks for it."""
        while True:
            chunk = self._receive_chunk()
            self._keep(chunk)
            if chunk.done:
                return chunk.cookie

    def _keep(self, chunk: Chunk) -> None:
        self._replies.setdefault(chunk.cookie, Reply()).chunks.append(chunk)

    def _receive_chunk(self) -> Chunk:
        magic = int.from_bytes(self.receive(4), "big")
        if magic == 0x67446698:
            assert self.mode != EXTENDED
            return self._receive_simple()
        if self.mode == EXTENDED:
            assert magic == 0x6E8A278C, hex(magic)
            flags, kind, cookie, offset, length = struct.unpack(">HHQQQ", self.receive(28))
            assert offset == self._asked[cookie][1], "The offset in a chunk's header is that of the request"
        else:
            assert (self.mode, magic) == (STRUCTURED, 0x668E33EF)
            flags, kind, cookie, length = struct.unpack(">HHQI", self.receive(16))
            offset = None
        assert flags in (0, 1) and cookie in self._asked
        payload = self.receive(length)
        error, text = 0, ""
        if kind & 0x8000:
            error, text_length = struct.unpack_from(">IH", payload)
            assert error and kind == layout.ERROR and len(payload) == 6 + text_length <= 6 + 4096
            text = payload[6:].decode()
        return Chunk(cookie, kind, bool(flags), payload, error, text, offset)

    def _receive_simple(self) -> Chunk:
        error, cookie = struct.unpack(">IQ", self.receive(12))
        command, _, length = self._asked[cookie]
        if command == layout.READ:
            assert self.mode == SIMPLE, "A read in structured mode is answered by chunks"
            return Chunk(cookie, None, True, b"" if error else self.receive(length), error)
        return Chunk(cookie, None, True, b"", error)


@contextlib.contextmanager
def many_files(count: int) -> Iterator[None]:
    """This process may have so many files open while this lasts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = soft if soft >= count else count
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, max(hard, needed)))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
