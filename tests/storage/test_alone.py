"""What each of several files has for itself, against sets of single bytes."""

from hypothesis import given
from hypothesis import strategies as st

from nbdresize.storage.sharing import Blocks, Places, alone, places, spaces

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=8)


def made(ranges: list[tuple[int, int]]) -> Places:
    return places([start for start, _ in ranges], [start + length for start, length in ranges])


def members(ranges: list[tuple[int, int]]) -> set[int]:
    return {byte for start, length in ranges for byte in range(start, start + length)}


def listed(found: Places) -> set[int]:
    return {byte for start, end in zip(found.starts, found.ends, strict=True) for byte in range(start, end)}


@given(RANGES, RANGES)
def test_what_two_sets_have_in_common(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    assert listed(made(first) & made(second)) == members(first) & members(second)


@given(st.lists(st.tuples(RANGES, st.integers(0, 5)), max_size=5))
def test_what_no_other_file_has(files: list[tuple[list[tuple[int, int]], int]]) -> None:
    blocks = [Blocks(made(ranges), unknown) for ranges, unknown in files]
    expected = []
    for index, (ranges, unknown) in enumerate(files):
        others = [members(each) for number, (each, _) in enumerate(files) if number != index]
        expected.append(len(members(ranges).difference(*others)) + unknown)
        left = blocks[:index] + blocks[index + 1 :]
        assert sum(spaces(blocks)) - sum(spaces(left)) == expected[-1]
    assert alone(blocks) == expected
