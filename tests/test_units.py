"""Sizes: read from text, shown to people, rounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdresize.errors import InvalidArgument
from nbdresize.units import (
    GRANULARITY,
    MAX_SIZE,
    REMAINING,
    SizeRequest,
    format_size,
    parse_size,
    parse_size_request,
    round_down,
    round_up,
)

GIB = 2**30
SIZES = st.one_of(
    st.integers(-MAX_SIZE, MAX_SIZE),
    st.builds(
        lambda count, shift, more: (count << shift) + more, st.integers(0, 3000), st.integers(0, 50), st.integers(-2, 2)
    ),
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 1 << 20),
        ("512M", 512 << 20),
        ("512m", 512 << 20),
        ("20G", 20 * GIB),
        ("20GB", 20 * GIB),
        ("20GiB", 20 * GIB),
        ("20 gib", 20 * GIB),
        (" 20G ", 20 * GIB),
        ("4096B", 4096),
        ("1.5G", GIB * 3 // 2),
        ("0.5K", 512),
        ("2T", 2 << 40),
        ("3P", 3 << 50),
        ("7E", 7 << 60),
        ("1", 1),
        (str(MAX_SIZE), MAX_SIZE),
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "G", "many", "20X", "20GG", "20Gi", "2 0G", "0x10", "1e9", "1_000", "1,5G", ".5G", "5.G", "1.2.3G"),
        *(
            "-1",
            "-20G",
            "+20G",
            "20G+",
            "nan",
            "inf",
            "٢٠G",
            "²",
            "20\x00G",
            "20G\n20G",
            "20;G",
            "1" * 41,
            "9" * 10_000,
        ),
    ],
)
def test_what_is_no_size_is_refused_and_named(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_size(text)
    assert "is not a size" in caught.value.problem
    assert caught.value.way_out
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["9999P", "8E", str(MAX_SIZE + 1), "9" * 40])
def test_an_absurd_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="more than the largest disk"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0", "0G", "0.0M"])
def test_nothing_is_no_size(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is nothing"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0.3", "1.0001K"])
def test_parts_of_a_byte_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="not a whole number of bytes"):
        parse_size(text)


def test_the_three_kinds_of_size_requests_are_read() -> None:
    assert parse_size_request("20G") == SizeRequest(exact=20 * GIB)
    assert parse_size_request("+5G") == SizeRequest(relative=5 * GIB)
    assert parse_size_request(" Remaining ") == REMAINING
    assert [str(parse_size_request(text)) for text in ("20G", "+5G", "remaining")] == ["20 GiB", "+5 GiB", "remaining"]


@pytest.mark.parametrize("text", ["-5G", "++5G", "+-5G", "+", "+remaining", "+0", "remaining 5G", "", "all"])
def test_what_is_no_size_request_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_size_request(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (10000, "10000 bytes"),
        (GIB * 3 // 2, "1536 MiB"),
        (GIB * 31 // 2, "15.50 GiB"),
        (20 * GIB, "20 GiB"),
        (-20 * GIB, "-20 GiB"),
        (20 * GIB + 4096, "20.00 GiB (21474840576 bytes)"),
        (20 * GIB - 4096, "20.00 GiB (21474832384 bytes)"),
        (-20 * GIB - 4096, "-20.00 GiB (-21474840576 bytes)"),
        (MAX_SIZE, "8.00 EiB (9223372036854771712 bytes)"),
    ],
)
def test_a_size_is_shown(size: int, text: str) -> None:
    assert format_size(size) == text


@given(SIZES, SIZES)
def test_different_sizes_never_look_the_same(one: int, other: int) -> None:
    assert (format_size(one) == format_size(other)) == (one == other)


@given(SIZES, st.integers(-4096, 4096))
def test_neighbouring_sizes_never_look_the_same(size: int, difference: int) -> None:
    assert (format_size(size) == format_size(size + difference)) == (difference == 0)


@given(st.integers(1, MAX_SIZE))
def test_a_shown_size_can_be_typed_in_again(size: int) -> None:
    shown = format_size(size)
    typed = shown.partition("(")[2].rstrip(")") or shown
    assert parse_size(typed.removesuffix("s").removesuffix("yte")) == size


@given(st.text(max_size=60))
def test_any_text_is_a_request_or_refused(text: str) -> None:
    try:
        request = parse_size_request(text)
    except InvalidArgument:
        return
    chosen = [request.exact is not None, request.relative is not None, request.remaining]
    assert chosen.count(True) == 1
    assert 0 < (request.exact or request.relative or 1) <= MAX_SIZE


@given(st.integers(0, MAX_SIZE), st.sampled_from([1, 512, GRANULARITY, 65536]))
def test_rounding_ends_at_the_nearest_multiple(size: int, multiple: int) -> None:
    down, up = round_down(size, multiple), round_up(size, multiple)
    assert down % multiple == up % multiple == 0
    assert down <= size <= up
    assert up - down == (0 if size % multiple == 0 else multiple)
