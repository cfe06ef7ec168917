"""Rows of the ledger as values, and back. Every function works inside the caller's transaction. Sizes in bytes."""

import enum
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from nbdresize.control import schema
from nbdresize.control.budget import Account
from nbdresize.control.model import MAX_DISKS, VM, Cause, ClientResize, Disk
from nbdresize.errors import InvalidArgument, StateUnusable

REMEMBERED_SECONDS = 7 * 24 * 3600
"""How long the id of a finished operation is known, so that its retry changes nothing."""


class Kind(enum.Enum):
    """What an unfinished change does."""

    CREATE_VM = "create_vm"
    DELETE_VM = "delete_vm"
    ADD_DISK = "add_disk"
    DELETE_DISK = "delete_disk"
    RESIZE_DISK = "resize_disk"


@dataclass(frozen=True)
class ResizeIntent:
    """The sizes of an unfinished resize, and what its outcome will say for a cause."""

    old_size: int
    new_size: int
    cause: Cause

    @property
    def grows(self) -> bool:
        return self.new_size > self.old_size


@dataclass(frozen=True)
class Intent:
    """An unfinished change: of one disk, or of the whole VM where `disk_id` is None."""

    id: int
    operation: str
    kind: Kind
    vm_id: int
    disk_id: int | None
    arguments: str
    sizes: ResizeIntent | None = None

    @property
    def resize(self) -> ResizeIntent:
        """The sizes of a resize; the ledger records them with each."""
        if self.sizes is None:
            raise StateUnusable(f"The ledger has no sizes for the unfinished {self.kind.value} {self.operation}")
        return self.sizes


@dataclass(frozen=True)
class Entry:
    """A VM as the ledger has it.

    `vm` is what users see. `disks` are all of its disks, also those being made or deleted, and `intents` the changes
    that are under way, or were left by a killed process.
    """

    vm: VM
    disks: tuple[Disk, ...]
    intents: tuple[Intent, ...]

    @property
    def account(self) -> Account:
        return Account(self.vm.name, self.vm.budget, sum(disk.charged for disk in self.disks))

    @property
    def whole(self) -> Intent | None:
        """The unfinished change that makes or deletes the VM itself."""
        return next((intent for intent in self.intents if intent.disk_id is None), None)

    @property
    def visible(self) -> bool:
        return self.whole is None

    def disk(self, slot: int) -> Disk | None:
        """The disk in that slot, where users see one."""
        return next((disk for disk in self.vm.disks if disk.slot == slot), None)

    def disk_by_id(self, disk_id: int | None) -> Disk:
        return next(disk for disk in self.disks if disk.id == disk_id)

    def intent_of(self, disk: Disk) -> Intent | None:
        return next((intent for intent in self.intents if intent.disk_id == disk.id), None)

    def free_slot(self) -> int | None:
        """The first empty slot: one that is being emptied is not empty yet."""
        taken = {disk.slot for disk in self.disks}
        return next((slot for slot in range(MAX_DISKS) if slot not in taken), None)


def read_vms(connection: sql.Connection, name: str | None = None) -> list[Entry]:
    """All VMs in the order of their names, or the one of that name where there is one."""
    wanted = sql.select(schema.vms).order_by(schema.vms.c.name)
    disks = sql.select(schema.disks).order_by(schema.disks.c.slot)
    intents = sql.select(schema.intents)
    if name is not None:
        wanted = wanted.where(schema.vms.c.name == name)
        one = sql.select(schema.vms.c.id).where(schema.vms.c.name == name).scalar_subquery()
        disks, intents = disks.where(schema.disks.c.vm_id == one), intents.where(schema.intents.c.vm_id == one)
    disks_by_vm = _by_vm(connection.execute(disks).mappings().all())
    intents_by_vm = _by_vm(connection.execute(intents).mappings().all())
    return [
        _entry(row, disks_by_vm.get(row["id"], []), [_intent(each) for each in intents_by_vm.get(row["id"], [])])
        for row in connection.execute(wanted).mappings()
    ]


def read_vm(connection: sql.Connection, name: str) -> Entry | None:
    """The VM of that name, if there is one, seen or not."""
    return next(iter(read_vms(connection, name)), None)


def unfinished_vms(connection: sql.Connection) -> list[str]:
    """The names of VMs that have unfinished changes."""
    query = sql.select(schema.vms.c.name).join(schema.intents, schema.intents.c.vm_id == schema.vms.c.id).distinct()
    return list(connection.scalars(query.order_by(schema.vms.c.name)))


def vm_names(connection: sql.Connection) -> set[str]:
    """The names of all VMs, seen or not."""
    return set(connection.scalars(sql.select(schema.vms.c.name)))


def volume_names(connection: sql.Connection) -> set[str]:
    """The volumes of all disks, seen or not."""
    return set(connection.scalars(sql.select(schema.disks.c.volume)))


def arguments_of(kind: Kind, **arguments: object) -> str:
    """What an operation was asked to do, in a form to compare with a retry's."""
    return json.dumps({"kind": kind.value, **arguments}, sort_keys=True)


def outcome_of(connection: sql.Connection, operation: str, arguments: str) -> dict[str, Any] | None:
    """What the operation of that id did, if it is done.

    Raises InvalidArgument where that id belongs to an operation, done or unfinished, with other arguments.
    """
    done = schema.operations
    row = connection.execute(sql.select(done).where(done.c.operation == operation)).mappings().first()
    known = row["arguments"] if row else None
    if row is None:
        open_ = schema.intents
        known = connection.scalar(sql.select(open_.c.arguments).where(open_.c.operation == operation))
    if known is not None and known != arguments:
        raise InvalidArgument(
            f"Operation {operation} was another request", "give every request an id of its own, its retries the same"
        )
    return dict(json.loads(row["outcome"])) if row else None


def insert_vm(
    connection: sql.Connection, name: str, budget: int, owner: str | None, policy: ClientResize | None = None
) -> int:
    values = {"name": name, "budget": budget, "owner": owner, "client_resize": policy.value if policy else None}
    return int(connection.execute(sql.insert(schema.vms).values(values).returning(schema.vms.c.id)).scalar_one())


def insert_disk(connection: sql.Connection, vm_id: int, slot: int, size: int, volume: str) -> int:
    values = {"vm_id": vm_id, "slot": slot, "size": size, "generation": 1, "volume": volume}
    return int(connection.execute(sql.insert(schema.disks).values(values).returning(schema.disks.c.id)).scalar_one())


def set_size(connection: sql.Connection, disk: Disk, size: int) -> int:
    """Set the size that clients may use, and raise the generation; the new generation."""
    table = schema.disks
    change = sql.update(table).where(table.c.id == disk.id).values(size=size, generation=table.c.generation + 1)
    return int(connection.execute(change.returning(table.c.generation)).scalar_one())


def generation_of(connection: sql.Connection, disk: Disk) -> int:
    query = sql.select(schema.disks.c.generation).where(schema.disks.c.id == disk.id)
    return int(connection.execute(query).scalar_one())


def set_budget(connection: sql.Connection, vm_id: int, budget: int) -> None:
    connection.execute(sql.update(schema.vms).where(schema.vms.c.id == vm_id).values(budget=budget))


def set_client_resize(connection: sql.Connection, vm_id: int, policy: ClientResize | None) -> None:
    value = None if policy is None else policy.value
    connection.execute(sql.update(schema.vms).where(schema.vms.c.id == vm_id).values(client_resize=value))


def open_intent(
    connection: sql.Connection,
    operation: str,
    kind: Kind,
    arguments: str,
    vm_id: int,
    disk_id: int | None = None,
    *,
    resize: ResizeIntent | None = None,
) -> Intent:
    """Record what is about to be done."""
    values = {
        "operation": operation,
        "kind": kind.value,
        "vm_id": vm_id,
        "disk_id": disk_id,
        "old_size": resize.old_size if resize else None,
        "new_size": resize.new_size if resize else None,
        "cause": resize.cause if resize else None,
        "arguments": arguments,
        "started": int(time.time()),
    }
    added = sql.insert(schema.intents).values(values).returning(schema.intents.c.id)
    intent_id = int(connection.execute(added).scalar_one())
    return Intent(intent_id, operation, kind, vm_id, disk_id, arguments, resize)


def drop_intent(connection: sql.Connection, intent_id: int) -> None:
    """Close an intent that has been undone: as if it had never been asked for."""
    connection.execute(sql.delete(schema.intents).where(schema.intents.c.id == intent_id))


def finish(connection: sql.Connection, intent_id: int, outcome: Mapping[str, object]) -> None:
    """Close an intent that has been done, and remember its outcome for a retry."""
    table = schema.intents
    row = connection.execute(sql.select(table).where(table.c.id == intent_id)).mappings().one()
    drop_intent(connection, intent_id)
    remember(connection, row["operation"], row["arguments"], outcome)


def remember(connection: sql.Connection, operation: str, arguments: str, outcome: Mapping[str, object]) -> None:
    """Keep the outcome of a finished operation for a retry; forget those of long ago."""
    now = int(time.time())
    done = schema.operations
    connection.execute(sql.delete(done).where(done.c.finished < now - REMEMBERED_SECONDS))
    values = {"operation": operation, "arguments": arguments, "outcome": json.dumps(outcome), "finished": now}
    connection.execute(sql.insert(done).values(values))


def delete_disks(connection: sql.Connection, disk_ids: Sequence[int]) -> None:
    connection.execute(sql.delete(schema.disks).where(schema.disks.c.id.in_(disk_ids)))


def delete_vm(connection: sql.Connection, vm_id: int) -> None:
    connection.execute(sql.delete(schema.vms).where(schema.vms.c.id == vm_id))


def _by_vm(rows: Sequence[Mapping[Any, Any]]) -> dict[int, list[Mapping[Any, Any]]]:
    grouped: dict[int, list[Mapping[Any, Any]]] = {}
    for row in rows:
        grouped.setdefault(row["vm_id"], []).append(row)
    return grouped


def _intent(row: Mapping[Any, Any]) -> Intent:
    kind, sizes = Kind(row["kind"]), None
    if kind is Kind.RESIZE_DISK:
        sizes = ResizeIntent(row["old_size"], row["new_size"], Cause(row["cause"]))
    return Intent(row["id"], row["operation"], kind, row["vm_id"], row["disk_id"], row["arguments"], sizes)


def _entry(row: Mapping[Any, Any], disk_rows: Sequence[Mapping[Any, Any]], intents: Sequence[Intent]) -> Entry:
    by_disk = {intent.disk_id: intent for intent in intents}
    disks = tuple(_disk(row["name"], each, by_disk.get(each["id"])) for each in disk_rows)
    hidden = {intent.disk_id for intent in intents if intent.kind is not Kind.RESIZE_DISK}
    shown = tuple(disk for disk in disks if disk.id not in hidden)
    reserved = sum(disk.charged for disk in disks if disk.id in hidden)
    policy = ClientResize(row["client_resize"]) if row["client_resize"] is not None else None
    vm = VM(row["id"], row["name"], row["budget"], shown, row["owner"], reserved, policy)
    return Entry(vm, disks, tuple(intents))


def _disk(vm: str, row: Mapping[Any, Any], intent: Intent | None) -> Disk:
    pending = None
    if intent is not None and intent.sizes is not None:
        pending = intent.sizes.new_size if row["size"] == intent.sizes.old_size else intent.sizes.old_size
    return Disk(row["id"], vm, row["slot"], row["size"], row["generation"], row["volume"], pending)
