"""The real programs that tests talk to, each a class with a context manager that ends it whatever happens."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import quote

from tests.wait import readable, until

CHECKOUT = Path(__file__).parents[1]
PLUGIN = CHECKOUT / "plugins" / "nbdresize.py"
PROGRAM = Path(sys.executable).parent / "nbdresize"
SECONDS = 100.0
"""How long a single program may take before a test gives up on it."""


def run(*command: str | Path, **environment: str) -> str:
    """The standard output of a program, which has to succeed."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, f"{command}: exit code {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def nbdsh(uri: str, *commands: str) -> str:
    """What nbdsh prints. It runs `python3`, and the libnbd in it is the system's."""
    given = [argument for command in commands for argument in ("-c", command)]
    return run("nbdsh", "-u", uri, *given, PATH="/usr/bin:/bin")


def next_line(process: "subprocess.Popen[Any]", said: Callable[[], str] = str) -> str:
    """The next line that a program writes to its standard output, with its end; empty where nothing comes any more.

    All lines before it were read by this too, which reads nothing ahead. Fails after SECONDS, with what it `said`.
    """
    pipe: IO[Any] | None = process.stdout
    assert pipe is not None
    deadline = time.monotonic() + SECONDS
    line = bytearray()
    while not line.endswith(b"\n"):
        if not readable(pipe.fileno(), deadline):
            raise AssertionError(f"Waited {SECONDS} s for a line of {process.args!r}, after {bytes(line)!r}: {said()}")
        byte = os.read(pipe.fileno(), 1)
        if not byte:
            break
        line += byte
    return line.decode()


def refuses(path: Path) -> bool:
    """Whether nobody listens on a unix socket, or no longer: it outlasts the first thread of a process that dies."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(1)
        try:
            asking.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except (BlockingIOError, TimeoutError):  # its queue is full, but it is there
            return False
    return False


class Server:
    """A program that runs until it is told to end; its standard error goes to `log`."""

    def __init__(self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None) -> None:
        # Whoever runs the tests in the background or under nohup has signals ignored, and children inherit that.
        self.command = ["env", "--default-signal=INT,HUP,TERM,QUIT", *command]
        self.log = log
        self.environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[str] | None = None

    @property
    def process(self) -> "subprocess.Popen[str]":
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    def begin(self) -> None:
        """Start it, and don't wait for anything."""
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.environment,
            )

    def start(self) -> None:
        """Start it, and return once it is ready."""
        self.begin()
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise

    def wait_ready(self) -> None:
        raise NotImplementedError

    def said(self) -> str:
        """Its standard error so far."""
        return self.log.read_text(errors="replace")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Tell it to end, and wait until it has; its exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait until it has ended; its exit code."""
        try:
            return self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.command} has not ended: {self.said()}") from None

    def kill(self) -> None:
        """End it the hard way, if it has not ended."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it politely, so that a server that does not end fails every test."""
        try:
            if self.process.poll() is None:
                self.end()
        finally:
            self.kill()


class Serve(Server):
    """`nbdresize serve`, with a socket in `directory`; ready once it has printed its URIs."""

    def __init__(
        self,
        *arguments: str | Path,
        directory: Path,
        front: str = "nbdkit",
        root: Path | None = None,
        tcp: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.socket = directory / "nbd.sock"
        self.pid_file = directory / "serve.pid"
        where: list[str | Path] = ["--front", front, "--socket", self.socket, "--pid-file", self.pid_file]
        if tcp:
            where += ["--tcp", "localhost:0"]
        # A state directory that can't be, where none is meant: nothing of the machine's own is ever touched.
        state = {"NBDRESIZE_ROOT": str(root or directory / "none" / "none")}
        super().__init__(
            [PROGRAM, "serve", *where, *arguments], directory / "serve.log", {**state, **(environment or {})}
        )
        self.uris: list[str] = []
        self._count = 2 if tcp else 1

    def wait_ready(self) -> None:
        self.uris = [next_line(self.process, self.said).strip() for _ in range(self._count)]
        if not all(self.uris):
            raise AssertionError(f"It did not become ready, exit code {self.process.wait(SECONDS)}: {self.said()}")

    def uri(self, export: str = "", *, number: int = 0) -> str:
        """The URI of an export, at the first place that it listens, or another."""
        return with_export(self.uris[number], export)

    def workers(self) -> list[int]:
        """The process ids of its workers."""
        return children(self.pid)

    def die(self) -> None:
        """Kill it, and wait until nobody listens on its socket any more: its workers outlast it by a moment."""
        self.kill()
        until(lambda: refuses(self.socket), SECONDS, "the workers of a killed server to end")


class Nbdkit(Server):
    """nbdkit with our plugin, run by hand on a unix socket; ready when it accepts connections."""

    def __init__(self, *arguments: str | Path, directory: Path, options: Sequence[str | Path] = ()) -> None:
        self.socket = directory / "nbdkit.sock"
        super().__init__(
            ["nbdkit", "--foreground", "--unix", self.socket, *options, "python", PLUGIN, *arguments],
            directory / "nbdkit.log",
        )

    def wait_ready(self) -> None:
        until(lambda: self.process.poll() is not None or self._listens(), what="nbdkit to listen")
        if self.process.poll() is not None:
            raise AssertionError(f"nbdkit did not start, exit code {self.process.returncode}: {self.said()}")

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.connect(str(self.socket))
            return True
        return False

    def uri(self, export: str = "") -> str:
        return with_export(f"nbd+unix:///?socket={quote(str(self.socket))}", export)


def with_export(uri: str, export: str) -> str:
    """The URI of a server with the name of an export put in."""
    scheme, _, rest = uri.partition("://")
    authority, slash, query = rest.partition("/")
    return f"{scheme}://{authority}{slash}{quote(export)}{query}"


def children(pid: int) -> list[int]:
    """The process ids of a process's children, but not of its children's."""
    tasks = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in tasks]


def alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@contextlib.contextmanager
def background(*command: str | Path) -> Iterator["subprocess.Popen[str]"]:
    """A program beside the test, its output in pipes; ended with the block, if it has not ended."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
