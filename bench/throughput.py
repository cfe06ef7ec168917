"""The suite of reads and writes: all servers side by side, on the same file, under the same load, in turn.

All servers of a row run at once, and all but one are idle. For one connection, servers and client have a core each;
with several connections everything may run everywhere. Before a server is measured under a kind of load, that load
runs once with every byte verified; then comes a warm-up, which is also when the memory of the server is looked at, so
that looking costs no measured request anything. What was written is on the disk before the next sample begins.
"""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bench import peers, places
from bench.cores import pair, siblings
from bench.model import Comparison, Medium, Row, Sample, Section, Setting, Target
from bench.mounts import described
from bench.options import MIB, Options
from bench.peers import Peer
from bench.rounds import Measure, compare, ratios
from bench.throughput_rows import rows
from nbdresize.errors import InvalidArgument, NbdresizeError, ServerFailed
from nbdresize.loads import copying
from nbdresize.loads.checking import check
from nbdresize.loads.model import Load, Measured
from nbdresize.loads.running import run as put_on

_LARGEST_WRITTEN = 128 * MIB
"""Of a disk that is written: it is written back between all samples, which is not to take longer than the samples."""
_WARM_UP = 0.2
_VERIFIED_BLOCKS = 512
_MOST_VERIFIED = 64 * MIB

Tell = Callable[[str], None]


def names(options: Options) -> list[str]:
    """The rows that such a run has."""
    return [row.name for row in rows(options)]


def run(options: Options, tell: Tell) -> Section:
    """Measure all of it. A row that fails is told, and the others go on; then this raises ServerFailed.

    Raises Missing, before anything is measured, where a server is not installed.
    """
    section = Section("throughput", "Reads and writes, side by side")
    options.keep(section)
    wanted = rows(options)
    for server in dict.fromkeys(server for row in wanted for server in row.servers):
        peers.require(server)
    section.remarks.extend(_remarks(options))
    failed: list[str] = []
    for medium in dict.fromkeys(row.setting.medium for row in wanted):
        _on_medium(medium, [row for row in wanted if row.setting.medium is medium], options, section, failed, tell)
        section.comparisons.sort(key=lambda each: [row.name for row in wanted].index(each.row))
    if failed:
        raise ServerFailed("; ".join(failed))
    return section


def _on_medium(
    medium: Medium, wanted: list[Row], options: Options, section: Section, failed: list[str], tell: Tell
) -> None:
    with ExitStack() as stack:
        try:
            place = stack.enter_context(places.placed(medium, options.directory, _room(options)))
        except places.NoPlace as error:
            section.remarks.append(f"Nothing was measured on {medium.value}: {error}.")
            for row in wanted:
                tell(f"{row.name}: left out: {error}")
            if any(row.targets for row in wanted):
                failed.append(f"nothing was measured on {medium.value}: {error}")
            return
        section.remarks.append(f"Files of {medium.value} lay on {described(place)}.")
        bench = Bench(Disks(place, options.size), options)
        for row in wanted:
            try:
                comparison = bench.measure(row)
            except NbdresizeError as error:
                failed.append(f"{row.name}: {error}")
                section.remarks.append(f"{row.name}: failed: {error}")
                tell(f"{row.name}: failed: {error}")
                continue
            section.comparisons.append(comparison)
            tell(line(comparison))


def _room(options: Options) -> int:
    """For a full disk, two written ones and a sparse one, and what file systems need for themselves."""
    return options.size + 2 * min(options.size, _LARGEST_WRITTEN) + options.size // 16 + 32 * MIB


class Disks:
    """The files on one medium, made when they are first asked for.

    What is read is never written. A disk that is copied to with holes has those from then on, so it is one of its own.
    """

    def __init__(self, directory: Path, size: int) -> None:
        self._directory = directory
        self._size = size
        self._made: dict[str, Path] = {}

    def of(self, load: Load) -> Path:
        name = f"{'written' if load.writes else 'read'}{'-sparse' if load.sparse else ''}.img"
        if name not in self._made:
            size = min(self._size, _LARGEST_WRITTEN) if load.writes else self._size
            self._made[name] = places.make_disk(self._directory, size, sparse=load.sparse, name=name)
        return self._made[name]


class Bench:
    """The rows of one medium."""

    def __init__(self, disks: Disks, options: Options) -> None:
        self._disks = disks
        self._options = options
        self._verified: set[tuple[object, ...]] = set()

    def measure(self, row: Row) -> Comparison:
        """All servers of a row that can do it. Raises Inconsistent for a wrong byte, and what a load raises."""
        setting = row.setting
        file = self._disks.of(setting.load)
        client, server = pair() if setting.load.connections == 1 else (None, None)
        able = tuple(name for name in row.servers if peers.can(name, setting))
        with ExitStack() as stack:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nbdr-")))
            running = {name: stack.enter_context(peers.serving(name, file, place, setting, server)) for name in able}
            for peer in running.values():
                self._prepare(peer, setting, file, client)
            if not setting.cold and not setting.load.sparse:  # a page that is mapped is no hole any more, on tmpfs
                stack.enter_context(places.kept_warm(file))
            copied = _copied(setting.load, file) if setting.load.sparse else None
            return compare(
                replace(row, servers=able),
                lambda name: _sample(running[name], setting, file, self._options.seconds, client, copied),
                self._options.rounds,
            )

    def _prepare(self, peer: Peer, setting: Setting, file: Path, core: int | None) -> None:
        load = setting.load
        with peer.watched():
            kind = (peer.name, setting.transport, setting.workers, setting.cold, load)
            if kind not in self._verified:
                if setting.cold:
                    places.drop_from_page_cache(file)
                most = min(_MOST_VERIFIED, max(_VERIFIED_BLOCKS * load.block, 2 * MIB))
                check(load, peer.uri, reference=file, most=most)
                self._verified.add(kind)
            put_on(load, peer.uri, _WARM_UP, core=core)


def _copied(load: Load, file: Path) -> int:
    """The bytes of data that a copy of a sparse disk brings, from `file` or to it."""
    if not load.writes:
        return places.data_bytes(file)
    with copying.source(file.stat().st_size, sparse=True) as source:
        return places.data_bytes(source)


def _sample(
    peer: Peer, setting: Setting, file: Path, seconds: float, core: int | None, copied: int | None = None
) -> Sample:
    """`copied`: how much it really is that is copied, where the rest is holes."""
    if setting.cold:
        places.drop_from_page_cache(file)
    elif setting.load.writes:
        places.settle(file)
    before = peer.processor_seconds()
    measured = put_on(setting.load, peer.uri, seconds, core=core)
    if setting.cold and measured.payload > file.stat().st_size:
        way_out = "the second time it was not cold: give less --seconds or a larger --size"
        raise InvalidArgument(f"{file.name} was read more than once in {seconds:g} s", way_out)
    if copied is not None:
        measured = replace(measured, requests=-(-copied // setting.load.block), payload=copied)
    return sample_of(measured, peer.processor_seconds() - before, peer.memory())


def sample_of(measured: Measured, processor: float, memory: int) -> Sample:
    latency = None if measured.latency is None else measured.latency.median
    return Sample(measured.rate, measured.throughput, processor / measured.requests, latency, memory)


# What is told


def line(comparison: Comparison) -> str:
    """A row in one line: each server's ratios to nbdkit's file plugin."""
    if comparison.refused:
        return f"{comparison.row}: refused: {comparison.refused}"
    targets = {target.server: target for target in comparison.targets}
    told = [_told(comparison, server, targets.get(server)) for server in comparison.samples]
    return f"{comparison.row}: {'; '.join(filter(None, told))}"


def _told(comparison: Comparison, server: str, target: Target | None) -> str:
    kinds = [Measure.THROUGHPUT, Measure.PROCESSOR]
    if target is not None and target.latency is not None:
        kinds.append(Measure.LATENCY)
    found = [
        f"{spread.median:.2f} times the {_SHORT[what]}"
        for what in kinds
        if server != "nbdkit file" and (spread := ratios(comparison, server, what)) is not None
    ]
    return f"{server} {', '.join(found)}" if found else ""


_SHORT = {Measure.THROUGHPUT: "throughput", Measure.PROCESSOR: "CPU", Measure.LATENCY: "latency"}


def _remarks(options: Options) -> list[str]:
    client, server = pair()
    alone = "With one connection, client and server have a core each; with several, all run where there is room."
    if client == server:
        alone = "Client and server have one core together, so that each slows down the other."
    elif server in siblings(client):
        alone = "With one connection, client and server are on two threads of one core: each slows down the other."
    later = "what the kernel does for them later, such as writing back what they wrote, is nobody's"
    below = "the disk below, or the host of a virtual machine, may have"
    written = min(options.size, _LARGEST_WRITTEN) // MIB
    return [
        alone,
        f"Processor time is that of the server's processes; {later}.",
        f"Cold means that this machine's page cache held nothing of the file; {below}.",
        f"What is written has {written} MiB, and is on its disk before each sample.",
        "Where a sparse disk is copied, only what is data counts, in throughput and in requests; its holes are free.",
    ]
