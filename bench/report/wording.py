"""Numbers and verdicts, the same in tables, charts and on the terminal."""

from bench.model import Comparison, Spread, Target
from bench.rounds import Measure, bounds, ratios

NONE = "—"
REFUSED = "refused"
TITLES = {
    Measure.THROUGHPUT: "Throughput",
    Measure.PROCESSOR: "Server CPU per request",
    Measure.LATENCY: "Median latency",
}


def number(value: float) -> str:
    """Three digits that count, and thousands set apart: `0.0123`, `4.5`, `12,300`."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def with_range(spread: Spread) -> str:
    return f"{number(spread.median)} ({number(spread.lowest)}–{number(spread.highest)})"


def ratio(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.lowest:.2f}–{spread.highest:.2f})"


def cell(comparison: Comparison, server: str, what: Measure) -> str:
    """A server's ratio, that there is none, or that it is refused, with from where to where it may be."""
    if server not in comparison.samples:
        return NONE
    found = ratios(comparison, server, what)
    if found is not None:
        return ratio(found)
    if (within := bounds(comparison, server, what)) is not None:
        return f"{REFUSED}, {within[0]:.2f}–{within[1]:.2f}"
    return REFUSED if comparison.refused or what.value in comparison.unsteady.get(server, {}) else NONE


def wanted(target: Target, what: Measure) -> float | None:
    """What is asked of that measure."""
    if what is Measure.THROUGHPUT:
        return target.throughput
    return target.processor if what is Measure.PROCESSOR else target.latency


def sign(lower_is_better: bool) -> str:
    return "≤" if lower_is_better else "≥"


def verdict(spread: Spread | None, asked: float, *, lower_is_better: bool) -> str:
    """Whether the median meets it; `narrowly` where some rounds say the other."""
    if spread is None:
        return "not known"
    met = spread.median <= asked if lower_is_better else spread.median >= asked
    surely = not spread.lowest < asked < spread.highest
    return ("met" if met else "missed") + ("" if surely else ", narrowly")


def of_target(comparison: Comparison, target: Target, what: Measure) -> str | None:
    """`≥ 1.8: met`; None where nothing is asked."""
    asked = wanted(target, what)
    if asked is None:
        return None
    lower = what is not Measure.THROUGHPUT
    found = ratios(comparison, target.server, what)
    within = bounds(comparison, target.server, what)
    if within is not None and not within[0] < asked < within[1]:  # wherever in there it is
        found = Spread(within[1] if lower else within[0], *within)
    return f"{sign(lower)} {asked:.3g}: {verdict(found, asked, lower_is_better=lower)}"


def reasons(comparison: Comparison) -> list[str]:
    """Why there are refused cells."""
    if comparison.refused:
        return [comparison.refused]
    return [why for measures in comparison.unsteady.values() for why in measures.values()]


def servers_of(comparisons: list[Comparison]) -> list[str]:
    """All that take part, in the order of their first appearance."""
    return list(dict.fromkeys(server for comparison in comparisons for server in comparison.samples))
