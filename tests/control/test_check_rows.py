"""Faults of the ledger by itself, and what `check` makes of them."""

import subprocess
import sys

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.checks.report import What
from nbdresize.control.control import Control
from nbdresize.control.model import OperationState
from nbdresize.errors import StateUnusable
from nbdresize.units import SizeRequest
from tests.control.consistency import problems
from tests.control.planting import MIB, assert_repaired, assert_stays, assert_well, only, plant, rows

OPERATION = "INSERT INTO operations (operation, kind, subject, arguments, state, started, cancelling, pid) VALUES "


@pytest.fixture
def vm(control: Control) -> Control:
    control.create_vm("vm", 100 * MIB, [SizeRequest(exact=2 * MIB)] * 2)
    return control


def test_all_is_well_with_what_commands_make(vm: Control, state: StateDirectory) -> None:
    vm.create_snapshot("vm", "one")
    vm.resize_disk("vm", "disk0", SizeRequest(exact=4 * MIB))
    vm.create_snapshot("vm", "two")
    vm.delete_snapshot("vm", "one")
    assert_well(vm)
    assert dict(vm.check().checked) == {"vms": 1, "disks": 2, "snapshots": 1, "images": 0, "servers": 0}
    before = {path: path.stat().st_mtime_ns for path in state.volumes.iterdir()}
    assert vm.check(repair=True).problems == ()
    assert {path: path.stat().st_mtime_ns for path in state.volumes.iterdir()} == before
    assert problems(state) == []


def test_a_damaged_ledger_is_told_and_nothing_else_is_believed_or_repaired(vm: Control, state: StateDirectory) -> None:
    (root,) = rows(state, "SELECT rootpage FROM sqlite_master WHERE type = 'index' AND tbl_name = 'disks' LIMIT 1")
    plant(
        state,
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "PRAGMA writable_schema = ON",
        f"UPDATE sqlite_master SET rootpage = {root[0]} WHERE type = 'index' AND tbl_name = 'vms'",
    )
    vm.close()
    (state.volumes / "stray.raw").touch()
    with Control.open(state) as control:
        found = assert_stays(control, What.LEDGER_DAMAGED)
    assert "backup" in found.way_out
    assert (state.volumes / "stray.raw").exists()


def test_a_ledger_that_can_not_be_read_at_all_is_told(vm: Control, state: StateDirectory) -> None:
    vm.close()
    plant(state, "PRAGMA wal_checkpoint(TRUNCATE)")
    with state.ledger.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 20000)
    with pytest.raises(StateUnusable, match="damaged"):
        Control.open(state, create=False)


def test_switches_of_a_vm_that_is_gone(vm: Control, state: StateDirectory) -> None:
    plant(state, "INSERT INTO switches VALUES ('snapshots', 'vm', '777', 'off')")
    assert "snapshots" in assert_repaired(vm, What.SWITCH_WITHOUT_VM).detail
    vm.update_vm("vm", protected=True)
    vm.set_switch("snapshots", "off", vm="vm")
    assert_well(vm)


def test_a_step_of_no_change(vm: Control, state: StateDirectory) -> None:
    disk = vm.disk("vm", "disk0").id
    plant(
        state,
        "INSERT INTO steps (intent_id, disk_id, action, old_size, new_size, cause) "
        f"VALUES (777, {disk}, 'resize', {2 * MIB}, {4 * MIB}, 1)",
    )
    assert_repaired(vm, What.DANGLING_ROW)
    assert rows(state, "SELECT * FROM steps") == []


def test_a_disk_of_no_snapshot(vm: Control, state: StateDirectory) -> None:
    plant(
        state,
        "INSERT INTO snapshot_disks (snapshot_id, disk_id, slot, size, space, volume, minimum, shared, preallocated) "
        "VALUES (777, 1, 0, 4096, 0, 'gone', 0, 1, 0)",
    )
    assert "snapshot" in assert_repaired(vm, What.DANGLING_ROW).detail
    assert rows(state, "SELECT * FROM snapshot_disks") == []


def test_a_disk_of_no_vm_is_for_people(vm: Control, state: StateDirectory) -> None:
    disk = vm.disk("vm", "disk1").id
    plant(state, f"UPDATE disks SET vm_id = 777 WHERE id = {disk}")
    assert "backup" in assert_stays(vm, What.DANGLING_ROW).way_out
    assert len(list(state.volumes.iterdir())) == 2


def test_a_vm_of_a_package_that_is_gone_is_for_people(vm: Control, state: StateDirectory) -> None:
    plant(state, "UPDATE vms SET package_id = 777")
    assert "--package" in assert_stays(vm, What.DANGLING_ROW).way_out


def test_a_change_of_nothing(vm: Control, state: StateDirectory) -> None:
    plant(
        state,
        OPERATION + "('op', 'delete_vm', 'other', '{}', 'running', 1, 0, NULL)",
        "INSERT INTO intents (operation, kind, vm_id, committed) VALUES ('op', 'delete_vm', 777, 1)",
    )
    assert assert_repaired(vm, What.UNFINISHED_CHANGE).subject == "op"
    assert vm.operation("op").state is OperationState.FAILED


def test_one_volume_of_two_disks_is_for_people(vm: Control, state: StateDirectory) -> None:
    first = vm.disk("vm", "disk0").volume
    vm.create_snapshot("vm", "one")
    (snapshot,) = vm.snapshots("vm")
    plant(state, f"UPDATE snapshot_disks SET volume = '{first}' WHERE slot = 0")
    left = state.volumes / f"{snapshot.disks[0].volume}.raw"
    left.unlink()
    found = assert_stays(vm, What.VOLUME_NAMED_TWICE)
    assert "vm/disk0 and disk0 of snapshot one of vm" in found.detail


def test_an_operation_whose_process_is_gone(vm: Control, state: StateDirectory) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pid = process.pid
    plant(state, OPERATION + f"('op', 'resize_disk', 'vm', '{{}}', 'running', 1, 0, {pid})")
    assert_repaired(vm, What.OPERATION_ABANDONED)
    assert vm.operation("op").state is OperationState.FAILED


def test_an_operation_whose_process_is_there_is_let_be(vm: Control, state: StateDirectory) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        plant(state, OPERATION + f"('op', 'resize_disk', 'vm', '{{}}', 'running', 1, 0, {process.pid})")
        assert_well(vm)
        process.communicate(b"\n")
    assert only(vm.check(), What.OPERATION_ABANDONED).subject == "op"
