"""The servers that are compared, running: each as a context manager, with its processor time and its memory.

Which they are and how each is started is in bench/servers.py.
"""

import contextlib
import ctypes
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.model import Setting, Transport
from bench.places import make_certificates
from bench.servers import HOST, SERVERS, Missing, Place, can, require, version
from nbdresize.errors import ServerFailed

__all__ = ["SERVERS", "Missing", "Peer", "can", "require", "serving", "version"]

_GREETING = b"NBDMAGIC"
_SECONDS = 30.0
_ATTEMPTS = 3
_LOOKS = 0.02
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Peer:
    """A server that runs."""

    name: str
    uri: str
    pid: int
    _most: list[int] = field(default_factory=lambda: [0], repr=False, compare=False)

    def processes(self) -> list[psutil.Process]:
        """All of it: the process that was started, and its descendants, parents before their children."""
        try:
            first = psutil.Process(self.pid)
            return [first, *_descendants(first)]
        except psutil.NoSuchProcess:
            raise ServerFailed(f"{self.name} has ended by itself") from None

    def processor_seconds(self) -> float:
        """User's and system's time of all its processes so far, with those that have ended; in steps of 10 ms."""
        for _ in range(100):
            # A child's time moves to its parent when it has ended. Parents are read first, so that it is never counted
            # twice; where it is missed, the child can't be read any more, and all are read again.
            with contextlib.suppress(psutil.NoSuchProcess):
                return sum(sum(process.cpu_times()[:4]) for process in self.processes())
        raise ServerFailed(f"The processes of {self.name} change all the time")

    def memory(self) -> int:
        """The most memory of its own seen so far, in bytes: by `watched`, and by this call."""
        with contextlib.suppress(psutil.Error, OSError):
            self._most[0] = max(self._most[0], self.memory_now())
        return self._most[0]

    def memory_now(self) -> int:
        """In bytes: the anonymous pages of all its processes, of which one that several share counts once, and each
        process's page tables, which it also has for what it maps of files.

        Not counted are pages of files, which programs share and which can be had back (the page cache above all), and
        the kernel's buffers.
        """
        return sum(_anonymous(process.pid) + _page_tables(process.pid) for process in self.processes())

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Look at its memory fifty times a second, for what is only there while it works; not while it is measured."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(_LOOKS):
                with contextlib.suppress(ServerFailed):
                    self.memory()

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    """Asked of the kernel, which costs less than psutil's look at all processes of the machine."""
    tasks = Path(f"/proc/{process.pid}/task")
    found = []
    with contextlib.suppress(OSError):
        for task in tasks.iterdir():
            for pid in (task / "children").read_text().split():
                with contextlib.suppress(psutil.NoSuchProcess):
                    child = psutil.Process(int(pid))
                    found += [child, *_descendants(child)]
    return found


def _anonymous(pid: int) -> int:
    """Bytes; a page that several processes have counts for each by its share."""
    with contextlib.suppress(OSError):
        found = re.search(r"^Pss_Anon:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        return int(found[1]) << 10 if found else 0
    return 0  # it has ended meanwhile


def _page_tables(pid: int) -> int:
    """Bytes."""
    with contextlib.suppress(OSError):
        found = re.search(r"^VmPTE:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return int(found[1]) << 10 if found else 0
    return 0  # it has ended meanwhile


# Starting and ending


@contextlib.contextmanager
def serving(name: str, file: Path, place: Path, setting: Setting, core: int | None) -> Iterator[Peer]:
    """A server of `file`, pinned to `core` if one is given, that takes connections; it has ended after the block.

    `place` is a directory for the certificates, which all servers of one place share. Sockets lie in a directory of
    their own, since their paths have to be short (107 bytes). Raises Missing, and ServerFailed with what it said.
    """
    require(name)
    certificates = place / "certificates"
    if setting.transport is Transport.TLS and not certificates.exists():
        make_certificates(certificates)
    with tempfile.TemporaryDirectory(prefix="nbdr-") as directory, contextlib.ExitStack() as stack:
        peer = None
        for attempt in range(_ATTEMPTS):
            own = Path(directory) / str(attempt)
            own.mkdir()
            port = _free_port() if setting.transport is Transport.TCP else 0
            where = Place(file.absolute(), own, setting, certificates, port)
            try:
                peer = stack.enter_context(_started(name, where, core))
                break
            except ServerFailed:
                if not where.tcp or attempt == _ATTEMPTS - 1:  # else somebody may have taken the port meanwhile
                    raise
        assert peer is not None
        yield peer


@contextlib.contextmanager
def _started(name: str, place: Place, core: int | None) -> Iterator[Peer]:
    server, log = SERVERS[name], place.directory / "log"
    pinning = [] if core is None else ["taskset", "--cpu-list", str(core)]
    with log.open("wb") as output, _adopting():
        process = subprocess.Popen(
            [*pinning, *server.command(place)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for who started it, and ends it then
        )
        try:
            pid = _wait_until_ready(name, process, place, log)
        except BaseException:
            _end(process.pid)
            process.wait()
            if (other := _read_pid(place)) is not None and other != process.pid:
                _end(other)
            raise
    try:
        yield Peer(name, place.uri(server.export), pid)
    finally:
        _end(pid)
        process.wait(_SECONDS)


def _wait_until_ready(name: str, process: "subprocess.Popen[bytes]", place: Place, log: Path) -> int:
    """The server's process id, once it greets clients."""
    deadline = time.monotonic() + _SECONDS
    pause = threading.Event()
    while time.monotonic() < deadline:
        ended = process.poll() not in (None, 0)  # 0: it has gone to the background
        pid = _read_pid(place)
        if pid is not None and _greets(place):
            return pid
        if ended:
            break
        pause.wait(0.01)
    said = log.read_text(errors="replace").strip()[-1000:]
    how = "ended" if process.poll() is not None else f"does not take connections after {_SECONDS:g} s"
    raise ServerFailed(f"{name} {how}: {said or 'it said nothing'}")


def _read_pid(place: Place) -> int | None:
    try:
        return int(place.pid_file.read_text())
    except (OSError, ValueError):
        return None


def _greets(place: Place) -> bool:
    address = (HOST, place.port) if place.tcp else str(place.socket)
    with socket.socket(socket.AF_INET if place.tcp else socket.AF_UNIX) as client, contextlib.suppress(OSError):
        client.settimeout(5)
        client.connect(address)
        return client.recv(len(_GREETING), socket.MSG_WAITALL) == _GREETING
    return False


def _end(pid: int) -> None:
    """End a server and whatever it has started: politely, and if that takes too long, at once."""
    try:
        first = psutil.Process(pid)
        all_of_it = [first, *first.children(recursive=True)]
        first.send_signal(signal.SIGTERM)
    except psutil.NoSuchProcess:
        return
    _, remaining = psutil.wait_procs(all_of_it, timeout=_SECONDS / 2)
    for process in remaining:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(remaining, timeout=_SECONDS / 2)


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """What goes to the background meanwhile becomes this process's child, so that its end can be waited for."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind((HOST, 0))
        return int(bound.getsockname()[1])
