"""The suite of resizes: requests under full load while a disk grows, the stages of a grow, and who knows of it when."""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench import subscribers
from bench.around_grows import PERCENTILES, By, Growing, Met, Moment, measure, percentile
from bench.ledger_disk import FRONTS, MIB, cores, served
from bench.model import Curve, Figure, Section, Spread
from bench.options import Options
from bench.resize_stages import STAGES, StageClock
from bench.timed_load import Kind, TimedLoad

SLOWEST = 50.0
"""Milliseconds that no request may take because of a resize."""

_DEPTH = 16
_LARGEST = 256 * MIB
"""Bytes of the disk at first; more would take longer to fill, and change nothing."""
_GROWS = {True: 100, False: 20}
"""By whether the run is a full one."""
_ROUNDS = {True: 5, False: 2}
_CHANGES = {True: 20, False: 5}
_BEFORE, _AFTER, _BIN = 0.01, 0.04, 0.001
_SHOWN_SECONDS = 1.0
_STAGE_PAUSE = 0.01

Tell = Callable[[str], None]


def names(options: Options) -> list[str]:
    """The rows that such a run has."""
    loads = [_load_name(front, kind) for front, kind in _loads(options)]
    stages = [_stages_name(loaded) for loaded in (False, True) if options.wants(_stages_name(loaded))]
    return loads + stages + [_told_name(way) for way in _ways(options)]


def run(options: Options, tell: Tell) -> Section:
    """Measure all of it. Raises an NbdresizeError where a server does not start, or a grown range is not zero."""
    section = Section("resizing", "Resizes under load")
    options.keep(section)
    failed = Failed()
    for front, kind in _loads(options):
        _under_load(options, section, failed, front, kind, tell)
    if failed.grows:
        figure = Figure(
            "requests that failed", "requests", Spread(failed.requests, failed.requests, failed.requests), 0
        )
        section.figures.insert(0, figure)
        tell(f"{failed.requests} of {failed.all} requests failed in {failed.grows} grows; what grew reads as zeroes")
    for loaded in (False, True):
        if options.wants(_stages_name(loaded)):
            _stages(options, section, loaded, tell)
    _subscribers(options, section, tell)
    section.remarks.extend(_remarks(section))
    return section


class Failed:
    """Counts over all loads."""

    def __init__(self) -> None:
        self.requests = self.all = self.grows = 0


# Requests while a disk grows


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


def _under_load(options: Options, section: Section, failed: Failed, front: str, kind: Kind, tell: Tell) -> None:
    name, rounds = _load_name(front, kind), _ROUNDS[options.full]
    with served(front, kind.reach, options.directory) as disk:
        found = measure(disk, kind, rounds, math.ceil(_GROWS[options.full] / rounds))
    failed.requests += found.record.failed
    failed.all += len(found.record.sent)
    failed.grows += len(found.grows)
    met = Met(found.record)
    during, control = met.during(found.grows), met.during(found.control)
    between = met.outside(found.grows, found.periods)
    section.figures.extend(_load_figures(name, found, met))
    section.curves.append(
        Curve(
            f"{name}: slowest requests around {len(found.grows)} grows",
            "ms after the begin of a grow, when the request was sent",
            "ms that it took",
            {
                "with grows": met.around(found.grows, _BEFORE, _AFTER, _BIN),
                "the same moments without": met.around(found.control, _BEFORE, _AFTER, _BIN),
            },
            logarithmic_y=True,
        )
    )
    section.curves.append(_over_time(name, found, met))
    tell(
        f"{name}: {_listed(during)} during {len(found.grows)} grows; {_listed(control)} in as many moments without;"
        f" {_listed(between)} between grows; {found.record.failed} failed"
    )
    late = [sum(latency * 1e3 > SLOWEST for latency in each) for each in (during, control)]
    if late[0]:
        section.remarks.append(
            f"{name}: {late[0]} of {len(during)} requests that met a grow took more than {SLOWEST:g} ms; without a"
            f" grow, in as many moments as long, {late[1]} of {len(control)}."
        )


def _load_figures(name: str, found: Growing, met: Met) -> list[Figure]:
    """Each percentile of all that was measured, with the lowest and highest of single rounds."""
    figures = []
    groups: tuple[tuple[str, list[Moment]], ...] = (
        *((f"during a grow by {by.value}", [each for each in found.grows if each.by is by]) for by in By),
        ("at moments without a grow", found.control),
    )
    for group, moments in groups:
        for word, pick in PERCENTILES:
            target = SLOWEST if word == "slowest" and moments is not found.control else None
            figures.append(_figure(f"{name}, {group}: {word}", met, moments, found, pick, target))
    between = met.outside(found.grows, found.periods)
    figures += [
        Figure(f"{name}, between grows: {word}", "ms", _single(pick(between) * 1e3)) for word, pick in PERCENTILES
    ]
    for by in By:
        took = sorted((each.ended - each.begun) * 1e3 for each in found.grows if each.by is by)
        if took:
            spread = Spread(percentile(took, 0.5), took[0], took[-1])
            figures.append(Figure(f"{name}: a grow by {by.value}", "ms", spread))
    return figures


def _figure(
    name: str,
    met: Met,
    moments: Sequence[Moment],
    found: Growing,
    pick: Callable[[Sequence[float]], float],
    target: float | None,
) -> Figure:
    of_round = max(1, len(moments) // len(found.periods))
    rounds = [met.during(moments[at : at + of_round]) for at in range(0, len(moments), of_round)]
    values = [pick(each) * 1e3 for each in rounds if each]
    middle = pick(met.during(moments)) * 1e3
    return Figure(name, "ms", Spread(middle, min([middle, *values]), max([middle, *values])), target)


def _single(value: float) -> Spread:
    return Spread(value, value, value)


def _over_time(name: str, found: Growing, met: Met) -> Curve:
    """The end of the first run of grows, and the begin of the quiet after it."""
    turn = found.periods[0].ended
    first = Moment(turn, turn)
    half = min(_SHOWN_SECONDS, turn - found.periods[0].begun) / 2
    pulses: list[tuple[float, float]] = []
    for grow in found.grows:
        begun, ended = ((moment - turn) * 1e3 for moment in (grow.begun, grow.ended))
        if -half * 1e3 <= begun < half * 1e3:
            pulses += [(begun, 0.0), (begun, ended - begun), (ended, ended - begun), (ended, 0.0)]
    return Curve(
        f"{name}: slowest request per 5 ms, and grows",
        "ms after the last of a run of grows",
        "ms that it took",
        {"slowest request": met.around([first], half, half, 0.005), "a grow, as high as it is long": pulses},
    )


def _listed(ordered: Sequence[float]) -> str:
    return " / ".join(f"{pick(ordered) * 1e3:.2f}" for _, pick in PERCENTILES) + " ms"


# The stages of a grow


def _stages_name(loaded: bool) -> str:
    return f"stages of a grow, {'under load' if loaded else 'idle'}"


def _stages(options: Options, section: Section, loaded: bool, tell: Tell) -> None:
    clock, name = StageClock(), _stages_name(loaded)
    kind = Kind(False, 4 << 10, _DEPTH, min(options.size, _LARGEST))
    pair = cores()
    with ExitStack() as stack:
        disk = stack.enter_context(served("native", kind.reach, options.directory))
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nbdresize-bench-")))
        if loaded:
            stack.enter_context(TimedLoad(disk.uri, kind, place / "record", core=pair[0] if pair else None))
        disk.grow(disk.size + MIB)  # the first one loads code
        stack.enter_context(clock.watching())
        for number in range(2, _GROWS[options.full] + 2):
            size = disk.size + number * MIB
            clock.time(lambda size=size: disk.grow(size))  # type: ignore[misc]
            time.sleep(_STAGE_PAUSE)
        disk.check_grown()
    for stage in STAGES:
        took = sorted(seconds * 1e3 for seconds in clock.seconds[stage])
        late, middle = percentile(took, 0.99), percentile(took, 0.5)
        section.figures.append(Figure(f"{name}: {stage}", "ms", Spread(middle, took[0], took[-1])))
        section.figures.append(Figure(f"{name}: {stage}, 99 %", "ms", _single(late)))
        tell(f"{name}: {stage}: {middle:.2f} ms, 99 % {late:.2f}, slowest {took[-1]:.2f}")


# Who knows when


def _ways(options: Options) -> list[subscribers.Way]:
    return [way for way in subscribers.WAYS if options.wants(_told_name(way), quick=way.quick)]


def _told_name(way: subscribers.Way) -> str:
    return f"subscribers told by {way.name}"


def _subscribers(options: Options, section: Section, tell: Tell) -> None:
    lines: dict[str, list[tuple[float, float]]] = {}
    for way in _ways(options):
        with served(way.front, 16 * MIB, options.directory, pinned=False) as disk:
            for clients in subscribers.CLIENTS:
                told = subscribers.delays(disk.uri, way, clients, _CHANGES[options.full])
                took = sorted(seconds * 1e3 for seconds in told.seconds)
                name = f"{_told_name(way)}, {clients} of them"
                if took:
                    spread = Spread(percentile(took, 0.5), took[0], took[-1])
                    section.figures.append(Figure(name, "ms", spread))
                    section.figures.append(Figure(f"{name}, 99 %", "ms", _single(percentile(took, 0.99))))
                    lines.setdefault(f"{way.name}, median", []).append((clients, spread.median))
                    lines.setdefault(f"{way.name}, slowest", []).append((clients, spread.highest))
                    tell(f"{name}: {spread.median:.2f} ms, slowest {spread.highest:.2f}")
                if len(took) < told.expected:
                    section.remarks.append(f"{name}: {len(took)} of {told.expected} changes were told by themselves.")
    if lines:
        what = "ms after the reply to whoever resized"
        section.curves.append(Curve("Until subscribers know", "subscribers", what, lines, logarithmic_x=True))


def _remarks(section: Section) -> list[str]:
    if not section.figures:
        return []
    return [
        "Server and load have a core each. Whoever grows the disk runs on either, as the system decides."
        if cores()
        else "Server, load and whoever grows the disk share one core.",
        "A request counts as met by a grow when it was under way at any time from asking for the grow to its outcome.",
    ]
