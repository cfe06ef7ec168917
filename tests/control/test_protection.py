"""Deletion protection: a protected VM loses no data, and all else goes on."""

from collections.abc import Callable

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.fence import fenced
from nbdresize.control.model import DiskChanges, DiskUpdate, ResizeOptions
from nbdresize.errors import DeletionProtected, NotAuthorized
from nbdresize.units import REMAINING, SizeRequest
from tests.control.consistency import problems

MIB = 1 << 20
SHRINK = ResizeOptions(shrink=True)


def mib(number: int) -> SizeRequest:
    return SizeRequest(exact=number * MIB)


@pytest.fixture
def vm(control: Control) -> Control:
    control.create_vm("vm", 100 * MIB, [mib(20), mib(30)])
    assert control.update_vm("vm", protected=True).protected
    return control


LOSSES: list[Callable[[Control], object]] = [
    lambda control: control.delete_vm("vm"),
    lambda control: control.delete_disk("vm", "disk1"),
    lambda control: control.resize_disk("vm", "disk1", mib(29), SHRINK),
    lambda control: control.resize_disk("vm", "disk1", mib(29), ResizeOptions(shrink=True, disconnect=True)),
    lambda control: control.change_disks("vm", DiskChanges(update=(DiskUpdate(0, mib(50)),), remove=(1,))),
    lambda control: control.change_disks(
        "vm", DiskChanges(add=(mib(1),), update=(DiskUpdate(0, mib(50)), DiskUpdate(1, mib(1), shrink=True)))
    ),
]


@pytest.mark.parametrize("lose", LOSSES)
def test_a_protected_vm_loses_nothing_until_that_is_taken_away(
    vm: Control, state: StateDirectory, lose: Callable[[Control], object]
) -> None:
    before = vm.vm("vm")
    with pytest.raises(DeletionProtected, match="VM vm is protected from losing data") as refused:
        lose(vm)
    assert refused.value.way_out.startswith("nbdresize vm update vm --no-protected")
    assert vm.vm("vm") == before
    assert problems(state) == []
    assert not vm.update_vm("vm", protected=False).protected
    lose(vm)
    assert problems(state) == []


def test_a_protected_vm_still_grows(vm: Control, state: StateDirectory) -> None:
    vm.resize_disk("vm", "disk0", mib(25))
    vm.add_disk("vm", mib(5))
    vm.change_disks("vm", DiskChanges(add=(mib(1),), update=(DiskUpdate(0, REMAINING),)))
    vm.update_vm("vm", 200 * MIB, owner="ann")
    found = vm.vm("vm")
    assert ([disk.size // MIB for disk in found.disks], found.protected) == ([64, 30, 5, 1], True)
    assert problems(state) == []


def test_a_size_that_is_there_already_is_no_loss(vm: Control) -> None:
    assert not vm.resize_disk("vm", "disk0", mib(20), SHRINK).changed


def test_who_may_not_shrink_is_told_that_first(vm: Control) -> None:
    with pytest.raises(NotAuthorized):
        vm.resize_disk("vm", "disk0", mib(10))


def test_nobody_is_dropped_for_a_shrink_that_is_refused(vm: Control) -> None:
    _, lease = vm.take_lease("vm", "disk1")
    with lease:
        with pytest.raises(DeletionProtected):
            vm.resize_disk("vm", "disk1", mib(10), ResizeOptions(shrink=True, disconnect=True))
        assert lease.held


def test_protection_that_comes_in_the_last_moment_counts(
    vm: Control, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the look at the VM, before the promise: the wait for a client to leave lies between them."""
    vm.update_vm("vm", protected=False)

    def protect_first(*arguments: object, **named: object) -> object:
        with Control.open(state) as other, other._site.ledger.deciding() as connection:
            connection.exec_driver_sql("UPDATE vms SET protected = 1")
        return fenced(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("nbdresize.control.disks.fenced", protect_first)
    with pytest.raises(DeletionProtected):
        vm.delete_disk("vm", "disk1")
    assert len(vm.vm("vm").disks) == 2
    assert problems(state) == []
