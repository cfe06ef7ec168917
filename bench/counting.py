"""The native server's hot loop under a tool that counts: callgrind for instructions, strace for system calls.

What a request costs is the difference between two runs that differ in the number of requests alone, divided by that
number: what starting, the handshake and the end cost is in both.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.hot_loop import NUMBER, READY, Order
from bench.lockstep import SECONDS, Case, Lockstep, gathered
from nbdresize.errors import ProgramMissing, ServerFailed

_CHECKOUT = Path(__file__).parents[1]
_SEND_BUFFER = 2 << 20
"""As the native server sets it for each connection."""
_BEFORE = 1088
"""Requests after which a connection does as it goes on doing, so small reads by the mapping; whole batches each."""
_CALL = re.compile(r"^(\d+) +([a-z]\w*)\(")
_NAMES = {"syscall_0x1c3": "cachestat"}
"""What an older strace does not know by name."""


@dataclass
class HotLoop:
    """A running `bench.hot_loop`."""

    file: Path
    control: socket.socket
    pid: int

    def run(self, case: Case, requests: int) -> int:
        """The process id of the fork that has served so many requests. Raises ServerFailed."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            socket.send_fds(self.control, [Order(case.block, gathered(case)).pack()], [theirs.fileno()])
            client = Lockstep(ours, case)
            client.run(requests, self.file.stat().st_size)
            client.end()
            pid = int.from_bytes(_received(self.control, NUMBER), "big")
        if not pid:
            raise ServerFailed(f"{case}: the server failed; it says why above")
        return pid


@contextlib.contextmanager
def hot_loop(file: Path, tool: Sequence[str | Path] = (), *options: str) -> Iterator[HotLoop]:
    """A server that waits for connections, run by `tool`, and ended with the block. Raises ServerFailed."""
    ours, theirs = socket.socketpair()
    ours.settimeout(SECONDS)
    program = [sys.executable, "-m", "bench.hot_loop", f"--file={file.absolute()}", f"--control={theirs.fileno()}"]
    with ours:
        process = subprocess.Popen(
            [*tool, *program, *options],
            cwd=_CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        theirs.close()
        try:
            _received(ours, len(READY))
            yield HotLoop(file, ours, process.pid)
            ours.close()
            process.wait(SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ServerFailed(f"{' '.join(map(str, tool)) or 'the server'}: {error}") from error
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _received(control: socket.socket, length: int) -> bytes:
    received = control.recv(length, socket.MSG_WAITALL)
    if len(received) < length:
        raise ServerFailed("the server has ended; it says why above")
    return received


class Counting(ABC):
    """A server under a tool that counts."""

    what: ClassVar[str]
    unit: ClassVar[str]

    def __init__(self, loop: HotLoop, place: Path) -> None:
        self._loop = loop
        self._place = place

    @classmethod
    @abstractmethod
    def started(cls, file: Path, place: Path) -> AbstractContextManager["Counting"]:
        """One that serves `file`; what the tool writes goes to `place`. Raises ProgramMissing and ServerFailed."""

    @abstractmethod
    def count(self, case: Case, requests: int) -> Counter[str]:
        """What a run of so many requests took, by kind. Raises ServerFailed."""


class Callgrind(Counting):
    """Counts the instructions of the server in user space; they repeat, also on a machine that does other things."""

    what, unit = "instructions", "instructions per request"

    @classmethod
    @contextlib.contextmanager
    def started(cls, file: Path, place: Path) -> Iterator[Counting]:
        """Starts without counting, which is ten times as fast, until all is loaded."""
        prefix = f"--vgdb-prefix={place / 'vgdb'}"
        tool = [
            *(program("valgrind", "valgrind"), "--quiet", "--tool=callgrind", "--instr-atstart=no", prefix),
            f"--callgrind-out-file={place}/callgrind.%p",
        ]
        with hot_loop(file, tool, "--pretend-cached") as loop:
            command = [program("callgrind_control", "valgrind"), prefix, "--instr=on", str(loop.pid)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
            if done.returncode or "OK" not in done.stdout:
                raise ServerFailed(f"callgrind_control: {done.stdout}{done.stderr}".strip())
            yield cls(loop, place)

    def count(self, case: Case, requests: int) -> Counter[str]:
        output = self._place / f"callgrind.{self._loop.run(case, requests)}"
        found = re.search(r"^totals: (\d+)$", output.read_text(errors="replace"), re.MULTILINE)
        output.unlink()
        if found is None:
            raise ServerFailed(f"callgrind wrote no total into {output.name}")
        return Counter({self.what: int(found[1])})


class Strace(Counting):
    """Counts the system calls of the server, by name."""

    what, unit = "system calls", "system calls per request"
    _read = 0

    @classmethod
    @contextlib.contextmanager
    def started(cls, file: Path, place: Path) -> Iterator[Counting]:
        options = ("--follow-forks", "--string-limit=0", "--signal=none", f"--output={place / 'strace'}")
        with hot_loop(file, [program("strace", "strace"), *options]) as loop:
            yield cls(loop, place)

    def count(self, case: Case, requests: int) -> Counter[str]:
        pid = str(self._loop.run(case, requests))
        with (self._place / "strace").open() as log:
            log.seek(self._read)
            lines = log.readlines()
            self._read = log.tell()
        calls = [call[2] for line in lines if (call := _CALL.match(line)) is not None and call[1] == pid]
        return Counter(_NAMES.get(call, call) for call in calls)


def per_request(counter: Counting, case: Case, requests: int) -> dict[str, float]:
    """What one request of the case costs, by kind: the difference of two runs."""
    once, twice = (counter.count(case, _BEFORE + number * requests) for number in (1, 2))
    return {kind: (twice[kind] - once[kind]) / requests for kind in twice if twice[kind] != once[kind]}


def program(name: str, package: str) -> str:
    """Raises ProgramMissing."""
    found = shutil.which(name)
    if found is None:
        raise ProgramMissing(f"{name} is not installed", f"apt-get install {package}")
    return found
