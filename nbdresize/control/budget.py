"""Who may have how much: the arithmetic of budgets, without the ledger. All sizes in bytes.

Disks are a whole number of GRANULARITY bytes long, so nothing here answers with any other size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nbdresize.control.model import Cause, ResizeOptions
from nbdresize.errors import InsufficientSpace, InvalidArgument, NotAuthorized
from nbdresize.units import GRANULARITY, MAX_SIZE, SizeRequest, format_size, round_down, round_up


@dataclass(frozen=True)
class Account:
    """A VM's budget as a decision sees it; `used` counts all promises, a change under way at its larger size."""

    vm: str
    budget: int
    used: int

    @property
    def free(self) -> int:
        return max(0, self.budget - self.used)

    def refuse(self, what: str, needed: int) -> InsufficientSpace:
        """What to raise where `needed` more bytes are not free."""
        return InsufficientSpace(
            f"{what} needs {_exactly(needed)} more, but VM {self.vm} has {_exactly(self.free)} free "
            f"of its {_exactly(self.budget)}",
            f"ask for at most {_exactly(round_down(self.free))} more, or raise the budget with "
            f"nbdresize vm update {self.vm} --disk-space SIZE",
        )

    def check_new_budget(self, budget: int) -> None:
        """Raises InsufficientSpace where the disks take more than `budget`."""
        if budget < self.used:
            raise InsufficientSpace(
                f"The disks of VM {self.vm} take {_exactly(self.used)}, more than a budget of {_exactly(budget)}",
                f"delete or shrink disks first, or give at least {_exactly(self.used)}",
            )


@dataclass(frozen=True)
class Decision:
    """The size that a disk gets, and why that one."""

    size: int
    cause: Cause


def check_budget(budget: int) -> int:
    """`budget`, where a VM may have it. Raises InvalidArgument."""
    if not _is_number(budget) or not GRANULARITY <= budget <= MAX_SIZE:
        raise InvalidArgument(
            f"A budget of {_number(budget)} is not possible",
            f"give a size from {format_size(GRANULARITY)} to {format_size(MAX_SIZE)}, such as 100G",
        )
    return budget


def decide_new(account: Account, requests: Sequence[SizeRequest], what: Sequence[str]) -> list[int]:
    """The sizes of new disks, named by `what` in messages, in the order of `requests`.

    `remaining` is evaluated last, whatever its place, and may be asked for once. Raises InvalidArgument for a size
    that makes no sense, InsufficientSpace where the budget does not hold all of them.
    """
    if sum(request.remaining for request in requests) > 1:
        raise InvalidArgument("'remaining' was asked for more than once", "give all disks but one a size")
    for request in requests:
        check_request(request, new=True)
    exact = [None if request.remaining else _bytes_of(request) for request in requests]
    promised = sum(size for size in exact if size is not None)
    if promised > account.free:
        raise account.refuse(" and ".join(what), promised)
    rest = round_down(account.free - promised)
    if rest == 0 and None in exact:
        raise InsufficientSpace(
            f"Nothing remains for {what[exact.index(None)]} of the {_exactly(account.budget)} of VM {account.vm}",
            f"raise the budget with nbdresize vm update {account.vm} --disk-space SIZE, or ask for less elsewhere",
        )
    return [rest if size is None else size for size in exact]


def decide_resize(account: Account, what: str, current: int, request: SizeRequest, options: ResizeOptions) -> Decision:
    """The size that a disk of `current` bytes gets.

    Raises InvalidArgument for a size that makes no sense, NotAuthorized for a smaller one without leave to shrink,
    InsufficientSpace where the budget does not reach and `fit` was not asked for.
    """
    check_request(request, fit=options.fit)
    most = largest(account, current)
    if request.remaining:
        return Decision(most, Cause.AS_REQUESTED)
    asked = _bytes_of(request, current)
    size = round_up(asked)
    if size != asked and not options.round_up:
        raise _unaligned(asked)
    if size < current:
        if not options.shrink:
            raise NotAuthorized(
                f"{what} has {_exactly(current)}, and {_exactly(asked)} would cut off its end",
                "shrinking loses what lies there; --dangerous-allow-shrink allows it",
            )
        return Decision(size, _cause(asked, size))
    if size <= most:
        return Decision(size, _cause(asked, size))
    if options.fit:
        return Decision(most, Cause.FITTED)
    raise account.refuse(f"{what} at {_exactly(size)}", size - current)


def largest(account: Account, current: int) -> int:
    """The largest size that the budget allows a disk of `current` bytes now; never less than it has."""
    return max(current, min(current + round_down(account.free), MAX_SIZE))


def _cause(asked: int, size: int) -> Cause:
    return Cause.AS_REQUESTED if asked == size else Cause.ROUNDED_UP


def check_request(request: SizeRequest, *, new: bool = False, fit: bool = False) -> None:
    """Raises InvalidArgument where the request makes no sense, whatever the budget: looked at before anything else.

    `new`: for a disk that is not there yet. `fit`: up to 2^64, because it will be fitted.
    """
    if (request.exact is not None) + (request.relative is not None) + (request.remaining is True) != 1:
        raise InvalidArgument("A size request says not exactly one thing", "give a size, +SIZE, or remaining")
    if request.relative is not None and new:
        raise InvalidArgument("A new disk has no size yet to add to", "give the size itself, such as 20G")
    size = request.relative if request.exact is None else request.exact
    if request.remaining:
        return
    if not _is_number(size) or size is None or size <= 0:
        raise InvalidArgument(f"{_number(size)} is not a size", "give a size such as 20G")
    if size > (2**64 if fit else MAX_SIZE):
        raise InvalidArgument(
            f"{_number(size)} is more than the largest disk, {format_size(MAX_SIZE)}", "give a size such as 20G"
        )
    if new and size % GRANULARITY:
        raise _unaligned(size)


def _bytes_of(request: SizeRequest, current: int = 0) -> int:
    if request.exact is not None:
        return request.exact
    return current + (request.relative or 0)


def _unaligned(size: int) -> InvalidArgument:
    nearest = [str(each) for each in (round_down(size), round_up(size)) if 0 < each <= MAX_SIZE]
    return InvalidArgument(
        f"{size} bytes is no multiple of {GRANULARITY}", f"the nearest sizes are {' and '.join(nearest)}"
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> str:
    """`value` for a message: never thousands of digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if value.bit_length() <= 128 else f"a number of {value.bit_length()} bits"
    return repr(value)[:40]


def _exactly(size: int) -> str:
    """`size` for a message about a difference: to the byte, where the short form rounds."""
    short = format_size(size)
    return f"{short} ({size} bytes)" if "." in short else short
