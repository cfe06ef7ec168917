"""Guests of VMs as the ledger knows them: where their QEMU is reached, and what they were told of each disk.

What a guest knows is looked at and changed by `guests`, above control; here it is only kept. The column `stages` is a
JSON object by the names of the disks: `{"disk0": {"disk_id": …, "size": …, "done": …, "detail": …, "at": …}}`.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sqlalchemy as sql

from nbdresize.control import names, operations, records, schema
from nbdresize.control.model import VM, Guest, GuestDisk, GuestNote
from nbdresize.control.records import Kind
from nbdresize.control.site import Site, visible
from nbdresize.errors import InvalidArgument, ResourceNotFound, StateUnusable

_LONGEST_DETAIL = 500
_LONGEST_PATH = 4095


def attach_guest(
    site: Site, vm: str, qmp: Path, agent: Path | None, notes: Mapping[str, GuestNote], *, operation: str | None
) -> Guest:
    """Remember the guest of a VM, in place of an earlier one. See Control.attach_guest."""
    names.check_vm_name(vm)
    values = {"qmp": _checked_path(qmp), "agent": None if agent is None else _checked_path(agent)}
    arguments = records.arguments_of(Kind.ATTACH_GUEST, vm=vm, **values)
    request = operations.Request(names.operation_id(operation), Kind.ATTACH_GUEST.value, vm, arguments)
    table = schema.guests
    with site.ledger.deciding() as connection:
        known = visible(records.read_vm(connection, vm), vm).vm
        if operations.outcome_of(connection, request) is None:
            connection.execute(sql.delete(table).where(table.c.vm_id == known.id))
            row = {"vm_id": known.id, **values, "attached": int(time.time()), "stages": _packed(known, notes)}
            connection.execute(sql.insert(table).values(row))
            operations.remember(connection, request, {})
        found = _read(connection, known)
        if found is None:
            raise already_attached(vm, request.id)
        return found


def detach_guest(site: Site, vm: str, *, operation: str | None) -> None:
    """Forget the guest of a VM. See Control.detach_guest."""
    names.check_vm_name(vm)
    arguments = records.arguments_of(Kind.DETACH_GUEST, vm=vm)
    request = operations.Request(names.operation_id(operation), Kind.DETACH_GUEST.value, vm, arguments)
    table = schema.guests
    with site.ledger.deciding() as connection:
        known = visible(records.read_vm(connection, vm), vm).vm
        if operations.outcome_of(connection, request) is None:
            if connection.execute(sql.delete(table).where(table.c.vm_id == known.id)).rowcount == 0:
                raise none_attached(vm)
            operations.remember(connection, request, {})


def guest(site: Site, vm: str) -> Guest | None:
    """The guest of a VM, None where it has none. Raises ResourceNotFound for a VM that is not there."""
    names.check_vm_name(vm)
    with site.ledger.reading() as connection:
        return _read(connection, visible(records.read_vm(connection, vm), vm).vm)


def guests(site: Site) -> list[Guest]:
    """All guests, by the names of their VMs."""
    with site.ledger.reading() as connection:
        rows = {row["vm_id"]: row for row in connection.execute(sql.select(schema.guests)).mappings()}
        if not rows:
            return []
        return [
            _guest(entry.vm, rows[entry.vm.id])
            for entry in records.read_vms(connection)
            if entry.visible and entry.vm.id in rows
        ]


def note_guest(site: Site, vm: str, notes: Mapping[str, GuestNote], of: Guest | None = None) -> None:
    """Keep what the guest of a VM was told of these disks. See Control.note_guest."""
    table = schema.guests
    with site.ledger.deciding() as connection:
        entry = records.read_vm(connection, vm)
        found = _read(connection, entry.vm) if entry is not None and entry.visible else None
        if entry is None or found is None or (of is not None and _attachment(found) != _attachment(of)):
            return
        merged = {disk.name: disk.note for disk in found.disks}
        sizes = {disk.name: disk.size for disk in entry.vm.disks}
        for name, note in notes.items():
            if not _is_outdated(note, merged.get(name), sizes.get(name)):
                merged[name] = note
        here = table.c.vm_id == entry.vm.id
        connection.execute(sql.update(table).where(here).values(stages=_packed(entry.vm, merged)))


def _attachment(guest: Guest) -> tuple[str, str | None, int]:
    return guest.qmp, guest.agent, guest.attached


def _is_outdated(note: GuestNote, kept: GuestNote | None, size: int | None) -> bool:
    """Whether another command has told more meanwhile: the size that the disk has now, where this one told another."""
    return (
        kept is not None
        and kept.disk_id == note.disk_id
        and kept.size == size
        and note.size is not None
        and note.size != size
    )


def none_attached(vm: str) -> ResourceNotFound:
    """What to raise where a VM has no guest."""
    return ResourceNotFound(
        f"No guest is attached to VM {vm}", f"nbdresize guest attach {vm} --qmp PATH attaches a running QEMU"
    )


def already_attached(vm: str, operation: str) -> ResourceNotFound:
    """What to raise where a retry asks for an attachment that has been made, and ended since."""
    return ResourceNotFound(
        f"Operation {operation} has attached the guest of VM {vm} already, and it was detached since",
        "to attach it again, give the operation another id, or none",
    )


def _checked_path(path: Path) -> str:
    text = str(path)
    fine = path.is_absolute() and text.isprintable() and len(text.encode(errors="replace")) <= _LONGEST_PATH
    if not fine:
        raise InvalidArgument(
            f"{names.shown(text)} can't be the path of a guest's socket",
            "give an absolute path of printable characters",
        )
    return text


def _read(connection: sql.Connection, vm: VM) -> Guest | None:
    wanted = sql.select(schema.guests).where(schema.guests.c.vm_id == vm.id)
    row = connection.execute(wanted).mappings().first()
    return None if row is None else _guest(vm, row)


def _guest(vm: VM, row: Mapping[Any, Any]) -> Guest:
    """The guest, and what it knows of the disks there are now: another disk in the slot of a deleted one is news."""
    notes = _unpacked(row["stages"])
    disks = tuple(
        GuestDisk(disk.name, disk.size, note)
        for disk in vm.disks
        if (note := notes.get(disk.name)) is not None and note.disk_id == disk.id
    )
    return Guest(vm.name, row["qmp"], row["agent"], row["attached"], disks)


def _packed(vm: VM, notes: Mapping[str, GuestNote]) -> str:
    kept = {disk.name: notes[disk.name] for disk in vm.disks if disk.name in notes}
    return json.dumps({name: {**asdict(note), "detail": note.detail[:_LONGEST_DETAIL]} for name, note in kept.items()})


def _unpacked(text: str) -> dict[str, GuestNote]:
    try:
        return {name: GuestNote(**note) for name, note in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise StateUnusable(
            "The ledger has something for what a guest was told that this release does not know",
            "somebody else wrote that: detach the guest and attach it again, or bring the ledger back from a backup",
        ) from error
