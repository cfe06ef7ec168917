"""What each operation on VMs and disks does, refuses, and does once."""

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from typing import cast

import pytest
import sqlalchemy as sql

from nbdresize.config import StateDirectory
from nbdresize.control import locks
from nbdresize.control.control import Control
from nbdresize.control.ledger import Ledger
from nbdresize.control.model import Cause, ClientResize, DiskSource, ResizeOptions
from nbdresize.errors import (
    InsufficientSpace,
    InvalidArgument,
    LimitExceeded,
    NbdresizeError,
    NotAuthorized,
    ResourceInUse,
    ResourceNotFound,
    VolumeFailed,
)
from nbdresize.units import GRANULARITY, MAX_SIZE, REMAINING, SizeRequest
from tests.control.consistency import problems
from tests.control.faulty import failing

MIB = 1 << 20
GIB = 1 << 30
SHRINK = ResizeOptions(shrink=True)


def exact(size: int) -> SizeRequest:
    return SizeRequest(exact=size)


def more(size: int) -> SizeRequest:
    return SizeRequest(relative=size)


@pytest.fixture
def web1(control: Control, state: StateDirectory) -> Control:
    control.create_vm("web1", 100 * GIB, [exact(20 * GIB)])
    assert problems(state) == []
    return control


def test_a_vm_is_made_with_its_disks(control: Control, state: StateDirectory) -> None:
    vm = control.create_vm("web1", 100 * GIB, [exact(20 * GIB), REMAINING, exact(5 * GIB)], owner="ada")
    assert [(disk.name, disk.size, disk.generation) for disk in vm.disks] == [
        ("disk0", 20 * GIB, 1),
        ("disk1", 75 * GIB, 1),
        ("disk2", 5 * GIB, 1),
    ]
    assert (vm.used, vm.free, vm.owner) == (100 * GIB, 0, "ada")
    assert control.vm("web1") == vm
    assert control.vms() == [vm]
    assert control.disk("web1", "disk1") == vm.disks[1]
    assert (vm.disks[1].export_name, vm.disks[1].pci_slot, vm.disks[1].boot) == ("web1/disk1", "0:4:1", False)
    assert problems(state) == []


def test_volumes_are_sparse_unless_asked_otherwise(control: Control, state: StateDirectory) -> None:
    control.create_vm("thin", GIB, [exact(GIB)])
    control.create_vm("thick", GIB, [exact(4 * MIB)], preallocate=True)
    control.add_disk("thick", exact(4 * MIB), preallocate=True)

    def allocated(vm: str) -> list[int]:
        return [(state.volumes / f"{disk.volume}.raw").stat().st_blocks * 512 for disk in control.vm(vm).disks]

    assert allocated("thin") == [0]
    assert allocated("thick") == [4 * MIB, 4 * MIB]


def test_a_vm_may_have_no_disks_yet(control: Control) -> None:
    assert control.create_vm("vm", GIB).disks == ()
    assert control.add_disk("vm", exact(MIB)).name == "disk0"


def test_vms_are_listed_by_name(control: Control) -> None:
    for name in ("b", "a", "c"):
        control.create_vm(name, GIB)
    assert [vm.name for vm in control.vms()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("disks", "error"),
    [
        ([exact(20 * GIB), exact(81 * GIB)], InsufficientSpace),
        ([exact(100 * GIB), REMAINING], InsufficientSpace),
        ([REMAINING, REMAINING], InvalidArgument),
        ([exact(GIB), exact(4097)], InvalidArgument),
        ([exact(GIB), exact(-4096)], InvalidArgument),
        ([exact(GIB), exact(0)], InvalidArgument),
        ([exact(GIB), exact(MAX_SIZE + 1)], InvalidArgument),
        ([exact(GIB), more(GIB)], InvalidArgument),
        ([exact(GIB)] * 9, LimitExceeded),
    ],
)
def test_of_a_refused_vm_nothing_is_made(
    control: Control, state: StateDirectory, disks: list[SizeRequest], error: type[NbdresizeError]
) -> None:
    with pytest.raises(error):
        control.create_vm("web1", 100 * GIB, disks)
    assert control.vms() == []
    assert problems(state) == []
    control.create_vm("web1", 100 * GIB, [exact(GIB)] * 8)


def test_a_name_is_taken_once(web1: Control) -> None:
    with pytest.raises(ResourceInUse, match="a VM web1 already"):
        web1.create_vm("web1", GIB)
    assert web1.vm("web1").budget == 100 * GIB


@pytest.mark.parametrize(
    "attempt",
    [
        lambda control: control.vm("web2"),
        lambda control: control.disk("web2", "disk0"),
        lambda control: control.disk("web1", "disk1"),
        lambda control: control.maximum("web1", "disk1"),
        lambda control: control.update_vm("web2", GIB),
        lambda control: control.delete_vm("web2"),
        lambda control: control.add_disk("web2", exact(GIB)),
        lambda control: control.delete_disk("web1", "disk1"),
        lambda control: control.delete_disk("web2", "disk1"),
        lambda control: control.resize_disk("web1", "disk1", exact(GIB)),
        lambda control: control.resize_disk("web2", "disk0", exact(GIB)),
        lambda control: control.take_lease("web1", "disk1"),
    ],
)
def test_what_is_not_there_is_not_found(
    web1: Control, state: StateDirectory, attempt: Callable[[Control], object]
) -> None:
    with pytest.raises(ResourceNotFound):
        attempt(web1)
    assert problems(state) == []


def test_a_new_disk_takes_the_first_empty_slot(web1: Control, state: StateDirectory) -> None:
    for _ in range(3):
        web1.add_disk("web1", exact(GIB))
    web1.delete_disk("web1", "disk2")
    assert [disk.slot for disk in web1.vm("web1").disks] == [0, 1, 3]
    assert web1.add_disk("web1", REMAINING).name == "disk2"
    assert web1.vm("web1").free == 0
    with pytest.raises(InsufficientSpace, match="Nothing remains for disk4"):
        web1.add_disk("web1", REMAINING)
    assert problems(state) == []


def test_a_ninth_disk_is_refused(control: Control) -> None:
    control.create_vm("vm", GIB, [exact(MIB)] * 8)
    with pytest.raises(LimitExceeded, match="more than 8 disks"):
        control.add_disk("vm", exact(MIB))


def test_the_boot_disk_goes_only_with_its_vm(web1: Control, state: StateDirectory) -> None:
    with pytest.raises(InvalidArgument, match="boot disk"):
        web1.delete_disk("web1", "disk0")
    web1.delete_vm("web1")
    assert web1.vms() == []
    assert problems(state) == []


def test_a_disk_grows_inside_the_budget(web1: Control, state: StateDirectory) -> None:
    outcome = web1.resize_disk("web1", "disk0", exact(30 * GIB))
    assert (outcome.old_size, outcome.size, outcome.generation) == (20 * GIB, 30 * GIB, 2)
    assert (outcome.cause, outcome.changed) == (Cause.AS_REQUESTED, True)
    assert {stage.name for stage in outcome.stages} == {"volume", "ledger", "servers"}
    assert all(stage.done and stage.seconds >= 0 for stage in outcome.stages)
    assert web1.resize_disk("web1", "disk0", more(5 * GIB)).size == 35 * GIB
    assert web1.maximum("web1", "disk0") == 100 * GIB
    assert web1.resize_disk("web1", "disk0", REMAINING).size == 100 * GIB
    with pytest.raises(InsufficientSpace, match="nothing free of its 100 GiB"):
        web1.resize_disk("web1", "disk0", more(GRANULARITY))
    assert web1.disk("web1", "disk0").generation == 4
    assert problems(state) == []


def test_the_present_size_changes_nothing(web1: Control) -> None:
    outcome = web1.resize_disk("web1", "disk0", exact(20 * GIB))
    assert (outcome.changed, outcome.generation, outcome.cause) == (False, 1, Cause.AS_REQUESTED)
    web1.update_vm("web1", 20 * GIB)
    outcome = web1.resize_disk("web1", "disk0", REMAINING)
    assert (outcome.changed, outcome.generation) == (False, 1)


def test_an_unaligned_size_is_refused_or_rounded_up(web1: Control) -> None:
    with pytest.raises(InvalidArgument, match="nearest sizes are 21474836480 and 21474840576"):
        web1.resize_disk("web1", "disk0", exact(20 * GIB + 1))
    with pytest.raises(InvalidArgument, match="no multiple"):
        web1.resize_disk("web1", "disk0", more(1))
    outcome = web1.resize_disk("web1", "disk0", more(1), ResizeOptions(round_up=True))
    assert (outcome.size, outcome.cause) == (20 * GIB + GRANULARITY, Cause.ROUNDED_UP)


def test_rounding_never_passes_the_budget(control: Control) -> None:
    control.create_vm("vm", GIB + 1, [exact(MIB)])
    with pytest.raises(InsufficientSpace):
        control.resize_disk("vm", "disk0", exact(GIB + 1), ResizeOptions(round_up=True))
    outcome = control.resize_disk("vm", "disk0", exact(GIB + 1), ResizeOptions(round_up=True, fit=True))
    assert (outcome.size, outcome.cause) == (GIB, Cause.FITTED)


def test_fit_grows_as_far_as_the_budget_reaches_and_never_shrinks(web1: Control) -> None:
    fit = ResizeOptions(fit=True)
    outcome = web1.resize_disk("web1", "disk0", exact(500 * GIB), fit)
    assert (outcome.size, outcome.cause) == (100 * GIB, Cause.FITTED)
    outcome = web1.resize_disk("web1", "disk0", exact(2**64 - GRANULARITY), fit)
    assert (outcome.size, outcome.cause, outcome.changed) == (100 * GIB, Cause.FITTED, False)
    with pytest.raises(NotAuthorized):
        web1.resize_disk("web1", "disk0", exact(GIB), fit)


def test_a_disk_shrinks_only_where_that_was_allowed(web1: Control, state: StateDirectory) -> None:
    with pytest.raises(NotAuthorized, match="dangerous-allow-shrink"):
        web1.resize_disk("web1", "disk0", exact(10 * GIB))
    outcome = web1.resize_disk("web1", "disk0", exact(10 * GIB), SHRINK)
    assert (outcome.old_size, outcome.size, outcome.generation) == (20 * GIB, 10 * GIB, 2)
    assert web1.vm("web1").free == 90 * GIB
    assert problems(state) == []


def test_what_was_shrunk_away_reads_as_zeroes_when_grown_again(control: Control, state: StateDirectory) -> None:
    (disk,) = control.create_vm("vm", GIB, [exact(2 * MIB)]).disks
    path = state.volumes / f"{disk.volume}.raw"
    path.write_bytes(b"\xa5" * (2 * MIB))
    control.resize_disk("vm", "disk0", exact(MIB), SHRINK)
    control.resize_disk("vm", "disk0", exact(2 * MIB))
    assert path.read_bytes() == b"\xa5" * MIB + bytes(MIB)


def test_a_budget_changes_to_no_less_than_the_disks_take(web1: Control) -> None:
    assert web1.update_vm("web1", 20 * GIB).free == 0
    with pytest.raises(InsufficientSpace, match=r"take 20 GiB, more than a budget of 20\.00 GiB"):
        web1.update_vm("web1", 20 * GIB - 1)
    assert web1.update_vm("web1", 200 * GIB).budget == 200 * GIB
    for budget in (0, -1, MAX_SIZE + 1):
        with pytest.raises(InvalidArgument):
            web1.update_vm("web1", budget)


def test_a_retried_creation_happens_once(control: Control, state: StateDirectory) -> None:
    first = control.create_vm("vm", GIB, [exact(MIB)], operation="one")
    assert control.create_vm("vm", GIB, [exact(MIB)], operation="one") == first
    disk = control.add_disk("vm", exact(MIB), operation="two")
    assert control.add_disk("vm", exact(MIB), operation="two") == disk
    assert len(control.vm("vm").disks) == 2
    control.delete_disk("vm", "disk1")
    with pytest.raises(ResourceNotFound, match="has been deleted"):
        control.add_disk("vm", exact(MIB), operation="two")
    control.delete_vm("vm")
    with pytest.raises(ResourceNotFound, match="has been deleted"):
        control.create_vm("vm", GIB, [exact(MIB)], operation="one")
    assert control.vms() == []
    assert problems(state) == []


def test_a_retried_resize_happens_once_and_says_the_same(web1: Control) -> None:
    first = web1.resize_disk("web1", "disk0", more(GIB), operation="one")
    web1.resize_disk("web1", "disk0", more(GIB), operation="two")
    again = web1.resize_disk("web1", "disk0", more(GIB), operation="one")
    assert (again.old_size, again.size, again.generation, again.cause) == (20 * GIB, 21 * GIB, 2, first.cause)
    assert again.operation == "one"
    assert web1.disk("web1", "disk0").size == 22 * GIB


def test_a_retried_resize_that_changed_nothing_still_changes_nothing(web1: Control) -> None:
    web1.resize_disk("web1", "disk0", exact(20 * GIB), operation="one")
    web1.resize_disk("web1", "disk0", exact(30 * GIB))
    again = web1.resize_disk("web1", "disk0", exact(20 * GIB), operation="one")
    assert (again.size, again.changed) == (20 * GIB, False)
    assert web1.disk("web1", "disk0").size == 30 * GIB


def test_a_refused_request_may_be_retried_under_its_id(web1: Control) -> None:
    with pytest.raises(InsufficientSpace):
        web1.resize_disk("web1", "disk0", exact(120 * GIB), operation="one")
    web1.update_vm("web1", 200 * GIB)
    assert web1.resize_disk("web1", "disk0", exact(120 * GIB), operation="one").size == 120 * GIB


@pytest.mark.parametrize(
    "other",
    [
        lambda control: control.resize_disk("web1", "disk0", more(2 * GIB), operation="one"),
        lambda control: control.resize_disk("web1", "disk0", exact(21 * GIB), operation="one"),
        lambda control: control.resize_disk("web1", "disk0", more(GIB), ResizeOptions(fit=True), operation="one"),
        lambda control: control.resize_disk("web1", "disk1", more(GIB), operation="one"),
        lambda control: control.add_disk("web1", exact(GIB), operation="one"),
        lambda control: control.create_vm("web2", GIB, operation="one"),
    ],
)
def test_the_id_of_another_request_is_refused(web1: Control, other: Callable[[Control], object]) -> None:
    web1.add_disk("web1", exact(GIB))
    web1.resize_disk("web1", "disk0", more(GIB), operation="one")
    before = web1.vms()
    with pytest.raises(InvalidArgument, match="another request"):
        other(web1)
    assert web1.vms() == before


def just_before(of: str, other: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Have `other` happen once before the next transaction of a ledger of that method: reading or deciding."""
    real = getattr(Ledger, of)

    def first_the_other(ledger: Ledger) -> AbstractContextManager[sql.Connection]:
        patch.undo()
        other()
        return cast(AbstractContextManager[sql.Connection], real(ledger))

    patch.setattr(Ledger, of, first_the_other)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda control: control.resize_disk("web1", "disk0", more(GIB), operation="one"),
        lambda control: control.add_disk("web1", exact(GIB), operation="one"),
        lambda control: control.resize_disk("web1", "disk0", exact(20 * GIB), operation="one"),
        lambda control: control.create_snapshot("web1", "new", operation="one"),
        lambda control: control.rollback("web1", "old", operation="one"),
        lambda control: control.delete_image("image", operation="one"),
        lambda control: control.delete_vm("web1", operation="one"),
    ],
)
def test_an_id_that_came_with_another_request_meanwhile_is_refused(
    web1: Control, state: StateDirectory, monkeypatch: pytest.MonkeyPatch, attempt: Callable[[Control], object]
) -> None:
    web1.create_snapshot("web1", "old")
    web1.add_image("image", DiskSource("web1", "disk0"))
    web1.create_vm("web2", GIB)
    before = web1.vm("web1"), web1.snapshots("web1"), web1.images()
    just_before("deciding", lambda: web1.add_disk("web2", exact(MIB), operation="one"), monkeypatch)
    with pytest.raises(InvalidArgument, match="another request"):
        attempt(web1)
    assert (web1.vm("web1"), web1.snapshots("web1"), web1.images()) == before
    assert web1.add_disk("web2", exact(MIB), operation="one").name == "disk0"
    assert web1.operation("one").subject == "web2"
    assert problems(state) == []


def test_a_retry_of_what_can_be_neither_done_nor_undone_says_why(web1: Control, state: StateDirectory) -> None:
    with failing("create", "delete"), pytest.raises(VolumeFailed):
        web1.add_disk("web1", exact(GIB), operation="one")
    with failing("delete"):
        with pytest.raises(VolumeFailed, match=r"Operation one was begun before, .*delete web1-disk1.* failed"):
            web1.add_disk("web1", exact(GIB), operation="one")
        with pytest.raises(InvalidArgument, match="another request"):
            web1.add_disk("web1", exact(MIB), operation="one")
    assert web1.add_disk("web1", exact(GIB), operation="one").name == "disk1"
    assert problems(state) == []


@pytest.mark.parametrize("what", ["vm", "image"])
def test_a_retry_that_waited_for_the_first_run_of_a_deletion_is_done(
    web1: Control, state: StateDirectory, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """It has looked whether it was done already, and then had to wait for the lock."""
    web1.add_image("image", DiskSource("web1", "disk0"))
    lock = getattr(locks, f"lock_{what}")

    def delete() -> None:
        if what == "vm":
            web1.delete_vm("web1", operation="one")
        else:
            web1.delete_image("image", operation="one")

    def locked(*arguments: object, **named: object) -> object:
        monkeypatch.undo()
        delete()
        return lock(*arguments, **named)

    monkeypatch.setattr(locks, f"lock_{what}", locked)
    delete()
    assert len(web1.vms()) + len(web1.images()) == 1
    with pytest.raises(ResourceNotFound):
        web1.delete_vm("web1") if what == "vm" else web1.delete_image("image")
    assert problems(state) == []


def test_how_long_to_wait_is_no_part_of_what_was_asked(web1: Control) -> None:
    web1.resize_disk("web1", "disk0", more(GIB), ResizeOptions(wait=1), operation="one")
    web1.resize_disk("web1", "disk0", more(GIB), ResizeOptions(wait=2), operation="one")
    assert web1.disk("web1", "disk0").size == 21 * GIB


@pytest.mark.parametrize(
    "attempt",
    [
        lambda control: control.resize_disk("web1", "disk0", exact(30 * GIB)),
        lambda control: control.add_disk("web1", exact(10 * GIB)),
    ],
)
def test_a_budget_is_read_in_the_transaction_that_records_the_promise(
    web1: Control, state: StateDirectory, monkeypatch: pytest.MonkeyPatch, attempt: Callable[[Control], object]
) -> None:
    """Not before: here it changes in the last moment, under the nose of the lock of the VM."""
    deciding = Ledger.deciding

    def deciding_late(ledger: Ledger) -> AbstractContextManager[sql.Connection]:
        with closing(sqlite3.connect(state.ledger)) as other, other:
            other.execute("UPDATE vms SET budget = ?", (25 * GIB,))
        return deciding(ledger)

    monkeypatch.setattr(Ledger, "deciding", deciding_late)
    with pytest.raises(InsufficientSpace, match="5 GiB free of its 25 GiB"):
        attempt(web1)
    assert problems(state) == []


def test_a_vm_has_a_policy_for_its_clients_which_can_be_left_to_the_server(web1: Control) -> None:
    assert web1.vm("web1").client_resize is None
    assert web1.update_vm("web1", client_resize=ClientResize.OFF).client_resize is ClientResize.OFF
    assert web1.update_vm("web1", 300 * GIB).client_resize is ClientResize.OFF, "the rest stays as it is"
    assert web1.update_vm("web1", client_resize="default").client_resize is None
    made = web1.create_vm("web9", GIB, client_resize=ClientResize.ALL)
    assert made.client_resize is web1.vm("web9").client_resize is ClientResize.ALL
