"""What is known of figures and of the points of curves: by how many measurements, and whether it is told at all.

A median of several measurements is refused by the rule of `bench.certainty`, as a ratio is. What was measured once, and
the slowest of many, are what was seen: they are told as that, and never refused.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench import certainty
from bench.model import Curve, Figure, Section, Spread
from bench.report.wording import NONE, REFUSED, number, sign, verdict, with_range


@dataclass(frozen=True)
class Point:
    """One of a curve. Without samples it was measured once."""

    line: str
    x: float
    y: float
    samples: list[float]
    refused: str = ""


def refusal(figure: Figure) -> str:
    """Why there is no number; empty where there is one."""
    if figure.counted:
        return _too_wide(figure.samples, figure.name, figure.unit)
    if figure.part != 0.5 and figure.samples:
        return _unknown_quantile(figure)
    return _unknown(figure.samples, figure.name, figure.unit)


def interval(figure: Figure) -> tuple[float, float] | None:
    """Within which the true value lies with at least 90 %; None where that is not known."""
    if figure.counted:
        return figure.value.lowest, figure.value.highest
    if len(figure.samples) < certainty.FEWEST:
        return None
    if figure.part == 0.5:
        return certainty.interval(figure.samples)
    return certainty.interval_of(figure.part, figure.samples)


def _unknown_quantile(figure: Figure) -> str:
    often = f"measured {_times(len(figure.samples))}"
    found = certainty.interval_of(figure.part, figure.samples)
    if found is None:
        return f"{figure.name} is not known: {often}, which takes at least {certainty.fewest_for(figure.part)} times"
    if not certainty.is_wide(found, figure.value.median):
        return ""
    return f"{figure.name} is somewhere from {_between(found, figure.unit)} ({often}), which is too wide"


def points(curve: Curve) -> Iterator[Point]:
    """All, line by line."""
    for line, each in curve.lines.items():
        for x, y in each:
            samples = curve.samples_at(line, x)
            yield Point(line, x, y, samples, _unknown(samples, f"{curve.name}, {line} at {x:,g}", curve.y))


def refusals(section: Section) -> list[str]:
    """Why which figures and points of curves have no number."""
    found = [refusal(figure) for figure in section.figures]
    found += [point.refused for curve in section.curves for point in points(curve)]
    return [why for why in found if why]


def refused_names(section: Section) -> list[str]:
    """Those figures, and the curves with such points."""
    figures = [figure.name for figure in section.figures if refusal(figure)]
    return figures + [curve.name for curve in section.curves if any(point.refused for point in points(curve))]


def _unknown(samples: Sequence[float], name: str, unit: str) -> str:
    if len(samples) < 2:
        return ""
    few = certainty.too_few(len(samples), "measurements")
    return f"{name}: {few}" if few else _too_wide(samples, name, unit)


def _too_wide(samples: Sequence[float], name: str, unit: str) -> str:
    if not all(math.isfinite(sample) for sample in samples):
        return f"{name} could not be measured each time"
    wide = certainty.too_wide(samples) if samples else None
    if wide is None:
        return ""
    return f"{name} is somewhere from {_between(wide, unit)} (measured {len(samples)} times), which is too wide"


def _between(ends: tuple[float, float], unit: str) -> str:
    return f"{number(ends[0])} to {number(ends[1])} {unit}"


# In words


def cell(figure: Figure) -> str:
    """The number: with lowest and highest where there are several."""
    return REFUSED if refusal(figure) else _shown(figure.value, figure.samples if figure.part == 0.5 else [])


def point_cell(point: Point) -> str:
    if point.refused:
        return REFUSED
    return _shown(Spread.of(point.samples), point.samples) if point.samples else number(point.y)


def _shown(value: Spread, samples: Sequence[float]) -> str:
    once = len(samples) == 1 or (value.lowest == value.highest and not samples)
    return number(value.median) if once else with_range(value)


def how_often(figure: Figure) -> str:
    """What the number is taken from."""
    if figure.extreme_of is not None:
        return f"the highest of {figure.extreme_of:,}"
    if figure.samples:
        return _times(len(figure.samples))
    return "once" if figure.value.lowest == figure.value.highest else NONE


def how_often_each(curve: Curve) -> str:
    """Of all points of a curve."""
    numbers = [max(1, len(point.samples)) for point in points(curve)]
    least, most = min(numbers), max(numbers)
    if most == 1:
        return "Each point was measured once."
    often = f"{most} times" if least == most else f"{least} to {most} times"
    return f"Each point was measured {often}: the median, with the lowest and the highest."


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number:,} times"


def of_figure(figure: Figure) -> str:
    """`≤ 20: met`; empty where nothing is asked."""
    if figure.target is None:
        return ""
    lower = figure.lower_is_better
    found = None if refusal(figure) else figure.value
    return f"{sign(lower)} {number(figure.target)}: {verdict(found, figure.target, lower_is_better=lower)}"
