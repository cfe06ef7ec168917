"""Servers compared round by round, and when the outcome is no result.

A machine's speed drifts, so absolute numbers of two moments can't be compared. Here every round measures all servers
one after the other, each round begins with another one, and what counts is each round's ratio, of which the median is
told with the lowest and the highest.

When nothing is concluded: the median of a few rounds is only an estimate. Between the k-th lowest and the k-th highest
of n independent rounds lies the true median with a probability that depends on n and k alone, however the values are
distributed: that of k to n - k heads in n tosses of a coin. `interval` takes the narrowest such interval of at least
90 %: for 5 to 7 rounds from the lowest to the highest, for 8 without one at each end, for 11 without two. Where it is
wider than 30 % of the median, so that the ratio is known to no better than about ± 15 %, rounds are added, up to
`2 * rounds + 1`; with each the interval tends to narrow, which lowest to highest never could. Where that does not help,
the ratio is refused. Fewer than five rounds can't reach 90 %, so they never give a result.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from enum import StrEnum

from bench.model import Comparison, Row, Sample, Spread

BASE = "nbdkit file"
"""The server that the others are measured against."""
FEWEST_ROUNDS = 5
_CONFIDENCE = 0.9
_WIDEST = 0.3


class Measure(StrEnum):
    """What of a sample is compared. Higher is better of the throughput alone."""

    THROUGHPUT = "throughput"
    PROCESSOR = "processor"
    LATENCY = "latency"


_WORDS = {
    Measure.THROUGHPUT: "throughput",
    Measure.PROCESSOR: "processor time per request",
    Measure.LATENCY: "median latency",
}


def compare(
    row: Row, measure: Callable[[str], Sample], rounds: int = FEWEST_ROUNDS, *, most: int | None = None
) -> Comparison:
    """Measure the servers of a row in turn, `rounds` times, and up to `most` times while a ratio is not steady.

    `measure` takes one sample of the server of that name; servers are to be warm already.
    """
    samples: dict[str, list[Sample]] = {server: [] for server in row.servers}
    most = 2 * rounds + 1 if most is None else max(most, rounds)
    for number in range(most):
        if number >= rounds and not _unsteady(samples):
            break
        for server in rotated(row.servers, number):
            samples[server].append(measure(server))
        if number + 1 >= rounds and rounds < FEWEST_ROUNDS:
            break  # a look, from which nothing is concluded anyway
    return judged(Comparison(row.name, samples, row.targets))


def rotated(servers: Sequence[str], number: int) -> list[str]:
    """The order of a round: the same circle, begun one further each time."""
    start = number % len(servers) if servers else 0
    return [*servers[start:], *servers[:start]]


def judged(comparison: Comparison) -> Comparison:
    """The same samples, with what can't be concluded from them."""
    samples = comparison.samples
    rounds = min((len(each) for each in samples.values()), default=0)
    refused, unsteady = "", _unsteady(samples)
    if rounds < FEWEST_ROUNDS:
        refused = f"rounds: {rounds}; a result takes at least {FEWEST_ROUNDS}"
        unsteady = {}
    elif unsteady and all(
        what.value in unsteady.get(server, {}) or not per_round(samples, server, what)
        for server in samples
        if server != BASE
        for what in Measure
    ):
        first = next(iter(next(iter(unsteady.values())).values()))
        refused = f"after {rounds} rounds, no ratio is steady: {first}"
    return Comparison(comparison.row, samples, comparison.targets, refused, unsteady)


def _unsteady(samples: dict[str, list[Sample]]) -> dict[str, dict[str, str]]:
    """Why which ratios are no results, by server and measure."""
    if BASE not in samples:
        return {}
    found: dict[str, dict[str, str]] = {}
    for server in samples:
        for what in Measure:
            why = "" if server == BASE else too_wide(per_round(samples, server, what), f"{server}'s {_WORDS[what]}")
            if why:
                found.setdefault(server, {})[what.value] = why
    return found


def too_wide(ratios: Sequence[float], name: str) -> str:
    """Why the median of these tells nothing; empty if it does, or if there are none."""
    if not ratios:
        return ""
    if not all(math.isfinite(ratio) and ratio > 0 for ratio in ratios):
        return f"{name} was too little to be measured"
    low, high = interval(ratios)
    middle = statistics.median(ratios)
    if high - low <= _WIDEST * middle:
        return ""
    return f"{name} is somewhere from {low:.2f} to {high:.2f} times nbdkit's, which is too wide"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Within which the true median lies with at least 90 %; of fewer than five values, their lowest and highest."""
    ordered = sorted(values)
    number = len(ordered)
    cut = 0
    while 2 * (cut + 1) < number and _confidence(number, cut + 1) >= _CONFIDENCE:
        cut += 1
    return ordered[cut], ordered[number - 1 - cut]


def _confidence(number: int, cut: int) -> float:
    """That the median lies between what remains after the `cut` lowest and the `cut` highest are left out."""
    return 1 - sum(math.comb(number, heads) for heads in range(cut + 1)) / float(1 << (number - 1))


def spread(values: Sequence[float]) -> Spread:
    """Raises statistics.StatisticsError where there are none."""
    return Spread(statistics.median(values), min(values), max(values))


def per_round(samples: dict[str, list[Sample]], server: str, what: Measure, against: str = BASE) -> list[float]:
    """Each round's value of one server as a multiple of the other's; those rounds alone that have both."""
    pairs = zip(samples.get(server, []), samples.get(against, []), strict=False)
    values = [(_value(ours, what), _value(theirs, what)) for ours, theirs in pairs]
    return [ours / theirs if theirs else math.inf for ours, theirs in values if ours is not None and theirs is not None]


def _value(sample: Sample, what: Measure) -> float | None:
    if what is Measure.THROUGHPUT:
        return sample.throughput
    return sample.processor if what is Measure.PROCESSOR else sample.latency


def ratios(comparison: Comparison, server: str, what: Measure, against: str = BASE) -> Spread | None:
    """The result: None where it is refused, and where there is none."""
    if comparison.refused or what.value in comparison.unsteady.get(server, {}):
        return None
    found = per_round(comparison.samples, server, what, against)
    return spread(found) if found else None
