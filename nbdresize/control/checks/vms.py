"""One VM: its unfinished changes, its budget, its disks and snapshots, and what lies about them. Under its lock."""

import os
from collections.abc import Mapping
from functools import partial

import sqlalchemy as sql

from nbdresize.control import admin_client, locks, operation_log, records, recovery, schema, snapshot_records
from nbdresize.control.checks import charges
from nbdresize.control.checks.report import Findings, Repair, What
from nbdresize.control.checks.rows import BACKUP
from nbdresize.control.checks.volumes import Files, check_disk_volume, check_stored_volume
from nbdresize.control.model import MAX_DISKS, Disk, OperationState, Snapshot
from nbdresize.control.records import Entry, Intent, Kind
from nbdresize.control.site import Site
from nbdresize.errors import NbdresizeError, ResourceInUse, ResourceNotFound
from nbdresize.storage import write_map
from nbdresize.units import GRANULARITY, format_size, round_up

LOCK_WAIT = 0.1
"""Seconds to wait for a VM, or an image, that somebody is changing."""


def check_vm(site: Site, findings: Findings, files: Files, name: str) -> None:
    """Look at the VM of that name, if there still is one; skipped where somebody is changing it."""
    try:
        lock = locks.lock_vm(site.state.locks, name, LOCK_WAIT)
    except ResourceInUse as busy:
        findings.skip(f"VM {name}", busy.problem)
        return
    with lock:
        entry = _read(site, name)
        if entry is not None and entry.intents:
            entry = _check_changes(site, findings, entry)
        if entry is None:
            lock.remove_file()
            return
        findings.count("vms")
        _check_entry(site, findings, files, entry)


def _check_entry(site: Site, findings: Findings, files: Files, entry: Entry) -> None:
    """With no change under way. Disks and snapshots of a change that was left unfinished are let be."""
    if any(intent.kind is Kind.DELETE_VM for intent in entry.intents):
        return
    for disk in entry.disks:
        _check_values(site, findings, disk)
        _check_map(site, findings, disk)
        if entry.intent_of(disk) is None:
            check_disk_volume(site, findings, disk)
            files.add(disk.export_name, site.pool.volume(disk.volume).path)
            findings.count("disks")
    if entry.vm.snapshots:
        _check_snapshots(site, findings, files, entry)
    now = _read(site, entry.vm.name) if findings.repair else entry
    if now is not None:
        _check_budget(findings, now)


def _read(site: Site, name: str) -> Entry | None:
    with site.ledger.reading() as connection:
        return records.read_vm(connection, name)


# Unfinished changes


def _check_changes(site: Site, findings: Findings, entry: Entry) -> Entry | None:
    """The lock is ours, so nobody works on them: completed if that is wanted. The VM as it is then."""
    failures: Mapping[Intent, NbdresizeError] = {}
    if findings.repair:
        failures = recovery.recover_vm(site, entry.vm.name)
    for intent in entry.intents:
        detail = f"A {intent.kind.value} of VM {entry.vm.name} was left unfinished: its process is gone"
        if not _has_operation(site, intent):
            detail += ", and its operation is not recorded"
        subject = intent.operation
        found = partial(findings.found, What.UNFINISHED_CHANGE, subject, detail)
        found(repair=Repair("finishes or undoes it", _end_of(site, intent), partial(_raise, failures.get(intent))))
    return _read(site, entry.vm.name)


def _has_operation(site: Site, intent: Intent) -> bool:
    """Whether the operation is, or was, in the ledger. Closed changes always have one."""
    with site.ledger.reading() as connection:
        known = connection.scalar(
            sql.select(schema.operations.c.operation).where(schema.operations.c.operation == intent.operation)
        )
    return known is not None


def _end_of(site: Site, intent: Intent) -> str:
    """What became of a change, as its operation tells."""
    try:
        with site.ledger.reading() as connection:
            state = operation_log.read(connection, intent.operation).state
    except ResourceNotFound:
        return "it was completed"
    return "it was finished" if state is OperationState.DONE else "it was undone"


def _raise(error: NbdresizeError | None) -> None:
    if error is not None:
        raise error


# Values


def _check_values(site: Site, findings: Findings, disk: Disk) -> None:
    name = disk.export_name
    resize = f"nbdresize disk resize {disk.vm} {disk.name}"
    if not 0 <= disk.slot < MAX_DISKS:
        findings.found(
            What.WRONG_SLOT, name, f"There is no slot {disk.slot}: they go from 0 to {MAX_DISKS - 1}", BACKUP
        )
    if disk.size < GRANULARITY or disk.size % GRANULARITY:
        whole = max(GRANULARITY, round_up(disk.size))
        detail = f"Its size of {disk.size} bytes is no multiple of {GRANULARITY}, which disks have"
        findings.found(What.WRONG_SIZE, name, detail, f"make it larger: {resize} {whole}")
    if disk.size < disk.minimum:
        least = format_size(disk.minimum)
        detail = f"It has {format_size(disk.size)}, less than the {least} of image {disk.image}, from which it was made"
        findings.found(What.BELOW_MINIMUM, name, detail, f"make it larger: {resize} {disk.minimum}")
    if disk.generation < 1:
        detail = f"Its generation is {disk.generation}, but they begin with 1: clients may overlook a new size"
        act = partial(_set_generation, site, disk)
        findings.found(What.WRONG_GENERATION, name, detail, BACKUP, Repair("sets it to 1", "it was set to 1", act))


def _set_generation(site: Site, disk: Disk) -> None:
    with site.ledger.deciding() as connection:
        connection.execute(sql.update(schema.disks).where(schema.disks.c.id == disk.id).values(generation=1))
    admin_client.publish(site.state, [disk.export_name])


def _check_budget(findings: Findings, entry: Entry) -> None:
    vm = entry.vm
    if vm.used <= vm.budget:
        return
    *others, last = ["shrink or delete disks", *(["delete snapshots"] if vm.snapshots else [])]
    ways = [*others, last, _more(entry)]
    findings.found(
        What.OVER_BUDGET,
        vm.name,
        f"Its disks and snapshots are charged {format_size(vm.used)}, more than its budget of "
        f"{format_size(vm.budget)}, so nothing of it can grow",
        f"{', '.join(ways[:-1])}, or {ways[-1]}",
    )


def _more(entry: Entry) -> str:
    update = f"nbdresize vm update {entry.vm.name}"
    if entry.vm.package is not None:
        return f"change to a larger package with {update} --package NAME"
    return f"raise the budget with {update} --disk-space {entry.vm.used}"


# Snapshots


def _check_snapshots(site: Site, findings: Findings, files: Files, entry: Entry) -> None:
    vm = entry.vm
    with site.ledger.reading() as connection:
        snapshots = snapshot_records.read_whole_snapshots(connection, vm.id, vm.name)
    findings.count("snapshots", len(snapshots))
    # Charges are told for what is there; else a lost volume would be blamed on those that came after it. A change of
    # snapshots that was left unfinished settles them itself.
    well = [_check_volumes(site, findings, files, each) for each in snapshots]
    if all(well) and all(intent.snapshot_id is None for intent in entry.intents):
        try:
            charges.check_snapshot_charges(site, findings, vm.name, snapshots)
        except NbdresizeError as error:
            findings.found(What.VOLUME_UNUSABLE, f"VM {vm.name}", error.problem, error.way_out)


def _check_volumes(site: Site, findings: Findings, files: Files, snapshot: Snapshot) -> bool:
    well = True
    delete = f"nbdresize snapshot delete {snapshot.vm} {snapshot.name}"
    for disk in snapshot.disks:
        subject = f"{disk.name} of snapshot {snapshot.name} of {snapshot.vm}"
        if check_stored_volume(site, findings, subject, disk.volume, disk.size, delete):
            files.add(subject, site.pool.volume(disk.volume).path)
        else:
            well = False
    return well


# What lies about


def _check_map(site: Site, findings: Findings, disk: Disk) -> None:
    """Write maps are there only while somebody copies the disk, with the lock of its VM, which is ours."""
    path = site.state.write_map(disk.volume)
    if os.path.lexists(path):
        findings.found(
            What.LEFT_BEHIND,
            disk.export_name,
            f"A write map was left behind by a process that is gone, and servers mark every write in it: {path}",
            repair=Repair("removes it", "it was removed", partial(_remove_map, site, disk)),
        )


def _remove_map(site: Site, disk: Disk) -> None:
    write_map.discard(site.state.write_map(disk.volume))
    admin_client.publish(site.state, [disk.export_name])
