"""Sizes in bytes: read from text, shown to people, rounded.

Units are binary throughout, as in qemu-img and nbdkit: `20G` is 20 × 2^30 bytes.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from nbdresize.errors import InvalidArgument

GRANULARITY = 4096
"""Disks of the ledger are a whole number of these many bytes long."""

MAX_SIZE = 2**63 - GRANULARITY
"""The largest disk, in bytes: file offsets are signed 64-bit numbers."""

_SUFFIXES = "KMGTPE"
_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?:(?P<suffix>[KMGTPE])(?:i?B)?|B)?", re.IGNORECASE | re.ASCII)
_LONGEST_TEXT = 40
_WAY_OUT = "give a size such as 20G, 512M or 1048576"


@dataclass(frozen=True)
class SizeRequest:
    """A size as somebody asks for it: `20G` (exact), `+5G` (relative to now) or `remaining` (all that is free).

    Exactly one of the three is set: `exact` and `relative` in bytes.
    """

    exact: int | None = None
    relative: int | None = None
    remaining: bool = False

    def __str__(self) -> str:
        if self.exact is not None:
            return format_size(self.exact)
        if self.relative is not None:
            return f"+{format_size(self.relative)}"
        return "remaining"


REMAINING = SizeRequest(remaining=True)


def parse_size(text: str) -> int:
    """The bytes that `text` stands for: `1048576`, `512M`, `1.5G`, `20 GiB`.

    Raises InvalidArgument for anything else, for less than one byte, and for more than MAX_SIZE.
    """
    shown = _shown(text)
    match = _SIZE.fullmatch(text.strip()) if len(text) <= _LONGEST_TEXT else None
    if match is None:
        raise InvalidArgument(f"{shown} is not a size", _WAY_OUT)
    factor = 1024 ** (_SUFFIXES.index(match["suffix"].upper()) + 1) if match["suffix"] else 1
    whole, _, decimals = match["number"].partition(".")
    numerator, denominator = int(whole + decimals) * factor, int(10 ** len(decimals))
    if numerator % denominator:
        raise InvalidArgument(f"{shown} is not a whole number of bytes", _WAY_OUT)
    size = numerator // denominator
    if size == 0:
        raise InvalidArgument(f"A size of {shown} is nothing", "give a size of at least 4K")
    if size > MAX_SIZE:
        raise InvalidArgument(f"{shown} is more than the largest disk, {format_size(MAX_SIZE)}", _WAY_OUT)
    return size


def parse_size_request(text: str) -> SizeRequest:
    """What `text` asks for: a size, `+` and a size, or `remaining`. Raises InvalidArgument."""
    stripped = text.strip()
    if stripped.lower() == "remaining":
        return REMAINING
    if stripped.startswith("+"):
        return SizeRequest(relative=parse_size(stripped[1:]))
    if stripped.startswith("-"):
        raise InvalidArgument(f"{_shown(text)} is negative", "give the new size itself, such as 20G; +5G adds")
    return SizeRequest(exact=parse_size(stripped))


def format_size(size: int) -> str:
    """`size` bytes for people: `20 GiB`, `10000 bytes`; no two sizes look the same.

    Where two decimals do not say it exactly, the bytes follow: `20.00 GiB (21474840576 bytes)`. Negative sizes, which
    differences can be, are fine.
    """
    if abs(size) < 1024:
        return f"{size} byte" if size == 1 else f"{size} bytes"
    exponent = min((abs(size).bit_length() - 1) // 10, len(_SUFFIXES))
    while exponent and size % 1024**exponent and size % 1024 ** (exponent - 1) == 0 and abs(size) < 1024**exponent * 10:
        exponent -= 1
    if exponent == 0:
        return f"{size} bytes"
    unit, name = 1024**exponent, f"{_SUFFIXES[exponent - 1]}iB"
    if size % unit == 0:
        return f"{size // unit} {name}"
    hundredths = round(Fraction(100 * size, unit))
    sign, shown = "-" if size < 0 else "", f"{abs(hundredths) // 100}.{abs(hundredths) % 100:02}"
    exact = "" if hundredths * unit == size * 100 else f" ({size} bytes)"
    return f"{sign}{shown} {name}{exact}"


def round_up(size: int, multiple: int = GRANULARITY) -> int:
    """The smallest multiple of `multiple` that is at least `size`."""
    return -(-size // multiple) * multiple


def round_down(size: int, multiple: int = GRANULARITY) -> int:
    """The largest multiple of `multiple` that is at most `size`."""
    return size // multiple * multiple


def _shown(text: str) -> str:
    """`text` as an error message quotes it: control characters escaped, bounded in length."""
    return repr(text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "…")
