"""A disk of a ledger behind one of our fronts, for loads while it is resized."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psutil

from bench.cores import pair
from nbdresize.client import connect
from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.errors import Inconsistent, ServerFailed
from nbdresize.units import SizeRequest

MIB = 1 << 20
FRONTS = ("native", "nbdkit")
_VM, _DISK = "vm", "disk0"
_BUDGET = 1 << 40
_PATIENCE = 30.0


def cores() -> tuple[int, int] | None:
    """The core of the load and that of the server; None where there is only one."""
    client, server = pair()
    return None if client == server else (client, server)


@dataclass(frozen=True)
class LedgerDisk:
    """A disk of `size` bytes at first, at `uri`; `control` is its operator."""

    uri: str
    size: int
    control: Control
    front: str

    def grow(self, size: int) -> None:
        """As an operator does: nbdresize disk resize."""
        self.control.resize_disk(_VM, _DISK, SizeRequest(exact=size))

    def check_grown(self) -> int:
        """Read all that it has grown by, which has to be zero; its bytes."""
        with connect(self.uri, timeout=_PATIENCE) as client:
            end = client.size
            for start in range(self.size, end, 4 * MIB):
                if any(client.read(min(4 * MIB, end - start), start)):
                    raise Inconsistent(f"The grown range from {start} on does not read as zeroes", "don't use it")
        return end - self.size


@contextmanager
def served(front: str, size: int, directory: Path, *, pinned: bool = True) -> Iterator[LedgerDisk]:
    """A disk of `size` bytes, full of data, with room to grow; its state directory is made in `directory`."""
    with (
        tempfile.TemporaryDirectory(prefix="nbdresize-bench-", dir=directory) as place,
        tempfile.TemporaryDirectory(prefix="nbdresize-bench-") as sockets,  # whose paths have to be short
    ):
        state = StateDirectory(Path(place) / "state")
        with Control.open(state) as control:
            control.update_pool(overcommit="unlimited")  # whatever this file system holds
            control.create_vm(_VM, _BUDGET, [SizeRequest(exact=size)])
            [volume] = state.volumes.iterdir()
            with volume.open("r+b") as opened:
                for _ in range(0, size, MIB):
                    opened.write(os.urandom(MIB))
                os.fsync(opened.fileno())  # which would go on during the first grows otherwise
            with _running(front, state, Path(sockets) / "nbd.sock") as process:
                if pinned:
                    _pin(process)
                path = quote(str(Path(sockets) / "nbd.sock"))
                yield LedgerDisk(f"nbd+unix:///{_VM}/{_DISK}?socket={path}", size, control, front)


@contextmanager
def _running(front: str, state: StateDirectory, path: Path) -> Iterator[psutil.Process]:
    """The server, once it accepts connections."""
    command = [sys.executable, "-m", "nbdresize.cli.main", "serve", f"--root={state.root}", f"--front={front}"]
    with (
        (path.parent / "log").open("w+") as log,
        subprocess.Popen(
            [*command, f"--socket={path}"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
        ) as server,
    ):
        assert server.stdout is not None
        try:
            if not server.stdout.readline():
                log.seek(0)
                raise ServerFailed(f"The {front} server did not start: {log.read().strip()[-500:]}")
            yield psutil.Process(server.pid)
        finally:
            _end(server)


def _end(server: "subprocess.Popen[str]") -> None:
    server.terminate()
    try:
        server.wait(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        for child in psutil.Process(server.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        server.kill()
        server.wait()


def _pin(process: psutil.Process) -> None:
    """All of the server to one core; threads that it starts later inherit that."""
    both = cores()
    if both is None:
        return
    for each in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            for thread in each.threads():
                os.sched_setaffinity(thread.id, {both[1]})


def wait_until(moment: float) -> None:
    """Of time.monotonic()."""
    while (left := moment - time.monotonic()) > 0:
        time.sleep(left)
