"""Rows of the ledger as values, and back: VMs, their disks, and unfinished changes. Sizes in bytes.

Every function works inside the caller's transaction. What concerns only packages, images, snapshots, switches or
operations stands in the modules of those names.
"""

import enum
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from nbdresize.control import operations, schema, switches
from nbdresize.control.budget import Account
from nbdresize.control.ledger import known
from nbdresize.control.model import MAX_SNAPSHOTS, VM, Cause, Disk, Package, Stage
from nbdresize.errors import StateUnusable


class Kind(enum.Enum):
    """What a change does, as `nbdresize operations` names it."""

    CREATE_VM = "create_vm"
    DELETE_VM = "delete_vm"
    ADD_DISK = "add_disk"
    DELETE_DISK = "delete_disk"
    RESIZE_DISK = "resize_disk"
    CHANGE_DISKS = "change_disks"
    UPDATE_VM = "update_vm"
    CREATE_SNAPSHOT = "create_snapshot"
    DELETE_SNAPSHOT = "delete_snapshot"
    ROLL_BACK = "roll_back"
    ADD_IMAGE = "add_image"
    DELETE_IMAGE = "delete_image"
    CREATE_PACKAGE = "create_package"
    DELETE_PACKAGE = "delete_package"
    SET_SWITCH = "set_switch"
    ATTACH_GUEST = "attach_guest"
    DETACH_GUEST = "detach_guest"
    UPDATE_POOL = "update_pool"


_AT_ONCE = 500
"""Names in one statement."""

WHOLE_VM = frozenset({Kind.CREATE_VM, Kind.DELETE_VM})
"""While such a change is unfinished, users see no VM."""


class Action(enum.Enum):
    """What becomes of one disk. ROLL_BACK puts another volume, which is `staged`, in the place of its own."""

    ADD = "add"
    RESIZE = "resize"
    REMOVE = "remove"
    ROLL_BACK = "roll_back"


@dataclass(frozen=True)
class Step:
    """What an unfinished change does to one disk; a disk that is not there yet, or no longer, has the size 0."""

    disk_id: int
    action: Action
    old_size: int
    new_size: int
    cause: Cause = Cause.AS_REQUESTED
    staged: str | None = None

    @property
    def grows(self) -> bool:
        return self.new_size > self.old_size

    @property
    def shrinks(self) -> bool:
        return self.new_size < self.old_size


@dataclass(frozen=True)
class Intent:
    """An unfinished change.

    Until it is `committed`, users see all as it was before; from then on as it will be, and it is only ever finished.
    `forwards`: so is it before, by whoever finds it, at any time, whoever is attached; that is as it was opened, also
    where disks have been taken out of it since.
    """

    id: int
    operation: str
    kind: Kind
    committed: bool
    vm_id: int | None = None
    snapshot_id: int | None = None
    image_id: int | None = None
    steps: tuple[Step, ...] = ()
    forwards: bool = False

    @property
    def label(self) -> str:
        """What it does to a disk, for messages."""
        return {Kind.RESIZE_DISK: "resize", Kind.ROLL_BACK: "rollback"}.get(self.kind, "change")


@dataclass(frozen=True)
class Entry:
    """A VM as the ledger has it.

    `vm` is what users see. `disks` are all of its disks, also those being made or deleted, and `intents` the changes
    that are under way, or were left by a killed process. `promised` is what the disks are charged.
    """

    vm: VM
    disks: tuple[Disk, ...]
    intents: tuple[Intent, ...]
    promised: int

    @property
    def account(self) -> Account:
        return Account(self.vm.name, self.vm.budget, self.promised, self.vm.snapshot_space)

    @property
    def visible(self) -> bool:
        return not any(intent.kind in WHOLE_VM for intent in self.intents)

    def disk(self, slot: int) -> Disk | None:
        """The disk in that slot, where users see one."""
        return next((disk for disk in self.vm.disks if disk.slot == slot), None)

    def disk_by_id(self, disk_id: int) -> Disk:
        for disk in self.disks:
            if disk.id == disk_id:
                return disk
        raise StateUnusable(
            f"A change of VM {self.vm.name} names a disk that is not its own",
            "see nbdresize check, or restore a backup",
        )

    def intent_of(self, disk: Disk) -> Intent | None:
        """The unfinished change that this disk is part of."""
        return next((each for each in self.intents if any(step.disk_id == disk.id for step in each.steps)), None)

    def staged_of(self, disk: Disk) -> str | None:
        """The volume that an unfinished rollback was to put in the place of this disk's."""
        unfinished = self.intent_of(disk)
        return next((each.staged for each in unfinished.steps if each.disk_id == disk.id), None) if unfinished else None

    def released(self, slots: Sequence[int]) -> dict[int, int]:
        """By slot, what the VM is charged less without these disks, taken away one after the other.

        A disk in an unfinished change is charged together with the others of that, at the larger end of them all; so
        what goes with it may be less than its size.
        """
        gone: set[int] = set()
        found = {}
        for slot in slots:
            disk = self.disk(slot)
            if disk is None:
                continue
            intent = self.intent_of(disk)
            found[slot] = disk.size
            if intent is not None:
                left = [step for step in intent.steps if step.disk_id not in gone]
                found[slot] = _larger(left) - _larger([step for step in left if step.disk_id != disk.id])
            gone.add(disk.id)
        return found

    def disks_of(self, intent: Intent) -> tuple[Disk, ...]:
        """The disks that an intent is about."""
        return tuple(self.disk_by_id(step.disk_id) for step in intent.steps)


def read_vms(connection: sql.Connection, name: str | None = None) -> list[Entry]:
    """All VMs in the order of their names, or the one of that name where there is one."""
    vms, disks = schema.vms, schema.disks
    wanted = sql.select(vms, schema.packages.c.name.label("package"), schema.packages.c.flexible)
    wanted = wanted.add_columns(schema.packages.c.snapshot_limit).outerjoin(schema.packages).order_by(vms.c.name)
    all_disks = sql.select(disks).order_by(disks.c.slot)
    space = _snapshot_space()
    one = None
    if name is not None:
        wanted = wanted.where(vms.c.name == name)
        one = sql.select(vms.c.id).where(vms.c.name == name).scalar_subquery()
        all_disks = all_disks.where(disks.c.vm_id == one)
        space = space.where(schema.snapshots.c.vm_id == one)
    disks_by_vm = _grouped(connection.execute(all_disks).mappings().all(), "vm_id")
    intents_by_vm: dict[int, list[Intent]] = {}
    for intent in read_intents(connection, one):
        if intent.vm_id is not None:
            intents_by_vm.setdefault(intent.vm_id, []).append(intent)
    snapshots = {row["vm_id"]: row for row in connection.execute(space).mappings()}
    rules = switches.read(connection)
    return [
        _entry(
            row, disks_by_vm.get(row["id"], []), intents_by_vm.get(row["id"], []), snapshots.get(row["id"], {}), rules
        )
        for row in connection.execute(wanted).mappings().all()
    ]


def read_vm(connection: sql.Connection, name: str) -> Entry | None:
    """The VM of that name, if there is one, seen or not."""
    return next(iter(read_vms(connection, name)), None)


def read_intents(connection: sql.Connection, vm_id: sql.ScalarSelect[int] | None = None) -> list[Intent]:
    """All unfinished changes, or those of one VM, the oldest first."""
    intents, steps = schema.intents, schema.steps
    wanted = sql.select(intents).order_by(intents.c.id)
    if vm_id is not None:
        wanted = wanted.where(intents.c.vm_id == vm_id)
    rows = connection.execute(wanted).mappings().all()
    if not rows:
        return []
    ids = [row["id"] for row in rows]
    found = connection.execute(sql.select(steps).where(steps.c.intent_id.in_(ids))).mappings()
    steps_by_intent = _grouped(found, "intent_id")
    return [
        Intent(
            row["id"],
            row["operation"],
            known(Kind, row["kind"]),
            row["committed"],
            row["vm_id"],
            row["snapshot_id"],
            row["image_id"],
            tuple(_step(each) for each in steps_by_intent.get(row["id"], [])),
            row["forwards"],
        )
        for row in rows
    ]


@dataclass(frozen=True)
class Unfinished:
    """The names of VMs and of images that have unfinished changes."""

    vms: list[str]
    images: list[str]


def unfinished(connection: sql.Connection) -> Unfinished:
    """Which VMs and images have unfinished changes."""
    vms, images, intents = schema.vms, schema.images, schema.intents
    return Unfinished(
        list(connection.scalars(sql.select(vms.c.name).where(vms.c.id.in_(sql.select(intents.c.vm_id))))),
        list(connection.scalars(sql.select(images.c.name).where(images.c.id.in_(sql.select(intents.c.image_id))))),
    )


def vm_names(connection: sql.Connection, among: Collection[str] | None = None) -> set[str]:
    """The names of all VMs, seen or not; or of those `among` these names."""
    return _names(connection, schema.vms.c.name, among)


def volume_names(connection: sql.Connection, among: Collection[str] | None = None) -> set[str]:
    """Every volume that the ledger knows: of disks, seen or not, of snapshots, of images, and those that are staged.

    Or those of them that are `among` these names: most commands ask only for a few.
    """
    columns = (schema.disks.c.volume, schema.snapshot_disks.c.volume, schema.images.c.volume, schema.steps.c.staged)
    return {name for column in columns for name in _names(connection, column, among)}


def _names(connection: sql.Connection, column: sql.Column[Any], among: Collection[str] | None) -> set[str]:
    wanted = sql.select(column).where(column.is_not(None))
    if among is None:
        return set(connection.scalars(wanted))
    asked = sorted(among)
    pieces = (asked[start : start + _AT_ONCE] for start in range(0, len(asked), _AT_ONCE))
    return {name for piece in pieces for name in connection.scalars(wanted.where(column.in_(piece)))}


def vms_of_volumes(connection: sql.Connection, volumes: Collection[str]) -> set[str]:
    """The names of the VMs that have a disk with one of these volumes."""
    wanted = sql.select(schema.vms.c.name).join(schema.disks).where(schema.disks.c.volume.in_(volumes))
    return set(connection.scalars(wanted)) if volumes else set()


def arguments_of(kind: Kind, **arguments: object) -> str:
    """What an operation was asked to do, in a form to compare with a retry's."""
    return json.dumps({"kind": kind.value, **arguments}, sort_keys=True)


def insert_vm(
    connection: sql.Connection,
    name: str,
    budget: int,
    owner: str | None,
    *,
    package: Package | None = None,
    image: str | None = None,
    image_space: int = 0,
) -> int:
    values = {
        "name": name,
        "budget": budget,
        "owner": owner,
        "package_id": package.id if package else None,
        "image": image,
        "image_space": image_space,
        "protected": False,
    }
    return int(connection.execute(sql.insert(schema.vms).values(values).returning(schema.vms.c.id)).scalar_one())


def update_vm(connection: sql.Connection, vm_id: int, **values: object) -> None:
    """Set columns of a VM: budget, owner, package_id, protected."""
    connection.execute(sql.update(schema.vms).where(schema.vms.c.id == vm_id).values(**values))


def insert_disk(
    connection: sql.Connection,
    vm_id: int,
    slot: int,
    size: int,
    volume: str,
    *,
    image: str | None = None,
    minimum: int = 0,
    disk_id: int | None = None,
) -> int:
    """A new disk; its id. `disk_id` brings back one that was deleted."""
    values = {
        "vm_id": vm_id,
        "slot": slot,
        "size": size,
        "generation": 1,
        "volume": volume,
        "image": image,
        "minimum": minimum,
    }
    if disk_id is not None:
        values["id"] = disk_id
    return int(connection.execute(sql.insert(schema.disks).values(values).returning(schema.disks.c.id)).scalar_one())


def set_size(connection: sql.Connection, disk_id: int, size: int) -> int:
    """Set the size that clients may use, and raise the generation; the new generation."""
    table = schema.disks
    change = sql.update(table).where(table.c.id == disk_id).values(size=size, generation=table.c.generation + 1)
    return int(connection.execute(change.returning(table.c.generation)).scalar_one())


def delete_disks(connection: sql.Connection, disk_ids: Iterable[int]) -> None:
    connection.execute(sql.delete(schema.disks).where(schema.disks.c.id.in_(list(disk_ids))))


def delete_vm(connection: sql.Connection, vm_id: int) -> None:
    """Remove the record of a VM that has no disks and no snapshots, its switches and its guest."""
    switches.forget_vm(connection, vm_id)
    connection.execute(sql.delete(schema.guests).where(schema.guests.c.vm_id == vm_id))
    connection.execute(sql.delete(schema.vms).where(schema.vms.c.id == vm_id))


def open_intent(
    connection: sql.Connection,
    operation: operations.Request,
    kind: Kind,
    *,
    vm_id: int | None = None,
    steps: Sequence[Step] = (),
    snapshot_id: int | None = None,
    image_id: int | None = None,
    committed: bool = False,
    pool_space: int = 0,
) -> Intent:
    """Record what is about to be done, and that its operation runs. Only growing disks is finished forwards.

    `pool_space` bytes more of the pool are promised until it is closed.
    """
    operations.begin(connection, operation)
    forwards = bool(steps) and all(step.action is Action.RESIZE and step.grows for step in steps)
    values = {
        "operation": operation.id,
        "kind": kind.value,
        "vm_id": vm_id,
        "snapshot_id": snapshot_id,
        "image_id": image_id,
        "committed": committed,
        "forwards": forwards,
        "pool_space": pool_space,
    }
    added = sql.insert(schema.intents).values(values).returning(schema.intents.c.id)
    intent_id = int(connection.execute(added).scalar_one())
    for step in steps:
        row = {
            "intent_id": intent_id,
            "disk_id": step.disk_id,
            "action": step.action.value,
            "old_size": step.old_size,
            "new_size": step.new_size,
            "cause": step.cause,
            "staged": step.staged,
        }
        connection.execute(sql.insert(schema.steps).values(row))
    return Intent(intent_id, operation.id, kind, committed, vm_id, snapshot_id, image_id, tuple(steps), forwards)


def commit_intent(connection: sql.Connection, intent: Intent) -> None:
    """From here on the change is only ever finished."""
    connection.execute(sql.update(schema.intents).where(schema.intents.c.id == intent.id).values(committed=True))


def finish(
    connection: sql.Connection, intent: Intent, outcome: Mapping[str, object], stages: Sequence[Stage] = ()
) -> None:
    """Close an intent that has been done, and remember its outcome for a retry."""
    _forget_intent(connection, intent)
    operations.done(connection, intent.operation, outcome, stages)


def drop_intent(connection: sql.Connection, intent: Intent, why: BaseException | None = None) -> None:
    """Close an intent that has been undone: a retry of its operation begins anew.

    `why` it was; None where its process was killed.
    """
    _forget_intent(connection, intent)
    operations.failed(connection, intent.operation, why)


def end_step(connection: sql.Connection, intent: Intent, disk_id: int, why: BaseException) -> None:
    """Take one disk out of an unfinished change; the change ends where that was its last."""
    steps = schema.steps
    connection.execute(sql.delete(steps).where(steps.c.disk_id == disk_id))
    if not connection.scalar(sql.select(sql.func.count()).where(steps.c.intent_id == intent.id)):
        drop_intent(connection, intent, why)


def detach(connection: sql.Connection, intent: Intent) -> None:
    """Let what an intent is about be forgotten, in the transaction that closes it."""
    gone = {"vm_id": None, "snapshot_id": None, "image_id": None}
    connection.execute(sql.update(schema.intents).where(schema.intents.c.id == intent.id).values(gone))


def _forget_intent(connection: sql.Connection, intent: Intent) -> None:
    connection.execute(sql.delete(schema.steps).where(schema.steps.c.intent_id == intent.id))
    connection.execute(sql.delete(schema.intents).where(schema.intents.c.id == intent.id))


def _snapshot_space() -> sql.Select[Any]:
    """What the snapshots of each VM are charged, and how many there are."""
    snapshots, disks = schema.snapshots, schema.snapshot_disks
    return (
        sql.select(
            snapshots.c.vm_id,
            sql.func.coalesce(sql.func.sum(disks.c.space), 0).label("space"),
            sql.func.count(snapshots.c.id.distinct()).label("count"),
        )
        .outerjoin(disks, disks.c.snapshot_id == snapshots.c.id)
        .group_by(snapshots.c.vm_id)
    )


def _grouped(rows: Iterable[Mapping[Any, Any]], key: str) -> dict[int, list[Mapping[Any, Any]]]:
    grouped: dict[int, list[Mapping[Any, Any]]] = {}
    for row in rows:
        grouped.setdefault(row[key], []).append(row)
    return grouped


def _step(row: Mapping[Any, Any]) -> Step:
    action, cause = known(Action, row["action"]), known(Cause, row["cause"])
    return Step(row["disk_id"], action, row["old_size"], row["new_size"], cause, row["staged"])


def _entry(
    row: Mapping[Any, Any],
    disk_rows: Sequence[Mapping[Any, Any]],
    intents: Sequence[Intent],
    snapshots: Mapping[Any, Any],
    rules: switches.Rules,
) -> Entry:
    changing = {step.disk_id: (intent, step) for intent in intents for step in intent.steps}
    disks = tuple(_disk(row["name"], each, changing.get(each["id"])) for each in disk_rows)
    shown = tuple(disk for disk in disks if not _hidden(changing.get(disk.id)))
    promised = sum(disk.size for disk in disks if disk.id not in changing)
    promised += sum(_larger(intent.steps) for intent in intents)
    flexible, limit = row["flexible"], row["snapshot_limit"]
    vm = VM(
        row["id"],
        row["name"],
        row["budget"],
        shown,
        row["owner"],
        promised - sum(disk.size for disk in shown),
        rules.client_resize_of(row["id"]),
        snapshots.get("space", 0),
        snapshots.get("count", 0),
        row["package"],
        row["image"],
        row["image_space"],
        row["protected"],
        True if flexible is None else flexible,
        MAX_SNAPSHOTS if limit is None else limit,
        rules.allowed(row["id"], row["owner"]),
    )
    return Entry(vm, disks, tuple(intents), promised)


def _larger(steps: Sequence[Step]) -> int:
    """What a change is charged while it goes on: it ends at its old sizes or at its new ones, never in between."""
    return max(sum(step.old_size for step in steps), sum(step.new_size for step in steps))


def _hidden(change: tuple[Intent, Step] | None) -> bool:
    """Whether users don't see the disk: it is not there yet, or not any more."""
    if change is None:
        return False
    intent, step = change
    return step.action is (Action.REMOVE if intent.committed else Action.ADD)


def _disk(vm: str, row: Mapping[Any, Any], change: tuple[Intent, Step] | None) -> Disk:
    pending = None
    if change is not None and change[1].action in (Action.RESIZE, Action.ROLL_BACK):
        step = change[1]
        pending = step.new_size if row["size"] == step.old_size else step.old_size
    return Disk(
        row["id"],
        vm,
        row["slot"],
        row["size"],
        row["generation"],
        row["volume"],
        pending,
        row["image"],
        row["minimum"],
    )
