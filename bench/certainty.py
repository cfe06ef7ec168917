"""How well the median of a few measurements is known, and when that is too little to tell it.

Between the k-th lowest and the k-th highest of n independent measurements lies the true median with a probability that
depends on n and k alone, however the values are distributed: that of k to n - k heads in n tosses of a coin. `interval`
is the narrowest of these that is wrong at most once in ten.

Whoever looks at what there is and measures on where it is too wide gets several chances to be wrong, which add up. So
there are three looks at most, their numbers fixed before (`looks`), and what they may be wrong together is bounded: 7 %
up to the first, 8 % up to the second, 10 % in all. With 5 rounds these are, after 5, from the lowest to the highest
(wrong in 6.2 %); after 8 the same (0.8 %); after 11 without one at each end (1.2 %): together 8.2 % at most, whenever
it ends and whatever made it end.

That is what is wrong of all ratios, those that are refused among them. Of the ones that are told as numbers it may be
more, since these are chosen for intervals that are narrow, some of them by chance.

The values have to be independent of each other. Rounds and repetitions are, nearly; requests of one load are not.
"""

import itertools
import math
import statistics
from collections.abc import Sequence

FEWEST = 5
"""Measurements without which nothing is known: of four, one in eight times all lie on one side of the true median."""
_WRONG = (0.07, 0.08, 0.1)
_EACH_SIDE = 0.05
_WIDEST = 0.3
"""Of the median."""


def looks(first: int) -> list[int]:
    """After how many measurements to decide whether they do, where `first` are taken at least."""
    return [first, first + (first + 2) // 2, 2 * first + 1]


def interval(values: Sequence[float], planned: Sequence[int] = ()) -> tuple[float, float]:
    """Within which the true median lies with at least 90 %; of fewer than five values, their lowest and highest.

    `planned` are the looks after which it could have ended; nothing where there was to be one alone.
    """
    ordered = sorted(values)
    cut = _cut(len(ordered), planned)
    return ordered[cut], ordered[len(ordered) - 1 - cut]


def _cut(number: int, planned: Sequence[int]) -> int:
    """How many of the lowest and of the highest are left out."""
    limits = _WRONG if planned else _WRONG[-1:]
    taken = [*(look for look in planned if look < number), number]
    spent, cut = 0.0, 0
    for place, look in enumerate(taken):
        left = limits[min(place, len(limits) - 1)] - spent
        cut = max(_widest_cut(look, left), 0)
        spent += wrong(look, cut)
    return cut


def _widest_cut(number: int, allowed: float) -> int:
    """Which of that many values is wrong in no more than `allowed`; -1 where not even the range of all of them is."""
    tosses, term, total = 1 << (number - 1), 1, 0
    for cut in range((number + 1) // 2):
        total += term
        if total / tosses > allowed:
            return cut - 1
        term = term * (number - cut) // (cut + 1)
    return (number - 1) // 2


def interval_of(part: float, values: Sequence[float]) -> tuple[float, float] | None:
    """The same for the quantile `part` that `interval` is for the median; None where there are too few values.

    Of n tosses of a coin that falls on one side with that probability: fewer than `low` or more than `high` heads are
    each seen at most once in twenty.
    """
    ordered, number = sorted(values), len(values)
    counts = range(number + 1)
    ways = [math.lgamma(number + 1) - math.lgamma(heads + 1) - math.lgamma(number - heads + 1) for heads in counts]
    chances = [
        math.exp(way + heads * math.log(part) + (number - heads) * math.log(1 - part))
        for heads, way in zip(counts, ways, strict=True)
    ]
    below = list(itertools.accumulate(chances))
    low = sum(chance <= _EACH_SIDE for chance in below)
    high = sum(chance < 1 - _EACH_SIDE for chance in below)
    return None if low == 0 or high >= number else (ordered[low - 1], ordered[high])


def fewest_for(part: float) -> int:
    """How many values it takes to know a high quantile at all: so many that it is hardly ever above all of them."""
    return math.ceil(math.log(_EACH_SIDE) / math.log(part))


def wrong(number: int, cut: int) -> float:
    """How probable it is that the median is not within what remains without the `cut` lowest and highest."""
    return sum(math.comb(number, heads) for heads in range(cut + 1)) / (1 << (number - 1))


def too_wide(values: Sequence[float], planned: Sequence[int] = ()) -> tuple[float, float] | None:
    """From where to where the median may be, where that is too much; None where it is known well enough."""
    found = interval(values, planned)
    return found if is_wide(found, statistics.median(values)) else None


def is_wide(ends: tuple[float, float], middle: float) -> bool:
    """Whether so much is too much to tell the middle alone."""
    return ends[1] - ends[0] > _WIDEST * abs(middle)


def too_few(number: int, what: str) -> str:
    """Why nothing is concluded from so many; empty where something is."""
    return f"{what}: {number}; a result takes at least {FEWEST}" if number < FEWEST else ""
