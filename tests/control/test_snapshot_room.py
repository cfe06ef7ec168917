"""Room for one more snapshot."""

import pytest

from nbdresize.control.budget import Account
from nbdresize.control.snapshot_room import check_snapshot, check_snapshot_count
from nbdresize.errors import InsufficientSpace, LimitExceeded

GIB = 1 << 30


def test_a_snapshot_may_take_all_that_is_free_and_not_a_byte_more() -> None:
    account = Account("web1", 100 * GIB, 50 * GIB, 20 * GIB)
    check_snapshot(account, 30 * GIB, {})
    with pytest.raises(InsufficientSpace):
        check_snapshot(account, 30 * GIB + 1, {})


def test_a_refusal_names_the_snapshots_that_free_most() -> None:
    account = Account("web1", 100 * GIB, 50 * GIB, 40 * GIB)
    snapshots = {"mon": 2 * GIB, "tue": 9 * GIB, "wed": 0, "thu": 5 * GIB, "fri": 5 * GIB}
    with pytest.raises(InsufficientSpace) as caught:
        check_snapshot(account, 30 * GIB, snapshots)
    assert caught.value.problem == (
        "A snapshot of VM web1 needs 30 GiB, but it has 10 GiB free of its 100 GiB, "
        "where disks take 50 GiB and snapshots 40 GiB"
    )
    assert caught.value.way_out == (
        "delete snapshot tue (frees 9 GiB) or fri (frees 5 GiB) or thu (frees 5 GiB), delete a disk, "
        "or raise the budget with nbdresize vm update web1 --disk-space SIZE"
    )


def test_a_refusal_without_snapshots_to_gain_from_names_disks_and_packages() -> None:
    account = Account("web1", 100 * GIB, 90 * GIB, packages={"large": 200 * GIB, "huge": 300 * GIB})
    with pytest.raises(InsufficientSpace) as caught:
        check_snapshot(account, 30 * GIB, {"empty": 0})
    assert caught.value.way_out == (
        "delete a disk, or change to a larger package with nbdresize vm update web1 --package large"
    )


def test_a_vm_has_at_most_so_many_snapshots() -> None:
    check_snapshot_count("web1", 127, 128)
    with pytest.raises(LimitExceeded, match=r"web1 has 128 snapshots, and may have 128: .*snapshot delete web1 NAME"):
        check_snapshot_count("web1", 128, 128)
    with pytest.raises(LimitExceeded, match=r"may have 0: change to a package .*vm update web1 --package"):
        check_snapshot_count("web1", 0, 0)
