"""The native front against nbdkit's file plugin: the targets of the design, measured side by side in one run.

    .venv/bin/python bench/targets.py                 all rows, about 5 minutes
    .venv/bin/python bench/targets.py --rounds 3 --seconds 2 --only '4k'

Both servers serve the same file over a unix socket, pinned to one core; the load, fio with its nbd engine (nbdcopy for
TLS), is pinned to another. Rounds alternate between the two. Each row shows the median of the rounds' ratios, with the
lowest and highest: throughput (higher is better) and the server's processor time per request (lower is better).
Absolute numbers depend on the machine, and on what else it does; look at the spread before believing a ratio.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

_MIB = 1 << 20
_FILE_SIZE = 512 * _MIB
_COPIED_AT_ONCE = 256 << 10
_SERVER_CORE = 1 if (os.cpu_count() or 1) > 1 else 0
_LOAD_CORE = 0


@dataclass(frozen=True)
class Row:
    """A load, and what the design asks of it: at least `throughput` times, at most `processor` times."""

    name: str
    operation: str
    block: str
    depth: int
    throughput: float | None
    processor: float | None
    jobs: int = 1
    workers: int = 1
    tls: bool = False
    cold: bool = False


ROWS = (
    Row("4k random read, depth 16", "randread", "4k", 16, 1.8, 0.6),
    Row("4k random read, depth 64", "randread", "4k", 64, 1.8, 0.6),
    Row("4k random write, depth 16", "randwrite", "4k", 16, 1.4, 0.65),
    Row("4k random write, depth 64", "randwrite", "4k", 64, 1.4, 0.65),
    Row("64k read, depth 16", "read", "64k", 16, 1.4, 0.4),
    Row("256k read, depth 16", "read", "256k", 16, 1.4, 0.4),
    Row("1m read, depth 16", "read", "1m", 16, 1.4, 0.4),
    Row("256k write, depth 16", "write", "256k", 16, 1.3, 0.75),
    Row("1m write, depth 16", "write", "1m", 16, 1.6, 0.75),
    Row("4k random read, depth 1", "randread", "4k", 1, 1 / 1.1, None),
    Row("4k random read, depth 32, cold cache", "randread", "4k", 32, 1.0, None, cold=True),
    Row("4k random read, depth 16, 4 connections", "randread", "4k", 16, 1.2, None, jobs=4, workers=4),
    Row("256k read, depth 16, TLS", "read", "256k", 16, 1.0, None, tls=True),
)


@dataclass(frozen=True)
class Sample:
    """One run: requests per second, and the server's processor seconds per request."""

    rate: float
    processor: float


@dataclass(frozen=True)
class Server:
    """A running server: where it listens, and the processes that do its work."""

    uri: str
    processes: tuple[psutil.Process, ...]

    def processor_seconds(self) -> float:
        return sum(times.user + times.system for times in (process.cpu_times() for process in self.processes))


def measure(server: Server, row: Row, file: Path, seconds: float) -> Sample:
    """Put one load on one server."""
    if row.cold:
        drop_from_page_cache(file)
    command = copying(server) if row.tls else loading(server, row, seconds)
    before = server.processor_seconds()
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=True)
    took, used = time.monotonic() - begun, server.processor_seconds() - before
    if row.tls:
        requests = _FILE_SIZE // _COPIED_AT_ONCE
        return Sample(requests / took, used / requests)
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    side = job["write" if "write" in row.operation else "read"]
    return Sample(side["iops"], used / side["total_ios"])


def loading(server: Server, row: Row, seconds: float) -> list[str]:
    """The command that puts the load on."""
    return [
        *(["taskset", "-c", str(_LOAD_CORE)] if row.jobs == 1 else []),
        *(program("fio"), "--name=load", "--ioengine=nbd", f"--uri={server.uri}", f"--rw={row.operation}"),
        *(f"--bs={row.block}", f"--iodepth={row.depth}", f"--size={_FILE_SIZE}", "--time_based"),
        *(f"--runtime={seconds:g}", "--thread", f"--numjobs={row.jobs}", "--group_reporting", "--randrepeat=0"),
        "--output-format=json",
    ]


def copying(server: Server) -> list[str]:
    """The command that reads all of the disk once: fio's engine takes no certificates."""
    return [
        *("taskset", "-c", str(_LOAD_CORE), program("nbdcopy"), "--connections=1", "--requests=16"),
        *(f"--request-size={_COPIED_AT_ONCE}", server.uri, "null:"),
    ]


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        sys.exit(f"{name} is missing: scripts/setup installs it")
    return found


def drop_from_page_cache(file: Path) -> None:
    """Have nothing of the file in memory."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def nbdkit_file(file: Path, place: Path, certificates: Path, row: Row) -> Iterator[Server]:
    """nbdkit's own file plugin."""
    path = place / "nbdkit.sock"
    tls = ["--tls=require", f"--tls-certificates={certificates}"] if row.tls else []
    command = ["nbdkit", "--foreground", *tls, "--unix", str(path), "file", str(file)]
    with running(command, path) as process:
        pin([process], _SERVER_CORE if row.jobs == 1 else None)
        yield Server(uri(path, certificates, row), (process,))


@contextmanager
def native(file: Path, place: Path, certificates: Path, row: Row) -> Iterator[Server]:
    """Our native front."""
    path = place / "native.sock"
    command = [sys.executable, "-m", "nbdresize.cli.main", "serve", "--front=native", f"--socket={path}"]
    tls = [f"--tls={certificates}", "--no-tls-verify-peer"] if row.tls else []
    with running([*command, *tls, f"--workers={row.workers}", f"--file={file}"], path) as process:
        workers = process.children()
        pin(workers, _SERVER_CORE if row.jobs == 1 else None)
        yield Server(uri(path, certificates, row), tuple(workers))


def uri(path: Path, certificates: Path, row: Row) -> str:
    if row.tls:
        return f"nbds+unix:///?socket={path}&tls-certificates={certificates}"
    return f"nbd+unix:///?socket={path}"


@contextmanager
def running(command: Sequence[str], path: Path) -> Iterator[psutil.Process]:
    """A server process, once it accepts connections on the socket at `path`."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as started:
        try:
            wait_for(path, started)
            yield psutil.Process(started.pid)
        finally:
            started.terminate()
            started.wait(timeout=30)


def wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(str(path))
            except OSError:
                time.sleep(0.05)
                continue
            time.sleep(0.5)  # all workers up
            return
    sys.exit(f"{process.args!r} did not start")


def pin(processes: Sequence[psutil.Process], core: int | None) -> None:
    for process in processes:
        for thread in process.threads():
            if core is not None:
                os.sched_setaffinity(thread.id, {core})


def make_certificates(directory: Path) -> None:
    """A certificate authority and a server's certificate for localhost."""
    (directory / "ca.info").write_text("cn = bench authority\nca\ncert_signing_key\n")
    (directory / "server.info").write_text("cn = localhost\ntls_www_server\nsigning_key\nencryption_key\n")
    steps = (
        "certtool --generate-privkey --outfile ca-key.pem",
        "certtool --generate-self-signed --load-privkey ca-key.pem --template ca.info --outfile ca-cert.pem",
        "certtool --generate-privkey --outfile server-key.pem",
        (
            "certtool --generate-certificate --load-ca-certificate ca-cert.pem --load-ca-privkey ca-key.pem"
            " --load-privkey server-key.pem --template server.info --outfile server-cert.pem"
        ),
    )
    for step in steps:
        subprocess.run(step.split(), cwd=directory, check=True, capture_output=True)


def compare(row: Row, file: Path, directory: Path, rounds: int, seconds: float) -> str:
    """Both servers in turn, round by round; a line of the table."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=directory)))
        ours = stack.enter_context(native(file, place, directory, row))
        theirs = stack.enter_context(nbdkit_file(file, place, directory, row))
        for server in (ours, theirs):
            measure(server, row, file, 0.5)
        pairs = []
        for number in range(rounds):
            order = (ours, theirs) if number % 2 == 0 else (theirs, ours)
            samples = {server: measure(server, row, file, seconds) for server in order}
            pairs.append((samples[ours], samples[theirs]))
    rate = [a.rate / b.rate for a, b in pairs]
    processor = [a.processor / b.processor for a, b in pairs]
    return (
        f"| {row.name} | {spread(rate)} | {target(row.throughput, '≥')} | {spread(processor)}"
        f" | {target(row.processor, '≤')} | {statistics.median(a.rate for a, _ in pairs):,.0f}"
        f" | {statistics.median(b.rate for _, b in pairs):,.0f} |"
    )


def spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def target(value: float | None, sign: str) -> str:
    return "" if value is None else f"{sign} {value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the native front against nbdkit's file plugin.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--directory", type=Path, help="where the file is made; decides the file system")
    options = parser.parse_args()
    print("| load | throughput, ours / nbdkit | target | processor per request | target | ours /s | nbdkit /s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="nbdresize-bench-", dir=options.directory) as temporary:
        directory = Path(temporary)
        make_certificates(directory)
        file = directory / "disk.img"
        with file.open("wb") as opened:
            for _ in range(_FILE_SIZE // _MIB):
                opened.write(os.urandom(_MIB))
        for row in ROWS:
            if options.only in row.name:
                print(compare(row, file, directory, options.rounds, options.seconds), flush=True)


if __name__ == "__main__":
    main()
