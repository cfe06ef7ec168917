"""What must hold of a state directory whenever nobody is changing it, looked at from outside of control."""

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from nbdresize.config import StateDirectory

GRANULARITY = 4096

Row = dict[str, Any]


@dataclass(frozen=True)
class Books:
    """The rows of the ledger, by table."""

    vms: dict[int, Row]
    disks: list[Row]
    snapshots: dict[int, Row]
    snapshot_disks: list[Row]
    images: list[Row]
    intents: list[Row]
    steps: list[Row]
    operations: list[Row]
    packages: dict[int, Row]
    switches: list[Row]
    guests: list[Row]
    settings: dict[str, str]

    @property
    def used(self) -> dict[int, int]:
        """What the disks and snapshots of each VM are charged; a change under way the larger of its two ends."""
        used = dict.fromkeys(self.vms, 0)
        changing = {step["disk_id"] for step in self.steps}
        for disk in self.disks:
            if disk["id"] not in changing:
                used[disk["vm_id"]] = used.get(disk["vm_id"], 0) + disk["size"]
        for intent in self.intents:
            steps = [step for step in self.steps if step["intent_id"] == intent["id"]]
            ends = (sum(step["old_size"] for step in steps), sum(step["new_size"] for step in steps))
            if steps:
                used[intent["vm_id"]] = used.get(intent["vm_id"], 0) + max(ends)
        for disk in self.snapshot_disks:
            snapshot = self.snapshots.get(disk["snapshot_id"])
            if snapshot is not None:
                used[snapshot["vm_id"]] = used.get(snapshot["vm_id"], 0) + disk["space"]
        return used

    @property
    def volumes(self) -> set[str]:
        return {row["volume"] for rows in (self.disks, self.snapshot_disks, self.images) for row in rows}


def problems(state: StateDirectory) -> list[str]:
    """Everything that is wrong; reads the ledger and the files by itself, so that it shares no mistake with control."""
    with closing(sqlite3.connect(state.ledger)) as ledger:
        assert ledger.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = [f"{table} refers to nothing" for table, *_ in ledger.execute("PRAGMA foreign_key_check")]
        ledger.row_factory = sqlite3.Row
        books = read(ledger)
    found += _unfinished(books)
    found += overdrawn(books, limit(state, books))
    found += _wrong_packages(books)
    found += _wrong_disks(state, books)
    found += _wrong_snapshots(state, books)
    found += _wrong_images(state, books)
    found += _orphans(state.volumes, {f"{volume}.raw" for volume in books.volumes}, "volume")
    found += _orphans(state.leases, {f"{disk['volume']}.lock" for disk in books.disks}, "lease")
    vms = {f"{vm['name']}.lock" for vm in books.vms.values()}
    images = {f".image-{image['name']}.lock" for image in books.images}
    found += _orphans(state.locks, vms | images | {".ledger.lock"}, "lock")
    found += [f"left write map {path.name}" for path in sorted(state.run.glob("*.written"))]
    vm_ids = {str(vm_id) for vm_id in books.vms}
    left = [row["feature"] for row in books.switches if row["scope"] == "vm" and row["subject"] not in vm_ids]
    found += [f"switch {feature} of no VM" for feature in left]
    return found + [f"guest {row['qmp']} of no VM" for row in books.guests if row["vm_id"] not in books.vms]


def read(ledger: sqlite3.Connection) -> Books:
    """All rows as at one moment; the connection has to give rows by name."""

    def rows(table: str) -> list[Row]:
        return [dict(row) for row in ledger.execute(f"SELECT * FROM {table} ORDER BY rowid")]

    def by_id(table: str) -> dict[int, Row]:
        return {row["id"]: row for row in rows(table)}

    ledger.execute("BEGIN")
    try:
        return Books(
            by_id("vms"),
            rows("disks"),
            by_id("snapshots"),
            rows("snapshot_disks"),
            rows("images"),
            rows("intents"),
            rows("steps"),
            rows("operations"),
            by_id("packages"),
            rows("switches"),
            rows("guests"),
            {row["name"]: row["value"] for row in rows("settings")},
        )
    finally:
        ledger.execute("ROLLBACK")


def limit(state: StateDirectory, books: Books) -> int | None:
    """The most that the pool may promise; None for any amount."""
    ratio = books.settings.get("pool_overcommit", "1")
    status = os.statvfs(state.volumes)
    capacity = int(books.settings.get("pool_capacity", status.f_blocks * status.f_frsize))
    return None if ratio == "unlimited" or not capacity else int(capacity * Fraction(ratio))


def promised(books: Books) -> int:
    """What the pool has promised: all budgets, what images take, and what rollbacks do while they go on."""
    budgets = sum(int(vm["budget"]) for vm in books.vms.values())
    rollbacks = sum(int(intent["pool_space"]) for intent in books.intents)
    return budgets + rollbacks + sum(int(image["space"]) for image in books.images)


def overdrawn(books: Books, most: int | None) -> list[str]:
    """What must never be seen, also while changes go on: a VM over its budget, a pool over the `most` it promises."""
    found = [
        f"{books.vms[vm_id]['name']} uses {used} of {books.vms[vm_id]['budget']}"
        for vm_id, used in books.used.items()
        if vm_id in books.vms and used > books.vms[vm_id]["budget"]
    ]
    if most is not None and promised(books) > most:
        found.append(f"{promised(books)} of the pool's {most} are promised")
    return found


def _unfinished(books: Books) -> list[str]:
    running = [row["operation"] for row in books.operations if row["state"] == "running"]
    return [
        *(f"unfinished {row['kind']} {row['operation']}" for row in books.intents),
        *(f"operation {operation} runs for ever" for operation in running),
    ]


def _wrong_packages(books: Books) -> list[str]:
    found = []
    for vm in books.vms.values():
        package = books.packages.get(vm["package_id"])
        if package is not None and vm["budget"] != package["disk_space"] + vm["image_space"]:
            found.append(f"{vm['name']} has not the budget of package {package['name']}")
    return found


def _wrong_disks(state: StateDirectory, books: Books) -> list[str]:
    found = []
    for disk in books.disks:
        vm = books.vms.get(disk["vm_id"])
        name = f"{vm['name']}/disk{disk['slot']}" if vm else f"disk{disk['slot']} of no VM"
        if vm is None:
            found.append(f"{name}: {disk['volume']}")
        if disk["size"] <= 0 or disk["size"] % GRANULARITY:
            found.append(f"{name} has {disk['size']} bytes")
        if disk["size"] < disk["minimum"]:
            found.append(f"{name} is smaller than its image")
        found += _wrong_volume(state, name, disk)
    return found


def _wrong_snapshots(state: StateDirectory, books: Books) -> list[str]:
    found = []
    for snapshot in books.snapshots.values():
        if snapshot["vm_id"] not in books.vms:
            found.append(f"snapshot {snapshot['name']} of no VM")
        if not any(disk["snapshot_id"] == snapshot["id"] for disk in books.snapshot_disks):
            found.append(f"snapshot {snapshot['name']} has no disks")
    charged: set[int] = set()
    for disk in books.snapshot_disks:
        snapshot_name = books.snapshots.get(disk["snapshot_id"], {"name": "that is gone"})["name"]
        name = f"disk{disk['slot']} of snapshot {snapshot_name}"
        if disk["snapshot_id"] not in books.snapshots:
            found.append(f"{name}: {disk['volume']}")
        wrong = _wrong_volume(state, name, disk)
        found += wrong
        if not wrong:
            taken = _path(state, disk).stat().st_blocks * 512
            # Of a disk's oldest snapshot all blocks are charged, but for those where the file system keeps the map of
            # its extents; of a later one those that no earlier one has.
            least = taken - taken // 128 if disk["disk_id"] not in charged else 0
            fair = least <= disk["space"] <= taken
            if not fair:
                found.append(f"{name} is charged {disk['space']} bytes, and takes {taken}")
        charged.add(disk["disk_id"])
    return found


def _wrong_images(state: StateDirectory, books: Books) -> list[str]:
    found = []
    for image in books.images:
        name = f"image {image['name']}"
        wrong = _wrong_volume(state, name, image)
        found += wrong
        if not wrong:
            taken = _path(state, image).stat().st_blocks * 512
            if image["space"] < taken:
                found.append(f"{name} is charged {image['space']} bytes, and takes {taken}")
    return found


def _wrong_volume(state: StateDirectory, name: str, row: Row) -> list[str]:
    path = _path(state, row)
    if not path.exists():
        return [f"{name} has no volume"]
    if path.stat().st_size != row["size"]:
        return [f"{name} has {row['size']} bytes, its volume {path.stat().st_size}"]
    return []


def _path(state: StateDirectory, row: Row) -> Path:
    return state.volumes / f"{row['volume']}.raw"


def _orphans(directory: Path, known: set[str], what: str) -> list[str]:
    return [f"orphan {what} {name}" for name in sorted({path.name for path in directory.iterdir()} - known)]
