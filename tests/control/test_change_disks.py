"""Several disks changed at once: the numbers, all or nothing, once per id, and the clients that stand in the way."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control import admin_client, fence, operations
from nbdresize.control.control import Control
from nbdresize.control.model import (
    ChangeOutcome,
    DiskChanges,
    DiskUpdate,
    OperationState,
    Progress,
    ResizeOptions,
)
from nbdresize.control.payloads import read_update
from nbdresize.errors import (
    InsufficientSpace,
    InvalidArgument,
    LimitExceeded,
    NbdresizeError,
    NotAuthorized,
    OperationCancelled,
    ResourceInUse,
    ResourceNotFound,
    VolumeFailed,
)
from nbdresize.storage import reserving
from nbdresize.units import REMAINING, SizeRequest
from tests.control.consistency import problems
from tests.filesystems import mounted

MIB = 1 << 20
GIB = 1 << 30
ZVOL = "/dev/zvol/rdsk/zones/vm"


def mib(number: int) -> SizeRequest:
    return SizeRequest(exact=number * MIB)


def more(number: int) -> SizeRequest:
    return SizeRequest(relative=number * MIB)


def sizes(control: Control, vm: str = "vm") -> dict[str, int]:
    """The sizes of its disks in MiB."""
    return {disk.name: disk.size // MIB for disk in control.vm(vm).disks}


def allow_any_pool(control: Control) -> Control:
    control.update_pool(overcommit="unlimited")
    return control


@pytest.fixture
def vm(control: Control, state: StateDirectory) -> Control:
    """A VM of 100 MiB with disks of 20, 30 and 10."""
    control.create_vm("vm", 100 * MIB, [mib(20), mib(30), mib(10)])
    assert problems(state) == []
    return control


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits its time out for a client that is there to stay."""
    monkeypatch.setattr(fence, "GRACE", 0.05)


# The numbers


def test_the_shrink_that_the_rfd_refuses_and_the_one_that_it_allows(control: Control, state: StateDirectory) -> None:
    control.create_vm("vm", 300 * GIB, [mib(102400)])
    document = f'{{"update_disks": [{{"path": "{ZVOL}/disk0", "size": 20480%s}}]}}'
    with pytest.raises(NotAuthorized, match="from 100 GiB to 20 GiB") as refused:
        control.change_disks("vm", read_update((document % "").encode(), "vm"))
    assert "dangerous_allow_shrink" in refused.value.way_out
    assert sizes(control) == {"disk0": 102400}
    control.change_disks("vm", read_update((document % ', "dangerous_allow_shrink": true').encode(), "vm"))
    assert sizes(control) == {"disk0": 20480}
    with pytest.raises(NotAuthorized):  # the leave was for that one change
        control.change_disks("vm", DiskChanges(update=(DiskUpdate(0, mib(20000)),)))
    assert problems(state) == []


def test_the_slot_that_disk1_has_left_is_taken_again_and_all_stay_where_they_were(vm: Control) -> None:
    """RFD 154, "disk slot allocation" and "sticky PCI functions for disks"."""
    assert vm.change_disks("vm", DiskChanges(remove=(1,))).removed == ("disk1",)
    assert [(disk.name, disk.pci_slot) for disk in vm.vm("vm").disks] == [("disk0", "0:4:0"), ("disk2", "0:4:2")]
    (added,) = vm.change_disks("vm", DiskChanges(add=(mib(5),))).added
    assert (added.name, added.pci_slot, added.generation) == ("disk1", "0:4:1", 1)
    (added,) = vm.change_disks("vm", DiskChanges(add=(mib(5),))).added
    assert (added.name, added.pci_slot) == ("disk3", "0:4:3")


def test_everything_at_once_is_decided_on_the_state_after_all_of_it(vm: Control, state: StateDirectory) -> None:
    changes = DiskChanges(
        add=(REMAINING, mib(7)), update=(DiskUpdate(0, mib(60)), DiskUpdate(2, mib(4), shrink=True)), remove=(1,)
    )
    outcome = vm.change_disks("vm", changes)
    assert sizes(vm) == {"disk0": 60, "disk2": 4, "disk3": 29, "disk4": 7}
    assert vm.vm("vm").free == 0
    assert [(disk.name, disk.size // MIB) for disk in outcome.added] == [("disk3", 29), ("disk4", 7)]
    assert [(each.disk, each.old_size // MIB, each.size // MIB, each.generation) for each in outcome.resized] == [
        ("disk0", 20, 60, 2),
        ("disk2", 10, 4, 2),
    ]
    assert outcome.removed == ("disk1",)
    assert {stage.name for stage in outcome.stages} == {"ledger", "volume", "servers"}
    assert problems(state) == []


def test_space_moves_between_disks_where_nothing_is_free(vm: Control, state: StateDirectory) -> None:
    vm.resize_disk("vm", "disk0", REMAINING)
    assert sizes(vm) == {"disk0": 60, "disk1": 30, "disk2": 10}
    with pytest.raises(InsufficientSpace, match="nothing free"):
        vm.change_disks("vm", DiskChanges(update=(DiskUpdate(1, more(20)),)))
    shrink = DiskUpdate(0, mib(40), shrink=True)
    with pytest.raises(InsufficientSpace, match="needs 1 MiB more"):
        vm.change_disks("vm", DiskChanges(update=(shrink, DiskUpdate(1, more(21)))))
    vm.change_disks("vm", DiskChanges(update=(shrink, DiskUpdate(1, more(20)))))
    assert sizes(vm) == {"disk0": 40, "disk1": 50, "disk2": 10}
    vm.change_disks("vm", DiskChanges(update=(DiskUpdate(0, REMAINING),), remove=(2,)))
    assert sizes(vm) == {"disk0": 50, "disk1": 50}
    assert vm.vm("vm").used == 100 * MIB
    assert problems(state) == []


def test_what_was_moved_away_reads_as_zeroes_where_it_arrives(vm: Control, state: StateDirectory) -> None:
    paths = [state.volumes / f"{disk.volume}.raw" for disk in vm.vm("vm").disks]
    paths[0].write_bytes(b"\xa5" * (20 * MIB))
    vm.change_disks("vm", DiskChanges(update=(DiskUpdate(0, mib(1), shrink=True), DiskUpdate(1, mib(49)))))
    vm.change_disks("vm", DiskChanges(update=(DiskUpdate(0, mib(2)),)))
    assert paths[0].read_bytes() == b"\xa5" * MIB + bytes(MIB)
    assert not any(paths[1].read_bytes())


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        (DiskChanges(add=(REMAINING, REMAINING)), InvalidArgument, "more than once"),
        (DiskChanges(add=(REMAINING,), update=(DiskUpdate(0, REMAINING),)), InvalidArgument, "more than once"),
        (DiskChanges(remove=(0,)), InvalidArgument, "boot disk"),
        (DiskChanges(update=(DiskUpdate(1, mib(40)),), remove=(0,)), InvalidArgument, "boot disk"),
        (DiskChanges(update=(DiskUpdate(1, mib(40)),), remove=(1,)), InvalidArgument, "twice"),
        (DiskChanges(update=(DiskUpdate(1, mib(40)),), remove=(5,)), ResourceNotFound, "it has disk0, disk1, disk2"),
        (DiskChanges(add=(None,)), InvalidArgument, "has no size"),
        (DiskChanges(add=(mib(1),) * 6), LimitExceeded, "more than 8 disks"),
        (DiskChanges(add=(mib(1),) * 6, remove=(2,)), LimitExceeded, "add it in a second request"),
        (DiskChanges(add=(mib(41),)), InsufficientSpace, "at most 40 MiB more"),
        (DiskChanges(add=(mib(71),), remove=(1,)), InsufficientSpace, "vm update vm --disk-space"),
        (DiskChanges(update=(DiskUpdate(0, mib(10)), DiskUpdate(1, mib(40)))), NotAuthorized, "20 MiB to 10 MiB"),
        (DiskChanges(add=(mib(1),), update=(DiskUpdate(0, mib(99)),)), InsufficientSpace, "need 80 MiB more"),
    ],
)
def test_a_refused_set_changes_nothing_and_says_the_way_out(
    vm: Control, state: StateDirectory, changes: DiskChanges, error: type[NbdresizeError], told: str
) -> None:
    before = vm.vm("vm")
    with pytest.raises(error) as refused:
        vm.change_disks("vm", changes)
    assert told in str(refused.value)
    assert refused.value.way_out
    assert vm.vm("vm") == before
    assert problems(state) == []


def test_a_package_with_fixed_disks_refuses_all_changes_of_them(control: Control, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(bytes(MIB))
    control.add_image("small", image)
    control.create_package("fixed", 100 * MIB, flexible=False)
    control.create_vm("vm", package="fixed", image="small")
    assert sizes(control) == {"disk0": 1, "disk1": 100}
    for attempt in (
        lambda: control.add_disk("vm", mib(1)),
        lambda: control.delete_disk("vm", "disk1"),
        lambda: control.resize_disk("vm", "disk1", mib(1), ResizeOptions(shrink=True)),
        lambda: control.change_disks("vm", DiskChanges(update=(DiskUpdate(0, mib(2)),), remove=(1,))),
    ):
        with pytest.raises(NotAuthorized, match="Package fixed of VM vm has fixed disks"):
            attempt()
    assert control.maximum("vm", "disk0") == MIB
    assert sizes(control) == {"disk0": 1, "disk1": 100}


def test_a_disk_gets_no_smaller_than_its_image_in_a_set_either(control: Control, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(bytes(4 * MIB))
    control.add_image("four", image)
    control.create_vm("vm", 100 * MIB, [mib(10), mib(10)], image="four")
    below = DiskChanges(update=(DiskUpdate(0, mib(3), shrink=True), DiskUpdate(1, mib(20))))
    with pytest.raises(InvalidArgument, match="smaller than its image, 4 MiB"):
        control.change_disks("vm", below)
    control.change_disks("vm", DiskChanges(update=(DiskUpdate(0, mib(4), shrink=True), DiskUpdate(1, mib(20)))))
    assert sizes(control) == {"disk0": 4, "disk1": 20}


# All or nothing


def test_where_a_volume_is_missing_the_others_stay_as_they_are(vm: Control, state: StateDirectory) -> None:
    missing = state.volumes / f"{vm.disk('vm', 'disk2').volume}.raw"
    missing.unlink()
    before = vm.vm("vm")
    grow = DiskChanges(update=tuple(DiskUpdate(slot, more(1)) for slot in (0, 1, 2)))
    with pytest.raises(VolumeFailed, match=missing.name):
        vm.change_disks("vm", grow)
    assert vm.vm("vm") == before
    assert [problem for problem in problems(state) if "disk2" not in problem] == []


@pytest.mark.slow
def test_where_the_pool_is_too_small_for_the_third_the_first_two_are_put_back(tmp_path: Path) -> None:
    with mounted("ext4", tmp_path, size=64 * MIB) as path, Control.open(StateDirectory(path / "state")) as control:
        allow_any_pool(control)
        state = control.state
        control.create_vm("vm", 1000 * MIB, [mib(1)] * 3, preallocate=True)
        before, free = control.vm("vm"), _available(path)
        grow = DiskChanges(update=(DiskUpdate(0, mib(2)), DiskUpdate(1, mib(2)), DiskUpdate(2, mib(500))))
        for changes in (grow, DiskChanges(add=(mib(1), mib(1), mib(500)))):
            with pytest.raises(InsufficientSpace, match="can't be reserved"):
                control.change_disks("vm", changes, preallocate=True, operation="one" if changes.update else "two")
            assert control.vm("vm") == before
            assert _available(path) >= free - 256 * 1024, "what was reserved is free again"
            assert problems(state) == []
        assert [control.operation(name).state for name in ("one", "two")] == [OperationState.FAILED] * 2
        control.change_disks("vm", DiskChanges(update=(DiskUpdate(0, mib(2)), DiskUpdate(1, mib(2)))))


@pytest.mark.slow
def test_a_preallocated_disk_finds_out_now_that_the_pool_is_full(tmp_path: Path) -> None:
    with mounted("ext4", tmp_path, size=64 * MIB) as path, Control.open(StateDirectory(path / "state")) as control:
        allow_any_pool(control)
        control.create_vm("thick", 1000 * MIB, [mib(4)], preallocate=True)
        control.create_vm("thin", 1000 * MIB, [mib(4)])
        assert control.resize_disk("thin", "disk0", mib(500)).changed, "a sparse one is told nothing"
        with pytest.raises(InsufficientSpace, match="496 MiB can't be reserved") as refused:
            control.resize_disk("thick", "disk0", mib(500))
        assert "without preallocation" in refused.value.way_out
        assert sizes(control, "thick") == {"disk0": 4}
        assert control.vm("thick").free == 996 * MIB
        assert problems(control.state) == []
        control.resize_disk("thick", "disk0", mib(8))
        volume = control.state.volumes / f"{control.disk('thick', 'disk0').volume}.raw"
        assert volume.stat().st_blocks * 512 >= 8 * MIB


def test_what_the_third_volume_refuses_undoes_the_first_two(
    vm: Control, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_size = reserving.set_size
    calls: list[int] = []

    def third_fails(fd: int, path: Path, size: int) -> None:
        calls.append(size)
        if len(calls) == 3:
            raise VolumeFailed("The third volume failed", "mend it")
        set_size(fd, path, size)

    monkeypatch.setattr("nbdresize.storage.file.set_size", third_fails)
    before = vm.vm("vm")
    with pytest.raises(VolumeFailed, match="third volume"):
        vm.change_disks("vm", DiskChanges(update=tuple(DiskUpdate(slot, more(1)) for slot in (0, 1, 2))))
    assert len(calls) > 3, "the first two were cut back"
    assert vm.vm("vm") == before
    assert problems(state) == []


# Clients


def test_a_client_on_a_disk_that_would_shrink_stops_the_whole_set(vm: Control, state: StateDirectory) -> None:
    changes = DiskChanges(add=(mib(5),), update=(DiskUpdate(0, mib(30)), DiskUpdate(1, mib(20), shrink=True)))
    before = vm.vm("vm")
    _, lease = vm.take_lease("vm", "disk1")
    with lease, pytest.raises(ResourceInUse, match="vm/disk1 has clients attached"):
        vm.change_disks("vm", changes)
    assert vm.vm("vm") == before
    assert problems(state) == []
    _, lease = vm.take_lease("vm", "disk0")
    with lease:
        vm.change_disks("vm", changes)
    assert sizes(vm) == {"disk0": 30, "disk1": 20, "disk2": 10, "disk3": 5}


def test_clients_are_dropped_where_that_was_asked_for(vm: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    leases = {disk: vm.take_lease("vm", disk)[1] for disk in ("disk0", "disk1", "disk2")}
    dropped: list[str] = []

    def drop(state: StateDirectory, request: dict[str, Any], *_: float) -> list[admin_client.Answer]:
        if request["command"] == "drop":
            (export,) = request["exports"]
            dropped.append(export)
            leases[export.removeprefix("vm/")].release()
        return []

    monkeypatch.setattr(admin_client, "ask_all", drop)
    changes = DiskChanges(update=(DiskUpdate(0, mib(30)), DiskUpdate(1, mib(20), shrink=True)), remove=(2,))
    vm.change_disks("vm", changes, ResizeOptions(disconnect=True))
    assert sorted(dropped) == ["vm/disk1", "vm/disk2"]
    assert leases["disk0"].held, "the client of a disk that grows stays"
    leases["disk0"].release()
    assert sizes(vm) == {"disk0": 30, "disk1": 20}


# Once


@pytest.mark.parametrize(
    "change",
    [
        lambda control: control.change_disks(
            "vm",
            DiskChanges(add=(mib(5),), update=(DiskUpdate(0, more(1)), DiskUpdate(1, mib(9), True)), remove=(2,)),
            operation="one",
        ),
        lambda control: control.change_disks("vm", DiskChanges(update=(DiskUpdate(0, mib(20)),)), operation="one"),
        lambda control: control.resize_disk("vm", "disk0", more(1), operation="one"),
        lambda control: control.add_disk("vm", REMAINING, operation="one"),
        lambda control: control.delete_disk("vm", "disk1", operation="one"),
        lambda control: control.update_vm("vm", 200 * MIB, owner="ann", protected=True, operation="one"),
    ],
)
def test_a_retried_operation_says_the_same_and_changes_nothing(
    vm: Control, state: StateDirectory, change: Callable[[Control], object]
) -> None:
    first, after = change(vm), vm.vm("vm")
    with Control.open(state) as other:
        again = change(other)
    assert _without_stages(again) == _without_stages(first)
    assert vm.vm("vm") == after
    assert vm.operation("one").state is OperationState.DONE
    with pytest.raises(InvalidArgument, match="another request"):
        vm.change_disks("vm", DiskChanges(add=(mib(6),)), operation="one")
    assert vm.vm("vm") == after


def _without_stages(outcome: object) -> object:
    if isinstance(outcome, ChangeOutcome):
        return (outcome.added, [each.size for each in outcome.resized], outcome.removed, outcome.operation)
    return getattr(outcome, "size", outcome)


# Cancelled


def _cancelled_at_its_first_report(control: Control, change: Callable[[operations.Listener], object]) -> None:
    """Run a change under the id "long", and cancel it from another thread while it waits in its first report."""
    started, cancelled = threading.Event(), threading.Event()

    def listen(progress: Progress) -> None:
        if not cancelled.is_set():
            started.set()
            assert cancelled.wait(30)

    def cancel() -> None:
        assert started.wait(30)
        found = control.operation("long")
        assert found.state is OperationState.RUNNING
        control.cancel_operation("long")
        cancelled.set()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    try:
        with pytest.raises(OperationCancelled, match="was cancelled"):
            change(listen)
    finally:
        canceller.join(60)
    assert control.operation("long").state is OperationState.CANCELLED


@pytest.fixture
def reports_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "_REPORT_EVERY", 0.0)


@pytest.mark.usefixtures("reports_at_once")
def test_a_long_preallocation_is_cancelled_by_another_and_leaves_nothing(tmp_path: Path) -> None:
    """On ramfs, which has no other way to allocate than to write."""
    with mounted("ramfs", tmp_path) as path, Control.open(StateDirectory(path / "state")) as control:
        control.create_vm("vm", 100 * MIB, [mib(1)])
        before = control.vm("vm")

        def add(listener: operations.Listener) -> object:
            changes = DiskChanges(add=(mib(3), mib(20)), update=(DiskUpdate(0, mib(2)),))
            return control.change_disks("vm", changes, preallocate=True, operation="long", listener=listener)

        _cancelled_at_its_first_report(control, add)
        assert control.vm("vm") == before
        assert problems(control.state) == []

        def create(listener: operations.Listener) -> object:
            return control.create_vm("vm2", 9 * MIB, [mib(9)], preallocate=True, operation="long", listener=listener)

        with pytest.raises(InvalidArgument, match="another request"):
            create(operations.nobody)
        assert [vm.name for vm in control.vms()] == ["vm"]
        assert problems(control.state) == []


@pytest.mark.usefixtures("reports_at_once")
def test_the_making_of_a_vm_is_cancelled_by_another_and_leaves_nothing(tmp_path: Path) -> None:
    with mounted("ramfs", tmp_path) as path, Control.open(StateDirectory(path / "state")) as control:

        def create(listener: operations.Listener) -> object:
            return control.create_vm(
                "vm", 9 * MIB, [mib(3), mib(6)], preallocate=True, operation="long", listener=listener
            )

        _cancelled_at_its_first_report(control, create)
        assert control.vms() == []
        assert problems(control.state) == []
        create(operations.nobody)
        assert sizes(control) == {"disk0": 3, "disk1": 6}


@pytest.mark.usefixtures("reports_at_once")
def test_a_long_growth_is_cancelled_by_another_and_its_id_can_be_used_again(
    control: Control, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reserving, "_STEP", MIB)
    control.create_vm("vm", 100 * MIB, [mib(4), mib(4)], preallocate=True)
    before = control.vm("vm")
    grow = DiskChanges(update=(DiskUpdate(0, mib(8)), DiskUpdate(1, mib(8))))

    def change(listener: operations.Listener) -> object:
        return control.change_disks("vm", grow, operation="long", listener=listener)

    _cancelled_at_its_first_report(control, change)
    assert control.vm("vm") == before
    assert problems(state) == []
    change(operations.nobody)
    assert sizes(control) == {"disk0": 8, "disk1": 8}
    assert control.operation("long").state is OperationState.DONE
    with pytest.raises(ResourceInUse, match="has ended"):
        control.cancel_operation("long")


def _available(path: Path) -> int:
    return reserving.capacity_of(path).available
