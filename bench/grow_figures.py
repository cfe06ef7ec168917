"""What is told of requests around grows: figures, curves, and what is to be said about the slowest."""

from collections.abc import Callable, Sequence

from bench.around_grows import PERCENTILES, By, Growing, Met, Moment
from bench.model import Curve, Figure, Spread

SLOWEST = 50.0
"""Milliseconds that no request may take because of a resize: what the design asks."""

_BEFORE, _AFTER, _BIN = 0.01, 0.04, 0.001
_SHOWN_SECONDS = 1.0


def figures(name: str, found: Growing, met: Met) -> list[Figure]:
    """Each percentile is the median of those of single rounds, since requests of one load depend on each other.

    The slowest is that of all.
    """
    told = []
    groups: tuple[tuple[str, list[Moment]], ...] = (
        *((f"during a grow by {by.value}", [each for each in found.grows if each.by is by]) for by in By),
        ("at moments without a grow", found.control),
    )
    for group, moments in groups:
        if not met.during(moments):
            continue
        for word, pick in PERCENTILES:
            target = SLOWEST if word == "slowest" and moments is not found.control else None
            if word == "slowest":
                latencies = [each * 1e3 for each in met.during(moments)]
                told.append(Figure.slowest(f"{name}, {group}: {word}", "ms", latencies, target))
            else:
                told.append(Figure.of(f"{name}, {group}: {word}", "ms", _of_rounds(met, moments, found, pick)))
    between = [met.outside(found.grows, [period]) for period in found.periods]
    if any(between):
        for word, pick in PERCENTILES:
            values = [pick(each) * 1e3 for each in between if each]
            if word == "slowest":
                latencies = [latency * 1e3 for each in between for latency in each]
                told.append(Figure.slowest(f"{name}, between grows: {word}", "ms", latencies))
            else:
                told.append(Figure.of(f"{name}, between grows: {word}", "ms", values))
    for by in By:
        took = [(each.ended - each.begun) * 1e3 for each in found.grows if each.by is by]
        if took:
            told.append(Figure.of(f"{name}: a grow by {by.value}", "ms", took))
    return told


def _of_rounds(
    met: Met, moments: Sequence[Moment], found: Growing, pick: Callable[[Sequence[float]], float]
) -> list[float]:
    """Milliseconds of each round in which a request met one of these moments."""
    of_round = max(1, len(moments) // len(found.periods))
    rounds = [met.during(moments[at : at + of_round]) for at in range(0, len(moments), of_round)]
    return [pick(each) * 1e3 for each in rounds if each]


def single(value: float) -> Spread:
    """Of what there is only once."""
    return Spread(value, value, value)


def curves(name: str, found: Growing, met: Met) -> list[Curve]:
    """Around all grows, laid over one another; and a stretch of time with single grows in it."""
    around = Curve(
        f"{name}: slowest requests around grows",
        "ms after the begin of a grow, when the request was sent",
        "ms that it took",
        {
            f"with {len(found.grows)} grows": met.around(found.grows, _BEFORE, _AFTER, _BIN),
            "the same moments without": met.around(found.control, _BEFORE, _AFTER, _BIN),
        },
        logarithmic_y=True,
        trace=True,
    )
    return [around, _over_time(name, found, met)]


def remark(name: str, found: Growing, met: Met) -> str:
    """How many requests took longer than they may, with grows and without; empty where there is nothing to say."""
    during, control = met.during(found.grows), met.during(found.control)
    late, late_anyway = (sum(latency * 1e3 > SLOWEST for latency in each) for each in (during, control))
    if not late:
        return ""
    return (
        f"{name}: {late} of {len(during)} requests that met a grow took more than {SLOWEST:g} ms; of {len(control)} at"
        f" as many moments as long without one, {late_anyway} did."
    )


def _over_time(name: str, found: Growing, met: Met) -> Curve:
    """The end of the first run of grows, and the begin of the quiet after it."""
    turn = found.periods[0].ended
    first = Moment(turn, turn)
    half = min(_SHOWN_SECONDS, turn - found.periods[0].begun) / 2
    pulses: list[tuple[float, float]] = []
    for grow in found.grows:
        begun, ended = ((moment - turn) * 1e3 for moment in (grow.begun, grow.ended))
        if -half * 1e3 <= ended and begun < half * 1e3:
            pulses += [(begun, 0.0), (begun, ended - begun), (ended, ended - begun), (ended, 0.0)]
    return Curve(
        f"{name}: slowest request per 5 ms, and grows",
        "ms after the last of a run of grows",
        "ms that it took",
        {"slowest request": met.around([first], half, half, 0.005), "a grow, as high as it is long": pulses},
        trace=True,
    )


def listed(ordered: Sequence[float]) -> str:
    """The percentiles of sorted latencies, in words."""
    return " / ".join(f"{pick(ordered) * 1e3:.2f}" for _, pick in PERCENTILES) + " ms"
