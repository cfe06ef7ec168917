"""The pool of a site: what it may promise, and who is refused."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.pool import parse_overcommit
from nbdresize.errors import InsufficientSpace, InvalidArgument, VolumeFailed
from nbdresize.storage.file import FilePool
from nbdresize.units import MAX_SIZE, SizeRequest
from tests.filesystems import mounted

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture
def small(control: Control) -> Control:
    """A pool that is set to 10 GiB, 6 of them promised."""
    control.update_pool(capacity=10 * GIB, overcommit="1")
    control.create_vm("web1", 6 * GIB)
    return control


def test_budgets_fit_the_pool(small: Control) -> None:
    with pytest.raises(InsufficientSpace, match=r"VM web2 with 5 GiB needs 5 GiB of the pool, which has 4 GiB left"):
        small.create_vm("web2", 5 * GIB)
    small.create_vm("web2", 4 * GIB)
    with pytest.raises(
        InsufficientSpace, match=r"Raising the budget of VM web1 to 7 GiB needs 1 GiB .* has nothing left"
    ):
        small.update_vm("web1", 7 * GIB)
    small.update_vm("web2", 3 * GIB)
    assert small.update_vm("web1", 7 * GIB).budget == 7 * GIB
    pool = small.pool()
    assert (pool.capacity, pool.promised, pool.budgets, pool.overcommit) == (10 * GIB, 10 * GIB, 10 * GIB, Fraction(1))


def test_a_pool_promises_as_often_as_it_is_allowed(small: Control) -> None:
    small.update_pool(overcommit="1.5")
    small.create_vm("web2", 9 * GIB)
    with pytest.raises(InsufficientSpace, match=r"15 GiB of 1\.5 times its 10 GiB is promised: .*--overcommit RATIO"):
        small.create_vm("web3", MIB)
    small.update_pool(overcommit="unlimited")
    small.create_vm("web3", 1000 * GIB)
    assert small.pool().overcommit is None


def test_a_pool_that_has_promised_too_much_only_refuses_more(small: Control) -> None:
    small.update_pool(capacity=4 * GIB)
    assert small.pool().promised == 6 * GIB
    small.add_disk("web1", SizeRequest(exact=6 * GIB))
    with pytest.raises(InsufficientSpace, match="nothing left to promise: 6 GiB of its 4 GiB"):
        small.create_vm("web2", MIB)
    with pytest.raises(InsufficientSpace):
        small.update_vm("web1", 6 * GIB + MIB)
    small.delete_vm("web1")
    assert small.create_vm("web1", 4 * GIB).budget == 4 * GIB


def test_a_lowered_budget_is_fine_in_a_pool_that_has_promised_too_much(small: Control) -> None:
    small.update_pool(capacity=GIB)
    assert small.update_vm("web1", 5 * GIB).budget == 5 * GIB
    assert small.update_vm("web1", owner="ada").owner == "ada"


def test_the_capacity_is_that_of_the_file_system_unless_it_is_set(tmp_path: Path) -> None:
    file_system = mounted("ext4", tmp_path, size=128 * MIB, make_options=("-m", "20"))
    with file_system as point, Control.open(StateDirectory(point / "state")) as control:
        found = FilePool(control.state.volumes).capacity()
        assert control.pool().capacity == found.total < 110 * MIB
        with pytest.raises(InsufficientSpace):
            control.create_vm("web1", 120 * MIB)
        assert control.update_pool(capacity=GIB).capacity == GIB
        control.create_vm("web1", 120 * MIB)
        assert control.update_pool(capacity=0).capacity == found.total


def test_a_pool_whose_file_system_knows_no_size_has_no_limit(tmp_path: Path) -> None:
    with mounted("ramfs", tmp_path) as point, Control.open(StateDirectory(point / "state")) as control:
        assert control.pool().capacity == 0
        assert control.create_vm("web1", 1 << 60).budget == 1 << 60
        control.update_pool(capacity=GIB)
        with pytest.raises(InsufficientSpace):
            control.create_vm("web2", MIB)


@pytest.mark.parametrize(
    ("text", "ratio"),
    [("1", 1), (" 1.5 ", Fraction(3, 2)), ("0.5", Fraction(1, 2)), ("1000", 1000), ("4/3", Fraction(4, 3))],
)
def test_a_ratio_is_a_number(text: str, ratio: Fraction) -> None:
    assert parse_overcommit(text) == ratio


@pytest.mark.parametrize("text", ["", "0", "-1", "0.001", "nan", "inf", "1e99", "1e3", "1/0", "many", "9" * 50, "\x1b"])
def test_what_is_no_ratio_is_refused(control: Control, text: str) -> None:
    with pytest.raises(InvalidArgument, match="is no ratio"):
        control.update_pool(overcommit=text, capacity=GIB)
    assert control.pool().capacity != GIB


def test_a_ratio_of_a_thousand_million_digits_is_never_written_out() -> None:
    """In a process of its own, which may take neither the memory nor the time that this would."""
    script = "from nbdresize.control.pool import parse_overcommit; parse_overcommit('1e999999999')"
    limited = ["prlimit", "--as=1000000000", "--cpu=20", sys.executable, "-c", script]
    done = subprocess.run(limited, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=100)
    assert "InvalidArgument: '1e999999999' is no ratio" in done.stderr


def test_a_capacity_is_a_size(control: Control) -> None:
    for capacity in (-1, MAX_SIZE + 1, 1 << 70):
        with pytest.raises(InvalidArgument, match="is no capacity"):
            control.update_pool(capacity=capacity)


def test_sums_may_be_larger_than_any_disk(control: Control) -> None:
    control.update_pool(overcommit="unlimited")
    for number in range(4):
        control.create_vm(f"vm{number}", MAX_SIZE)
    assert control.pool().promised == 4 * MAX_SIZE


def test_a_pool_that_can_not_be_seen_is_named(control: Control, state: StateDirectory) -> None:
    state.volumes.rmdir()
    with pytest.raises(VolumeFailed, match="volumes"):
        control.pool()


def test_a_change_of_the_pool_can_be_retried(small: Control) -> None:
    small.update_pool(capacity=20 * GIB, operation="one")
    small.update_pool(capacity=30 * GIB)
    assert small.update_pool(capacity=20 * GIB, operation="one").capacity == 30 * GIB
    with pytest.raises(InvalidArgument, match="another request"):
        small.update_pool(capacity=21 * GIB, operation="one")
