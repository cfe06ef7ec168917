"""Memory and processor time of idle connections, and how long a new client takes beside them."""

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.model import Curve, Figure, Section, Setting, Spread
from bench.options import MIB, Options
from bench.peers import Peer, serving
from bench.places import make_disk
from nbdresize.client import connect
from nbdresize.client.opening import open_export
from nbdresize.client.uri import parse_uri
from nbdresize.errors import NbdresizeError
from nbdresize.loads.model import Engine, Load, Operation

CONNECTIONS = (1, 10, 100, 1000)
QUICK = (1, 100)
SERVERS = ("native", "nbdkit front", "nbdkit file", "nbdkit python", "qemu-nbd", "nbd-server")
_FILE_SIZE = 16 * MIB
_IDLE_SECONDS = 3.0
_QUICK_IDLE_SECONDS = 0.5
_CLIENTS = 10
_PATIENCE = 30.0


def names(options: Options) -> list[str]:
    return [_name(count) for count in _wanted(options)]


def run(options: Options, section: Section, tell: Callable[[str], None]) -> None:
    """Fill in the curves and figures of this part. Raises as `serving` does."""
    wanted = _wanted(options)
    if not wanted:
        return
    memory = _curve("Memory over idle connections", "MiB")
    processor = _curve("Processor time of idle connections", "% of a core")
    opening = _curve("A new client connects and reads 4 KiB, beside idle connections", "ms")
    section.curves.extend((memory, processor, opening))
    with tempfile.TemporaryDirectory(prefix="nbdresize-bench-", dir=options.directory) as directory:
        file = make_disk(Path(directory), _FILE_SIZE)
        for count in wanted:
            for name in SERVERS:
                with serving(name, file, Path(directory), Setting(_load(count)), None) as peer, ExitStack() as stack:
                    reached = _connect(peer, count, stack, section)
                    memory.lines[name].append((reached, peer.memory() / MIB))
                    processor.lines[name].append((reached, 100 * _busy(peer, options)))
                    opening.add(name, reached, [each * 1e3 for each in _new_clients(peer)])
            told = (
                f"{name} {memory.lines[name][-1][1]:.1f} MiB, {opening.lines[name][-1][1]:.1f} ms" for name in SERVERS
            )
            tell(f"{_name(count)}: memory, time of a new client: {'; '.join(told)}")
    section.figures.extend(_per_connection(name, points) for name, points in memory.lines.items() if len(points) > 1)


def _connect(peer: Peer, count: int, stack: ExitStack, section: Section) -> int:
    """Open so many connections, to the end of the handshake; how many there are, where the server takes no more."""
    target = parse_uri(peer.uri)
    for number in range(count):
        try:
            stream, _ = open_export(target, _PATIENCE)
        except NbdresizeError as error:
            section.remarks.append(f"{peer.name} took {number} of {count} connections: {error.problem}")
            return number
        stack.callback(stream.close)
    return count


def _busy(peer: Peer, options: Options) -> float:
    """The part of a core that it uses while nobody asks it anything."""
    before, begun = peer.processor_seconds(), time.monotonic()
    threading.Event().wait(_IDLE_SECONDS if options.full else _QUICK_IDLE_SECONDS)
    return (peer.processor_seconds() - before) / (time.monotonic() - begun)


def _new_clients(peer: Peer) -> list[float]:
    """Seconds of each, one after the other."""
    seconds = []
    for _ in range(_CLIENTS):
        begun = time.perf_counter()
        with connect(peer.uri, _PATIENCE) as client:
            client.read(4096, 0)
            seconds.append(time.perf_counter() - begun)
    return seconds


def _per_connection(name: str, points: list[tuple[float, float]]) -> Figure:
    """From the fewest connections to the most."""
    (fewest, least), (most, all_of_it) = points[0], points[-1]
    kib = (all_of_it - least) / max(most - fewest, 1) * 1024
    return Figure(f"Memory of one more idle connection, {name}", "KiB", Spread(kib, kib, kib))


def _curve(name: str, y: str) -> Curve:
    return Curve(
        name, "idle connections", y, {server: [] for server in SERVERS}, logarithmic_x=True, lower_is_better=True
    )


def _load(count: int) -> Load:
    return Load(Engine.BATCH, Operation.READ, 4096, 1, connections=count)


def _wanted(options: Options) -> Sequence[int]:
    return [count for count in CONNECTIONS if options.wants(_name(count), quick=count in QUICK)]


def _name(count: int) -> str:
    return f"{count:,} idle connection{'s' if count > 1 else ''}"
