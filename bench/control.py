"""How long a decision takes, and a listing, with a full ledger: 1,000 VMs, 4 disks each, and 10,000 snapshots.

    .venv/bin/python bench/control.py
    .venv/bin/python bench/control.py --vms 10000 --directory /mnt/fast

The targets of the design: a decision, which is one transaction that is durable when it ends, under 20 ms; `vm list`,
the whole command, under half a second, without touching volumes: the pool is empty here, and who looked for one would
fail. Times are medians, with the
slowest. Where the time of a decision goes is shown too: most of it is the disk's, in one fsync.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sql

from nbdresize.config import StateDirectory
from nbdresize.control import operations, records, schema
from nbdresize.control.catalog_records import account_of
from nbdresize.control.changes import DiskTerms, decide_changes
from nbdresize.control.control import Control
from nbdresize.control.ledger import Ledger
from nbdresize.control.model import DiskChanges, DiskUpdate
from nbdresize.control.records import Action, Kind, Step
from nbdresize.units import SizeRequest

_GIB = 1 << 30
_DISKS = 4
_DECISION_TARGET = 0.020
_LIST_TARGET = 0.5


def fill(ledger: Ledger, vms: int, snapshots: int, past: int) -> None:
    """A ledger as years of use leave it: every row that the operations would have made, but no volume."""
    kept = max(1, snapshots // vms)
    with ledger.deciding() as connection:
        insert(connection, schema.packages, [_package(1)])
        insert(connection, schema.vms, [_vm(number) for number in range(1, vms + 1)])
        disks = [_disk(number, slot) for number in range(1, vms + 1) for slot in range(_DISKS)]
        insert(connection, schema.disks, disks)
        numbered = list(enumerate(((vm, each) for vm in range(1, vms + 1) for each in range(kept)), start=1))
        insert(connection, schema.snapshots, [_snapshot(number, vm, each) for number, (vm, each) in numbered])
        copies = [_copy(number, vm, slot) for number, (vm, _) in numbered for slot in range(_DISKS)]
        insert(connection, schema.snapshot_disks, copies)
        insert(connection, schema.switches, [_switch(number) for number in range(1, vms + 1, 10)])
        insert(connection, schema.operations, [_operation(number, past) for number in range(past)])


def insert(connection: sql.Connection, table: sql.Table, rows: list[dict[str, object]]) -> None:
    """What a row does not say of the columns that it needs is 0: nothing here depends on it."""
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
        "snapshot_limit": 128,
    }


def _vm(number: int) -> dict[str, object]:
    return {
        "id": number,
        "name": f"vm{number:05}",
        "budget": 100 * _GIB,
        "owner": f"owner{number % 50}",
        "package_id": 1 if number % 2 else None,
        "image": None,
        "image_space": 0,
        "protected": False,
    }


def _disk(vm: int, slot: int) -> dict[str, object]:
    return {
        "id": (vm - 1) * _DISKS + slot + 1,
        "vm_id": vm,
        "slot": slot,
        "size": 10 * _GIB,
        "generation": 1,
        "volume": f"vm{vm:05}-disk{slot}",
        "image": None,
        "minimum": 0,
    }


def _snapshot(number: int, vm: int, each: int) -> dict[str, object]:
    return {"id": number, "vm_id": vm, "name": f"day{each}", "created": 1_700_000_000 + each}


def _copy(snapshot: int, vm: int, slot: int) -> dict[str, object]:
    return {
        "snapshot_id": snapshot,
        "disk_id": (vm - 1) * _DISKS + slot + 1,
        "slot": slot,
        "size": 10 * _GIB,
        "space": 1 << 20,
        "volume": f"snapshot{snapshot}-disk{slot}",
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
        "subject": f"vm{number % 1000:05}",
        "arguments": "{}",
        "state": "done",
        "started": then,
        "finished": then,
        "outcome": "{}",
        "cancelling": False,
    }


class Decision:
    """The decision to grow a disk, as `disks` makes it, of one VM after another; each is taken back uncounted."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.made = 0
        self.parts: dict[str, list[float]] = {"begin": [], "read": [], "decide": [], "record": [], "commit": []}

    def __call__(self) -> None:
        self.made += 1
        vm = f"vm{self.made % 997 + 1:05}"
        request = operations.Request(f"bench-{self.made}", Kind.RESIZE_DISK.value, vm, "{}")
        times = [time.perf_counter()]
        with self._ledger.deciding() as connection:
            times.append(time.perf_counter())
            entry = records.read_vm(connection, vm)
            assert entry is not None
            operations.outcome_of(connection, request)
            account = account_of(connection, entry)
            times.append(time.perf_counter())
            terms = {disk.slot: DiskTerms(disk.export_name, disk.size, disk.minimum) for disk in entry.vm.disks}
            wanted = DiskChanges(update=(DiskUpdate(1, SizeRequest(relative=1 << 20)),))
            [(slot, old, each)] = decide_changes(account, terms, wanted).update
            times.append(time.perf_counter())
            disk = entry.disk(slot)
            assert disk is not None
            steps = [Step(disk.id, Action.RESIZE, old, each.size)]
            intent = records.open_intent(connection, request, Kind.RESIZE_DISK, vm_id=entry.vm.id, steps=steps)
            times.append(time.perf_counter())
        times.append(time.perf_counter())
        for part, begun, ended in zip(self.parts.values(), times, times[1:], strict=False):
            part.append(ended - begun)
        with self._ledger.deciding() as connection:
            records.drop_intent(connection, intent)


def timed(what: Callable[[], object], rounds: int) -> list[float]:
    """The seconds of each round."""
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        what()
        seconds.append(time.perf_counter() - begun)
    return seconds


def processor_seconds() -> float:
    """Of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def show_command(name: str, run: Callable[[], object], rounds: int, target: float | None = None) -> None:
    """Also its processor time, which depends less on what else the machine does."""
    before = processor_seconds()
    show(name, timed(run, rounds), target)
    print(f"  {'    processor time':<44} {(processor_seconds() - before) / rounds * 1e3:9.2f} ms")


def show(name: str, seconds: list[float], target: float | None = None) -> None:
    median = statistics.median(seconds)
    verdict = "" if target is None else f"   target {target * 1e3:g} ms: {'met' if median < target else 'MISSED'}"
    print(f"  {name:<44} {median * 1e3:9.2f} ms   slowest {max(seconds) * 1e3:9.2f} ms{verdict}")


def measure(state: StateDirectory, rounds: int) -> None:
    environment = {**os.environ, "NBDRESIZE_ROOT": str(state.root)}
    program = [sys.executable, "-m", "nbdresize.cli.main"]
    listing = [*program, "vm", "list"]

    def run(*command: str) -> None:
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)

    with Control.open(state) as control:
        decision = Decision(control._site.ledger)
        timed(decision, 3)
        decision.parts = {name: [] for name in decision.parts}
        timed(decision, rounds)
        begun = [sum(parts) for parts in zip(*decision.parts.values(), strict=True)]
        print("A decision: to grow a disk of one VM, recorded durably")
        show("the transaction", begun, _DECISION_TARGET)
        for name, seconds in decision.parts.items():
            show(f"  of it: {name}", seconds)
        print(f"  {'decisions per second, one after the other':<44} {1 / statistics.mean(begun):9.0f}")
        print("Listing")
        show("control.vm() of one VM", timed(lambda: control.vm("vm00500"), rounds))
        show("control.vms()", timed(control.vms, max(5, rounds // 10)), _LIST_TARGET)
    few = max(5, rounds // 20)
    load = "import sqlalchemy"
    show_command("nbdresize vm list, the whole command", lambda: run(*listing), few, _LIST_TARGET)
    show_command("nbdresize vm list --json", lambda: run(*listing, "--json"), few, _LIST_TARGET)
    show_command("  of it: nbdresize --version (Python, the app)", lambda: run(*program, "--version"), few)
    show_command(f"  of it: {load} (and Python)", lambda: run(sys.executable, "-c", load), few)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vms", type=int, default=1000)
    parser.add_argument("--snapshots", type=int, default=10_000)
    parser.add_argument("--operations", type=int, default=10_000, help="that have ended within the week")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--directory", type=Path, help="where to put the ledger; else a temporary directory")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.directory) as directory:
        state = StateDirectory(Path(directory) / "state")
        with Control.open(state) as control:
            fill(control._site.ledger, given.vms, given.snapshots, given.operations)
        print(f"{given.vms} VMs with {_DISKS} disks each, {given.snapshots} snapshots, {given.operations} operations\n")
        measure(state, given.rounds)


if __name__ == "__main__":
    main()
