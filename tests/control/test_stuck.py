"""Changes that can be neither finished nor undone for a while: what they are charged, and what may be done then."""

from dataclasses import replace

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control import disks
from nbdresize.control.catalog_records import account_of
from nbdresize.control.control import Control
from nbdresize.control.model import DiskChanges, DiskUpdate, OperationState
from nbdresize.errors import InsufficientSpace, ResourceInUse, VolumeFailed
from nbdresize.storage.file import FilePool
from nbdresize.units import SizeRequest
from tests.control.consistency import problems
from tests.control.faulty import failing

MIB = 1 << 20


def mib(number: int) -> SizeRequest:
    return SizeRequest(exact=number * MIB)


def sizes(control: Control) -> dict[int, int]:
    return {disk.slot: disk.size // MIB for disk in control.vm("vm").disks}


def used(control: Control) -> int:
    return control.vm("vm").used // MIB


def update(*wanted: tuple[int, int]) -> DiskChanges:
    return DiskChanges(update=tuple(DiskUpdate(slot, mib(size), shrink=True) for slot, size in wanted))


def stick(control: Control, changes: DiskChanges, *methods: str, operation: str | None = None) -> None:
    """Have a change fail that can't be put back either."""
    with failing(*methods, volumes=("vm-disk",), after=True), pytest.raises(VolumeFailed):
        control.change_disks("vm", changes, operation=operation)


INSTEAD = DiskChanges(add=(mib(20),), remove=(1,))


def test_a_disk_of_a_failed_move_is_deleted_and_the_other_undone_within_the_budget(
    control: Control, state: StateDirectory
) -> None:
    control.create_vm("vm", 30 * MIB, [mib(10), mib(20)])
    stick(control, update((0, 20), (1, 10)), "grow", "shrink", operation="moved")
    with failing("shrink"):
        assert (sizes(control), used(control)) == ({0: 10, 1: 20}, 30)
        with pytest.raises(ResourceInUse, match="could not be completed") as caught:
            control.change_disks("vm", INSTEAD)
        assert "second one" in caught.value.way_out
        assert (sizes(control), used(control)) == ({0: 10, 1: 20}, 30)
        control.delete_disk("vm", "disk1")
        assert (sizes(control), used(control)) == ({0: 10}, 20)
        with pytest.raises(InsufficientSpace):
            control.add_disk("vm", mib(20))
        control.add_disk("vm", mib(10))
    Control.open(state).close()
    assert (sizes(control), used(control)) == ({0: 10, 1: 10}, 20)
    assert control.operation("moved").state is OperationState.FAILED
    assert problems(state) == []


def test_a_disk_of_a_committed_move_is_deleted_and_the_other_finished_within_the_budget(
    control: Control, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    control.create_vm("vm", 30 * MIB, [mib(20), mib(10)])
    stick(control, update((0, 10), (1, 20)), "shrink")
    with failing("shrink"):
        assert (sizes(control), used(control)) == ({0: 10, 1: 20}, 30)
        with pytest.raises(ResourceInUse):
            control.change_disks("vm", INSTEAD)
        delete = FilePool.delete

        def look_and_delete(pool: FilePool, name: str) -> None:
            seen.append(used(control))
            delete(pool, name)

        with monkeypatch.context() as patch:
            patch.setattr(FilePool, "delete", look_and_delete)
            control.delete_disk("vm", "disk1")
        assert seen == [30]
        assert (sizes(control), used(control)) == ({0: 10}, 20)
        with pytest.raises(InsufficientSpace):
            control.add_disk("vm", mib(20))
    control.add_disk("vm", mib(20))
    assert (sizes(control), used(control)) == ({0: 10, 1: 20}, 30)
    assert problems(state) == []


def test_disks_of_one_failed_change_that_are_deleted_together_end_it(control: Control, state: StateDirectory) -> None:
    control.create_vm("vm", 100 * MIB, [mib(1)] * 3)
    stick(control, update((1, 2), (2, 2)), "grow", "shrink", operation="grown")
    with failing("grow", "shrink"):
        assert control.operation("grown").state is OperationState.RUNNING
        control.change_disks("vm", DiskChanges(remove=(1, 2)))
    assert control.operation("grown").state is OperationState.FAILED
    assert problems(state) == []


def test_a_deletion_that_ended_a_failed_change_is_not_taken_back(control: Control, state: StateDirectory) -> None:
    """The disk's volume is not as the ledger would have it again."""
    control.create_vm("vm", 100 * MIB, [mib(1)] * 2)
    stick(control, update((1, 2)), "grow", "shrink")
    with failing("grow", "shrink", "delete"):
        with pytest.raises(VolumeFailed, match="delete"):
            control.delete_disk("vm", "disk1")
        assert sizes(control) == {0: 1}
        assert used(control) == 3
    Control.open(state).close()
    assert (sizes(control), used(control)) == ({0: 1}, 1)
    assert problems(state) == []


def test_a_promise_past_the_budget_is_refused_however_it_was_decided(
    control: Control, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.create_vm("vm", 30 * MIB, [mib(10)])
    with monkeypatch.context() as patch:
        patch.setattr(disks, "account_of", lambda *which: replace(account_of(*which), budget=100 * MIB))
        with pytest.raises(InsufficientSpace, match="needs 50 MiB more"):
            control.resize_disk("vm", "disk0", mib(60))
    assert (sizes(control), used(control)) == ({0: 10}, 10)
    assert problems(state) == []


def test_a_vm_with_a_half_made_snapshot_that_can_not_be_deleted_does_not_come_back(
    control: Control, state: StateDirectory
) -> None:
    """Else the snapshot, whose record would be all that is left of it, looked whole."""
    control.create_vm("vm", 30 * MIB, [mib(10)])
    with failing("copy", "delete"), pytest.raises(VolumeFailed):
        control.create_snapshot("vm", "half")
    assert control.snapshots("vm") == []
    with failing("delete"):
        with pytest.raises(VolumeFailed):
            control.delete_vm("vm")
        assert control.vms() == []
    Control.open(state).close()
    assert control.vms() == []
    assert problems(state) == []


def test_a_vm_without_unfinished_changes_that_can_not_be_deleted_stays(control: Control, state: StateDirectory) -> None:
    control.create_vm("vm", 30 * MIB, [mib(10)] * 2)
    control.create_snapshot("vm", "whole")
    with failing("delete"), pytest.raises(VolumeFailed):
        control.delete_vm("vm")
    assert sizes(control) == {0: 10, 1: 10}
    assert [each.name for each in control.snapshots("vm")] == ["whole"]
    assert problems(state) == []
