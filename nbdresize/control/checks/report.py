"""What a check has found, and how a found thing is put right."""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nbdresize.errors import NbdresizeError


class What(enum.Enum):
    """The kinds of problems, as programs see them."""

    LEDGER_DAMAGED = "ledger_damaged"
    DANGLING_ROW = "dangling_row"
    SWITCH_WITHOUT_VM = "switch_without_vm"
    OPERATION_ABANDONED = "operation_abandoned"
    UNFINISHED_CHANGE = "unfinished_change"
    OVER_BUDGET = "over_budget"
    OVER_POOL = "over_pool"
    WRONG_SLOT = "wrong_slot"
    WRONG_SIZE = "wrong_size"
    WRONG_GENERATION = "wrong_generation"
    BELOW_MINIMUM = "below_minimum"
    VOLUME_UNUSABLE = "volume_unusable"
    VOLUME_TOO_LONG = "volume_too_long"
    VOLUME_TOO_SHORT = "volume_too_short"
    VOLUME_NAMED_TWICE = "volume_named_twice"
    VOLUMES_ARE_ONE_FILE = "volumes_are_one_file"
    ORPHAN_VOLUME = "orphan_volume"
    WRONG_CHARGE = "wrong_charge"
    LEFT_BEHIND = "left_behind"
    SERVER_SILENT = "server_silent"
    SERVER_LAGS = "server_lags"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with `subject`. `detail` is a sentence; `way_out` what to do, or what was done."""

    what: What
    subject: str
    detail: str
    way_out: str
    repaired: bool = False
    repairable: bool = False


@dataclass(frozen=True)
class Skipped:
    """What could not be looked at, since somebody changes it at this moment."""

    subject: str
    detail: str


@dataclass(frozen=True)
class CheckReport:
    """How many VMs, disks, snapshots, images and servers were looked at, and what was found.

    `warnings` are no faults of the state directory.
    """

    checked: Mapping[str, int]
    skipped: tuple[Skipped, ...]
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]

    @property
    def remaining(self) -> tuple[Problem, ...]:
        """The problems that were not repaired."""
        return tuple(problem for problem in self.problems if not problem.repaired)


@dataclass(frozen=True)
class Repair:
    """How a problem is put right without risk: what --repair `does`, and what was `done` then.

    `act` raises an NbdresizeError where it can't be done after all.
    """

    does: str
    done: str
    act: Callable[[], None]


@dataclass
class Findings:
    """What has been found so far; with `repair`, what can be put right is put right at once."""

    repair: bool
    checked: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("vms", "disks", "snapshots", "images", "servers"), 0)
    )
    skipped: list[Skipped] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def found(self, what: What, subject: str, detail: str, way_out: str = "", repair: Repair | None = None) -> None:
        """A problem. `way_out` is for people; with a `repair`, it is for where that fails without saying what to do."""
        if repair is None:
            self.problems.append(Problem(what, subject, detail, way_out))
        elif not self.repair:
            does = f"nbdresize check --repair {repair.does}"
            self.problems.append(Problem(what, subject, detail, does, repairable=True))
        else:
            self.problems.append(_repaired(what, subject, detail, way_out, repair))

    def warn(self, what: What, subject: str, detail: str, way_out: str) -> None:
        """Something to know that is no fault."""
        self.warnings.append(Problem(what, subject, detail, way_out))

    def skip(self, subject: str, detail: str) -> None:
        self.skipped.append(Skipped(subject, detail))

    def count(self, kind: str, number: int = 1) -> None:
        self.checked[kind] += number

    def report(self) -> CheckReport:
        return CheckReport(dict(self.checked), tuple(self.skipped), tuple(self.problems), tuple(self.warnings))


def _repaired(what: What, subject: str, detail: str, way_out: str, repair: Repair) -> Problem:
    try:
        repair.act()
    except NbdresizeError as error:
        failed = f"{detail}; it can't be repaired now: {error.problem}"
        return Problem(what, subject, failed, error.way_out or way_out)
    return Problem(what, subject, detail, f"repaired: {repair.done}", repaired=True)
