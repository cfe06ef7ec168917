"""Faults of VMs, their disks, snapshots and images, and what `check` makes of them."""

import os
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.checks.report import What
from nbdresize.control.control import Control
from nbdresize.control.locks import lock_image, lock_vm
from nbdresize.control.model import DiskSource, OperationState
from nbdresize.storage.file import FileVolume
from nbdresize.units import SizeRequest
from tests.control.consistency import problems
from tests.control.planting import (
    MIB,
    assert_repaired,
    assert_stays,
    assert_well,
    only,
    plant,
    rows,
    volume_of,
)
from tests.filesystems import mounted

OPERATION = "INSERT INTO operations (operation, kind, subject, arguments, state, started, cancelling) VALUES "
COLUMNS = "operation, kind, vm_id, committed, forwards"
INTENT = f"INSERT INTO intents ({COLUMNS}) SELECT 'op', 'resize_disk', id, 0, 1 FROM vms"
STEP = "INSERT INTO steps (intent_id, disk_id, action, old_size, new_size, cause) SELECT "


@pytest.fixture
def vm(control: Control) -> Control:
    control.create_vm("vm", 100 * MIB, [SizeRequest(exact=2 * MIB)] * 2)
    return control


def write(path: Path, data: bytes, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


# Volumes of disks


@pytest.mark.parametrize("filled", [False, True], ids=["hole", "zeroes"])
def test_a_volume_with_zeroes_behind_is_cut(vm: Control, state: StateDirectory, filled: bool) -> None:
    path = volume_of(vm)
    if filled:
        write(path, bytes(3 * MIB + 5), 2 * MIB)
    os.truncate(path, 9 * MIB)
    found = assert_repaired(vm, What.VOLUME_TOO_LONG)
    assert found.subject == "vm/disk0"
    assert path.stat().st_size == 2 * MIB
    assert problems(state) == []


def test_a_volume_with_data_behind_is_for_people(vm: Control) -> None:
    path = volume_of(vm)
    os.truncate(path, 9 * MIB)
    write(path, b"x", 9 * MIB - 1)
    found = assert_stays(vm, What.VOLUME_TOO_LONG)
    assert f"truncate -s {2 * MIB} {path}" in found.way_out
    assert path.stat().st_size == 9 * MIB


def test_a_volume_is_not_cut_while_clients_are_attached(vm: Control) -> None:
    path = volume_of(vm)
    os.truncate(path, 9 * MIB)
    _, lease = vm.take_lease("vm", "disk0")
    with lease:
        found = only(vm.check(repair=True), What.VOLUME_TOO_LONG)
        assert not found.repaired
        assert "clients attached" in found.detail
        assert "detach" in found.way_out
    assert path.stat().st_size == 9 * MIB
    assert_repaired(vm, What.VOLUME_TOO_LONG)


def test_a_volume_that_is_too_short_is_for_people(vm: Control) -> None:
    path = volume_of(vm)
    os.truncate(path, MIB)
    assert f"truncate -s {2 * MIB} {path}" in assert_stays(vm, What.VOLUME_TOO_SHORT).way_out
    os.truncate(path, 2 * MIB)
    assert_well(vm)


def test_a_volume_that_is_gone_or_something_else_is_for_people(vm: Control) -> None:
    path = volume_of(vm, "disk1")
    path.rename(path.with_suffix(".away"))
    assert "nbdresize disk delete vm disk1" in assert_stays(vm, What.VOLUME_UNUSABLE).way_out
    path.mkdir()
    assert "directory" in assert_stays(vm, What.VOLUME_UNUSABLE).detail
    path.rmdir()
    boot = volume_of(vm)
    boot.rename(boot.with_suffix(".away"))
    path.with_suffix(".away").rename(path)
    assert "nbdresize vm delete vm" in assert_stays(vm, What.VOLUME_UNUSABLE).way_out


def test_two_volumes_that_are_one_file_are_for_people(vm: Control) -> None:
    first, second = volume_of(vm), volume_of(vm, "disk1")
    second.unlink()
    second.hardlink_to(first)
    found = assert_stays(vm, What.VOLUMES_ARE_ONE_FILE)
    assert found.subject == "vm/disk1"
    assert str(first) in found.detail
    second.unlink()
    second.symlink_to(first)
    assert_stays(vm, What.VOLUMES_ARE_ONE_FILE)


# Values of disks


@pytest.mark.parametrize(
    ("change", "what", "way_out"),
    [
        ("slot = 9", What.WRONG_SLOT, "backup"),
        ("minimum = 8388608", What.BELOW_MINIMUM, "nbdresize disk resize vm disk1 8388608"),
    ],
)
def test_values_that_can_not_be_are_for_people(
    vm: Control, state: StateDirectory, change: str, what: What, way_out: str
) -> None:
    plant(state, f"UPDATE disks SET {change} WHERE slot = 1")
    assert way_out in assert_stays(vm, what).way_out


def test_a_size_that_is_no_multiple_is_for_people_and_its_way_out_works(vm: Control, state: StateDirectory) -> None:
    plant(state, f"UPDATE disks SET size = {2 * MIB - 5} WHERE slot = 1")
    os.truncate(volume_of(vm, "disk1"), 2 * MIB - 5)
    assert assert_stays(vm, What.WRONG_SIZE).way_out.endswith(f"nbdresize disk resize vm disk1 {2 * MIB}")
    vm.resize_disk("vm", "disk1", SizeRequest(exact=2 * MIB))
    assert_well(vm)


def test_a_generation_that_can_not_be_is_set_to_the_first(vm: Control, state: StateDirectory) -> None:
    plant(state, "UPDATE disks SET generation = 0 WHERE slot = 0")
    assert_repaired(vm, What.WRONG_GENERATION)
    assert vm.disk("vm", "disk0").generation == 1


def test_more_charged_than_the_budget_is_for_people(vm: Control, state: StateDirectory) -> None:
    plant(state, f"UPDATE vms SET budget = {3 * MIB}")
    found = assert_stays(vm, What.OVER_BUDGET)
    assert f"nbdresize vm update vm --disk-space {4 * MIB}" in found.way_out
    vm.update_vm("vm", 4 * MIB)
    assert_well(vm)


def test_a_pool_that_promises_too_much_is_a_warning(vm: Control) -> None:
    vm.update_pool(capacity=MIB, overcommit="1")
    report = vm.check(repair=True)
    assert report.problems == ()
    (warning,) = report.warnings
    assert (warning.what, warning.subject) == (What.OVER_POOL, "pool")


# Unfinished changes


def leave_a_grow(vm: Control, state: StateDirectory) -> None:
    """As of a process that was killed."""
    plant(
        state,
        OPERATION + "('op', 'resize_disk', 'vm', '{}', 'running', 1, 0)",
        INTENT,
        STEP + f"intents.id, disks.id, 'resize', {2 * MIB}, {4 * MIB}, 1 FROM intents, disks WHERE disks.slot = 0",
    )


def test_a_change_that_was_left_unfinished_is_finished(vm: Control, state: StateDirectory) -> None:
    leave_a_grow(vm, state)
    found = assert_repaired(vm, What.UNFINISHED_CHANGE)
    assert found.subject == "op"
    assert found.way_out == "repaired: it was finished"
    assert vm.disk("vm", "disk0").size == 4 * MIB
    assert vm.operation("op").state is OperationState.DONE


def test_a_change_that_can_not_go_on_is_undone_and_that_is_told(
    vm: Control, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    leave_a_grow(vm, state)
    monkeypatch.setattr(os, "ftruncate", fail)
    assert only(vm.check(repair=True), What.UNFINISHED_CHANGE).way_out == "repaired: it was undone"
    assert vm.operation("op").state is OperationState.FAILED
    assert_well(vm)


def test_a_change_that_can_not_be_completed_is_named_with_the_reason(vm: Control, state: StateDirectory) -> None:
    leave_a_grow(vm, state)
    path = volume_of(vm)
    path.rename(path.with_suffix(".away"))
    found = only(vm.check(repair=True), What.UNFINISHED_CHANGE)
    assert not found.repaired
    assert f"There is no volume at {path}" in found.detail
    path.with_suffix(".away").rename(path)
    assert_repaired(vm, What.UNFINISHED_CHANGE)


def test_a_change_without_an_operation_is_one_problem(vm: Control, state: StateDirectory) -> None:
    leave_a_grow(vm, state)
    plant(state, "DELETE FROM operations WHERE operation = 'op'")
    assert "not recorded" in assert_repaired(vm, What.UNFINISHED_CHANGE).detail
    assert vm.disk("vm", "disk0").size == 4 * MIB


def test_a_vm_that_is_being_changed_is_skipped_and_named(vm: Control, state: StateDirectory) -> None:
    leave_a_grow(vm, state)
    os.truncate(volume_of(vm), 3 * MIB)
    with lock_vm(state.locks, "vm", 0):
        for repair in (False, True):
            report = vm.check(repair=repair)
            assert report.problems == ()
            assert [each.subject for each in report.skipped] == ["VM vm"]
            assert report.checked["vms"] == 0
    assert_repaired(vm, What.UNFINISHED_CHANGE)


# Write maps


def test_a_write_map_that_nobody_reads(vm: Control, state: StateDirectory) -> None:
    state.write_map(vm.disk("vm", "disk1").volume).touch()
    assert assert_repaired(vm, What.LEFT_BEHIND).subject == "vm/disk1"


# Snapshots and images


def test_a_snapshots_volume_is_looked_at(vm: Control, state: StateDirectory) -> None:
    vm.create_snapshot("vm", "one")
    path = state.volumes / f"{vm.snapshots('vm')[0].disks[1].volume}.raw"
    for size, what in ((MIB, What.VOLUME_TOO_SHORT), (3 * MIB, What.VOLUME_TOO_LONG)):
        os.truncate(path, size)
        found = assert_stays(vm, what)
        assert found.subject == "disk1 of snapshot one of vm"
        assert f"truncate -s {2 * MIB} {path}" in found.way_out
    path.unlink()
    assert "nbdresize snapshot delete vm one" in assert_stays(vm, What.VOLUME_UNUSABLE).way_out
    vm.delete_snapshot("vm", "one")
    assert_well(vm)


@pytest.mark.slow
@pytest.mark.parametrize("file_system", ["xfs", "ext4"])
def test_what_snapshots_are_charged_is_settled_again(file_system: str, tmp_path: Path) -> None:
    with mounted(file_system, tmp_path, size=300 * MIB) as root, Control.open(StateDirectory(root)) as control:
        control.create_vm("vm", 80 * MIB, [SizeRequest(exact=8 * MIB)])
        path = volume_of(control)
        write(path, os.urandom(4 * MIB), 0)
        control.create_snapshot("vm", "one")
        write(path, os.urandom(2 * MIB), 0)
        control.create_snapshot("vm", "two")
        fair = [snapshot.space for snapshot in control.snapshots("vm")]
        assert_well(control)
        plant(control.state, f"UPDATE snapshot_disks SET space = space + {20 * MIB} WHERE id = 1")
        assert assert_repaired(control, What.WRONG_CHARGE).subject == "disk0 of snapshot one of vm"
        assert [snapshot.space for snapshot in control.snapshots("vm")] == fair
        plant(control.state, "UPDATE snapshot_disks SET space = 0 WHERE id = 2")
        assert_repaired(control, What.WRONG_CHARGE)
        assert [snapshot.space for snapshot in control.snapshots("vm")] == fair


def test_a_charge_may_be_off_a_little(vm: Control, state: StateDirectory) -> None:
    vm.create_snapshot("vm", "one")
    plant(state, f"UPDATE snapshot_disks SET space = space + {MIB}")
    assert_well(vm)
    plant(state, "UPDATE snapshot_disks SET space = space + 1 WHERE slot = 0")
    assert_repaired(vm, What.WRONG_CHARGE)


def test_a_vm_over_its_budget_only_by_a_wrong_charge_is_told_once_it_is_settled(
    vm: Control, state: StateDirectory
) -> None:
    vm.create_snapshot("vm", "one")
    plant(state, f"UPDATE snapshot_disks SET space = {200 * MIB} WHERE slot = 0")
    assert {problem.what for problem in vm.check().problems} == {What.WRONG_CHARGE, What.OVER_BUDGET}
    only(vm.check(repair=True), What.WRONG_CHARGE)
    assert_well(vm)


def test_an_images_volume_and_charge_are_looked_at(vm: Control, state: StateDirectory) -> None:
    write(volume_of(vm), os.urandom(2 * MIB), 0)
    vm.add_image("base", DiskSource("vm", "disk0"))
    assert_well(vm)
    plant(state, f"UPDATE images SET space = {64 * MIB}")
    assert assert_repaired(vm, What.WRONG_CHARGE).subject == "image base"
    path = state.volumes / f"{vm.image('base').volume}.raw"
    os.truncate(path, MIB)
    assert_stays(vm, What.VOLUME_TOO_SHORT)
    path.unlink()
    assert "nbdresize image delete base" in assert_stays(vm, What.VOLUME_UNUSABLE).way_out
    with lock_image(state.locks, "base", 0, exclusive=True):
        assert [each.subject for each in vm.check().skipped] == ["image base"]
    vm.delete_image("base")
    assert_well(vm)


def test_an_image_that_was_left_unfinished_is_undone(vm: Control, state: StateDirectory) -> None:
    vm.add_image("base", DiskSource("vm", "disk0"))
    plant(
        state,
        OPERATION + "('op', 'add_image', 'base', '{}', 'running', 1, 0)",
        "INSERT INTO intents (operation, kind, image_id, committed) SELECT 'op', 'add_image', id, 0 FROM images",
    )
    assert_repaired(vm, What.UNFINISHED_CHANGE)
    assert vm.images() == []
    assert rows(state, "SELECT * FROM intents") == []
    assert problems(state) == []


def test_looking_for_data_reads_no_holes(tmp_path: Path) -> None:
    from nbdresize.control.checks.volumes import holds_data

    path = tmp_path / "volume"
    path.touch()
    os.truncate(path, 1 << 40)
    assert not holds_data(FileVolume(path))
    write(path, b"x", (1 << 40) - 1)
    assert holds_data(FileVolume(path))
    write(path, b"x", 4096)
    os.truncate(path, 8192)
    assert holds_data(FileVolume(path), 4096)
    assert not holds_data(FileVolume(path), 4097)
