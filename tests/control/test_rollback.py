"""A VM brought back to a snapshot: content, sizes, disks; what is refused; what an end halfway leaves."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control import operations
from nbdresize.control.control import Control
from nbdresize.control.leases import Lease
from nbdresize.control.model import VM, OperationState, Progress, ResizeOptions, Snapshot
from nbdresize.errors import (
    DeletionProtected,
    InsufficientSpace,
    InvalidArgument,
    NotAuthorized,
    OperationCancelled,
    ResourceInUse,
    ResourceNotFound,
    VolumeFailed,
)
from nbdresize.units import SizeRequest
from tests.control.consistency import problems
from tests.control.test_snapshots import BUDGET, MIB, SIZE, leftovers, make_vm, path, write
from tests.filesystems import mounted

SHRINK = ResizeOptions(shrink=True)


def size(number: int) -> SizeRequest:
    return SizeRequest(exact=number)


@pytest.fixture
def vm(control: Control) -> VM:
    """Two disks with data."""
    made = make_vm(control, SIZE, SIZE)
    for disk in made.disks:
        write(control, disk, os.urandom(MIB), MIB)
    return made


@pytest.fixture
def snapshot(control: Control, vm: VM) -> Snapshot:
    return control.create_snapshot("web1", "before")


@pytest.fixture
def before(control: Control, snapshot: Snapshot) -> list[bytes]:
    return contents(control)


def contents(control: Control) -> list[bytes]:
    return [path(control, disk.volume).read_bytes() for disk in control.vm("web1").disks]


def overwrite(control: Control) -> None:
    for disk in control.vm("web1").disks:
        write(control, disk, os.urandom(MIB))


def test_content_comes_back_and_generations_rise(
    control: Control, vm: VM, snapshot: Snapshot, before: list[bytes]
) -> None:
    overwrite(control)
    outcome = control.rollback("web1", "before")
    assert contents(control) == before
    now = control.vm("web1")
    assert [(disk.id, disk.size, disk.generation, disk.volume) for disk in now.disks] == [
        (disk.id, SIZE, 2, disk.volume) for disk in vm.disks
    ]
    assert [(each.disk, each.old_size, each.size, each.generation) for each in outcome.resized] == [
        ("disk0", SIZE, SIZE, 2),
        ("disk1", SIZE, SIZE, 2),
    ]
    assert control.snapshots("web1") == [snapshot]
    assert leftovers(control.state) == []
    overwrite(control)
    control.rollback("web1", "before")
    assert contents(control) == before


def test_sizes_come_back_larger_and_smaller(control: Control, snapshot: Snapshot, before: list[bytes]) -> None:
    control.resize_disk("web1", "disk0", size(2 * SIZE))
    control.resize_disk("web1", "disk1", size(MIB), SHRINK)
    outcome = control.rollback("web1", "before")
    assert [(each.old_size, each.size) for each in outcome.resized] == [(2 * SIZE, SIZE), (MIB, SIZE)]
    assert contents(control) == before
    assert [disk.generation for disk in control.vm("web1").disks] == [3, 3]
    assert leftovers(control.state) == []


def test_a_disk_that_was_deleted_is_back_in_its_slot_with_its_own_snapshots(
    control: Control, vm: VM, snapshot: Snapshot, before: list[bytes]
) -> None:
    control.delete_disk("web1", "disk1")
    outcome = control.rollback("web1", "before")
    assert contents(control) == before
    [back] = outcome.added
    assert (back.id, back.slot, back.size) == (vm.disks[1].id, 1, SIZE)
    assert back.volume != vm.disks[1].volume
    assert leftovers(control.state) == []
    later = control.create_snapshot("web1", "later")
    assert [disk.disk_id for disk in later.disks] == [disk.id for disk in vm.disks]
    assert control.rollback("web1", "before").added == ()


def test_a_disk_that_was_added_stays_as_it_is(control: Control, snapshot: Snapshot, before: list[bytes]) -> None:
    added = control.add_disk("web1", size(MIB))
    write(control, added, b"mine" * 1024)
    overwrite(control)
    now = contents(control)[2]
    control.rollback("web1", "before")
    assert contents(control) == [*before, now]
    assert control.disk("web1", "disk2") == added


def test_another_disk_in_its_slot_stands_in_the_way(control: Control, snapshot: Snapshot, before: list[bytes]) -> None:
    control.delete_disk("web1", "disk1")
    control.add_disk("web1", size(MIB))
    overwrite(control)
    now = contents(control)
    with pytest.raises(ResourceInUse, match="web1/disk1 is another disk") as refused:
        control.rollback("web1", "before")
    assert "nbdresize disk delete web1 disk1" in refused.value.way_out
    assert contents(control) == now
    control.delete_disk("web1", "disk1")
    control.rollback("web1", "before")
    assert contents(control) == before


def test_sizes_that_the_budget_does_not_hold_any_more_are_refused(control: Control, snapshot: Snapshot) -> None:
    control.resize_disk("web1", "disk0", size(MIB), SHRINK)
    control.add_disk("web1", SizeRequest(remaining=True))
    now = contents(control)
    with pytest.raises(InsufficientSpace, match="needs 3 MiB more"):
        control.rollback("web1", "before")
    assert contents(control) == now
    control.update_vm("web1", BUDGET + 3 * MIB)
    control.rollback("web1", "before")
    assert control.vm("web1").free == 0


def test_a_vm_over_its_budget_may_still_go_back_to_less(control: Control, snapshot: Snapshot) -> None:
    control.resize_disk("web1", "disk0", SizeRequest(remaining=True))
    assert control.vm("web1").free == 0
    control.rollback("web1", "before")
    assert control.disk("web1", "disk0").size == SIZE


def test_a_protected_vm_is_not_brought_back(control: Control, snapshot: Snapshot) -> None:
    control.update_vm("web1", protected=True)
    overwrite(control)
    now = contents(control)
    with pytest.raises(DeletionProtected):
        control.rollback("web1", "before")
    assert contents(control) == now


def test_fixed_disks_come_back_only_with_the_size_they_have(control: Control, snapshot: Snapshot) -> None:
    control.set_switch("flexible_disks", "off")
    control.rollback("web1", "before")
    control.set_switch("flexible_disks", "on")
    control.resize_disk("web1", "disk0", size(2 * SIZE))
    control.set_switch("flexible_disks", "off")
    with pytest.raises(NotAuthorized):
        control.rollback("web1", "before")
    assert control.disk("web1", "disk0").size == 2 * SIZE


def test_attached_disks_are_left_alone(control: Control, snapshot: Snapshot) -> None:
    _, lease = control.take_lease("web1", "disk1")
    overwrite(control)
    now = contents(control)
    with pytest.raises(ResourceInUse, match="web1/disk1 has clients attached"):
        control.rollback("web1", "before")
    assert contents(control) == now
    lease.release()
    control.rollback("web1", "before")


def test_a_disk_that_is_not_in_the_snapshot_may_be_attached(control: Control, snapshot: Snapshot) -> None:
    control.add_disk("web1", size(MIB))
    _, lease = control.take_lease("web1", "disk2")
    control.rollback("web1", "before")
    lease.release()


def test_nobody_attaches_while_it_goes_on(control: Control, snapshot: Snapshot, before: list[bytes]) -> None:
    refused = []

    def attach(progress: Progress) -> None:
        try:
            control.take_lease("web1", "disk0", wait=0.0)[1].release()
        except ResourceInUse as error:
            refused.append(error)

    control.rollback("web1", "before", listener=attach)
    assert refused


def test_a_retry_rolls_nothing_back_again(control: Control, snapshot: Snapshot, before: list[bytes]) -> None:
    overwrite(control)
    first = control.rollback("web1", "before", operation="once")
    overwrite(control)
    now = contents(control)
    again = control.rollback("web1", "before", operation="once")
    assert (again.resized[0].generation, again.operation) == (first.resized[0].generation, "once")
    assert contents(control) == now
    with pytest.raises(InvalidArgument, match="another request"):
        control.rollback("web1", "after", operation="once")


def test_a_retry_that_brought_back_a_disk_says_when_that_is_gone_again(control: Control, snapshot: Snapshot) -> None:
    control.delete_disk("web1", "disk1")
    control.rollback("web1", "before", operation="once")
    assert [disk.name for disk in control.rollback("web1", "before", operation="once").added] == ["disk1"]
    control.delete_disk("web1", "disk1")
    with pytest.raises(ResourceNotFound, match="has been deleted"):
        control.rollback("web1", "before", operation="once")


def test_a_snapshot_that_somebody_damaged_is_not_brought_back(
    control: Control, snapshot: Snapshot, before: list[bytes]
) -> None:
    os.truncate(path(control, snapshot.disks[1].volume), MIB)
    with pytest.raises(VolumeFailed, match="disk1 of snapshot before"):
        control.rollback("web1", "before")
    path(control, snapshot.disks[1].volume).unlink()
    with pytest.raises(VolumeFailed):
        control.rollback("web1", "before")
    assert contents(control) == before


@pytest.mark.parametrize("preallocate", [False, True])
def test_a_disk_whose_volume_is_lost_is_brought_back(control: Control, preallocate: bool) -> None:
    vm = make_vm(control, SIZE, SIZE, preallocate=preallocate)
    for disk in vm.disks:
        write(control, disk, os.urandom(MIB), MIB)
    before = contents(control)
    control.create_snapshot("web1", "before")
    path(control, vm.disks[1].volume).unlink()
    control.rollback("web1", "before")
    assert contents(control) == before
    assert control._site.pool.volume(control.disk("web1", "disk1").volume).preallocated() is preallocate
    assert leftovers(control.state) == []


@pytest.mark.parametrize("deleted", [False, True])
def test_cancelled_or_interrupted_it_changes_nothing(
    control: Control, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, deleted: bool
) -> None:
    monkeypatch.setattr(operations, "_REPORT_EVERY", 0.0)
    overwrite(control)
    if deleted:
        control.delete_disk("web1", "disk1")
    now, vm = contents(control), control.vm("web1")

    def cancel(progress: Progress) -> None:
        control.cancel_operation("long")

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(OperationCancelled):
        control.rollback("web1", "before", operation="long", listener=cancel)
    assert control.operation("long").state is OperationState.CANCELLED
    with pytest.raises(KeyboardInterrupt):
        control.rollback("web1", "before", listener=interrupt)
    assert (contents(control), control.vm("web1")) == (now, vm)
    assert leftovers(control.state) == []


def test_a_full_pool_changes_nothing(tmp_path: Path) -> None:
    with (
        mounted("tmpfs", tmp_path, size=8 * MIB) as point,
        Control.open(StateDirectory(point / "state")) as control,
    ):
        control.update_pool(overcommit="unlimited")
        disk = make_vm(control, SIZE).disks[0]
        write(control, disk, os.urandom(2 * MIB))
        control.create_snapshot("web1", "before")
        write(control, disk, os.urandom(2 * MIB), 2 * MIB)
        now = contents(control)
        with pytest.raises(InsufficientSpace):
            control.rollback("web1", "before")
        assert contents(control) == now
        assert control.disk("web1", "disk0") == disk
        assert leftovers(control.state) == []


def test_what_fails_once_it_is_decided_is_finished_before_anybody_attaches(
    control: Control, snapshot: Snapshot, before: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    control.resize_disk("web1", "disk0", size(2 * SIZE))
    overwrite(control)
    with monkeypatch.context() as patch:

        def fail(name: str, by: str) -> None:
            raise VolumeFailed("the disk is broken", "replace it")

        patch.setattr(control._site.pool, "replace", fail)
        with pytest.raises(VolumeFailed):
            control.rollback("web1", "before")
        with pytest.raises(VolumeFailed, match="An earlier rollback of web1/disk0"):
            control.take_lease("web1", "disk0")
        with pytest.raises(VolumeFailed, match="An earlier rollback of web1/disk0"):
            control.create_snapshot("web1", "s2")
    disk, lease = control.take_lease("web1", "disk0")
    assert disk.size == SIZE
    assert contents(control) == before
    lease.release()
    assert leftovers(control.state) == []


def test_a_disk_deleted_while_its_rollback_is_stuck_leaves_nothing(
    control: Control, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def fail(name: str, by: str) -> None:
            raise VolumeFailed("the disk is broken", "replace it")

        patch.setattr(control._site.pool, "replace", fail)
        with pytest.raises(VolumeFailed):
            control.rollback("web1", "before")
        control.delete_disk("web1", "disk1")
        control.delete_vm("web1")
    assert list(control.state.volumes.iterdir()) == []
    assert leftovers(control.state) == []


@pytest.fixture(params=["xfs", "btrfs", "ext4", "tmpfs"])
def pool(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Control]:
    """Each file system in turn."""
    with (
        mounted(request.param, tmp_path, size=64 * MIB) as point,
        Control.open(StateDirectory(point / "state")) as control,
    ):
        yield control


@pytest.mark.slow
def test_preallocated_disks_stay_so_on_every_file_system(pool: Control) -> None:
    make_vm(pool, SIZE, SIZE, budget=2 * BUDGET, preallocate=True)
    plain = pool.add_disk("web1", size(SIZE))
    overwrite(pool)
    before = contents(pool)
    snapshot = pool.create_snapshot("web1", "before")
    sharing = pool._site.pool.shares_copies()
    assert [disk.shared for disk in snapshot.disks] == [False, False, sharing]
    assert [disk.preallocated for disk in snapshot.disks] == [True, True, False]
    assert [disk.space for disk in snapshot.disks] == [MIB, MIB, MIB]
    overwrite(pool)
    pool.delete_disk("web1", "disk1")
    pool.rollback("web1", "before")
    assert contents(pool) == before
    volumes = [pool._site.pool.volume(disk.volume) for disk in pool.vm("web1").disks]
    assert [volume.preallocated() for volume in volumes] == [True, True, False]
    assert all(volume.allocated() >= SIZE for volume in volumes[:2])
    assert pool.disk("web1", "disk2").volume == plain.volume
    assert leftovers(pool.state) == []


@pytest.mark.slow
def test_a_lease_file_is_all_that_stands_for_a_client(pool: Control) -> None:
    """Once more on each file system: content, size and a lease that is held."""
    disk = make_vm(pool, SIZE).disks[0]
    write(pool, disk, os.urandom(MIB))
    before = contents(pool)
    pool.create_snapshot("web1", "before")
    pool.resize_disk("web1", "disk0", size(2 * SIZE))
    write(pool, disk, os.urandom(MIB), SIZE)
    lease = Lease.acquire_shared(pool.state.leases / f"{disk.volume}.lock")
    with pytest.raises(ResourceInUse):
        pool.rollback("web1", "before")
    lease.release()
    pool.rollback("web1", "before")
    assert contents(pool) == before
    assert problems(pool.state) == []


def test_copies_in_full_need_room_in_the_pool_while_they_last(tmp_path: Path) -> None:
    """Else another VM, within its budget, would find the file system full."""
    with mounted("tmpfs", tmp_path) as point, Control.open(StateDirectory(point / "state")) as control:
        control.update_pool(overcommit="unlimited")
        vm = make_vm(control, SIZE, SIZE)
        for disk in vm.disks:
            write(control, disk, os.urandom(MIB), MIB)
        control.create_snapshot("web1", "before")
        overwrite(control)
        now = contents(control)
        control.update_pool(capacity=BUDGET + 2 * MIB - 4096, overcommit="1")
        with pytest.raises(InsufficientSpace, match="Copying the disks of snapshot before needs 2 MiB of the pool"):
            control.rollback("web1", "before")
        assert contents(control) == now
        assert leftovers(control.state) == []
        control.update_pool(capacity=BUDGET + 2 * MIB)
        seen = []

        def look(progress: Progress) -> None:
            seen.append(control.pool().rollbacks)
            with pytest.raises(InsufficientSpace, match="VM other with 1 MiB needs 1 MiB of the pool"):
                control.create_vm("other", MIB)

        control.rollback("web1", "before", listener=look)
        assert set(seen) == {2 * MIB}
        assert contents(control) != now
        assert control.pool().rollbacks == 0
        control.create_vm("other", MIB)
        assert leftovers(control.state) == []
