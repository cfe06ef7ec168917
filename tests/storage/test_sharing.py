"""Sets of blocks, against sets of single bytes."""

import math
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdresize.storage import sharing
from nbdresize.storage.sharing import Blocks, Places, held, places, spaces

Ranges = list[tuple[int, int]]
RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=10)
FILES = st.lists(st.tuples(RANGES, st.integers(0, 5)), max_size=5)


def made(ranges: Ranges) -> Places:
    return places([start for start, _ in ranges], [start + length for start, length in ranges])


def members(*files: Ranges) -> set[int]:
    return {byte for ranges in files for start, length in ranges for byte in range(start, start + length)}


def listed(found: Places) -> list[int]:
    return [byte for start, end in zip(found.starts, found.ends, strict=True) for byte in range(start, end)]


@given(RANGES)
def test_a_set_is_sorted_and_has_each_byte_once(ranges: Ranges) -> None:
    found = made(ranges)
    assert listed(found) == sorted(members(ranges))
    assert found.total() == len(members(ranges))
    edges = [edge for pair in zip(found.starts, found.ends, strict=True) for edge in pair]
    assert all(before < after for before, after in pairwise(edges))  # touching ones are merged


@given(RANGES, RANGES)
def test_union(first: Ranges, second: Ranges) -> None:
    assert made(first) | made(second) == made(first + second)
    assert made(first) | Places() == made(first)


@given(FILES)
def test_each_file_counts_what_none_before_it_has(files: list[tuple[Ranges, int]]) -> None:
    expected = [
        len(members(ranges) - members(*(earlier for earlier, _ in files[:index]))) + alone
        for index, (ranges, alone) in enumerate(files)
    ]
    assert spaces(Blocks(made(ranges), alone) for ranges, alone in files) == expected


@given(FILES, FILES)
def test_held_is_what_none_of_the_others_has(files: list[tuple[Ranges, int]], but: list[tuple[Ranges, int]]) -> None:
    expected = len(members(*(ranges for ranges, _ in files)) - members(*(ranges for ranges, _ in but)))
    expected += sum(alone for _, alone in files)
    blocks = [Blocks(made(ranges), alone) for ranges, alone in files]
    assert held(blocks, [Blocks(made(ranges), alone) for ranges, alone in but]) == expected


@given(RANGES, RANGES)
def test_difference(first: Ranges, second: Ranges) -> None:
    assert listed(made(first) - made(second)) == sorted(members(first) - members(second))
    assert made(first) - Places() == made(first)


def test_what_one_file_adds_to_many_costs_a_look_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at all that came before together, again and again. They have no block in common."""
    count, extents, looked = 64, 100, []

    def counted(numbers: Iterable[int]) -> list[int]:
        found = sorted(numbers)
        looked.append(len(found))
        return found

    files = [Blocks(made([(2 * (index + (count + 1) * at), 1) for at in range(extents)])) for index in range(count + 1)]
    monkeypatch.setattr(sharing, "sorted", counted, raising=False)
    assert held(files[-1:], files[:-1]) == extents
    assert sum(looked) <= 5 * count * extents
    looked.clear()
    assert held(files, []) == (count + 1) * extents
    assert sum(looked) <= 4 * count * extents * math.log2(count)


def test_places_as_high_as_a_file_system_has_them() -> None:
    end = 2**64 - 1
    both = places([end - 4096, 0], [end, 4096])
    assert both.total() == 8192
    assert (both - both).total() == 0
    assert both - places([0], [4096]) == places([end - 4096], [end])
