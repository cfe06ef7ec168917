"""What the size of a disk costs: nothing should.

Sparse files on tmpfs, since of the usual file systems ext4 ends at 16 TiB; xfs reaches as far as tmpfs does.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.model import Curve, Figure, Medium, Section, Setting
from bench.options import MIB, Options
from bench.peers import serving
from bench.places import placed
from bench.rounds import spread
from nbdresize.client import connect, connect_resizable
from nbdresize.errors import NbdresizeError, ServerFailed
from nbdresize.loads.model import Engine, Load, Operation
from nbdresize.loads.running import run as put_load
from nbdresize.units import MAX_SIZE, format_size

_GIB, _TIB, _PIB, _EIB = (1 << power for power in (30, 40, 50, 60))
SIZES = {"1 GiB": _GIB, "1 TiB": _TIB, "1 PiB": _PIB, "8 EiB − 1": 8 * _EIB - 1}
QUICK = ("1 GiB", "8 EiB − 1")
SERVERS = ("native", "nbdkit front", "nbdkit file", "qemu-nbd")
FRONTS = {"native": "native", "nbdkit front": "nbdkit"}
_TIMES, _QUICK_TIMES = 30, 7
_STEP = MIB
_ASKED = _GIB
"""Of how much the block status is asked."""
_PATIENCE = 30.0
_LOAD = Load(Engine.BATCH, Operation.READ, 4096, 16)


class _Curves:
    """Those of this part: milliseconds over bytes, but for reads."""

    def __init__(self, section: Section) -> None:
        self.opening = self._curve(section, "Opening a disk over its size", "ms", SERVERS)
        self.status = self._curve(section, "Block status of the first GiB over the disk's size", "ms", SERVERS)
        self.reads = self._curve(section, "4 KiB random reads over the disk's size", "requests per second", SERVERS)
        self.query = self._curve(section, "Asking for the size over the size", "ms", tuple(FRONTS))
        self.growing = self._curve(section, "Growing by 1 MiB over the size", "ms", tuple(FRONTS))

    @staticmethod
    def _curve(section: Section, name: str, y: str, servers: Sequence[str]) -> Curve:
        curve = Curve(name, "bytes", y, {server: [] for server in servers}, logarithmic_x=True)
        section.curves.append(curve)
        return curve


def names(options: Options) -> list[str]:
    return [_name(size, server) for size, server in _wanted(options)]


def run(options: Options, section: Section, tell: Callable[[str], None]) -> None:
    """Fill in the curves and figures of this part. Raises as `placed` and `serving` do."""
    wanted = _wanted(options)
    if not wanted:
        return
    curves = _Curves(section)
    with placed(Medium.TMPFS, options.directory) as directory:
        for size, server in wanted:
            with tempfile.TemporaryDirectory(dir=directory) as own:
                told = _measure(server, SIZES[size], Path(own), options, curves, section)
            tell(f"{_name(size, server)}: {told}")
    section.figures.extend(
        _growth(curve, server)
        for curve in (curves.opening, curves.growing)
        for server in FRONTS
        if len(curve.lines[server]) > 1
    )
    section.remarks.append("Disks of these sizes are sparse files on tmpfs: files of ext4 end at 16 TiB.")


def _measure(name: str, size: int, place: Path, options: Options, curves: _Curves, section: Section) -> str:
    """One server with a disk of one size, and what to tell of it."""
    file = place / "disk.img"
    with file.open("wb") as opened:
        opened.truncate(size)
    times = _TIMES if options.full else _QUICK_TIMES
    try:
        with serving(name, file, place, Setting(_LOAD, Medium.TMPFS), None) as peer:
            opening = _median(lambda: connect(peer.uri, _PATIENCE).close(), times)
            with connect(peer.uri, _PATIENCE) as client:
                status = _median(lambda: client.block_status(min(_ASKED, client.size), 0), times)
            reads = put_load(_LOAD, peer.uri, min(options.seconds, 1.0) if options.full else 0.3).rate
        curves.opening.lines[name].append((size, opening))
        curves.status.lines[name].append((size, status))
        curves.reads.lines[name].append((size, reads))
        told = f"opens in {opening:.2f} ms, block status {status:.2f} ms, {reads:,.0f} reads/s"
        if name in FRONTS:
            told += _measure_growing(name, min(size, MAX_SIZE - (times + 1) * _STEP), file, times, curves)
    except (NbdresizeError, OSError) as error:
        why = str(error).replace(str(file), "the file")
        section.remarks.append(f"{name} with a disk of {format_size(size)}: {why}.")
        return f"left out: {why}"
    return told


def _measure_growing(name: str, size: int, file: Path, times: int, curves: _Curves) -> str:
    """The size asked for, and grown step by step, over NBD by whichever means the front has."""
    with file.open("r+b") as opened:
        opened.truncate(size)
    with growable(FRONTS[name], file) as uri, connect_resizable(uri, _PATIENCE) as disk:
        query = _median(disk.query, times)
        growing = _median(lambda: disk.resize(disk.query().size + _STEP), times)
    curves.query.lines[name].append((size, query))
    curves.growing.lines[name].append((size, growing))
    return f", size query {query:.2f} ms, grows in {growing:.2f} ms"


@contextmanager
def growable(front: str, file: Path) -> Iterator[str]:
    """The URI of a file behind one of our fronts, which clients may grow as far as a disk reaches."""
    command = [
        *(sys.executable, "-m", "nbdresize.cli.main", "serve", f"--front={front}", f"--file={file}"),
        *(f"--socket={file.parent / 'grow.sock'}", f"--max-size={MAX_SIZE}"),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            uri = process.stdout.readline().strip()  # printed once it listens; the end of the file if it fails
            if not uri:
                raise ServerFailed(f"The {front} front did not start; it says why above")
            yield uri
        finally:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def _median(what: Callable[[], object], times: int) -> float:
    """Milliseconds."""
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        what()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds) * 1e3


def _growth(curve: Curve, server: str) -> Figure:
    """How many times what the smallest disk costs the others do."""
    (_, first), *others = curve.lines[server]
    return Figure(
        f"{curve.name}: larger disks against the smallest, {server}",
        "times",
        spread([value / first for _, value in others]),
    )


def _wanted(options: Options) -> Sequence[tuple[str, str]]:
    return [
        (size, server)
        for size in SIZES
        for server in SERVERS
        if options.wants(_name(size, server), quick=size in QUICK)
    ]


def _name(size: str, server: str) -> str:
    return f"disk of {size}, {server}"
