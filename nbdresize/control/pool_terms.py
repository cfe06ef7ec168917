"""How much of the pool may be promised: the sum of budgets and images against its capacity. All sizes in bytes."""

from dataclasses import dataclass
from fractions import Fraction

from nbdresize.errors import InsufficientSpace
from nbdresize.units import format_size


@dataclass(frozen=True)
class PoolTerms:
    """What the pool holds and what is promised of it: `ratio` times the capacity may be.

    A capacity of 0 (a file system that knows none) or a ratio of None is no limit.
    """

    capacity: int
    promised: int
    ratio: Fraction | None = Fraction(1)

    @property
    def limit(self) -> int | None:
        """The most that may be promised; None for any amount."""
        return int(self.capacity * self.ratio) if self.capacity and self.ratio is not None else None

    @property
    def free(self) -> int | None:
        """What may still be promised, never negative; None for any amount."""
        return None if self.limit is None else max(0, self.limit - self.promised)

    def check(self, what: str, more: int) -> None:
        """Raises InsufficientSpace where the pool does not allow `more` bytes to be promised to `what`.

        Whatever promises nothing more is fine, also where too much is promised already.
        """
        if self.free is None or self.ratio is None or more <= self.free:
            return
        free = format_size(self.free) if self.free else "nothing"
        times = "" if self.ratio == 1 else f" {shown_ratio(self.ratio)} times"
        raise InsufficientSpace(
            f"{what} needs {format_size(more)} of the pool, which has {free} left to promise: "
            f"{format_size(self.promised)} of{times} its {format_size(self.capacity)} is promised",
            "lower budgets, delete VMs or images, add space to the pool, or promise more than it holds with "
            "nbdresize pool update --overcommit RATIO",
        )


def shown_ratio(ratio: Fraction) -> str:
    """`ratio` for people: `2`, `1.5`, `1.333`."""
    return f"{float(ratio):.4g}"
