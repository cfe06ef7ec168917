"""A ledger that an earlier release has left, with changes of every kind unfinished: it is opened, and completed."""

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sql

from nbdresize.config import StateDirectory
from nbdresize.control import migrations
from nbdresize.control.control import Control
from nbdresize.control.model import ClientResize, OperationState, ResizeOptions
from nbdresize.errors import InvalidArgument
from nbdresize.units import SizeRequest
from tests.control.consistency import problems

MIB = 1 << 20
BUDGET = 100 * MIB
LAST_WEEK = 1_700_000_000

# Names of VMs, each with one unfinished change of version 2, and how far it had come: the lengths of the volumes that
# were there. What becomes of it: the sizes and generations of the disks that are left, None where the VM is.
UNFINISHED: dict[str, tuple[dict[int, int], list[tuple[int, int, int]] | None]] = {
    "created-not": ({}, None),
    "created-half": ({0: 2 * MIB}, None),
    "added-not": ({0: 2 * MIB}, [(0, 2 * MIB, 1)]),
    "added": ({0: 2 * MIB, 1: 2 * MIB}, [(0, 2 * MIB, 1)]),
    "grown-not": ({0: 2 * MIB}, [(0, 4 * MIB, 2)]),
    "grown": ({0: 4 * MIB}, [(0, 4 * MIB, 2)]),
    "shrunk-not": ({0: 2 * MIB}, [(0, MIB, 2)]),
    "shrunk": ({0: MIB}, [(0, MIB, 2)]),
    "deleted-disk-not": ({0: 2 * MIB, 1: 2 * MIB}, [(0, 2 * MIB, 1)]),
    "deleted-disk": ({0: 2 * MIB}, [(0, 2 * MIB, 1)]),
    "deleted-not": ({0: 2 * MIB, 1: 2 * MIB}, None),
    "deleted-half": ({1: 2 * MIB}, None),
}
KINDS = {"created": "create_vm", "added": "add_disk", "grown": "resize_disk", "shrunk": "resize_disk"}


@pytest.fixture
def old(state: StateDirectory) -> StateDirectory:
    """A state directory of version 2 with all of UNFINISHED, and a VM `done` with finished operations."""
    for directory in (state.volumes, state.leases, state.locks, state.run):
        directory.mkdir(parents=True)
    engine = sql.create_engine(f"sqlite:///{state.ledger}", poolclass=sql.NullPool)
    with engine.begin() as connection:
        for step in migrations.STEPS[:2]:
            step(connection)
        connection.execute(sql.text("UPDATE meta SET version = 2"))
    with closing(sqlite3.connect(state.ledger)) as ledger, ledger:
        _insert_vm(ledger, "done", "all")
        _insert_disk(ledger, state, "done", 0, 2 * MIB, 2 * MIB)
        for operation, kind, outcome in (
            ("made", "create_vm", {"vm_id": 1}),
            ("more", "add_disk", {"disk_id": 1}),
            ("larger", "resize_disk", {"old_size": MIB, "size": 2 * MIB, "generation": 1, "cause": 1}),
        ):
            arguments = json.dumps({"kind": kind, "vm": "done"})
            row = (operation, arguments, json.dumps(outcome), LAST_WEEK)
            ledger.execute("INSERT INTO operations (operation, arguments, outcome, finished) VALUES (?, ?, ?, ?)", row)
        for name, (volumes, _) in UNFINISHED.items():
            _leave_unfinished(ledger, state, name, volumes)
    return state


def _insert_vm(ledger: sqlite3.Connection, name: str, policy: str | None = None) -> None:
    ledger.execute(
        "INSERT INTO vms (name, budget, owner, client_resize) VALUES (?, ?, 'ada', ?)", (name, BUDGET, policy)
    )


def _insert_disk(
    ledger: sqlite3.Connection, state: StateDirectory, vm: str, slot: int, size: int, length: int | None
) -> int:
    """A disk, and its volume where that has a length."""
    volume = f"{vm}-disk{slot}-00000000"
    values = (vm, slot, size, volume)
    added = ledger.execute(
        "INSERT INTO disks (vm_id, slot, size, generation, volume) SELECT id, ?2, ?3, 1, ?4 FROM vms WHERE name = ?1",
        values,
    )
    if length is not None:
        path = state.volumes / f"{volume}.raw"
        path.touch()
        os.truncate(path, length)
    return added.lastrowid or 0


def _leave_unfinished(ledger: sqlite3.Connection, state: StateDirectory, name: str, volumes: dict[int, int]) -> None:
    _insert_vm(ledger, name)
    (state.locks / f"{name}.lock").touch()
    what = name.split("-", maxsplit=1)[0]
    kind = KINDS.get(what, "delete_disk" if "disk" in name else "delete_vm")
    slots = (0, 1) if kind != "resize_disk" else (0,)
    size = MIB if what == "shrunk" else 2 * MIB
    ids = [_insert_disk(ledger, state, name, slot, size, volumes.get(slot)) for slot in slots]
    if what == "shrunk":
        ledger.execute("UPDATE disks SET generation = 2 WHERE id = ?", ids)
    sizes = {"grown": (2 * MIB, 4 * MIB, 1), "shrunk": (2 * MIB, MIB, 1)}.get(what, (None, None, None))
    disk_id = None if kind in ("create_vm", "delete_vm") else ids[-1]
    ledger.execute(
        "INSERT INTO intents (operation, kind, vm_id, disk_id, old_size, new_size, cause, arguments, started)"
        " SELECT ?1, ?2, id, ?3, ?4, ?5, ?6, ?7, ?8 FROM vms WHERE name = ?1",
        (name, kind, disk_id, *sizes, json.dumps({"kind": kind, "vm": name}), LAST_WEEK),
    )


def test_what_version_2_left_unfinished_is_completed(old: StateDirectory) -> None:
    with Control.open(old) as control:
        assert problems(old) == []
        seen = {
            vm.name: [(disk.slot, disk.size, disk.generation) for disk in vm.disks]
            for vm in control.vms()
            if vm.name != "done"
        }
        assert seen == {name: after for name, (_, after) in UNFINISHED.items() if after is not None}
        assert {vm.owner for vm in control.vms()} == {"ada"}
        assert {vm.budget for vm in control.vms()} == {BUDGET}
        states = {each.id: each.state for each in control.operations()}
    for name in UNFINISHED:
        undone = name.split("-", maxsplit=1)[0] in ("created", "added")
        assert states[name] is (OperationState.FAILED if undone else OperationState.DONE), name


def test_an_unfinished_change_of_version_2_is_charged_and_hidden_as_it_was(
    old: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbdresize.control.recovery.recover_all", lambda site: None)
    with Control.open(old) as control:
        seen = {vm.name: (len(vm.disks), vm.used, vm.disks[0].pending_size) for vm in control.vms()}
    assert seen == {
        "done": (1, 2 * MIB, None),
        "added-not": (1, 4 * MIB, None),
        "added": (1, 4 * MIB, None),
        "grown-not": (1, 4 * MIB, 4 * MIB),
        "grown": (1, 4 * MIB, 4 * MIB),
        "shrunk-not": (1, 2 * MIB, 2 * MIB),
        "shrunk": (1, 2 * MIB, 2 * MIB),
        "deleted-disk-not": (1, 4 * MIB, None),
        "deleted-disk": (1, 4 * MIB, None),
    }


def test_policies_of_version_2_are_kept(old: StateDirectory) -> None:
    with Control.open(old) as control:
        assert control.vm("done").client_resize is ClientResize.ALL
        assert control.vm("grown").client_resize is None


@pytest.mark.parametrize(
    "retry",
    [
        lambda control: control.create_vm("again", MIB, operation="made"),
        lambda control: control.add_disk("done", SizeRequest(exact=2 * MIB), operation="more"),
        lambda control: control.resize_disk("done", "disk0", SizeRequest(relative=MIB), operation="larger"),
        lambda control: control.resize_disk("grown", "disk0", SizeRequest(relative=2 * MIB), operation="grown"),
        lambda control: control.resize_disk(
            "shrunk", "disk0", SizeRequest(exact=MIB), ResizeOptions(shrink=True), operation="shrunk"
        ),
    ],
)
def test_what_version_2_has_done_never_happens_twice(
    old: StateDirectory, monkeypatch: pytest.MonkeyPatch, retry: Callable[[Control], object]
) -> None:
    """An id from before the migration is known, but not what it was asked for in today's words: it is refused."""
    monkeypatch.setattr("time.time", lambda: LAST_WEEK + 3600.0)
    with Control.open(old) as control:
        before = control.vms()
        with pytest.raises(InvalidArgument, match="was another request"):
            retry(control)
        assert control.vms() == before
    assert problems(old) == []


def test_operations_of_version_2_are_listed(old: StateDirectory) -> None:
    with Control.open(old) as control:
        found = control.operation("larger")
    assert (found.kind, found.subject, found.state) == ("resize_disk", "done", OperationState.DONE)
    assert (found.started, found.finished) == (LAST_WEEK, LAST_WEEK)


def test_a_migration_that_does_not_come_to_its_end_leaves_version_2(old: StateDirectory) -> None:
    third = migrations.STEPS[2]

    def dying(connection: sql.Connection) -> None:
        third(connection)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrations, "STEPS", (*migrations.STEPS[:2], dying))
        with pytest.raises(KeyboardInterrupt):
            Control.open(old)
    with closing(sqlite3.connect(old.ledger)) as ledger:
        assert ledger.execute("SELECT version FROM meta").fetchall() == [(2,)]
        assert len(ledger.execute("SELECT * FROM intents").fetchall()) == len(UNFINISHED)
    Control.open(old).close()
    assert problems(old) == []


def _make_version_3(state: StateDirectory) -> None:
    """A VM whose disk0 was to grow, and which was to get a disk2: both left unfinished."""
    for directory in (state.volumes, state.leases, state.locks, state.run):
        directory.mkdir(parents=True)
    engine = sql.create_engine(f"sqlite:///{state.ledger}", poolclass=sql.NullPool)
    with engine.begin() as connection:
        for step in migrations.STEPS[:3]:
            step(connection)
        connection.execute(sql.text("UPDATE meta SET version = 3"))
    with closing(sqlite3.connect(state.ledger)) as ledger, ledger:
        ledger.execute(f"INSERT INTO vms VALUES (1, 'web1', {BUDGET}, NULL, NULL, NULL, 0, 0)")
        for slot, started in enumerate((LAST_WEEK + 1, None, LAST_WEEK)):
            volume = f"web1-disk{slot}-00000000"
            ledger.execute(f"INSERT INTO disks VALUES ({slot}, 1, {slot}, {2 * MIB}, 1, '{volume}', NULL, 0)")
            path = state.volumes / f"{volume}.raw"
            path.touch()
            os.truncate(path, 2 * MIB)
            if started is not None:
                row = (f"of{slot}", "resize_disk" if slot == 0 else "add_disk", "web1", "{}", "running", started, 0)
                columns = "operation, kind, subject, arguments, state, started, cancelling"
                ledger.execute(f"INSERT INTO operations ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        ledger.executescript(
            "INSERT INTO intents (id, operation, kind, vm_id, committed) VALUES (1, 'of0', 'resize_disk', 1, 0);"
            "INSERT INTO intents (id, operation, kind, vm_id, committed) VALUES (2, 'of2', 'add_disk', 1, 0);"
            f"INSERT INTO steps VALUES (1, 0, 'resize', {2 * MIB}, {4 * MIB}, 1, NULL);"
            f"INSERT INTO steps VALUES (2, 2, 'add', 0, {2 * MIB}, 1, NULL);"
        )


def test_a_ledger_of_version_3_gets_guests_and_keeps_all_else(state: StateDirectory) -> None:
    _make_version_3(state)
    with Control.open(state) as control:
        (vm,) = control.vms()
        assert (vm.name, vm.budget, [disk.size for disk in vm.disks]) == ("web1", BUDGET, [4 * MIB, 2 * MIB])
        assert [each.state for each in control.operations()] == [OperationState.DONE, OperationState.FAILED]
        assert control.guests() == []
        attached = control.attach_guest("web1", Path("/run/web1.qmp"))
        assert control.guests() == [attached]
    with closing(sqlite3.connect(state.ledger)) as ledger:
        assert ledger.execute("SELECT version FROM meta").fetchall() == [(migrations.VERSION,)]
    assert problems(state) == []
