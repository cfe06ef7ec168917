"""What control answers with: values that stay as they were when they were read. Sizes in bytes."""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_DISKS = 8
"""Slots of a VM: disk0 to disk7."""


class ClientResize(enum.Enum):
    """What clients may do to the size, on the wire and through `@size`; of two, the earlier one here is the stricter.

    OFF: look at it. GROW: make it larger. ALL: make it smaller too, where nobody else has the disk attached.
    """

    OFF = "off"
    GROW = "grow"
    ALL = "all"

    def within(self, other: "ClientResize | None") -> "ClientResize":
        """What both allow; None allows everything."""
        order = list(ClientResize)
        return self if other is None else min(self, other, key=order.index)


@dataclass(frozen=True)
class Disk:
    """A disk of a VM.

    `name` is `disk0` … `disk7`, by its slot for life; so is `pci_slot`, `0:4:N`. `volume` names its volume in the
    pool. `size` is what clients may use; `pending_size` is the other end of a resize that is under way.
    """

    id: int
    vm: str
    slot: int
    size: int
    generation: int
    volume: str
    pending_size: int | None = None

    @property
    def name(self) -> str:
        return f"disk{self.slot}"

    @property
    def export_name(self) -> str:
        return f"{self.vm}/{self.name}"

    @property
    def boot(self) -> bool:
        return self.slot == 0

    @property
    def pci_slot(self) -> str:
        return f"0:4:{self.slot}"

    @property
    def charged(self) -> int:
        """What the budget is charged: the larger size while a resize is under way."""
        return max(self.size, self.pending_size or 0)


@dataclass(frozen=True)
class VM:
    """A VM with its disks by slot. `budget` is the most that they may take together.

    `reserved` is what disks take that are just being made or deleted, and therefore not listed. `client_resize` is
    what its clients may do to sizes; None leaves it to the server, which may also be stricter.
    """

    id: int
    name: str
    budget: int
    disks: tuple[Disk, ...] = ()
    owner: str | None = None
    reserved: int = 0
    client_resize: ClientResize | None = None

    @property
    def used(self) -> int:
        return sum(disk.charged for disk in self.disks) + self.reserved

    @property
    def free(self) -> int:
        return self.budget - self.used


class Cause(enum.IntEnum):
    """Why a disk has the size that is reported (NBD_REPLY_TYPE_SIZE, field cause)."""

    QUERY = 0
    AS_REQUESTED = 1
    ROUNDED_UP = 2
    FITTED = 3
    CHANGED_BY_ANOTHER = 4
    EXTENDED = 5


@dataclass(frozen=True)
class ResizeOptions:
    """How far a resize may go.

    `shrink`: a smaller size is allowed. `fit`: grow as far as the budget reaches. `round_up`: a size that is no
    multiple of the granularity is rounded up (never past the budget), else it is refused. `disconnect`: clients are
    dropped before a shrink. `wait`: seconds to wait for another change of the VM to end; given up earlier once `wanted`
    says no, since whoever waits on behalf of a client keeps that client's lease.
    """

    shrink: bool = False
    fit: bool = False
    round_up: bool = False
    disconnect: bool = False
    wait: float = 10.0
    wanted: Callable[[], bool] = lambda: True


@dataclass(frozen=True)
class Stage:
    """One step of an outcome: where the new size has arrived, in how many seconds, and what to know about it."""

    name: str
    seconds: float
    detail: str = ""
    done: bool = True


@dataclass(frozen=True)
class ResizeOutcome:
    """What a resize did. `cause` is AS_REQUESTED, ROUNDED_UP or FITTED."""

    vm: str
    disk: str
    old_size: int
    size: int
    generation: int
    cause: Cause
    operation: str
    stages: tuple[Stage, ...] = field(default=())

    @property
    def changed(self) -> bool:
        return self.size != self.old_size
