"""The ledger by itself: SQLite's own checks, and rows that are about nothing or name one volume twice.

Everything here is read in one transaction, which sees one moment, so that nothing is found that was not so.
"""

from collections import defaultdict
from functools import partial

import sqlalchemy as sql

from nbdresize.control import operation_log, operations, records, schema
from nbdresize.control.checks.report import Findings, Repair, What
from nbdresize.control.model import Operation
from nbdresize.control.records import Intent
from nbdresize.control.site import Site
from nbdresize.control.switches import Scope
from nbdresize.errors import ResourceInUse

BACKUP = "bring the ledger and the volumes back from a backup of one time"

_MOST_SHOWN = 5
_SAFE_TO_DELETE = frozenset(
    {("steps", "intents"), ("steps", "disks"), ("snapshot_disks", "snapshots"), ("guests", "vms")}
)
"""Rows of such a table that refer to nothing in the other promise nothing to anybody."""

_WAYS_OUT = {("vms", "packages"): "give the VM another one with nbdresize vm update VM --package NAME"}


def is_damaged(site: Site, findings: Findings) -> bool:
    """Whether SQLite finds its file damaged: then nothing that it says can be believed, and nothing is repaired.

    Raises StateUnusable where it is damaged so much that it can't even be looked through.
    """
    with site.ledger.reading() as connection:
        said = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check").all()]
    if said == ["ok"]:
        return False
    shown = "; ".join(" ".join(line.split()) for line in said[:_MOST_SHOWN])
    findings.found(
        What.LEDGER_DAMAGED,
        str(site.ledger.path),
        f"The ledger is damaged, so nothing else was looked at: {shown}",
        f"stop all servers and commands, keep a copy of the directory, then {BACKUP}",
    )
    return True


def check_rows(site: Site, findings: Findings) -> None:
    """References to nothing, switches of no VM, changes of nothing, volumes with two names."""
    with site.ledger.reading() as connection:
        dangling = _dangling(connection)
        switches = _switches_of_nobody(connection)
        nobodys = _nobodys_intents(connection)
        twice = _named_twice(connection)
    for (table, row), parents in dangling.items():
        _found_dangling(site, findings, table, row, parents)
    for subject, features in switches.items():
        findings.found(
            What.SWITCH_WITHOUT_VM,
            f"VM id {subject}",
            f"There are switches ({', '.join(sorted(features))}) of a VM that is not there",
            repair=Repair("removes them", "they were removed", partial(_forget_switches, site)),
        )
    for intent in nobodys:
        findings.found(
            What.UNFINISHED_CHANGE,
            intent.operation,
            f"An unfinished {intent.kind.value} is about a VM or an image that is not there",
            repair=Repair("forgets it", "it was forgotten", partial(_forget_intents, site)),
        )
    for volume, owners in twice.items():
        findings.found(
            What.VOLUME_NAMED_TWICE,
            volume,
            f"{' and '.join(owners)} have the same volume: what is written to one changes the other",
            BACKUP,
        )


def check_operations(site: Site, findings: Findings) -> None:
    """Operations that are said to run, though their process is gone and no change is left to be completed."""
    with site.ledger.reading() as connection:
        suspects = [each for each in _without_intents(connection) if _is_abandoned(each)]
    if not suspects:
        return
    with site.ledger.reading() as connection:  # once more: it may have ended before its process did
        still = {each.id for each in _without_intents(connection)}
    for operation in suspects:
        if operation.id in still:
            findings.found(
                What.OPERATION_ABANDONED,
                operation.id,
                f"Operation {operation.kind} {operation.subject} is said to run, but its process is gone, "
                f"and nothing of it is left to be completed",
                repair=Repair("marks it as failed", "it was marked as failed", partial(_end, site, operation.id)),
            )


# References to nothing


def _dangling(connection: sql.Connection) -> dict[tuple[str, int], list[str]]:
    """Tables and row ids of rows that refer to nothing, with the tables where that should be.

    Those of intents are left out: a change of a VM is looked at with its VM, and one of nothing by itself.
    """
    found: dict[tuple[str, int], list[str]] = defaultdict(list)
    for table, row, parent, _ in connection.exec_driver_sql("PRAGMA foreign_key_check").all():
        if table != "intents":
            found[str(table), int(row)].append(str(parent))
    return found


def _found_dangling(site: Site, findings: Findings, table: str, row: int, parents: list[str]) -> None:
    detail = f"A row of the table {table} refers to one of {' and of '.join(sorted(parents))} that is not there"
    repair = None
    if all((table, parent) in _SAFE_TO_DELETE for parent in parents):
        if table == "snapshot_disks":
            detail += "; its volume is listed as an orphan then, if it is there"
        repair = Repair("deletes the row", "the row was deleted", partial(_delete_dangling, site, table, row))
    way_out = _WAYS_OUT.get((table, parents[0]), BACKUP)
    findings.found(What.DANGLING_ROW, f"{table} row {row}", detail, way_out, repair)


def _delete_dangling(site: Site, table: str, row: int) -> None:
    with site.ledger.deciding() as connection:
        if (table, row) in _dangling(connection):
            where = sql.literal_column("rowid") == row
            connection.execute(sql.delete(schema.metadata.tables[table]).where(where))


# Switches, and changes of nothing


def _switches_of_nobody(connection: sql.Connection) -> dict[str, list[str]]:
    """The features that are switched for VMs that don't exist, by the subjects of the switches."""
    known = {str(vm_id) for vm_id in connection.scalars(sql.select(schema.vms.c.id))}
    wanted = sql.select(schema.switches.c.subject, schema.switches.c.feature)
    found: dict[str, list[str]] = defaultdict(list)
    for subject, feature in connection.execute(wanted.where(schema.switches.c.scope == Scope.VM.value)):
        if subject not in known:
            found[subject].append(feature)
    return found


def _forget_switches(site: Site) -> None:
    table = schema.switches
    with site.ledger.deciding() as connection:
        for subject in _switches_of_nobody(connection):
            connection.execute(sql.delete(table).where(table.c.scope == Scope.VM.value, table.c.subject == subject))


def _nobodys_intents(connection: sql.Connection) -> list[Intent]:
    vms = set(connection.scalars(sql.select(schema.vms.c.id)))
    images = set(connection.scalars(sql.select(schema.images.c.id)))
    found = records.read_intents(connection)
    return [intent for intent in found if intent.vm_id not in vms and intent.image_id not in images]


def _forget_intents(site: Site) -> None:
    with site.ledger.deciding() as connection:
        for intent in _nobodys_intents(connection):
            records.drop_intent(connection, intent)


# One volume, two rows


def _named_twice(connection: sql.Connection) -> dict[str, list[str]]:
    """Volumes that several rows name, with what these rows are."""
    owners: dict[str, list[str]] = defaultdict(list)
    vms, disks, snapshots = schema.vms, schema.disks, schema.snapshots
    parts, images, steps = schema.snapshot_disks, schema.images, schema.steps
    for volume, vm, slot in connection.execute(sql.select(disks.c.volume, vms.c.name, disks.c.slot).join(vms)):
        owners[volume].append(f"{vm}/disk{slot}")
    of_snapshots = sql.select(parts.c.volume, vms.c.name, snapshots.c.name, parts.c.slot)
    for volume, vm, snapshot, slot in connection.execute(of_snapshots.select_from(parts).join(snapshots).join(vms)):
        owners[volume].append(f"disk{slot} of snapshot {snapshot} of {vm}")
    for volume, image in connection.execute(sql.select(images.c.volume, images.c.name)):
        owners[volume].append(f"image {image}")
    for volume in connection.scalars(sql.select(steps.c.staged).where(steps.c.staged.is_not(None))):
        owners[volume].append("a rollback")
    return {volume: names for volume, names in owners.items() if len(names) > 1}


# Operations


def _without_intents(connection: sql.Connection) -> list[Operation]:
    """The operations that are said to run, although no unfinished change belongs to them."""
    at_work = set(connection.scalars(sql.select(schema.intents.c.operation)))
    return [each for each in operation_log.read_all(connection, running=True) if each.id not in at_work]


def _is_abandoned(operation: Operation) -> bool:
    return operation.pid is None or operation_log.is_abandoned(operation)


def _end(site: Site, operation: str) -> None:
    with site.ledger.deciding() as connection:
        if operation not in {each.id for each in _without_intents(connection)}:
            raise ResourceInUse(f"Operation {operation} goes on", "check again")
        operations.failed(connection, operation, None)
