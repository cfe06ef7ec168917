"""Snapshots in the ledger. Every function works inside the caller's transaction. Sizes in bytes."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sql

from nbdresize.control import schema
from nbdresize.control.model import Snapshot, SnapshotDisk


def read_snapshots(connection: sql.Connection, vm_id: int, vm: str) -> list[Snapshot]:
    """All snapshots of a VM, also one that is being made or deleted, the oldest first."""
    snapshots, disks = schema.snapshots, schema.snapshot_disks
    ours = sql.select(snapshots.c.id).where(snapshots.c.vm_id == vm_id)
    by_snapshot: dict[int, list[SnapshotDisk]] = {}
    for row in connection.execute(
        sql.select(disks).where(disks.c.snapshot_id.in_(ours)).order_by(disks.c.slot)
    ).mappings():
        by_snapshot.setdefault(row["snapshot_id"], []).append(_disk(row))
    wanted = sql.select(snapshots).where(snapshots.c.vm_id == vm_id).order_by(snapshots.c.id)
    return [
        Snapshot(row["id"], vm, row["name"], row["created"], tuple(by_snapshot.get(row["id"], ())))
        for row in connection.execute(wanted).mappings()
    ]


def read_whole_snapshots(connection: sql.Connection, vm_id: int, vm: str) -> list[Snapshot]:
    """The snapshots that users see: neither half made nor half deleted; the oldest first."""
    table = schema.intents
    wanted = sql.select(table.c.snapshot_id).where(table.c.vm_id == vm_id, table.c.snapshot_id.is_not(None))
    unfinished = set(connection.scalars(wanted))
    return [each for each in read_snapshots(connection, vm_id, vm) if each.id not in unfinished]


def insert_snapshot(connection: sql.Connection, vm_id: int, name: str, disks: Sequence[SnapshotDisk]) -> int:
    """A snapshot of these disks, each with what is reserved for it; the snapshot's id."""
    values = {"vm_id": vm_id, "name": name, "created": int(time.time())}
    added = sql.insert(schema.snapshots).values(values).returning(schema.snapshots.c.id)
    snapshot_id = int(connection.execute(added).scalar_one())
    for disk in disks:
        row = {
            "snapshot_id": snapshot_id,
            "disk_id": disk.disk_id,
            "slot": disk.slot,
            "size": disk.size,
            "space": disk.space,
            "volume": disk.volume,
            "image": disk.image,
            "minimum": disk.minimum,
            "shared": disk.shared,
            "preallocated": disk.preallocated,
        }
        connection.execute(sql.insert(schema.snapshot_disks).values(row))
    return snapshot_id


def set_created(connection: sql.Connection, snapshot_id: int, created: float) -> None:
    """When the snapshot's instant was."""
    table = schema.snapshots
    connection.execute(sql.update(table).where(table.c.id == snapshot_id).values(created=int(created)))


def set_spaces(connection: sql.Connection, spaces: Mapping[str, int]) -> None:
    """What snapshots are charged, by volume."""
    table = schema.snapshot_disks
    for volume, space in spaces.items():
        connection.execute(sql.update(table).where(table.c.volume == volume).values(space=space))


def set_shared(connection: sql.Connection, volume: str, *, shared: bool) -> None:
    """Whether the snapshot's volume shares blocks with its disk."""
    table = schema.snapshot_disks
    connection.execute(sql.update(table).where(table.c.volume == volume).values(shared=shared))


def delete_snapshots(connection: sql.Connection, snapshot_ids: Iterable[int]) -> None:
    ids = list(snapshot_ids)
    connection.execute(sql.delete(schema.snapshot_disks).where(schema.snapshot_disks.c.snapshot_id.in_(ids)))
    connection.execute(sql.delete(schema.snapshots).where(schema.snapshots.c.id.in_(ids)))


def _disk(row: Mapping[Any, Any]) -> SnapshotDisk:
    return SnapshotDisk(
        row["disk_id"],
        row["slot"],
        row["size"],
        row["space"],
        row["volume"],
        row["image"],
        row["minimum"],
        row["shared"],
        row["preallocated"],
    )
