"""Ledgers as years of use leave them: every row that the operations would have made, in one transaction."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sql

from nbdresize.config import StateDirectory
from nbdresize.control import schema
from nbdresize.control.control import Control
from nbdresize.storage.file import FilePool

DISKS = 4
"""Of each VM."""
_GIB = 1 << 30
_SIZE = 10 * _GIB


@dataclass(frozen=True)
class Filling:
    """How many VMs of DISKS disks each, snapshots in all, and operations that have ended within the week."""

    vms: int
    snapshots: int
    operations: int

    @property
    def kept(self) -> int:
        """Snapshots of each VM."""
        return self.snapshots // self.vms


@contextmanager
def full_ledger(filling: Filling, directory: Path, *, volumes: bool = False) -> Iterator[StateDirectory]:
    """A state directory in `directory` with that in its ledger; `volumes` makes the (empty) files of its disks too.

    Without them, whoever looked at a volume would fail.
    """
    with tempfile.TemporaryDirectory(prefix="nbdresize-bench-", dir=directory) as place:
        state = StateDirectory(Path(place) / "state")
        with Control.open(state) as control:
            control.update_pool(overcommit="unlimited")
            with control._site.ledger.deciding() as connection:
                _fill(connection, filling)
        if volumes:
            _make_volumes(state, filling)
        yield state


def vm_name(number: int) -> str:
    """Numbers begin with 1."""
    return f"vm{number:05}"


def _fill(connection: sql.Connection, filling: Filling) -> None:
    vms, past = range(1, filling.vms + 1), filling.operations
    owned = [(vm, each) for vm in vms for each in range(filling.kept)]
    numbered = list(enumerate(owned, start=1))
    _insert(connection, schema.packages, [_package(1)])
    _insert(connection, schema.vms, [_vm(number) for number in vms])
    _insert(connection, schema.disks, [_disk(number, slot) for number in vms for slot in range(DISKS)])
    _insert(connection, schema.snapshots, [_snapshot(number, vm, each) for number, (vm, each) in numbered])
    copies = [_copy(number, vm, slot) for number, (vm, _) in numbered for slot in range(DISKS)]
    _insert(connection, schema.snapshot_disks, copies)
    _insert(connection, schema.switches, [_switch(number) for number in vms[::10]])
    _insert(connection, schema.operations, [_operation(number, past) for number in range(past)])


def _insert(connection: sql.Connection, table: sql.Table, rows: list[dict[str, object]]) -> None:
    """What a row does not say of the columns that it needs is 0: nothing here depends on it."""
    if rows:
        needed = {column.name: 0 for column in table.c if not column.nullable and not column.primary_key}
        connection.execute(sql.insert(table), [{**needed, **row} for row in rows])


def _package(number: int) -> dict[str, object]:
    return {
        "id": number,
        "name": "large",
        "disk_space": 100 * _GIB,
        "flexible": True,
        "default_disks": "[]",
        "max_image": None,
        "snapshot_limit": 1000,
    }


def _vm(number: int) -> dict[str, object]:
    return {
        "id": number,
        "name": vm_name(number),
        "budget": 100 * _GIB,
        "owner": f"owner{number % 50}",
        "package_id": 1 if number % 2 else None,
        "image": None,
        "image_space": 0,
        "protected": False,
    }


def _disk(vm: int, slot: int) -> dict[str, object]:
    return {
        "id": (vm - 1) * DISKS + slot + 1,
        "vm_id": vm,
        "slot": slot,
        "size": _SIZE,
        "generation": 1,
        "volume": _disk_volume(vm, slot),
        "image": None,
        "minimum": 0,
    }


def _snapshot(number: int, vm: int, each: int) -> dict[str, object]:
    return {"id": number, "vm_id": vm, "name": f"day{each}", "created": 1_700_000_000 + each}


def _copy(snapshot: int, vm: int, slot: int) -> dict[str, object]:
    return {
        "snapshot_id": snapshot,
        "disk_id": (vm - 1) * DISKS + slot + 1,
        "slot": slot,
        "size": _SIZE,
        "space": 1 << 20,
        "volume": _copy_volume(snapshot, slot),
        "image": None,
        "minimum": 0,
    }


def _switch(vm: int) -> dict[str, object]:
    return {"feature": "client_resize", "scope": "vm", "subject": str(vm), "value": "grow"}


def _operation(number: int, past: int) -> dict[str, object]:
    then = time.time() - past + number
    return {
        "operation": f"{number:016x}",
        "kind": "resize_disk",
        "subject": vm_name(number % 1000),
        "arguments": "{}",
        "state": "done",
        "started": then,
        "finished": then,
        "outcome": "{}",
        "cancelling": False,
    }


def _disk_volume(vm: int, slot: int) -> str:
    return f"{vm_name(vm)}-disk{slot}"


def _copy_volume(snapshot: int, slot: int) -> str:
    return f"snapshot{snapshot}-disk{slot}"


def _make_volumes(state: StateDirectory, filling: Filling) -> None:
    names = [_disk_volume(vm, slot) for vm in range(1, filling.vms + 1) for slot in range(DISKS)]
    copies = range(1, filling.vms * filling.kept + 1)
    names += [_copy_volume(number, slot) for number in copies for slot in range(DISKS)]
    pool = FilePool(state.volumes)
    for name in names:
        with pool.volume(name).path.open("xb") as file:
            file.truncate(_SIZE)
