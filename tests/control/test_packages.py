"""Packages: what is accepted, and the VMs that are made with them, by the examples of RFD 154."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.model import DiskSource
from nbdresize.errors import (
    InsufficientSpace,
    InvalidArgument,
    LimitExceeded,
    NbdresizeError,
    NotAuthorized,
    ResourceInUse,
    ResourceNotFound,
)
from nbdresize.units import REMAINING, SizeRequest
from tests.control.consistency import problems

MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40


def exact(size: int) -> SizeRequest:
    return SizeRequest(exact=size)


def sizes(control: Control, vm: str) -> list[int]:
    return [disk.size for disk in control.vm(vm).disks]


@pytest.fixture
def image(control: Control, tmp_path: Path) -> Callable[[int], str]:
    """Makes an image of so many bytes, nearly all of them zeroes; its name."""

    def make(size: int) -> str:
        path = tmp_path / "image.raw"
        with path.open("wb") as file:
            file.write(b"image" * 1000)
            file.truncate(size)
        return control.add_image(f"image-{size}", path).name

    return make


# Packages themselves


def test_a_package_is_made_listed_and_deleted(control: Control) -> None:
    made = control.create_package(
        "big", 100 * GIB, default_disks=[None, exact(20 * GIB), REMAINING], max_image=30 * GIB, snapshot_limit=7
    )
    assert (made.disk_space, made.flexible, made.max_image, made.snapshot_limit) == (100 * GIB, True, 30 * GIB, 7)
    assert made.default_disks == (None, exact(20 * GIB), REMAINING)
    small = control.create_package("a", GIB, flexible=False)
    assert (small.flexible, small.default_disks, small.max_image, small.snapshot_limit) == (False, (), None, 128)
    assert control.packages() == [small, made]
    assert control.package("big") == made
    control.delete_package("big")
    assert control.packages() == [small]
    with pytest.raises(ResourceNotFound, match="there are a; "):
        control.package("big")
    with pytest.raises(ResourceNotFound):
        control.delete_package("big")


def test_a_name_is_taken_once(control: Control) -> None:
    control.create_package("p", GIB)
    with pytest.raises(ResourceInUse, match="There is a package p already"):
        control.create_package("p", 2 * GIB)
    assert control.package("p").disk_space == GIB


def test_a_package_that_vms_have_stays_and_three_of_them_are_named(control: Control) -> None:
    control.create_package("p", GIB)
    control.create_vm("a", package="p")
    with pytest.raises(ResourceInUse, match="is that of VM a:"):
        control.delete_package("p")
    for name in "bcde":
        control.create_vm(name, package="p")
    with pytest.raises(ResourceInUse, match="is that of VMs a, b, c and 2 more"):
        control.delete_package("p")
    for name in "abcde":
        control.delete_vm(name)
    control.delete_package("p")


@pytest.mark.parametrize(
    "given",
    [
        {"name": "no/name"},
        {"disk_space": 0},
        {"disk_space": 4095},
        {"disk_space": 2**63},
        {"disk_space": True},
        {"max_image": 0},
        {"max_image": -1},
        {"max_image": 2**63},
        {"snapshot_limit": -1},
        {"snapshot_limit": 10**9},
        {"default_disks": [SizeRequest(relative=GIB)]},
        {"default_disks": [exact(1000)]},
        {"default_disks": [exact(GIB), None]},
        {"default_disks": [REMAINING, REMAINING]},
        {"default_disks": [None], "flexible": False},
        {"operation": "no id"},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(control: Control, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        control.create_package(**{"name": "p", "disk_space": 100 * GIB, **given})
    assert refused.value.way_out
    assert control.packages() == []


def test_nine_default_disks_are_refused(control: Control) -> None:
    control.create_package("eight", 100 * GIB, default_disks=[exact(GIB)] * 8)
    with pytest.raises(LimitExceeded):
        control.create_package("nine", 100 * GIB, default_disks=[exact(GIB)] * 9)


@pytest.mark.parametrize(
    ("disks", "max_image", "fits"),
    [
        ([None, exact(10 * GIB)], None, True),
        ([None, exact(10 * GIB + 4096)], None, False),
        ([None, exact(10 * GIB), REMAINING], None, False),
        ([None, exact(9 * GIB), REMAINING], None, True),
        ([REMAINING, exact(10 * GIB)], None, True),
        ([exact(50 * GIB), exact(10 * GIB)], None, True),
        ([exact(50 * GIB), exact(10 * GIB)], 50 * GIB, True),
        ([exact(50 * GIB), exact(10 * GIB)], 49 * GIB, False),
        ([exact(15 * GIB)], 5 * GIB, True),
        ([exact(16 * GIB)], 5 * GIB, False),
    ],
    ids=str,
)
def test_default_disks_that_no_vm_could_get_are_refused(
    control: Control, disks: list[SizeRequest | None], max_image: int | None, fits: bool
) -> None:
    if fits:
        control.create_package("p", 10 * GIB, default_disks=disks, max_image=max_image)
    else:
        with pytest.raises(InvalidArgument, match="default disks need at least"):
            control.create_package("p", 10 * GIB, default_disks=disks, max_image=max_image)


def test_retries_change_nothing(control: Control) -> None:
    made = control.create_package("p", GIB, operation="one")
    assert control.create_package("p", GIB, operation="one") == made
    with pytest.raises(InvalidArgument, match="was another request"):
        control.create_package("p", 2 * GIB, operation="one")
    control.delete_package("p", operation="two")
    control.delete_package("p", operation="two")
    with pytest.raises(ResourceNotFound, match="has been deleted"):
        control.create_package("p", GIB, operation="one")
    assert [each.kind for each in control.operations() if each.id in ("one", "two")] == [
        "delete_package",
        "create_package",
    ]


# VMs with them: the examples of RFD 154, in MiB there


def test_three_disks_get_the_images_size_a_number_and_what_remains(
    control: Control, image: Callable[[int], str]
) -> None:
    control.create_package("p", 102400 * MIB)
    boot = image(10240 * MIB)
    vm = control.create_vm("vm", package="p", image=boot, disks=[None, exact(20480 * MIB), REMAINING])
    assert [disk.size // MIB for disk in vm.disks] == [10240, 20480, 81920]
    assert (vm.budget, vm.free) == (112640 * MIB, 0)
    assert [(disk.image, disk.minimum) for disk in vm.disks] == [(boot, 10240 * MIB), (None, 0), (None, 0)]


def test_the_package_says_which_disks_there_are_where_none_is_asked_for(
    control: Control, image: Callable[[int], str]
) -> None:
    control.create_package("p", 102400 * MIB, default_disks=[None, exact(20480 * MIB), REMAINING])
    boot = image(10240 * MIB)
    assert sizes(control, control.create_vm("a", package="p", image=boot).name) == [
        10240 * MIB,
        20480 * MIB,
        81920 * MIB,
    ]
    control.create_vm("b", package="p", image=boot, disks=[exact(20480 * MIB)])
    assert sizes(control, "b") == [20480 * MIB]
    with pytest.raises(InvalidArgument, match="none was named"):
        control.create_vm("c", package="p")


def test_without_default_disks_there_is_the_images_alone(control: Control, image: Callable[[int], str]) -> None:
    control.create_package("p", 102400 * MIB)
    vm = control.create_vm("vm", package="p", image=image(10240 * MIB))
    assert [disk.size for disk in vm.disks] == [10240 * MIB]
    assert vm.free == 102400 * MIB


def test_fixed_disks_are_the_images_and_the_packages(control: Control, image: Callable[[int], str]) -> None:
    control.create_package("p", 102400 * MIB, flexible=False)
    boot = image(10240 * MIB)
    assert [disk.size for disk in control.create_vm("vm", package="p", image=boot).disks] == [10240 * MIB, 102400 * MIB]
    with pytest.raises(InvalidArgument, match="fixes the disks"):
        control.create_vm("other", package="p", image=boot, disks=[exact(20480 * MIB)])
    with pytest.raises(InvalidArgument, match="none was named"):
        control.create_vm("other", package="p")
    with pytest.raises(NotAuthorized, match="has fixed disks"):
        control.add_disk("vm", exact(MIB))
    with pytest.raises(NotAuthorized, match="has fixed disks"):
        control.resize_disk("vm", "disk1", SizeRequest(relative=MIB))


def test_an_image_larger_than_the_package_takes_is_refused(control: Control, image: Callable[[int], str]) -> None:
    control.create_package("p", 100 * GIB, max_image=10 * GIB)
    control.create_vm("fits", package="p", image=image(10 * GIB))
    with pytest.raises(LimitExceeded, match="takes images of at most 10 GiB"):
        control.create_vm("vm", package="p", image=image(10 * GIB + 4096))


def test_an_image_of_a_grown_disk_buys_nobody_space(
    control: Control, state: StateDirectory, image: Callable[[int], str]
) -> None:
    control.create_package("p", 100 * GIB)
    control.create_package("huge", 2 * TIB)
    control.create_package("fixed", 100 * GIB, flexible=False)
    control.create_vm("rich", package="huge", image=image(10 * GIB))
    control.resize_disk("rich", "disk0", exact(TIB))
    abuse = control.add_image("abuse", DiskSource("rich", "disk0"))
    assert (abuse.size, abuse.original_size) == (TIB, 10 * GIB)
    for package in ("p", "fixed"):
        with pytest.raises(InsufficientSpace):
            control.create_vm("poor", package=package, image="abuse")
    with pytest.raises(InvalidArgument, match="image"):
        control.create_vm("poor", package="p", image="abuse", disks=[exact(110 * GIB)])
    assert control.create_vm("paid", package="huge", image="abuse").budget == 2 * TIB + 10 * GIB
    again = control.add_image("again", DiskSource("paid", "disk0"))
    assert (again.size, again.original_size) == (TIB, 10 * GIB)
    assert problems(state) == []


def test_an_image_of_a_disk_without_one_adds_nothing(control: Control) -> None:
    control.create_vm("vm", 20 * GIB, [exact(GIB), exact(GIB)])
    made = control.add_image("boot", DiskSource("vm", "disk0"))
    assert (made.size, made.original_size) == (GIB, 0)
    assert control.create_vm("other", 2 * GIB, image="boot").budget == 2 * GIB


def test_the_images_share_outlives_the_image(control: Control, image: Callable[[int], str]) -> None:
    boot = image(10 * GIB)
    control.create_package("a", 100 * GIB)
    control.create_package("b", 50 * GIB)
    control.create_vm("vm", package="a", image=boot)
    control.delete_image(boot)
    assert control.update_vm("vm", package="b").budget == 60 * GIB
    assert control.add_image("copy", DiskSource("vm", "disk0")).original_size == 10 * GIB


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"disk_space": GIB, "package": "p"}, InvalidArgument),
        ({}, InvalidArgument),
        ({"package": "nope"}, ResourceNotFound),
        ({"package": "p", "image": "nope"}, ResourceNotFound),
        ({"package": "p", "disks": [None]}, InvalidArgument),
        ({"package": "p", "disks": [exact(MIB), None]}, InvalidArgument),
        ({"package": "p", "image": "image-1048576", "disks": []}, InvalidArgument),
        ({"package": "p", "image": "image-1048576", "disks": [exact(MIB - 4096)]}, InvalidArgument),
        ({"package": "p", "image": "image-1048576", "disks": [exact(GIB + 2 * MIB)]}, InsufficientSpace),
    ],
    ids=str,
)
def test_a_vm_that_can_not_be_leaves_nothing(
    control: Control,
    state: StateDirectory,
    image: Callable[[int], str],
    given: dict[str, Any],
    error: type[NbdresizeError],
) -> None:
    control.create_package("p", GIB)
    image(MIB)
    with pytest.raises(error) as refused:
        control.create_vm("vm", **given)
    assert refused.value.way_out
    assert control.vms() == []
    assert problems(state) == []
