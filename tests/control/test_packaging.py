"""Budgets of packages and images, with the numbers of RFD 154."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdresize.control.budget import Account
from nbdresize.control.changes import decide_changes
from nbdresize.control.model import DiskChanges
from nbdresize.control.packaging import default_disks, package_budget, which_fit
from nbdresize.errors import InsufficientSpace, InvalidArgument
from nbdresize.units import GRANULARITY, REMAINING, SizeRequest

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40

IMAGE = 10240 * MIB
PACKAGE = 102400 * MIB


def in_mib(account: Account, *add: SizeRequest | None, image: int = IMAGE) -> list[int]:
    return [size // MIB for _, size in decide_changes(account, {}, DiskChanges(add=add), image_size=image).add]


def test_the_three_disks_of_create_machine() -> None:
    """RFD 154, CreateMachine: {}, 20480 and "remaining" with a package of 102400."""
    account = Account("b4", package_budget(PACKAGE, IMAGE), 0)
    assert account.budget == 112640 * MIB
    assert in_mib(account, None, SizeRequest(exact=20480 * MIB), REMAINING) == [10240, 20480, 81920]


@given(image=st.integers(1, 40 * GRANULARITY), disk_space=st.integers(1, 40).map(lambda n: n * GRANULARITY))
def test_beside_a_disk_of_the_images_size_all_of_the_package_is_left(image: int, disk_space: int) -> None:
    account = Account("vm", package_budget(disk_space, image), 0)
    decided = decide_changes(account, {}, DiskChanges(add=(None, REMAINING)), image_size=image)
    assert decided.add[1] == (1, disk_space)
    exactly = decide_changes(account, {}, DiskChanges(add=(None, SizeRequest(exact=disk_space))), image_size=image)
    assert exactly == decided


def test_an_image_of_a_grown_disk_buys_nobody_its_space() -> None:
    """RFD 154, "how is this prevented?": a 1 TiB disk of a 10 GiB image, made an image, with a 10 GiB package."""
    rich = Account("rich", package_budget(TIB, 10 * GIB), 0)
    assert in_mib(rich, SizeRequest(exact=TIB), image=10 * GIB) == [TIB // MIB]
    poor = Account("poor", package_budget(10 * GIB, 10 * GIB), 0)
    assert poor.budget == 20 * GIB
    with pytest.raises(InsufficientSpace, match="disk0 at 1 TiB needs 1 TiB more, but VM poor has 20 GiB free"):
        in_mib(poor, None, image=TIB)
    with pytest.raises(InvalidArgument, match="smaller than its image, 1 TiB"):
        in_mib(poor, SizeRequest(exact=20 * GIB), image=TIB)
    with pytest.raises(InsufficientSpace, match="Only 20 GiB remains for disk0"):
        in_mib(poor, REMAINING, image=TIB)


def test_packages_that_fit_are_named_the_smallest_first() -> None:
    packages = {"c": 30, "a": 20, "b": 30, "d": 10}
    assert which_fit(20, packages) == ["a", "b", "c"]
    assert which_fit(31, packages) == []


def test_a_package_with_fixed_disks_has_the_images_and_its_own() -> None:
    disks = default_disks(False, [REMAINING], PACKAGE, from_image=True)
    assert in_mib(Account("vm", package_budget(PACKAGE, IMAGE), 0), *disks) == [10240, 102400]


def test_a_fixed_disk_is_a_whole_number_of_granules() -> None:
    assert default_disks(False, (), GIB + 1, from_image=True) == (None, SizeRequest(exact=GIB))


def test_a_package_with_fixed_disks_needs_an_image() -> None:
    with pytest.raises(InvalidArgument, match="--image"):
        default_disks(False, (), PACKAGE, from_image=False)


def test_a_flexible_package_has_its_own_disks_or_just_the_images() -> None:
    own = (None, SizeRequest(exact=GIB), REMAINING)
    assert default_disks(True, own, PACKAGE, from_image=True) == own
    assert default_disks(True, (), PACKAGE, from_image=True) == (None,)
    assert default_disks(True, (), PACKAGE, from_image=False) == ()
