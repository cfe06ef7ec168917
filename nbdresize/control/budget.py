"""A VM's space: its budget, what is charged to it, what is free. Without the ledger. All sizes in bytes.

Disks are a whole number of GRANULARITY bytes long, so nothing here answers with any other size for a disk.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from nbdresize.control.packaging import which_fit
from nbdresize.control.size_requests import is_number, shown_number
from nbdresize.errors import InsufficientSpace, InvalidArgument
from nbdresize.units import GRANULARITY, MAX_SIZE, format_size, round_down


@dataclass(frozen=True)
class Account:
    """A VM's budget as a decision sees it (RFD 154, "Keeping track of space").

    `disks` and `snapshots` are what is charged for them: all promises, a change under way at its larger size.
    `packages`, for a VM that has a package: the budget that it would have with each, by name. `new` is a VM that is
    just being made, whose budget can still be asked for as another.
    """

    vm: str
    budget: int
    disks: int
    snapshots: int = 0
    packages: Mapping[str, int] | None = None
    new: bool = False

    @property
    def used(self) -> int:
        return self.disks + self.snapshots

    @property
    def free(self) -> int:
        return max(0, self.budget - self.used)

    @property
    def allocatable(self) -> int:
        """The most that a new disk may take, or that one may grow by."""
        return round_down(self.free)

    def refuse(self, what: str, needed: int, *, verb: str = "needs") -> InsufficientSpace:
        """What to raise where `needed` more bytes are not free."""
        ways = [f"ask for at most {format_size(self.allocatable)} more"] if self.allocatable else []
        return InsufficientSpace(
            f"{what} {verb} {format_size(needed)} more, but VM {self.vm} has {self.state}",
            either([*ways, *self.ways_to_more(needed)]),
        )

    @property
    def state(self) -> str:
        """What there is, for a message that begins with "VM … has"."""
        free = format_size(self.free) if self.free else "nothing"
        if not self.snapshots:
            return f"{free} free of its {format_size(self.budget)}"
        parts = f"disks take {format_size(self.disks)} and snapshots {format_size(self.snapshots)}"
        return f"{free} free of its {format_size(self.budget)}, where {parts}"

    def ways_to_more(self, needed: int) -> list[str]:
        """How the VM comes to `needed` more bytes than are charged to it now."""
        update = f"nbdresize vm update {self.vm}"
        fitting = which_fit(self.used + needed, self.packages or {})
        if self.new:
            ways = ["give a larger --disk-space" if self.packages is None else "choose a larger --package"]
            ways = [f"choose a larger package with --package {fitting[0]}"] if fitting else ways
        elif self.packages is None:
            ways = [f"raise the budget with {update} --disk-space SIZE"]
        else:
            ways = [f"change to a larger package with {update} --package {fitting[0] if fitting else 'NAME'}"]
        if self.snapshots:
            ways.append(f"delete snapshots (nbdresize snapshot list {self.vm} shows what each frees)")
        return ways

    def check_new_budget(self, budget: int) -> None:
        """Raises InsufficientSpace where disks and snapshots take more than `budget`."""
        if budget >= self.used:
            return
        whose, ways = f"The disks of VM {self.vm} take", ["delete or shrink disks first"]
        if self.snapshots:
            whose = f"The disks of VM {self.vm} take {format_size(self.disks)} and its snapshots"
            whose += f" {format_size(self.snapshots)}, together"
            ways = ["delete snapshots or disks, or shrink disks, first"]
        if self.packages is None:
            ways.append(f"give at least {format_size(self.used)}")
        elif fitting := which_fit(self.used, self.packages):
            ways.append(f"choose a package that fits: {', '.join(fitting[:3])}")
        raise InsufficientSpace(
            f"{whose} {format_size(self.used)}, more than a budget of {format_size(budget)}", either(ways)
        )


def check_budget(budget: int) -> int:
    """`budget`, where a VM may have it. Raises InvalidArgument."""
    if not is_number(budget) or not GRANULARITY <= budget <= MAX_SIZE:
        raise InvalidArgument(
            f"A budget of {shown_number(budget)} is not possible",
            f"give a size from {format_size(GRANULARITY)} to {format_size(MAX_SIZE)}, such as 100G",
        )
    return budget


def largest(account: Account, current: int) -> int:
    """The largest size that the budget allows a disk of `current` bytes now; never less than it has."""
    return max(current, min(current + account.allocatable, MAX_SIZE))


def either(ways: list[str]) -> str:
    """Ways out as one phrase: `a`; `a, or b`; `a, b, or c`."""
    *others, last = ways
    return f"{', '.join(others)}, or {last}" if others else last
