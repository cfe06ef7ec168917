"""The suite of resizes: requests under full load while a disk grows, the stages of a grow, and who knows of it when."""

import math
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench import grow_figures, subscribers
from bench.around_grows import Met, measure
from bench.grow_figures import listed, single
from bench.ledger_disk import FRONTS, MIB, cores, served
from bench.model import Curve, Figure, Section
from bench.mounts import described
from bench.options import Options
from bench.resize_stages import STAGES, StageClock
from bench.timed_load import Kind, TimedLoad
from nbdresize.errors import ServerFailed

_DEPTH = 16
_LARGEST = 256 * MIB
"""Bytes of the disk at first; more would take longer to fill, and change nothing."""
_WATCHED = 16 * MIB
_STAGE_PAUSE = 0.01
_SINCE = "ms since the resize was asked for"

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Amounts:
    """How much a run measures."""

    grows: int = 20
    """Under each load, and for the stages."""
    rounds: int = 5
    """Of grows and as long a quiet after them."""
    changes: int = 5
    """Of size, for the subscribers to be told."""
    clients: tuple[int, ...] = (1, 10, 100)
    """Subscribers at once."""


QUICK = Amounts()
FULL = Amounts(grows=100, rounds=5, changes=20)


def names(options: Options) -> list[str]:
    """The rows that such a run has."""
    loads = [_load_name(front, kind) for front, kind in _loads(options)]
    stages = [_stages_name(loaded) for loaded in (False, True) if options.wants(_stages_name(loaded))]
    return loads + stages + [_told_name(way) for way in _ways(options)]


def run(options: Options, tell: Tell, amounts: Amounts | None = None) -> Section:
    """Measure all of it; `amounts` other than those of a quick or a full run are for tests.

    Raises an NbdresizeError where a server does not start, or where a grown range does not read as zeroes.
    """
    section = Section("resizing", "Resizes under load")
    options.keep(section)
    suite = _Suite(options, tell, amounts or (FULL if options.full else QUICK), section)
    suite.run()
    if suite.failed:
        raise ServerFailed(f"{suite.failed} of {suite.requests} requests failed around grows", "see the server's log")
    return section


# The rows


def _loads(options: Options) -> list[tuple[str, Kind]]:
    reach = min(options.size, _LARGEST)
    kinds = [Kind(writes, block, _DEPTH, reach) for block in (4 << 10, 256 << 10) for writes in (False, True)]
    quick = {(4 << 10, False), (256 << 10, True)}
    return [
        (front, kind)
        for front in FRONTS
        for kind in kinds
        if options.wants(_load_name(front, kind), quick=(kind.block, kind.writes) in quick)
    ]


def _load_name(front: str, kind: Kind) -> str:
    return f"{front}, {kind.name}"


def _stages_name(loaded: bool) -> str:
    return f"stages of a grow, {'under load' if loaded else 'idle'}"


def _ways(options: Options) -> list[subscribers.Way]:
    return [way for way in subscribers.WAYS if options.wants(_told_name(way), quick=way.quick)]


def _told_name(way: subscribers.Way) -> str:
    return f"subscribers told by {way.name}"


# Measuring


@dataclass
class _Suite:
    """One run of it."""

    options: Options
    tell: Tell
    amounts: Amounts
    section: Section
    requests: int = 0
    failed: int = 0
    told: Curve = field(
        default_factory=lambda: Curve(
            "Until subscribers know",
            "subscribers",
            _SINCE,
            logarithmic_x=True,
            lower_is_better=True,
        )
    )

    def run(self) -> None:
        for front, kind in _loads(self.options):
            self._under_load(front, kind)
        if self.requests:
            self.section.figures.insert(0, Figure("requests that failed", "requests", single(self.failed), 0))
            self.tell(f"{self.failed} of {self.requests} requests failed; all that grew reads as zeroes")
        for loaded in (False, True):
            if self.options.wants(_stages_name(loaded)):
                self._stages(loaded)
        for way in _ways(self.options):
            self._subscribers(way)
        if self.told.lines:
            self.section.curves.append(self.told)
        self.section.remarks.extend(_remarks(self.options))

    def _under_load(self, front: str, kind: Kind) -> None:
        """Requests while a disk grows."""
        name, rounds, section = _load_name(front, kind), self.amounts.rounds, self.section
        with served(front, kind.reach, self.options.directory) as disk:
            found = measure(disk, kind, rounds, math.ceil(self.amounts.grows / rounds))
        self.failed += found.record.failed
        self.requests += len(found.record.sent)
        met = Met(found.record)
        section.figures.extend(grow_figures.figures(name, found, met))
        section.curves.extend(grow_figures.curves(name, found, met))
        if remark := grow_figures.remark(name, found, met):
            section.remarks.append(remark)
        self.tell(
            f"{name}: {listed(met.during(found.grows))} during {len(found.grows)} grows,"
            f" {listed(met.outside(found.grows, found.periods))} between them,"
            f" {listed(met.during(found.control))} at as many moments without; {found.record.failed} failed"
        )

    def _stages(self, loaded: bool) -> None:
        """The stages of a grow by an operator."""
        clock, name = StageClock(), _stages_name(loaded)
        kind = Kind(False, 4 << 10, _DEPTH, min(self.options.size, _LARGEST))
        pair = cores()
        with ExitStack() as stack:
            disk = stack.enter_context(served("native", kind.reach, self.options.directory))
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nbdresize-bench-")))
            if loaded:
                stack.enter_context(TimedLoad(disk.uri, kind, place / "record", core=pair[0] if pair else None))
            disk.grow(disk.size + MIB)  # the first one loads code
            with clock.watching():
                for number in range(2, self.amounts.grows + 2):
                    clock.time(disk, disk.size + number * MIB)
                    time.sleep(_STAGE_PAUSE)
            disk.check_grown()
        for stage in STAGES:
            self._delays(f"{name}: {stage}", clock.seconds[stage])

    def _subscribers(self, way: subscribers.Way) -> None:
        """Who knows of a grow when."""
        with served(way.front, _WATCHED, self.options.directory, pinned=False) as disk:
            for clients in self.amounts.clients:
                found = subscribers.delays(disk.uri, way, clients, self.amounts.changes)
                name = f"{_told_name(way)}, {clients} of them"
                if found.alone < found.expected:
                    self.section.remarks.append(
                        f"{name}: {found.alone} of {found.expected} times a size was told by itself, else together with"
                        " the next one."
                    )
                for what, seconds in (
                    ("half of them know", found.half),
                    ("all of them know", found.all),
                    ("whoever asked has the answer", found.answered),
                ):
                    figure = Figure.of(f"{name}: {what}", _SINCE, [each * 1e3 for each in seconds])
                    self.section.figures.append(figure)
                    self.tell(f"{figure.name}: {figure.value.median:.2f} {_SINCE}")
                    self.told.add(f"{way.name}: {what}", clients, figure.samples)

    def _delays(self, name: str, seconds: list[float]) -> None:
        """A figure of these with its median and range, and one of the latest."""
        figure = Figure.of(name, "ms", [each * 1e3 for each in seconds])
        tail = Figure.tail(name, "ms", figure.samples)
        self.section.figures.extend((figure, tail))
        late = f"{tail.name.rpartition(', ')[2]} {tail.value.median:.2f}"
        self.tell(f"{name}: {figure.value.median:.2f} ms, {late}")


def _remarks(options: Options) -> list[str]:
    return [
        "Server and load have a core each. Whoever grows the disk runs on either, as the system decides."
        if cores()
        else "Server, load and whoever grows the disk share one core.",
        f"The disks lay on {described(options.directory)}.",
        "A request counts as met by a grow when it was under way at any time from asking for the grow to its outcome.",
    ]
