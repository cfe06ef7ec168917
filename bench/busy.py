"""Throughput and memory over the number of busy connections.

Every connection has 4 requests of 4 KiB under way, as a client with a little work does: more connections are more work,
not the same work in smaller parts. Memory is looked at under the same load before, not while requests are counted.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from bench.model import Curve, Section, Setting
from bench.options import MIB, Options
from bench.peers import Peer, serving
from bench.places import kept_warm, make_disk
from bench.rounds import rotated, spread
from nbdresize.loads.model import Engine, Load, Operation
from nbdresize.loads.running import run as put_load

CONNECTIONS = (1, 2, 4, 8, 16, 32, 64)
QUICK = (1, 16)
DEPTH = 4
_BLOCK = 4096
_LARGEST_FILE = 256 * MIB
_MOST_ROUNDS = 5
_SHORTEST, _LONGEST = 0.3, 1.0
SERVERS = {
    "native": ("native", 1),
    "native, 2 workers": ("native", 2),
    "nbdkit file": ("nbdkit file", 1),
    "nbdkit python": ("nbdkit python", 1),
    "qemu-nbd": ("qemu-nbd", 1),
    "nbd-server": ("nbd-server", 1),
}
"""Each line, with its server and the processes of ours."""


def names(options: Options) -> list[str]:
    return [_name(count) for count in _wanted(options)]


def run(options: Options, section: Section, tell: Callable[[str], None]) -> None:
    """Fill in the curves of this part. Raises as `serving` and the load do."""
    wanted = _wanted(options)
    if not wanted:
        return
    rate = Curve(
        "4 KiB reads over busy connections",
        "busy connections",
        "requests per second",
        _lines(),
        True,
        lower_is_better=False,
    )
    memory = Curve("Memory over busy connections", "busy connections", "MiB", _lines(), True, lower_is_better=True)
    section.curves.extend((rate, memory))
    section.remarks.append(f"Every busy connection keeps {DEPTH} random reads of 4 KiB under way.")
    with tempfile.TemporaryDirectory(prefix="nbdresize-bench-", dir=options.directory) as directory:
        file = make_disk(Path(directory), min(options.size, _LARGEST_FILE))
        with kept_warm(file):
            widest = max(_point(count, options, file, rate, memory, tell) for count in wanted)
    if widest > 1:
        section.remarks.append(
            f"Of a point of these curves, which is the median of its rounds, the fastest round was up to {widest:.2f}"
            " times as fast as the slowest."
        )


def _point(count: int, options: Options, file: Path, rate: Curve, memory: Curve, tell: Callable[[str], None]) -> float:
    """All servers with so many connections, in turn; how many times as fast the fastest round was as the slowest."""
    rounds = min(options.rounds, _MOST_ROUNDS) if options.full else 1
    found: dict[str, list[float]] = {line: [] for line in SERVERS}
    with ExitStack() as stack:
        peers = {line: stack.enter_context(peer) for line, peer in _peers(count, file, file.parent)}
        for line, peer in peers.items():
            memory.lines[line].append((count, _most_memory(peer, count) / MIB))
        for number in range(rounds):
            for line in rotated(list(SERVERS), number):
                found[line].append(_sample(peers[line], count, options))
        for line in peers:
            rate.add(line, count, found[line])
    shown = ", ".join(f"{line} {spread(values).median:,.0f}" for line, values in found.items())
    tell(f"{_name(count)}: requests per second: {shown}")
    return max(max(values) / min(values) for values in found.values())


def _peers(count: int, file: Path, place: Path) -> Iterator[tuple[str, AbstractContextManager[Peer]]]:
    for line, (name, workers) in SERVERS.items():
        yield line, serving(name, file, place, Setting(_load(count), workers=workers), None)


def _most_memory(peer: Peer, count: int) -> int:
    """Bytes, while it works."""
    with peer.watched():
        put_load(_load(count), peer.uri, _SHORTEST)
    return peer.memory()


def _sample(peer: Peer, count: int, options: Options) -> float:
    """Requests per second."""
    seconds = min(max(options.seconds, _SHORTEST), _LONGEST) if options.full else _SHORTEST
    return put_load(_load(count), peer.uri, seconds, warm_up=seconds / 5).rate


def _load(count: int) -> Load:
    return Load(Engine.BATCH, Operation.READ, _BLOCK, DEPTH, connections=count)


def _lines() -> dict[str, list[tuple[float, float]]]:
    return {line: [] for line in SERVERS}


def _wanted(options: Options) -> Sequence[int]:
    return [count for count in CONNECTIONS if options.wants(_name(count), quick=count in QUICK)]


def _name(count: int) -> str:
    return f"{count} busy connection{'s' if count > 1 else ''}"
