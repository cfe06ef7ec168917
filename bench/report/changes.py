"""Two runs side by side: what a change of the code has cost or brought.

Ratios against nbdkit of the same run are compared, so that a machine that was slower on that day does not look like a
slower server. A change counts where it is more than noise: the two intervals of the medians (see `bench.certainty`)
have nothing in common, and the medians are at least 5 % apart (1 % for what is counted, which repeats). Figures and
points of curves are no ratios, such as milliseconds, so they count only between runs on the same kind of machine. Of
what was measured once it is not known how much it varies, so it is told and not judged; only the first failure of
anything counts.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from bench import certainty
from bench.model import Curve, Figure, Run
from bench.report.figures import interval, points, refusal
from bench.report.markdown import table
from bench.report.wording import NONE, TITLES, number
from bench.rounds import BASE, Measure, bounds, interval_of_ratio, per_round, ratios

OURS = ("native", "nbdkit front")
OTHERS = (BASE, "nbdkit python", "qemu-nbd", "nbd-server")
"""The servers whose changes are the code's. That of another one tells how far the two runs can be compared."""
_LEAST = 0.05
_LEAST_OF_COUNTS = 0.01
"""Of instructions and system calls, which are the same each time."""
_MACHINE = ("processor", "cores", "memory", "virtualisation")


class Verdict(StrEnum):
    WORSE = "worse"
    BETTER = "better"
    NOISE = "within noise"
    DIFFERENT = "different"
    """More than noise, of something of which neither more nor less is better."""
    MISSING = "only in one"
    """Not measured in the other run, or too seldom."""
    ELSEWHERE = "another machine"
    SINGLE = "measured once"
    """So that how much it varies is not known."""


@dataclass(frozen=True)
class Value:
    """A median, and what it may as well be; of how many measurements it is."""

    median: float
    low: float
    high: float
    samples: int = 1


@dataclass(frozen=True)
class Change:
    """Of one number. `change` is the new one as a multiple of the old one."""

    suite: str
    row: str
    what: str
    old: Value | None
    new: Value | None
    change: float | None
    verdict: Verdict
    ours: bool

    @property
    def regression(self) -> bool:
        return self.ours and self.verdict is Verdict.WORSE


@dataclass(frozen=True)
class _Number:
    value: Value
    lower_is_better: bool | None
    absolute: bool = False
    ours: bool = True
    counted: bool = False

    @property
    def least(self) -> float:
        return _LEAST_OF_COUNTS if self.counted else _LEAST

    @property
    def judged(self) -> bool:
        """Whether it is known how much it varies."""
        return self.counted or self.value.samples >= certainty.FEWEST


def changes(old: Run, new: Run) -> list[Change]:
    """Every number of either run, in the order of the new one."""
    before, after = dict(_numbers(old)), dict(_numbers(new))
    same = same_machine(old, new)
    found = []
    for key in [*after, *(key for key in before if key not in after)]:
        earlier, later = before.get(key), after.get(key)
        verdict = _verdict(earlier, later, same=same)
        change = later.value.median / earlier.value.median if earlier and later and earlier.value.median else None
        values = (earlier.value if earlier else None, later.value if later else None)
        ours = any(each.ours for each in (earlier, later) if each)
        found.append(Change(*key, *values, change, verdict, ours))
    return found


def same_machine(old: Run, new: Run) -> bool:
    return all(old.machine.get(part) == new.machine.get(part) for part in _MACHINE)


def remarks(old: Run, new: Run) -> list[str]:
    """What differs between the two besides the code."""
    found = []
    for name, mine, theirs in (
        *(("the machine's " + part, old.machine.get(part), new.machine.get(part)) for part in (*_MACHINE, "kernel")),
        *((name, old.versions.get(name), new.versions.get(name)) for name in new.versions if name != "nbdresize"),
        *((name, old.settings.get(name), new.settings.get(name)) for name in {**new.settings, **old.settings}),
    ):
        if mine != theirs:
            found.append(f"{name}: {mine or NONE} → {theirs or NONE}")
    return found


def _numbers(run: Run) -> Iterator[tuple[tuple[str, str, str], _Number]]:
    """All results, by suite, row, and what it is."""
    for section in run.sections:
        for row in section.comparisons:
            for server in row.samples:
                for what in Measure:
                    known = ratios(row, server, what) is not None or bounds(row, server, what) is not None
                    if server != BASE and known:  # a refused one too may be anywhere in its interval, not elsewhere
                        values = per_round(row.samples, server, what)
                        value = Value(statistics.median(values), *interval_of_ratio(row, server, what), len(values))
                        key = (section.suite, row.row, f"{server}: {TITLES[what].lower().replace('cpu', 'CPU')}")
                        yield key, _Number(value, what is not Measure.THROUGHPUT, ours=server in OURS)
        for figure in section.figures:
            if not refusal(figure):
                yield (section.suite, figure.name, figure.unit), _of_figure(figure)
        for curve in section.curves:
            if not curve.trace:
                for (line, x), found in _of_curve(curve):
                    yield (section.suite, curve.name, f"{line}, {curve.x} {number(x)}: {curve.y}"), found


def _of_figure(figure: Figure) -> _Number:
    counted = figure.counted or figure.target == 0
    ends = interval(replace(figure, counted=counted))
    value = _value(figure.value.median, ends, figure.samples)
    return _Number(value, figure.lower_is_better, absolute=True, counted=counted, ours=_is_ours(figure.name))


def _of_curve(curve: Curve) -> Iterator[tuple[tuple[str, float], _Number]]:
    for point in points(curve):
        if not point.refused:
            ends = certainty.interval(point.samples) if len(point.samples) >= certainty.FEWEST else None
            value = _value(point.y, ends, point.samples)
            yield (point.line, point.x), _Number(value, curve.lower_is_better, absolute=True, ours=_is_ours(point.line))


def _value(middle: float, ends: tuple[float, float] | None, samples: list[float]) -> Value:
    return Value(middle, *(ends or (middle, middle)), len(samples) if ends and samples else 1)


def _is_ours(name: str) -> bool:
    """Of a figure or a line: whether it names none of the others."""
    return not any(other in name for other in OTHERS)


def _verdict(old: _Number | None, new: _Number | None, *, same: bool) -> Verdict:
    if old is None or new is None:
        return Verdict.MISSING
    if new.counted and new.lower_is_better and old.value.high == 0 < new.value.low:
        return Verdict.WORSE
    if new.absolute and not same:
        return Verdict.ELSEWHERE
    if not (old.judged and new.judged):
        return Verdict.SINGLE
    apart = new.value.low > old.value.high or new.value.high < old.value.low
    if not apart or abs(new.value.median - old.value.median) < new.least * abs(old.value.median):
        return Verdict.NOISE
    if new.lower_is_better is None:
        return Verdict.DIFFERENT
    more = new.value.median > old.value.median
    return Verdict.WORSE if more == new.lower_is_better else Verdict.BETTER


def as_table(found: list[Change]) -> str:
    rows = [
        (
            each.row,
            each.what,
            _shown(each.old),
            _shown(each.new),
            NONE if each.change is None else f"{(each.change - 1) * 100:+.1f} %",
            each.verdict.value,
        )
        for each in found
    ]
    return table(["row", "what", "old", "new", "change", "verdict"], rows)


def _shown(value: Value | None) -> str:
    if value is None:
        return NONE
    once = value.samples == 1 and value.low == value.high
    return number(value.median) if once else f"{number(value.median)} ({number(value.low)}–{number(value.high)})"
