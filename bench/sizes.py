"""What the size of a disk costs: nothing should. Told as what the largest costs, in times of what the smallest does.

Sparse files on tmpfs, since of the usual file systems ext4 ends at 16 TiB; xfs reaches as far as tmpfs does.
"""

import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.model import Curve, Figure, Medium, Section, Setting
from bench.mounts import described
from bench.options import MIB, Options
from bench.peers import Peer, serving
from bench.places import placed
from bench.rounds import rotated
from nbdresize.client import connect, connect_resizable
from nbdresize.errors import NbdresizeError, ServerFailed
from nbdresize.loads.model import Engine, Load, Operation
from nbdresize.loads.running import run as put_load
from nbdresize.units import MAX_SIZE

_GIB, _TIB, _PIB, _EIB = (1 << power for power in (30, 40, 50, 60))
SIZES = {"1 GiB": _GIB, "1 TiB": _TIB, "1 PiB": _PIB, "8 EiB − 1": 8 * _EIB - 1}
QUICK = ("1 GiB", "8 EiB − 1")
SERVERS = ("native", "nbdkit front", "nbdkit file", "qemu-nbd")
FRONTS = {"native": "native", "nbdkit front": "nbdkit"}
_ROUNDS = 5
_TIMES, _QUICK_TIMES = 20, 5
_SECONDS, _QUICK_SECONDS = 0.5, 0.1
_STEP = MIB
_ROOM = 1024 * _STEP
_ASKED = _GIB
"""Of how much the block status is asked."""
_PATIENCE = 30.0
_LOAD = Load(Engine.BATCH, Operation.READ, 4096, 16)


class _Kind(NamedTuple):
    """One thing that is measured of a disk."""

    name: str
    unit: str
    servers: Sequence[str]


_OPENING = _Kind("Opening a disk over its size", "ms", SERVERS)
_STATUS = _Kind("Block status of the first GiB over the disk's size", "ms", SERVERS)
_READS = _Kind("4 KiB random reads over the disk's size", "requests per second", SERVERS)
_MEMORY = _Kind("Memory over the disk's size", "MiB", SERVERS)
_QUERY = _Kind("Asking for the size over the size", "ms", tuple(FRONTS))
_GROWING = _Kind("Growing by 1 MiB over the size", "ms", tuple(FRONTS))
_KINDS = (_OPENING, _STATUS, _READS, _MEMORY, _QUERY, _GROWING)

_Found = dict[_Kind, list[float]]
"""Of one server and disk: a value from each round."""


def names(options: Options) -> list[str]:
    return [_name(size, server) for size, server in _wanted(options)]


def run(options: Options, section: Section, tell: Callable[[str], None]) -> None:
    """Fill in the curves and figures of this part. Raises as `placed` does; a server that fails is left out."""
    wanted = _wanted(options)
    if not wanted:
        return
    curves = {
        kind: Curve(
            kind.name,
            "bytes",
            kind.unit,
            {server: [] for server in kind.servers},
            logarithmic_x=True,
            lower_is_better=kind is not _READS,
        )
        for kind in _KINDS
    }
    section.curves.extend(curves.values())
    with placed(Medium.TMPFS, options.directory) as place:
        section.remarks.append(
            f"Disks of all these sizes are sparse files on {described(place)}: files of ext4 end at 16 TiB."
        )
        for server in SERVERS:
            sizes = [size for size, other in wanted if other == server]
            found = _measure(server, sizes, place, options, section)
            for size, values in found.items():
                for kind, rounds in values.items():
                    curves[kind].add(server, SIZES[size], rounds)
                tell(f"{_name(size, server)}: {_told(values)}")
            section.figures.extend(_growth(server, found))


def _measure(server: str, sizes: Sequence[str], place: Path, options: Options, section: Section) -> dict[str, _Found]:
    """All sizes side by side in rounds, since a machine's speed drifts: what is compared is those of one round."""
    found: dict[str, _Found] = {}
    with ExitStack() as stack:
        disks: dict[str, _Disk] = {}
        for size in sizes:
            try:
                disks[size] = stack.enter_context(_served(server, SIZES[size], place))
            except NbdresizeError as error:
                why = str(error).replace(str(place), "…")
                section.remarks.append(f"{server} does not serve a disk of {size}: {why}.")
        found = {size: {} for size in disks}
        for number in range(_ROUNDS):
            for size in rotated(list(disks), number):
                for kind, value in _measure_round(disks[size], options).items():
                    found[size].setdefault(kind, []).append(value)
    return found


class _Disk(NamedTuple):
    """A served one, and in our fronts another that can be grown."""

    peer: Peer
    growable: str | None

    @property
    def uri(self) -> str:
        return self.peer.uri


@contextmanager
def _served(server: str, size: int, place: Path) -> Iterator[_Disk]:
    with tempfile.TemporaryDirectory(dir=place) as directory, ExitStack() as stack:
        file, other = Path(directory) / "disk", Path(directory) / "growing"
        for path, length in ((file, size), (other, min(size, MAX_SIZE - _ROOM))):
            with path.open("wb") as opened:
                opened.truncate(length)
        peer = stack.enter_context(serving(server, file, place, Setting(_LOAD, Medium.TMPFS), None))
        front = FRONTS.get(server)
        yield _Disk(peer, None if front is None else stack.enter_context(growable(front, other)))


def _measure_round(disk: _Disk, options: Options) -> dict[_Kind, float]:
    times = _TIMES if options.full else _QUICK_TIMES
    found = {_OPENING: _median(lambda: connect(disk.uri, _PATIENCE).close(), times)}
    with connect(disk.uri, _PATIENCE) as client:
        found[_STATUS] = _median(lambda: client.block_status(min(_ASKED, client.size), 0), times)
    seconds = min(options.seconds, _SECONDS) if options.full else _QUICK_SECONDS
    found[_READS] = put_load(_LOAD, disk.uri, seconds).rate
    found[_MEMORY] = disk.peer.memory_now() / MIB
    if disk.growable is not None:
        with connect_resizable(disk.growable, _PATIENCE) as growing:
            found[_QUERY] = _median(growing.query, times)
            larger = itertools.count(growing.query().size + _STEP, _STEP)
            found[_GROWING] = _median(lambda: growing.resize(next(larger)), times)
    return found


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


def _growth(server: str, found: dict[str, _Found]) -> list[Figure]:
    """How many times what the smallest disk costs the largest does, round by round."""
    if len(found) < 2:
        return []
    smallest, largest = next(iter(found.values())), list(found.values())[-1]
    return [
        Figure.of(
            f"{kind.name}: {list(found)[-1]} against {next(iter(found))}, {server}",
            "times",
            [more / less for more, less in zip(largest[kind], smallest[kind], strict=True)],
            lower_is_better=kind is not _READS,
        )
        for kind in smallest
    ]


def _told(values: _Found) -> str:
    found = {kind: statistics.median(rounds) for kind, rounds in values.items()}
    told = f"opens in {found[_OPENING]:.2f} ms, block status {found[_STATUS]:.2f} ms, {found[_READS]:,.0f} reads/s"
    told += f", {found[_MEMORY]:.1f} MiB"
    if _GROWING in found:
        told += f", size query {found[_QUERY]:.2f} ms, grows in {found[_GROWING]:.2f} ms"
    return told


def _wanted(options: Options) -> Sequence[tuple[str, str]]:
    return [
        (size, server)
        for size in SIZES
        for server in SERVERS
        if options.wants(_name(size, server), quick=size in QUICK)
    ]


def _name(size: str, server: str) -> str:
    return f"disk of {size}, {server}"
