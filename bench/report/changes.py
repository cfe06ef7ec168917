"""Two runs side by side: what a change of the code has cost or brought.

Ratios against nbdkit of the same run are compared, so that a machine that was slower on that day does not look like a
slower server. A change counts where it is more than noise: the two intervals (see `bench.rounds`) have nothing in
common, and the medians are at least 5 % apart (1 % for counted instructions and system calls, which repeat). Figures
that are no ratios, such as milliseconds, count only between runs on the same kind of machine; of those that are no
counts, the interval is all that was measured, so that only large changes show. The first failure of anything counts.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from bench.model import Figure, Run
from bench.report.markdown import table
from bench.report.wording import NONE, TITLES, number
from bench.rounds import BASE, Measure, interval, per_round, ratios

OURS = ("native", "nbdkit front")
"""The servers whose changes are the code's. That of another one tells how far the two runs can be compared."""
_LEAST = 0.05
_LEAST_OF_COUNTS = 0.01
"""Of instructions and system calls, which are the same each time."""
_COUNTED = "per request"
_MACHINE = ("processor", "cores", "memory", "virtualisation")


class Verdict(StrEnum):
    WORSE = "worse"
    BETTER = "better"
    NOISE = "within noise"
    MISSING = "only in one"
    """Not measured in the other run, or refused."""
    ELSEWHERE = "another machine"
    SINGLE = "measured once"
    """So that how much it varies is not known."""


@dataclass(frozen=True)
class Value:
    """A median, and what it may as well be."""

    median: float
    low: float
    high: float


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
    lower_is_better: bool
    absolute: bool = False
    ours: bool = True
    least: float = _LEAST


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
                    if server != BASE and ratios(row, server, what) is not None:
                        values = per_round(row.samples, server, what)
                        value = Value(statistics.median(values), *interval(values))
                        key = (section.suite, row.row, f"{server}: {TITLES[what].lower().replace('cpu', 'CPU')}")
                        yield key, _Number(value, what is not Measure.THROUGHPUT, ours=server in OURS)
        for figure in section.figures:
            yield (section.suite, figure.name, figure.unit), _of_figure(figure)


def _of_figure(figure: Figure) -> _Number:
    value = Value(figure.value.median, figure.value.lowest, figure.value.highest)
    least = _LEAST_OF_COUNTS if figure.unit.endswith(_COUNTED) else _LEAST
    return _Number(value, figure.lower_is_better, absolute=True, least=least)


def _verdict(old: _Number | None, new: _Number | None, *, same: bool) -> Verdict:
    if old is None or new is None:
        return Verdict.MISSING
    if new.lower_is_better and old.value.high == 0 < new.value.low:
        return Verdict.WORSE
    if new.absolute and not same:
        return Verdict.ELSEWHERE
    if new.absolute and new.least == _LEAST and any(each.value.low == each.value.high for each in (old, new)):
        return Verdict.SINGLE
    apart = new.value.low > old.value.high or new.value.high < old.value.low
    if not apart or abs(new.value.median - old.value.median) < new.least * abs(old.value.median):
        return Verdict.NOISE
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
    return NONE if value is None else f"{number(value.median)} ({number(value.low)}–{number(value.high)})"
