"""Sets of blocks, against sets of single bytes."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

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


def test_places_as_high_as_a_file_system_has_them() -> None:
    end = 2**64 - 1
    assert places([end - 4096, 0], [end, 4096]).total() == 8192
