"""Servers compared round by round, and when the outcome is no result.

A machine's speed drifts, so absolute numbers of two moments can't be compared. Here every round measures all servers
one after the other, each round begins with another one, and what counts is each round's ratio, of which the median is
told with the lowest and the highest.

A ratio of which the median is known no better than to about ± 15 % (an interval wider than 30 % of it, see
`bench.certainty`) is no result. Rounds are then added, and it is looked at again after numbers of rounds that were
fixed before: with 5 rounds, after 8 and after 11. Where that does not help, the ratio is refused. Fewer than five
rounds are a look at the samples, and all ratios are refused.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from enum import StrEnum

from bench import certainty
from bench.certainty import FEWEST
from bench.model import Comparison, Row, Sample, Spread

BASE = "nbdkit file"
"""The server that the others are measured against."""


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


def compare(row: Row, measure: Callable[[str], Sample], rounds: int = FEWEST) -> Comparison:
    """Measure the servers of a row in turn, `rounds` times, and up to `2 * rounds + 1` times while a ratio is unsteady.

    `measure` takes one sample of the server of that name; servers are to be warm already.
    """
    looks = certainty.looks(rounds) if rounds >= FEWEST else [rounds]
    samples: dict[str, list[Sample]] = {server: [] for server in row.servers}
    for look in looks:
        for number in range(min(map(len, samples.values()), default=look), look):
            for server in rotated(row.servers, number):
                samples[server].append(measure(server))
        if not _unsteady(samples, looks):
            break
    return judged(Comparison(row.name, samples, row.targets, looks=looks))


def rotated(servers: Sequence[str], number: int) -> list[str]:
    """The order of a round: the same circle, begun one further each time."""
    start = number % len(servers) if servers else 0
    return [*servers[start:], *servers[:start]]


def judged(comparison: Comparison) -> Comparison:
    """The same samples, with what can't be concluded from them."""
    samples = comparison.samples
    rounds = min((len(each) for each in samples.values()), default=0)
    refused, unsteady = certainty.too_few(rounds, "rounds"), _unsteady(samples, comparison.looks)
    if refused:
        unsteady = {}
    elif unsteady and all(
        what.value in unsteady.get(server, {}) or not per_round(samples, server, what)
        for server in samples
        if server != BASE
        for what in Measure
    ):
        first = next(iter(next(iter(unsteady.values())).values()))
        refused = f"after {rounds} rounds, no ratio is steady: {first}"
    return dataclasses.replace(comparison, refused=refused, unsteady=unsteady)


def _unsteady(samples: dict[str, list[Sample]], looks: Sequence[int]) -> dict[str, dict[str, str]]:
    """Why which ratios are no results, by server and measure."""
    if BASE not in samples:
        return {}
    found: dict[str, dict[str, str]] = {}
    for server in samples:
        for what in Measure:
            found_ratios = [] if server == BASE else per_round(samples, server, what)
            if why := _too_wide(found_ratios, looks, f"{server}'s {_WORDS[what]}"):
                found.setdefault(server, {})[what.value] = why
    return found


def _too_wide(ratios: Sequence[float], looks: Sequence[int], name: str) -> str:
    """Why the median of these tells nothing; empty if it does, or if there are none."""
    if not ratios:
        return ""
    if len(ratios) < certainty.FEWEST:
        return f"{name} was measured {len(ratios)} times only"
    if not all(math.isfinite(ratio) and ratio > 0 for ratio in ratios):
        return f"{name} was too little to be measured"
    wide = certainty.too_wide(ratios, looks)
    return f"{name} is somewhere from {wide[0]:.2f} to {wide[1]:.2f} times nbdkit's, which is too wide" if wide else ""


def interval_of_ratio(comparison: Comparison, server: str, what: Measure) -> tuple[float, float]:
    """Within which the true ratio lies with at least 90 %."""
    return certainty.interval(per_round(comparison.samples, server, what), comparison.looks)


def bounds(comparison: Comparison, server: str, what: Measure) -> tuple[float, float] | None:
    """Of a refused ratio, from where to where it may be; None where that isn't known, and where it is not refused."""
    found = per_round(comparison.samples, server, what)
    if len(found) < certainty.FEWEST or not all(math.isfinite(each) and each > 0 for each in found):
        return None
    refused = comparison.refused or what.value in comparison.unsteady.get(server, {})
    return interval_of_ratio(comparison, server, what) if refused else None


def spread(values: Sequence[float]) -> Spread:
    """Raises statistics.StatisticsError where there are none."""
    return Spread.of(values)


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
