"""What a VM has, what is charged to it, and what a refusal says about it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdresize.control.budget import Account, check_budget, largest
from nbdresize.control.changes import Decision, DiskTerms, decide_changes
from nbdresize.control.model import DiskChanges, DiskUpdate
from nbdresize.errors import InsufficientSpace, InvalidArgument
from nbdresize.units import GRANULARITY, MAX_SIZE, SizeRequest

GIB = 1 << 30
BLOCKS = 12
HUGE = pytest.param(10**5000, id="more digits than Python prints")

whole = st.integers(1, BLOCKS).map(lambda blocks: blocks * GRANULARITY)
some = st.integers(0, BLOCKS * GRANULARITY)


def resized(account: Account, current: int, request: SizeRequest) -> Decision:
    """What web1/disk0 gets that changes alone."""
    wanted = DiskChanges(update=(DiskUpdate(0, request),))
    return decide_changes(account, {0: DiskTerms("web1/disk0", current)}, wanted).update[0][2]


@given(budget=some, disks=some, snapshots=some)
def test_what_is_free_is_what_neither_disks_nor_snapshots_take(budget: int, disks: int, snapshots: int) -> None:
    """RFD 154: allocatable = VM.disk - DISK_SIZE - DISK_SNAP."""
    account = Account("vm", budget, disks, snapshots)
    assert account.used == disks + snapshots
    assert account.free == (budget - disks - snapshots if disks + snapshots < budget else 0)
    fitting = [size for size in range(0, budget + 1, GRANULARITY) if disks + snapshots + size <= budget]
    assert account.allocatable == max(fitting, default=0)


@given(current=whole, used=whole, snapshots=some, budget=some)
def test_the_largest_size_is_granted_and_one_block_more_is_not(
    current: int, used: int, snapshots: int, budget: int
) -> None:
    account = Account("vm", budget, current + used, snapshots)
    most = largest(account, current)
    assert resized(account, current, SizeRequest(exact=most)).size == most
    with pytest.raises(InsufficientSpace):
        resized(account, current, SizeRequest(exact=most + GRANULARITY))


def test_the_end_of_numbers_is_no_way_around_the_budget() -> None:
    assert largest(Account("vm", MAX_SIZE, GRANULARITY), GRANULARITY) == MAX_SIZE


@pytest.mark.parametrize("budget", [0, -1, GRANULARITY - 1, MAX_SIZE + 1, HUGE, True, 1.5, None])
def test_a_budget_that_makes_no_sense_is_refused(budget: object) -> None:
    with pytest.raises(InvalidArgument):
        check_budget(budget)  # type: ignore[arg-type]


def refused(account: Account, what: str = "web1/disk0", needed: int = 500 * GIB) -> InsufficientSpace:
    return account.refuse(what, needed)


def test_a_refusal_says_what_was_needed_what_is_free_and_the_way_out() -> None:
    with pytest.raises(InsufficientSpace) as caught:
        resized(Account("web1", 100 * GIB, 50 * GIB), 30 * GIB, SizeRequest(relative=500 * GIB))
    assert (
        caught.value.problem == "web1/disk0 at 530 GiB needs 500 GiB more, but VM web1 has 50 GiB free of its 100 GiB"
    )
    assert caught.value.way_out == (
        "ask for at most 50 GiB more, or raise the budget with nbdresize vm update web1 --disk-space SIZE"
    )


@pytest.mark.parametrize("left", [0, GRANULARITY - 1])
def test_a_refusal_does_not_offer_nothing(left: int) -> None:
    error = refused(Account("web1", 100 * GIB + left, 100 * GIB))
    assert "ask for" not in error.way_out
    assert error.way_out.startswith("raise the budget")
    if not left:
        assert "VM web1 has nothing free of its 100 GiB" in error.problem


def test_a_refusal_says_what_snapshots_take_and_that_they_can_go() -> None:
    error = refused(Account("web1", 100 * GIB, 50 * GIB, 20 * GIB))
    assert "30 GiB free of its 100 GiB, where disks take 50 GiB and snapshots 20 GiB" in error.problem
    assert error.way_out.endswith("or delete snapshots (nbdresize snapshot list web1 shows what each frees)")
    assert "snapshot" not in str(refused(Account("web1", 100 * GIB, 50 * GIB)))


def test_a_refusal_names_the_smallest_package_that_would_do() -> None:
    packages = {"small": 100 * GIB, "nearly": 549 * GIB, "huge": 5000 * GIB, "large": 550 * GIB}
    error = refused(Account("web1", 100 * GIB, 50 * GIB, packages=packages))
    assert "change to a larger package with nbdresize vm update web1 --package large" in error.way_out
    assert "--disk-space" not in error.way_out
    error = refused(Account("web1", 100 * GIB, 50 * GIB, packages={"small": 100 * GIB}))
    assert "--package NAME" in error.way_out


@pytest.mark.parametrize("odd", [4096, GIB // 2, 3 * GIB // 2, 20 * GIB + 4096, 20 * GIB + GIB // 3 // 4096 * 4096])
def test_a_refusal_says_each_number_of_bytes_once(odd: int) -> None:
    message = str(refused(Account("web1", 100 * GIB + odd, 50 * GIB, 7 * GIB + odd), needed=odd))
    assert "bytes) (" not in message
    assert f"({odd} bytes) ({odd}" not in message


def test_a_budget_holds_disks_and_snapshots() -> None:
    account = Account("web1", 100 * GIB, 50 * GIB, 20 * GIB)
    account.check_new_budget(70 * GIB)
    with pytest.raises(InsufficientSpace) as caught:
        account.check_new_budget(70 * GIB - GRANULARITY)
    assert "disks of VM web1 take 50 GiB and its snapshots 20 GiB, together 70 GiB, more than" in caught.value.problem
    assert "delete snapshots or disks" in caught.value.way_out
    assert "at least 70 GiB" in caught.value.way_out


def test_a_package_that_is_too_small_is_refused_with_those_that_fit() -> None:
    packages = {"a": 60 * GIB, "b": 80 * GIB, "c": 75 * GIB}
    with pytest.raises(InsufficientSpace) as caught:
        Account("web1", 100 * GIB, 70 * GIB, packages=packages).check_new_budget(60 * GIB)
    assert caught.value.problem == "The disks of VM web1 take 70 GiB, more than a budget of 60 GiB"
    assert caught.value.way_out == "delete or shrink disks first, or choose a package that fits: c, b"
