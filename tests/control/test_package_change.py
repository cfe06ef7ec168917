"""A VM gets another package, larger or smaller: where its disks and snapshots fit, and the pool holds it."""

from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.model import DiskSource, ResizeOptions
from nbdresize.errors import (
    DeletionProtected,
    InsufficientSpace,
    InvalidArgument,
    LimitExceeded,
    NotAuthorized,
    ResourceNotFound,
)
from nbdresize.units import REMAINING, SizeRequest
from tests.control.consistency import problems

MIB = 1 << 20


def mib(number: int) -> SizeRequest:
    return SizeRequest(exact=number * MIB)


@pytest.fixture
def packages(control: Control) -> Control:
    """Packages of 50, 100, 200 and 400 MiB, called so; and an image of 10 MiB."""
    for size in (50, 100, 200, 400):
        control.create_package(f"p{size}", size * MIB)
    image = control.state.root / "image.raw"
    image.write_bytes(bytes(10 * MIB))
    control.add_image("ten", image)
    image.unlink()
    return control


def test_up_and_down_with_the_part_of_the_image_on_top(packages: Control, state: StateDirectory) -> None:
    """RFD 154: `DISK_SIZE + DISK_SNAP <= image.size + newpackage.disk`."""
    vm = packages.create_vm("vm", None, [None, mib(50)], package="p100", image="ten")
    assert (vm.budget // MIB, vm.used // MIB, vm.image_space // MIB) == (110, 60, 10)
    up = packages.update_vm("vm", package="p400")
    assert (up.package, up.budget // MIB, up.free // MIB) == ("p400", 410, 350)
    down = packages.update_vm("vm", package="p50")
    assert (down.package, down.budget // MIB, down.free) == ("p50", 60, 0)
    with pytest.raises(InsufficientSpace, match="nothing free of its 60 MiB") as refused:
        packages.add_disk("vm", mib(100))
    assert "vm update vm --package p200" in refused.value.way_out
    assert packages.update_vm("vm", package="p50") == down, "the same one again is no change"
    assert problems(state) == []


def test_a_new_vm_that_does_not_fit_is_told_what_to_ask_for_instead(packages: Control) -> None:
    """There is no VM yet whose budget could be changed."""
    with pytest.raises(InsufficientSpace) as refused:
        packages.create_vm("vm", None, [None, mib(150)], package="p100", image="ten")
    assert refused.value.way_out == "ask for at most 110 MiB more, or choose a larger package with --package p200"
    with pytest.raises(InsufficientSpace, match=r"choose a larger --package$"):
        packages.create_vm("vm", None, [None, mib(1500)], package="p100", image="ten")
    with pytest.raises(InsufficientSpace, match=r"or give a larger --disk-space$"):
        packages.create_vm("vm", 100 * MIB, [mib(101)])


def test_a_package_that_is_too_small_is_refused_with_those_that_would_do(packages: Control) -> None:
    before = packages.create_vm("vm", None, [mib(20), REMAINING], package="p200")
    with pytest.raises(InsufficientSpace, match="take 200 MiB, more than a budget of 100 MiB") as refused:
        packages.update_vm("vm", package="p100")
    assert refused.value.way_out == "delete or shrink disks first, or choose a package that fits: p200, p400"
    assert packages.vm("vm") == before
    packages.resize_disk("vm", "disk1", mib(80), ResizeOptions(shrink=True))
    assert packages.update_vm("vm", package="p100").free == 0


def test_snapshots_have_to_fit_too(packages: Control) -> None:
    vm = packages.create_vm("vm", None, [mib(40)], package="p100")
    volume = packages.state.volumes / f"{vm.disks[0].volume}.raw"
    with volume.open("r+b") as file:
        file.write(b"x" * (20 * MIB))
    packages.create_snapshot("vm", "one")
    held = packages.vm("vm").snapshot_space
    assert held >= 20 * MIB
    with pytest.raises(InsufficientSpace, match="and its snapshots 20 MiB") as refused:
        packages.update_vm("vm", package="p50")
    assert "delete snapshots or disks" in refused.value.way_out
    assert "p100, p200, p400" in refused.value.way_out
    packages.delete_snapshot("vm", "one")
    assert packages.update_vm("vm", package="p50").free == 10 * MIB


def test_the_pool_has_to_hold_the_larger_one(packages: Control) -> None:
    packages.create_vm("vm", package="p100")
    packages.update_pool(capacity=300 * MIB, overcommit="1")
    images = packages.pool().images
    packages.update_vm("vm", package="p200")
    before = packages.vm("vm")
    with pytest.raises(InsufficientSpace, match="Raising the budget of VM vm to 400 MiB"):
        packages.update_vm("vm", package="p400")
    assert packages.vm("vm") == before
    assert packages.pool().promised == 200 * MIB + images
    packages.update_vm("vm", package="p50")
    packages.create_vm("vm2", package="p200")


def test_a_smaller_package_is_fine_also_in_a_pool_that_has_promised_too_much(packages: Control) -> None:
    packages.create_vm("vm", package="p400")
    packages.update_pool(capacity=100 * MIB, overcommit="1")
    assert packages.update_vm("vm", package="p200").budget == 200 * MIB


def test_a_vm_with_a_budget_of_its_own_may_get_a_package_and_then_has_none_of_its_own(packages: Control) -> None:
    packages.create_vm("vm", 70 * MIB, [mib(60)])
    with pytest.raises(InsufficientSpace, match="more than a budget of 50 MiB") as refused:
        packages.update_vm("vm", package="p50")
    assert refused.value.way_out == "delete or shrink disks first, or choose a package that fits: p100, p200, p400"
    assert packages.update_vm("vm", package="p100").budget == 100 * MIB
    with pytest.raises(InvalidArgument, match="comes from its package p100: change to another"):
        packages.update_vm("vm", 80 * MIB)
    with pytest.raises(InvalidArgument, match="budget of its own"):
        packages.update_vm("vm", 80 * MIB, package="p200")
    with pytest.raises(ResourceNotFound, match="p100, p200, p400, p50"):
        packages.update_vm("vm", package="p70")
    assert packages.vm("vm").package == "p100"


def test_a_package_brings_what_it_says_of_disks_and_snapshots(packages: Control) -> None:
    packages.create_package("fixed", 100 * MIB, flexible=False, snapshot_limit=3)
    packages.create_vm("vm", None, [mib(20)], package="p100")
    vm = packages.update_vm("vm", package="fixed")
    assert (vm.flexible, vm.snapshot_limit) == (False, 3)
    with pytest.raises(NotAuthorized, match="Package fixed of VM vm has fixed disks"):
        packages.resize_disk("vm", "disk0", mib(30))
    packages.update_vm("vm", package="p100")
    packages.resize_disk("vm", "disk0", mib(30))


def test_a_small_package_does_not_keep_what_an_image_too_large_for_it_has_brought(packages: Control) -> None:
    """Else a day of a large package, whose VM is made from a large image, buys that image's space for ever."""
    packages.create_package("small", 50 * MIB, max_image=5 * MIB)
    with pytest.raises(LimitExceeded, match="images of at most 5 MiB"):
        packages.create_vm("vm", package="small", image="ten")
    before = packages.create_vm("vm", package="p100", image="ten")
    with pytest.raises(LimitExceeded, match="images of at most 5 MiB"):
        packages.update_vm("vm", package="small")
    assert packages.vm("vm") == before
    with pytest.raises(InsufficientSpace) as refused:
        packages.resize_disk("vm", "disk0", mib(111))
    assert "--package p200" in refused.value.way_out
    packages.create_package("just", 101 * MIB, max_image=5 * MIB)
    with pytest.raises(InsufficientSpace) as refused:
        packages.resize_disk("vm", "disk0", mib(111))
    assert "--package p200" in refused.value.way_out, "the one that would just do does not take the image"


def test_a_grown_disk_as_an_image_buys_nobody_its_space(control: Control, tmp_path: Path) -> None:
    """RFD 154, "XXX how is this prevented?", with its sizes: 10 GiB, 1 TiB."""
    gib = 1 << 30
    image = tmp_path / "image.raw"
    with image.open("wb") as file:
        file.truncate(10 * gib)
    control.add_image("base", image)
    control.create_package("huge", 1024 * gib)
    control.create_package("tiny", 10 * gib)
    control.create_vm("first", None, [SizeRequest(exact=1024 * gib)], package="huge", image="base")
    made = control.add_image("bought", DiskSource("first", "disk0"))
    assert (made.size, made.original_size) == (1024 * gib, 10 * gib)
    control.delete_vm("first")
    with pytest.raises(InsufficientSpace, match="disk0 at 1 TiB needs 1 TiB more, but VM second has 20 GiB free"):
        control.create_vm("second", package="tiny", image="bought")
    assert control.create_vm("second", package="huge", image="bought").budget == 1034 * gib
    with pytest.raises(InsufficientSpace, match="more than a budget of 20 GiB"):
        control.update_vm("second", package="tiny")


def test_all_that_one_update_asks_for_comes_in_one_step_or_not_at_all(packages: Control) -> None:
    before = packages.create_vm("vm", None, [mib(80)], package="p100")
    with pytest.raises(InsufficientSpace):
        packages.update_vm("vm", package="p50", owner="ann", protected=True, client_resize="default")
    assert packages.vm("vm") == before
    after = packages.update_vm("vm", package="p200", owner="ann", protected=True)
    assert (after.package, after.owner, after.protected) == ("p200", "ann", True)
    with pytest.raises(DeletionProtected):
        packages.delete_vm("vm")
