"""Making VMs and disks: promised in the ledger, then made, then seen."""

from collections.abc import Sequence
from contextlib import suppress

import sqlalchemy as sql

from nbdresize.control import names, records
from nbdresize.control.budget import Account, check_budget
from nbdresize.control.changes import check_changes, decide_changes
from nbdresize.control.model import VM, ClientResize, Disk, DiskChanges
from nbdresize.control.records import Entry, Intent, Kind
from nbdresize.control.recovery import changing, name_taken, undo_creation
from nbdresize.control.site import Site, visible
from nbdresize.errors import NbdresizeError, ResourceNotFound
from nbdresize.units import SizeRequest


def create_vm(
    site: Site,
    name: str,
    disk_space: int,
    requests: Sequence[SizeRequest],
    *,
    owner: str | None,
    client_resize: ClientResize | None,
    preallocate: bool,
    operation: str | None,
) -> VM:
    """A new VM with all of these disks, or none of it. See Control.create_vm."""
    names.check_vm_name(name)
    check_budget(disk_space)
    names.check_owner(owner)
    operation = names.operation_id(operation)
    changes = DiskChanges(add=tuple(requests))
    check_changes(changes)
    arguments = records.arguments_of(
        Kind.CREATE_VM,
        vm=name,
        disk_space=disk_space,
        disks=[_plain(request) for request in requests],
        owner=owner,
        client_resize=client_resize.value if client_resize else None,
        preallocate=preallocate,
    )
    with changing(site, name) as change:
        volumes = site.pool.names()
        with site.ledger.deciding() as connection:
            done = records.outcome_of(connection, operation, arguments)
            entry = records.read_vm(connection, name)
            if done is not None:
                return _vm_made_before(entry, name, done["vm_id"])
            if entry is not None:
                raise name_taken(name, change)
            decided = decide_changes(Account(name, disk_space, 0), {}, changes)
            vm_id = records.insert_vm(connection, name, disk_space, owner, client_resize)
            for slot, size in decided.add:
                records.insert_disk(connection, vm_id, slot, size, names.new_volume_name(name, slot, volumes))
            intent = records.open_intent(connection, operation, Kind.CREATE_VM, arguments, vm_id)
            entry = _reread(connection, name)
        _make(site, entry, intent, entry.disks, preallocate=preallocate, outcome={"vm_id": vm_id})
        return site.entry(name).vm


def add_disk(site: Site, vm: str, request: SizeRequest, *, preallocate: bool, operation: str | None) -> Disk:
    """A new disk in the first empty slot. See Control.add_disk."""
    changes = DiskChanges(add=(request,))
    check_changes(changes)
    site.entry(vm)
    operation = names.operation_id(operation)
    arguments = records.arguments_of(Kind.ADD_DISK, vm=vm, size=_plain(request), preallocate=preallocate)
    with changing(site, vm):
        volumes = site.pool.names()
        with site.ledger.deciding() as connection:
            done = records.outcome_of(connection, operation, arguments)
            entry = visible(records.read_vm(connection, vm), vm)
            if done is not None:
                return _disk_made_before(entry, done["disk_id"])
            taken = [disk.slot for disk in entry.disks]
            ((slot, size),) = decide_changes(entry.account, {}, changes, taken=taken).add
            disk_id = records.insert_disk(connection, entry.vm.id, slot, size, names.new_volume_name(vm, slot, volumes))
            intent = records.open_intent(connection, operation, Kind.ADD_DISK, arguments, entry.vm.id, disk_id)
            entry = _reread(connection, vm)
            disk = entry.disk_by_id(disk_id)
        _make(site, entry, intent, [disk], preallocate=preallocate, outcome={"disk_id": disk_id})
        return disk


def _make(
    site: Site, entry: Entry, intent: Intent, disks: Sequence[Disk], *, preallocate: bool, outcome: dict[str, int]
) -> None:
    """Make the volumes, and let the disks be seen. Undone where it fails; where even that fails, recovery goes on."""
    try:
        for disk in disks:
            site.pool.create(disk.volume, disk.size, preallocate=preallocate)
        with site.ledger.deciding() as connection:
            records.finish(connection, intent.id, outcome)
    except BaseException:
        with suppress(NbdresizeError):
            undo_creation(site, entry, intent)
        raise


def _reread(connection: sql.Connection, name: str) -> Entry:
    entry = records.read_vm(connection, name)
    assert entry is not None
    return entry


def _plain(request: SizeRequest) -> dict[str, int | bool | None]:
    return {"exact": request.exact, "relative": request.relative, "remaining": request.remaining}


def _vm_made_before(entry: Entry | None, name: str, vm_id: int) -> VM:
    if entry is None or not entry.visible or entry.vm.id != vm_id:
        raise ResourceNotFound(f"That operation made a VM {name} before, which has been deleted", "use a new id")
    return entry.vm


def _disk_made_before(entry: Entry, disk_id: int) -> Disk:
    for disk in entry.vm.disks:
        if disk.id == disk_id:
            return disk
    raise ResourceNotFound(
        f"That operation added a disk to {entry.vm.name} before, which has been deleted", "use a new id"
    )
