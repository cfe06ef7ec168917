"""Sizes as somebody asks for them: what makes no sense whatever the budget is refused here. All sizes in bytes."""

from typing import TypeGuard

from nbdresize.errors import InvalidArgument
from nbdresize.units import GRANULARITY, MAX_SIZE, SizeRequest, format_size, round_down, round_up


def check_request(request: SizeRequest, *, new: bool = False, fit: bool = False, whole: bool = False) -> None:
    """Raises InvalidArgument where the request makes no sense, whatever the budget: looked at before anything else.

    `new`: for a disk that is not there yet. `fit`: up to 2^64, because it will be fitted. `whole`: only a multiple of
    GRANULARITY, because it will not be rounded.
    """
    if (request.exact is not None) + (request.relative is not None) + (request.remaining is True) != 1:
        raise InvalidArgument("A size request says not exactly one thing", "give a size, +SIZE, or remaining")
    if request.relative is not None and new:
        raise InvalidArgument("A new disk has no size yet to add to", "give the size itself, such as 20G")
    size = request.relative if request.exact is None else request.exact
    if request.remaining:
        return
    if not is_number(size) or size <= 0:
        raise InvalidArgument(f"{shown_number(size)} is not a size", "give a size such as 20G")
    if size > (2**64 if fit else MAX_SIZE):
        raise InvalidArgument(
            f"{shown_number(size)} is more than the largest disk, {format_size(MAX_SIZE)}", "give a size such as 20G"
        )
    if whole and size % GRANULARITY:
        nearest = [str(each) for each in (round_down(size), round_up(size)) if 0 < each <= MAX_SIZE]
        raise InvalidArgument(
            f"{size} bytes is no multiple of {GRANULARITY}", f"the nearest sizes are {' and '.join(nearest)}"
        )


def is_number(value: object) -> TypeGuard[int]:
    """Whether `value` is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def shown_number(value: object) -> str:
    """`value` for a message: never thousands of digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if value.bit_length() <= 128 else f"a number of {value.bit_length()} bits"
    return repr(value)[:40]
