"""Snapshots: what is refused, what is charged, and that whatever fails leaves nothing behind."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control import live_copy, operations, snapshot_copies, snapshots
from nbdresize.control.control import Control
from nbdresize.control.leases import Lease
from nbdresize.control.locks import FileLock
from nbdresize.control.model import MAX_SNAPSHOTS, VM, Disk, DiskChanges, OperationState, Progress, Snapshot
from nbdresize.errors import (
    InsufficientSpace,
    InvalidArgument,
    LimitExceeded,
    NotAuthorized,
    OperationCancelled,
    ResourceInUse,
    ResourceNotFound,
    VolumeFailed,
)
from nbdresize.storage.write_map import WriteMap
from nbdresize.units import SizeRequest
from tests.control.consistency import problems
from tests.control.faulty import failing
from tests.control.test_admin_client import Server
from tests.filesystems import mounted

KIB = 1 << 10
MIB = 1 << 20
SIZE = 4 * MIB
BUDGET = 16 * MIB


def write(control: Control, disk: Disk, data: bytes, offset: int = 0) -> None:
    """As a client does."""
    with path(control, disk.volume).open("r+b") as file:
        file.seek(offset)
        file.write(data)
        os.fsync(file.fileno())


def path(control: Control, volume: str) -> Path:
    return control.state.volumes / f"{volume}.raw"


def content(control: Control, snapshot: Snapshot) -> list[bytes]:
    return [path(control, disk.volume).read_bytes() for disk in snapshot.disks]


def make_vm(control: Control, *sizes: int, budget: int = BUDGET, **how: bool) -> VM:
    return control.create_vm("web1", budget, [SizeRequest(exact=size) for size in sizes], **how)  # type: ignore[arg-type]


def leftovers(state: StateDirectory) -> list[str]:
    """What is wrong, and what only a snapshot that is being made has."""
    return [*problems(state), *(each.name for each in state.run.iterdir())]


@pytest.fixture
def vm(control: Control) -> VM:
    """Two disks, each with 1 MiB of data."""
    made = make_vm(control, SIZE, SIZE)
    for disk in made.disks:
        write(control, disk, os.urandom(MIB), MIB)
    return made


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Control]:
    """In a file system of 8 MiB that can't share blocks."""
    with (
        mounted("tmpfs", tmp_path, size=8 * MIB) as point,
        Control.open(StateDirectory(point / "state")) as control,
    ):
        control.update_pool(overcommit="unlimited")
        yield control


def test_a_snapshot_has_all_disks_as_they_were(control: Control, vm: VM) -> None:
    before = [path(control, disk.volume).read_bytes() for disk in vm.disks]
    snapshot = control.create_snapshot("web1", "before")
    write(control, vm.disks[0], b"later" * 100)
    assert content(control, snapshot) == before
    assert control.snapshots("web1") == [snapshot]
    assert (snapshot.vm, snapshot.name, snapshot.size) == ("web1", "before", 2 * SIZE)
    assert [(disk.disk_id, disk.name) for disk in snapshot.disks] == [(disk.id, disk.name) for disk in vm.disks]
    assert leftovers(control.state) == []


def test_its_space_is_charged_and_given_back(control: Control, vm: VM) -> None:
    snapshot = control.create_snapshot("web1", "s1")
    assert snapshot.space == 2 * MIB
    now = control.vm("web1")
    assert (now.used, now.snapshot_space, now.snapshots) == (2 * SIZE + 2 * MIB, 2 * MIB, 1)
    control.delete_snapshot("web1", "s1")
    assert control.vm("web1").used == 2 * SIZE
    assert control.snapshots("web1") == []
    assert leftovers(control.state) == []


def test_it_needs_room_in_the_budget_and_a_refusal_names_what_would_give_it(control: Control, vm: VM) -> None:
    control.create_snapshot("web1", "s1")
    write(control, vm.disks[0], os.urandom(MIB), 2 * MIB)
    control.create_snapshot("web1", "s2")
    control.update_vm("web1", control.vm("web1").used + 2 * MIB)
    write(control, vm.disks[1], os.urandom(MIB), 2 * MIB)
    write(control, vm.disks[1], os.urandom(MIB), 3 * MIB)
    if control.snapshots("web1")[0].copied:
        frees = {"s1": 2 * MIB, "s2": 3 * MIB}
        needed = "5 MiB"
    else:
        control.update_vm("web1", control.vm("web1").used + MIB)
        frees = {"s1": 0, "s2": MIB}
        needed = "2 MiB"
    assert control.snapshot_report("web1").frees == frees
    with pytest.raises(InsufficientSpace) as refused:
        control.create_snapshot("web1", "s3")
    assert f"needs {needed}" in refused.value.problem
    for name, space in frees.items():
        assert (f"{name} (frees {space // MIB} MiB)" in refused.value.way_out) == (space > 0)
    assert len(control.snapshots("web1")) == 2
    assert leftovers(control.state) == []


def test_names_are_unique_within_a_vm(control: Control, vm: VM) -> None:
    control.create_snapshot("web1", "s1")
    with pytest.raises(ResourceInUse, match="has a snapshot s1 already"):
        control.create_snapshot("web1", "s1")
    control.create_vm("web2", BUDGET, [SizeRequest(exact=SIZE)])
    assert control.create_snapshot("web2", "s1").vm == "web2"


@pytest.mark.parametrize("name", ["", "-a", "a/b", "a" * 64, "é", "a\n"])
def test_a_name_that_can_not_be_is_refused(control: Control, vm: VM, name: str) -> None:
    for change in (control.create_snapshot, control.delete_snapshot, control.rollback):
        with pytest.raises(InvalidArgument):
            change("web1", name)


def test_a_snapshot_or_vm_that_is_not_there(control: Control, vm: VM) -> None:
    control.create_snapshot("web1", "s1")
    for change in (control.delete_snapshot, control.rollback):
        with pytest.raises(ResourceNotFound, match="it has s1"):
            change("web1", "s2")
        with pytest.raises(ResourceNotFound, match="no VM web2"):
            change("web2", "s1")
    with pytest.raises(ResourceNotFound, match="no VM web2"):
        control.create_snapshot("web2", "s1")
    with pytest.raises(ResourceNotFound, match="no VM web2"):
        control.snapshot_report("web2")


def test_a_vm_without_disks_has_none(control: Control) -> None:
    make_vm(control)
    with pytest.raises(ResourceNotFound, match="no disks"):
        control.create_snapshot("web1", "s1")


def test_where_they_are_switched_off_none_is_made_or_brought_back_but_deleted(control: Control, vm: VM) -> None:
    control.create_snapshot("web1", "s1")
    control.set_switch("snapshots", "off")
    with pytest.raises(NotAuthorized, match="switched off"):
        control.create_snapshot("web1", "s2")
    with pytest.raises(NotAuthorized, match="switched off"):
        control.rollback("web1", "s1")
    control.delete_snapshot("web1", "s1")


def test_the_limit_of_the_package_holds(control: Control) -> None:
    control.create_package("small", BUDGET, snapshot_limit=2)
    control.create_vm("web1", package="small", disks=[SizeRequest(exact=SIZE)])
    for name in ("s1", "s2"):
        control.create_snapshot("web1", name)
    with pytest.raises(LimitExceeded, match="has 2 snapshots, and may have 2"):
        control.create_snapshot("web1", "s3")
    control.delete_snapshot("web1", "s1")
    control.create_snapshot("web1", "s3")


@pytest.mark.slow
def test_a_vm_has_128_snapshots_at_most(small: Control) -> None:
    small.create_vm("web1", BUDGET, [SizeRequest(exact=64 * KIB)])
    for number in range(MAX_SNAPSHOTS):
        small.create_snapshot("web1", f"s{number}")
    with pytest.raises(LimitExceeded, match="has 128 snapshots, and may have 128"):
        small.create_snapshot("web1", "more")
    assert leftovers(small.state) == []


def test_a_retry_is_told_what_was_made_and_makes_nothing(control: Control, vm: VM) -> None:
    made = control.create_snapshot("web1", "s1", operation="once")
    assert control.create_snapshot("web1", "s1", operation="once") == made
    with pytest.raises(InvalidArgument, match="another request"):
        control.create_snapshot("web1", "s2", operation="once")
    control.delete_snapshot("web1", "s1", operation="gone")
    control.delete_snapshot("web1", "s1", operation="gone")
    with pytest.raises(ResourceNotFound, match="has been deleted"):
        control.create_snapshot("web1", "s1", operation="once")
    assert control.snapshots("web1") == []


def test_a_protected_vm_may_have_snapshots_made_and_deleted(control: Control, vm: VM) -> None:
    control.update_vm("web1", protected=True)
    control.create_snapshot("web1", "s1")
    control.delete_snapshot("web1", "s1")


def test_a_deleted_vm_takes_its_snapshots_along(control: Control, vm: VM) -> None:
    control.create_snapshot("web1", "s1")
    control.change_disks("web1", DiskChanges(remove=(1,)))
    control.create_snapshot("web1", "s2")
    control.delete_vm("web1")
    assert list(control.state.volumes.iterdir()) == []
    assert leftovers(control.state) == []
    make_vm(control, SIZE)
    assert control.snapshots("web1") == []


def test_what_a_deleted_disk_had_stays_charged_to_its_snapshots(control: Control, vm: VM) -> None:
    snapshot = control.create_snapshot("web1", "s1")
    control.delete_disk("web1", "disk1")
    now = control.vm("web1")
    assert now.used == SIZE + snapshot.space
    assert control.snapshot_report("web1").held >= MIB
    later = control.create_snapshot("web1", "s2")
    assert [disk.name for disk in later.disks] == ["disk0"]


def test_what_was_written_after_the_measuring_and_does_not_fit_undoes_it(
    control: Control, vm: VM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may write between the decision and the instant."""
    take = snapshot_copies.take_copies

    def written_first(*arguments: object) -> object:
        write(control, vm.disks[0], os.urandom(2 * MIB), 2 * MIB)
        return take(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshots, "take_copies", written_first)
    control.update_vm("web1", 2 * SIZE + 3 * MIB)
    with pytest.raises(InsufficientSpace, match="needs 4 MiB"):
        control.create_snapshot("web1", "s1")
    assert control.vm("web1").used == 2 * SIZE
    assert leftovers(control.state) == []
    control.update_vm("web1", 2 * SIZE + 4 * MIB)
    assert control.create_snapshot("web1", "s1").space == 4 * MIB


def test_a_full_pool_undoes_it(small: Control) -> None:
    disk = small.create_vm("web1", BUDGET, [SizeRequest(exact=SIZE)] * 2).disks[1]
    write(small, disk, os.urandom(SIZE))
    write(small, small.disk("web1", "disk0"), os.urandom(MIB))
    with pytest.raises(InsufficientSpace):
        small.create_snapshot("web1", "s1", operation="full")
    assert small.operation("full").state is OperationState.FAILED
    assert small.vm("web1").used == 2 * SIZE
    assert leftovers(small.state) == []


def test_no_room_for_the_map_of_writes_undoes_it(small: Control) -> None:
    big = 4 << 40
    small.create_vm("web1", 2 * big, [SizeRequest(exact=big)])
    with pytest.raises(InsufficientSpace):
        small.create_snapshot("web1", "s1")
    assert leftovers(small.state) == []


def test_cancelled_while_it_copies_everything_is_put_back(small: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "_REPORT_EVERY", 0.0)
    disk = make_vm(small, SIZE).disks[0]
    write(small, disk, os.urandom(3 * MIB))
    seen: list[Progress] = []

    def cancel(progress: Progress) -> None:
        if not seen:
            small.cancel_operation("long")
        seen.append(progress)

    with pytest.raises(OperationCancelled):
        small.create_snapshot("web1", "s1", operation="long", listener=cancel)
    assert [each.step for each in seen] == ["copying web1/disk0"]
    assert small.operation("long").state is OperationState.CANCELLED
    assert small.vm("web1").used == SIZE
    assert leftovers(small.state) == []
    assert small.create_snapshot("web1", "s1", operation="long").space == 3 * MIB


def test_ctrl_c_puts_everything_back(small: Control) -> None:
    disk = make_vm(small, SIZE).disks[0]
    write(small, disk, os.urandom(MIB))

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small.create_snapshot("web1", "s1", listener=interrupt)
    assert leftovers(small.state) == []


def test_clients_of_nobody_we_know_are_waited_for_in_vain(small: Control) -> None:
    """A lease that is held, and no server that could hold its replies back."""
    disk = make_vm(small, SIZE).disks[0]
    lease = Lease.acquire_shared(small.state.leases / f"{disk.volume}.lock")
    with pytest.raises(ResourceInUse, match="clients of a server that can't be asked"):
        small.create_snapshot("web1", "s1")
    lease.release()
    assert leftovers(small.state) == []
    small.create_snapshot("web1", "s1")


def test_a_volume_that_somebody_else_changed_is_no_snapshot(control: Control, vm: VM) -> None:
    os.truncate(path(control, vm.disks[1].volume), SIZE + 4096)
    with pytest.raises(VolumeFailed, match="web1/disk1"):
        control.create_snapshot("web1", "s1")
    os.truncate(path(control, vm.disks[1].volume), SIZE)
    assert leftovers(control.state) == []


def test_a_deletion_that_fails_is_finished_by_the_next_change(
    control: Control, vm: VM, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.create_snapshot("web1", "s1")
    with monkeypatch.context() as patch:

        def fail(name: str) -> None:
            raise VolumeFailed("the disk is broken", "replace it")

        patch.setattr(control._site.pool, "delete", fail)
        with pytest.raises(VolumeFailed):
            control.delete_snapshot("web1", "s1")
        assert control.snapshots("web1") == []
        with pytest.raises(VolumeFailed, match="An earlier deletion of snapshot s1"):
            control.create_snapshot("web1", "s1")
        with pytest.raises(VolumeFailed, match="An earlier deletion of snapshot s1"):
            control.delete_snapshot("web1", "s1")
    assert control.create_snapshot("web1", "s1").space == 2 * MIB
    assert leftovers(control.state) == []


def test_snapshots_whose_files_are_lost_are_deleted_one_after_the_other(control: Control, vm: VM) -> None:
    """As `check` advises; also the one before them."""
    names = ("s1", "s2", "s3")
    made = {name: control.create_snapshot("web1", name) for name in names}
    for name in ("s2", "s3"):
        path(control, made[name].disks[0].volume).unlink()
    for name in names:
        control.delete_snapshot("web1", name)
    assert control.vm("web1").used == 2 * SIZE
    assert control.create_snapshot("web1", "s1").space == 2 * MIB
    assert leftovers(control.state) == []


def test_deletions_that_failed_half_way_do_not_keep_each_other(control: Control, vm: VM) -> None:
    kept, *others = (control.create_snapshot("web1", name) for name in ("s1", "s2", "s3"))
    with failing("delete", volumes=tuple(snapshot.disks[1].volume for snapshot in others)):
        for snapshot in others:
            with pytest.raises(VolumeFailed):
                control.delete_snapshot("web1", snapshot.name)
            assert not path(control, snapshot.disks[0].volume).exists()
        made = control.create_snapshot("web1", "s4")  # they are in the way of nothing but themselves
        with pytest.raises(VolumeFailed, match="An earlier deletion of snapshot s2"):
            control.delete_snapshot("web1", "s2")
    control.delete_snapshot("web1", "s4")
    assert control.snapshots("web1") == [kept]
    assert made.space == control.vm("web1").snapshot_space == 2 * MIB
    assert leftovers(control.state) == []


def test_what_is_left_is_charged_no_more_than_the_budget_and_the_deleted_one_gave_back(
    control: Control, vm: VM, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("s1", "s2", "s3"):
        control.create_snapshot("web1", name)
    control.update_vm("web1", control.vm("web1").used)
    with monkeypatch.context() as patch:
        patch.setattr(control._site.pool, "spaces", lambda names: [3 * MIB] * len(names))
        control.delete_snapshot("web1", "s1")
    assert [snapshot.space for snapshot in control.snapshots("web1")] == [4 * MIB, 2 * MIB]
    assert control.vm("web1").free == 0
    control.delete_snapshot("web1", "s3")
    assert [snapshot.space for snapshot in control.snapshots("web1")] == [2 * MIB]


def test_a_snapshot_that_is_deleted_as_soon_as_it_was_made_was_made(
    control: Control, vm: VM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By somebody who waited for the lock of its VM."""
    release = FileLock.release

    def release_and_delete(lock: FileLock) -> None:
        release(lock)
        if lock.path.name == "web1.lock":
            patch.undo()
            control.delete_snapshot("web1", "s1")

    with monkeypatch.context() as patch:
        patch.setattr(FileLock, "release", release_and_delete)
        assert control.create_snapshot("web1", "s1").name == "s1"
    assert control.snapshots("web1") == []
    assert leftovers(control.state) == []


def test_what_a_killed_server_left_unmarked_that_had_no_clients_at_first_is_copied(
    small: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It did not answer when it was asked to mark, and got a client later."""
    (disk,) = make_vm(small, SIZE).disks
    server = Server(small.state.run / "1-00000000.admin", lambda *_: None)
    catch_up = live_copy.LiveCopies.catch_up
    stopped: list[None] = []

    def write_and_kill(live: live_copy.LiveCopies) -> None:
        catch_up(live)
        monkeypatch.undo()
        write(small, disk, b"not marked", MIB)
        server.stop()
        stopped.append(None)

    monkeypatch.setattr(live_copy.LiveCopies, "catch_up", write_and_kill)
    try:
        snapshot = small.create_snapshot("web1", "s1")
    finally:
        if not stopped:
            server.stop()
    assert content(small, snapshot) == [path(small, disk.volume).read_bytes()]
    assert content(small, snapshot)[0].startswith(b"not marked", MIB)
    assert leftovers(small.state) == []


def test_what_is_copied_in_full_is_said_to_be(small: Control) -> None:
    write(small, make_vm(small, SIZE).disks[0], os.urandom(MIB))
    snapshot = small.create_snapshot("web1", "s1")
    assert [disk.shared for disk in snapshot.disks] == [False]
    assert snapshot.copied == snapshot.space == MIB
    stages = [stage.name for stage in small.operations()[0].stages]
    assert stages == ["ledger", "measure", "copy", "instant", "sync"]


def test_clients_that_write_faster_than_can_be_copied_are_named_with_the_ways_out(
    small: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = []

    def take(written: WriteMap) -> list[tuple[int, int]]:
        rounds.append(written)
        return [(0, 4096)]

    monkeypatch.setattr(WriteMap, "take", take)
    monkeypatch.setattr(WriteMap, "marked", lambda _: 1 << 50)
    make_vm(small, SIZE)
    with pytest.raises(ResourceInUse, match="clients of web1/disk0 write faster") as refused:
        small.create_snapshot("web1", "s1")
    assert "detach them" in refused.value.way_out
    assert "xfs or btrfs" in refused.value.way_out
    assert len(rounds) == live_copy.ROUNDS
    assert leftovers(small.state) == []
