"""Unfinished changes in the ledger: committed, closed as done, closed as undone. Inside the caller's transaction.

What is done to volumes stands in `recovery`, which both the operations and the next process after a kill use.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sql

from nbdresize.control import catalog_records, records, schema, snapshot_records
from nbdresize.control.model import Stage
from nbdresize.control.records import Action, Intent, Kind


def commit(connection: sql.Connection, intent: Intent) -> None:
    """Users see all disks with their new sizes from here on; the change is only ever finished."""
    for step in intent.steps:
        if step.action in (Action.RESIZE, Action.ROLL_BACK):
            records.set_size(connection, step.disk_id, step.new_size)
    records.commit_intent(connection, intent)


def take_back(connection: sql.Connection, intent: Intent, why: BaseException) -> None:
    """Close a committed change none of which has happened yet: its disks have their old sizes again."""
    for step in intent.steps:
        if step.action is Action.RESIZE:
            records.set_size(connection, step.disk_id, step.old_size)
    records.drop_intent(connection, intent, why)


def close(connection: sql.Connection, intent: Intent, stages: Sequence[Stage] = ()) -> None:
    """Close a change that has been done, forget what it deleted, and remember its outcome for a retry."""
    outcome = _outcome(connection, intent)
    _forget_changed(connection, intent, Action.REMOVE)
    if intent.kind is Kind.DELETE_SNAPSHOT and intent.snapshot_id is not None:
        records.detach(connection, intent)
        snapshot_records.delete_snapshots(connection, [intent.snapshot_id])
    if intent.kind is Kind.DELETE_IMAGE and intent.image_id is not None:
        records.detach(connection, intent)
        catalog_records.delete_image(connection, intent.image_id)
    if intent.kind is Kind.DELETE_VM and intent.vm_id is not None:
        _forget_vm(connection, intent, intent.vm_id)
    records.finish(connection, intent, outcome, stages)


def undo(connection: sql.Connection, intent: Intent, why: BaseException | None) -> None:
    """Close a change that has been undone, and forget what it had begun to make. `why`: None for a killed process."""
    _forget_changed(connection, intent, Action.ADD)
    if intent.kind is Kind.CREATE_SNAPSHOT and intent.snapshot_id is not None:
        records.detach(connection, intent)
        snapshot_records.delete_snapshots(connection, [intent.snapshot_id])
    if intent.kind is Kind.ADD_IMAGE and intent.image_id is not None:
        records.detach(connection, intent)
        catalog_records.delete_image(connection, intent.image_id)
    if intent.kind is Kind.CREATE_VM and intent.vm_id is not None:
        _forget_vm(connection, intent, intent.vm_id)
    records.drop_intent(connection, intent, why)


def _forget_changed(connection: sql.Connection, intent: Intent, action: Action) -> None:
    gone = [step.disk_id for step in intent.steps if step.action is action]
    connection.execute(sql.delete(schema.steps).where(schema.steps.c.disk_id.in_(gone)))
    records.delete_disks(connection, gone)


def _forget_vm(connection: sql.Connection, intent: Intent, vm_id: int) -> None:
    snapshots = sql.select(schema.snapshots.c.id).where(schema.snapshots.c.vm_id == vm_id)
    records.detach(connection, intent)
    snapshot_records.delete_snapshots(connection, connection.scalars(snapshots).all())
    records.delete_vm(connection, vm_id)


def _outcome(connection: sql.Connection, intent: Intent) -> dict[str, Any]:
    """What a retry is told: ids of what was made, and of each resized disk its sizes, generation and cause."""
    disks = schema.disks
    ids = [step.disk_id for step in intent.steps]
    rows = connection.execute(sql.select(disks).where(disks.c.id.in_(ids))).mappings()
    now: dict[int, Mapping[Any, Any]] = {row["id"]: row for row in rows}
    return {
        "vm_id": intent.vm_id,
        "snapshot_id": intent.snapshot_id,
        "image_id": intent.image_id,
        "added": [step.disk_id for step in intent.steps if step.action is Action.ADD],
        "resized": [
            {
                "slot": now[step.disk_id]["slot"],
                "old_size": step.old_size,
                "size": step.new_size,
                "generation": now[step.disk_id]["generation"],
                "cause": step.cause,
            }
            for step in intent.steps
            if step.action in (Action.RESIZE, Action.ROLL_BACK)
        ],
        "removed": [f"disk{now[step.disk_id]['slot']}" for step in intent.steps if step.action is Action.REMOVE],
    }
