"""Arithmetic with sets of blocks: which bytes of a file system several files take together, and which one adds."""

import operator
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, compress, islice

_END = 2**64 - 1


def _none() -> "array[int]":
    return array("Q")


@dataclass(frozen=True)
class Places:
    """A set of bytes, as ranges that are sorted and neither overlap nor touch: the n-th is starts[n] to ends[n].

    Sixteen bytes of memory a range; all work is done by the interpreter's own loops, so that a file of a million
    extents takes about a second.
    """

    starts: "array[int]" = field(default_factory=_none)
    ends: "array[int]" = field(default_factory=_none)

    def total(self) -> int:
        """How many bytes are in it."""
        return sum(self.ends) - sum(self.starts)

    def __or__(self, other: "Places") -> "Places":
        return places(chain(self.starts, other.starts), chain(self.ends, other.ends))

    def __and__(self, other: "Places") -> "Places":
        """Of two sets no byte is in more than both, so that each start comes before the end that is next but one.

        Hence exactly where a start lies before the end before it, sorted each by themselves, both have begun and
        neither has ended.
        """
        starts = sorted(chain(self.starts, other.starts))[1:]
        ends = sorted(chain(self.ends, other.ends))
        both = array("b", map(operator.lt, starts, ends))
        return Places(array("Q", compress(starts, both)), array("Q", compress(ends, both)))

    def __sub__(self, other: "Places") -> "Places":
        starts, ends = array("Q", [0]) + other.ends, other.starts + array("Q", [_END])
        first, last = int(ends[0] == 0), len(starts) - int(starts[-1] == _END)
        return self & Places(starts[first:last], ends[first:last])


def places(starts: Iterable[int], ends: Iterable[int]) -> Places:
    """The union of ranges that are not empty, in any order: the n-th is the n-th start to the n-th end.

    Sorted each by itself, a gap lies before a start exactly where it is larger than the end before it: then all
    ranges that have begun have ended.
    """
    sorted_starts, sorted_ends = sorted(starts), sorted(ends)
    if not sorted_starts:
        return Places()
    gaps = array("b", map(operator.gt, islice(sorted_starts, 1, None), sorted_ends))
    return Places(
        array("Q", chain(sorted_starts[:1], compress(islice(sorted_starts, 1, None), gaps))),
        array("Q", chain(compress(sorted_ends, gaps), sorted_ends[-1:])),
    )


@dataclass(frozen=True)
class Blocks:
    """What one file takes: the `places` that are known, and as many bytes that nobody else can be known to have."""

    places: Places = field(default_factory=Places)
    alone: int = 0


def spaces(files: Iterable[Blocks]) -> list[int]:
    """Of each file, the bytes that none before it has."""
    found: list[int] = []
    union = Places()
    total = 0
    for file in files:
        union |= file.places
        before, total = total, union.total()
        found.append(total - before + file.alone)
    return found


def alone(files: Sequence[Blocks]) -> list[int]:
    """Of each file, the bytes that no other has."""
    union, several = Places(), Places()
    for file in files:
        several |= union & file.places
        union |= file.places
    return [file.places.total() - (file.places & several).total() + file.alone for file in files]


def held(files: Sequence[Blocks], but: Iterable[Blocks]) -> int:
    """The bytes that `files` have together, and none of `but`, which are taken away one by one.

    So with many files before it, what one adds costs no more than a look at each of them.
    """
    left = _union(file.places for file in files)
    for file in but:
        left -= file.places
    return left.total() + sum(file.alone for file in files)


def _union(sets: Iterable[Places]) -> Places:
    """All of them, each added to another that was made of as many: not to one that grows all the time."""
    made: list[tuple[int, Places]] = []
    for one in sets:
        count, union = 1, one
        while made and made[-1][0] == count:
            union |= made.pop()[1]
            count *= 2
        made.append((count, union))
    whole = Places()
    for _, union in reversed(made):
        whole |= union
    return whole
