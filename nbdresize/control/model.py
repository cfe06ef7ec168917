"""What control answers with: values that stay as they were when they were read. Sizes in bytes."""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from nbdresize.units import SizeRequest

MAX_DISKS = 8
"""Slots of a VM: disk0 to disk7."""

MAX_SNAPSHOTS = 128
"""Of a VM, unless its package says otherwise (RFD 44, "Limits on the Number of Snapshots")."""


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
    pool. `size` is what clients may use; `pending_size` is the other end of a resize that is under way. `image` is what
    it was made from, and `minimum` the size of that: it never gets smaller.
    """

    id: int
    vm: str
    slot: int
    size: int
    generation: int
    volume: str
    pending_size: int | None = None
    image: str | None = None
    minimum: int = 0

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


@dataclass(frozen=True)
class Allowed:
    """What the switches of the site, the owner and the VM together leave to a VM.

    `client_resize` is what its clients may do to sizes; None leaves that to the server, which may be stricter too.
    """

    client_resize: ClientResize | None = None
    snapshots: bool = True
    flexible_disks: bool = True


@dataclass(frozen=True)
class VM:
    """A VM with its disks by slot. `budget` is the most that they and its snapshots may take together.

    `reserved` is what changes take that are just under way, beyond the sizes of `disks`; `snapshot_space` is what
    snapshots are charged. `image_space` is the part of the budget that the image brought. `flexible` is what its
    package says. `allowed` is what all switches together leave to it; `client_resize` only its own.
    """

    id: int
    name: str
    budget: int
    disks: tuple[Disk, ...] = ()
    owner: str | None = None
    reserved: int = 0
    client_resize: ClientResize | None = None
    snapshot_space: int = 0
    snapshots: int = 0
    package: str | None = None
    image: str | None = None
    image_space: int = 0
    protected: bool = False
    flexible: bool = True
    snapshot_limit: int = MAX_SNAPSHOTS
    allowed: Allowed = Allowed()

    @property
    def used(self) -> int:
        return sum(disk.size for disk in self.disks) + self.reserved + self.snapshot_space

    @property
    def free(self) -> int:
        return self.budget - self.used


@dataclass(frozen=True)
class Package:
    """What a VM is sold as. `default_disks` are the disks of a VM that asks for none: None is the image's size.

    A package that is not `flexible` fixes the disks: the image's, and one of `disk_space`. `max_image` is the largest
    image that it takes.
    """

    id: int
    name: str
    disk_space: int
    flexible: bool = True
    default_disks: tuple[SizeRequest | None, ...] = ()
    max_image: int | None = None
    snapshot_limit: int = MAX_SNAPSHOTS


@dataclass(frozen=True)
class Image:
    """What disks are made from. No disk of it is smaller than `size`; `original_size` is what it adds to a budget.

    They differ where the image was made from a disk that had been grown, so that this buys nobody space. `space` is
    what it takes in the pool.
    """

    id: int
    name: str
    size: int
    original_size: int
    space: int
    volume: str
    created: int


@dataclass(frozen=True)
class DiskSource:
    """A disk of a VM to make an image from, as it is now, or as it is in a snapshot of that name."""

    vm: str
    disk: str
    snapshot: str | None = None


@dataclass(frozen=True)
class SnapshotDisk:
    """One disk as it was at a snapshot's instant. `space` is what it is charged.

    `shared`: it shares its blocks with the disk until that is written; else it is a copy in full. `preallocated`: the
    disk's space was reserved.
    """

    disk_id: int
    slot: int
    size: int
    space: int
    volume: str
    image: str | None = None
    minimum: int = 0
    shared: bool = True
    preallocated: bool = False

    @property
    def name(self) -> str:
        return f"disk{self.slot}"


@dataclass(frozen=True)
class Snapshot:
    """All disks of a VM at one instant; `created` in seconds since 1970."""

    id: int
    vm: str
    name: str
    created: int
    disks: tuple[SnapshotDisk, ...] = ()

    @property
    def size(self) -> int:
        return sum(disk.size for disk in self.disks)

    @property
    def space(self) -> int:
        return sum(disk.space for disk in self.disks)

    @property
    def copied(self) -> int:
        """What had to be copied since it could not share blocks with its disk, as far as it takes space."""
        return sum(disk.space for disk in self.disks if not disk.shared)


@dataclass(frozen=True)
class SnapshotReport:
    """The snapshots of a VM, the oldest first, and their space as it was measured.

    `frees`: what the deletion of each would give back to the budget, by name. `held`: what only snapshots still have,
    while the disks have other blocks by now, or none.
    """

    vm: str
    snapshots: tuple[Snapshot, ...]
    frees: Mapping[str, int]
    held: int

    @property
    def space(self) -> int:
        """What all of them together are charged."""
        return sum(snapshot.space for snapshot in self.snapshots)


@dataclass(frozen=True)
class Pool:
    """How much the pool holds, and how much is promised. `capacity` 0 is without limit.

    `rollbacks` is what the copies take that are there twice while disks are brought back.
    `overcommit` is how many times the capacity may be promised; None for any number of times. `available` is what its
    file system has left now.
    """

    capacity: int
    available: int
    budgets: int
    images: int
    overcommit: Fraction | None
    rollbacks: int = 0

    @property
    def promised(self) -> int:
        return self.budgets + self.images + self.rollbacks


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
class DiskUpdate:
    """A new size for the disk in `slot`; smaller only where `shrink` says so."""

    slot: int
    size: SizeRequest
    shrink: bool = False

    @property
    def name(self) -> str:
        return f"disk{self.slot}"


@dataclass(frozen=True)
class DiskChanges:
    """Changes of several disks that all happen or none does.

    `add`: sizes of new disks, in the first empty slots; None stands for the image's size, for a new boot disk only.
    `remove`: slots.
    """

    add: tuple[SizeRequest | None, ...] = ()
    update: tuple[DiskUpdate, ...] = ()
    remove: tuple[int, ...] = ()


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


@dataclass(frozen=True)
class ChangeOutcome:
    """What a change of several disks did: the new disks, what was resized, and the names of those deleted.

    `resized` leaves out disks that had their new size already, unless there was nothing else to do.
    """

    vm: str
    operation: str
    added: tuple[Disk, ...] = ()
    resized: tuple[ResizeOutcome, ...] = ()
    removed: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()


@dataclass(frozen=True)
class GuestNote:
    """What a guest was last told of a disk, at `at`, in seconds since 1970.

    `size` is what its QEMU then said the disk has; None where it does not use the disk, or never said. Unless `done`,
    something is left to be told, and `detail` says why.
    """

    disk_id: int
    size: int | None
    done: bool
    detail: str
    at: int


@dataclass(frozen=True)
class GuestDisk:
    """A disk, of `size` bytes, and what its VM's guest knows of it."""

    name: str
    size: int
    note: GuestNote

    @property
    def pending(self) -> bool:
        """Whether the guest is still to learn something: also of a change that nobody told it of."""
        return not self.note.done or self.note.size not in (None, self.size)


@dataclass(frozen=True)
class Guest:
    """The guest that was attached to a VM: the sockets of its QEMU's QMP and of its guest agent.

    `attached` in seconds since 1970; `disks` are those that it has been told of.
    """

    vm: str
    qmp: str
    agent: str | None
    attached: int
    disks: tuple[GuestDisk, ...] = ()

    @property
    def pending(self) -> tuple[GuestDisk, ...]:
        return tuple(disk for disk in self.disks if disk.pending)


class OperationState(enum.Enum):
    """Where an operation stands. FAILED and CANCELLED ones have been undone."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Progress:
    """How far a long step of an operation has come, in bytes; or in what is `counted`, such as VMs."""

    step: str
    done: int
    total: int
    counted: str = ""


@dataclass(frozen=True)
class Operation:
    """A change that is under way, or was. Times in seconds since 1970; `error` says why it failed.

    `subject` is the VM, or the image, that it changes.
    """

    id: str
    kind: str
    subject: str
    state: OperationState
    started: float
    finished: float | None = None
    progress: Progress | None = None
    stages: tuple[Stage, ...] = ()
    error: str | None = None
    cancelling: bool = False
    pid: int | None = None
