"""Deleting VMs and disks: fenced, then no longer seen, then removed."""

from contextlib import ExitStack, suppress

import sqlalchemy as sql

from nbdresize.control import admin_client, names, records
from nbdresize.control.fence import fenced
from nbdresize.control.records import Entry, Intent, Kind
from nbdresize.control.recovery import changing, disks_of, finish_deletion
from nbdresize.control.site import Site, disk_of, no_such_vm, visible
from nbdresize.errors import InvalidArgument, NbdresizeError


def delete_disk(site: Site, vm: str, disk_name: str) -> None:
    """Delete a disk that nobody has attached. See Control.delete_disk."""
    slot = names.disk_slot(disk_name)
    disk_of(site.entry(vm), slot)
    if slot == 0:
        raise InvalidArgument(f"{vm}/disk0 is the boot disk", f"nbdresize vm delete {vm} deletes it with its VM")
    with changing(site, vm):
        disk = site.disk(vm, disk_name)
        with fenced(site, disk):
            with site.ledger.deciding() as connection:
                entry = visible(records.read_vm(connection, vm), vm)
                disk = disk_of(entry, slot)
                # A resize that could not be completed (its volume fails, or is gone) ends here.
                stuck = entry.intent_of(disk)
                if stuck is not None:
                    records.drop_intent(connection, stuck.id)
                intent = _intend(connection, Kind.DELETE_DISK, entry, disk.id)
            _finish(site, entry, intent)
    admin_client.publish(site.state, [disk.export_name])


def delete_vm(site: Site, name: str) -> None:
    """Delete a VM with all its disks, none of them attached. See Control.delete_vm."""
    names.check_vm_name(name)
    with site.ledger.reading() as connection:
        known = records.read_vm(connection, name)
    if known is None:
        raise no_such_vm(name)
    with changing(site, name) as change, ExitStack() as fences:
        with site.ledger.reading() as connection:
            entry = records.read_vm(connection, name)
        if entry is None and known is not None and not known.visible:
            return  # an earlier deletion, or a creation, that was killed: completed just now
        if None in change.unfinished:
            raise change.unfinished[None]
        entry = visible(entry, name)
        for disk in entry.disks:
            fences.enter_context(fenced(site, disk))
        with site.ledger.deciding() as connection:
            entry = visible(records.read_vm(connection, name), name)
            for stuck in entry.intents:
                records.drop_intent(connection, stuck.id)
            intent = _intend(connection, Kind.DELETE_VM, entry, None)
        _finish(site, entry, intent)
    if entry.disks:
        admin_client.publish(site.state, [disk.export_name for disk in entry.disks])


def _finish(site: Site, entry: Entry, intent: Intent) -> None:
    """Remove what the intent names; where not one volume could be removed, the deletion is taken back."""
    try:
        finish_deletion(site, entry, intent)
    except NbdresizeError:
        volumes = {disk.volume for disk in disks_of(entry, intent)}
        with suppress(NbdresizeError):
            if volumes <= set(site.pool.names()):
                with site.ledger.deciding() as connection:
                    records.drop_intent(connection, intent.id)
        raise


def _intend(connection: sql.Connection, kind: Kind, entry: Entry, disk_id: int | None) -> Intent:
    """Record the deletion: from here on it is finished, whatever happens."""
    arguments = records.arguments_of(kind, vm=entry.vm.name, disk_id=disk_id)
    return records.open_intent(connection, names.operation_id(None), kind, arguments, entry.vm.id, disk_id)
