"""Changes that were left unfinished: whose they are, and what becomes of them when they can't be completed."""

import errno
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control import recovery
from nbdresize.control.control import Control
from nbdresize.control.locks import lock_vm
from nbdresize.control.model import Disk, OperationState, ResizeOptions
from nbdresize.errors import (
    InsufficientSpace,
    NbdresizeError,
    ResourceInUse,
    ResourceNotFound,
    StateUnusable,
    VolumeFailed,
)
from nbdresize.storage import file, syscalls
from nbdresize.storage.file import FilePool, FileVolume
from nbdresize.units import SizeRequest
from tests.control.consistency import problems
from tests.filesystems import mounted, run

CHECKOUT = Path(__file__).parents[2]
MIB = 1 << 20
SHRINK = ResizeOptions(shrink=True)
BIGGER = SizeRequest(exact=4 * MIB)
SMALLER = SizeRequest(exact=MIB)


class Killed(BaseException):
    """Stands for a SIGKILL inside this process: nothing of ours catches it to clean up."""


@pytest.fixture
def vm(control: Control) -> Control:
    control.create_vm("vm", 100 * MIB, [SizeRequest(exact=2 * MIB)] * 2)
    return control


def volume_of(state: StateDirectory, disk: Disk) -> Path:
    return state.volumes / f"{disk.volume}.raw"


def die_in(target: type, method: str, attempt: Callable[[], object], *, after: bool = False) -> None:
    """Run `attempt` until it calls that method of storage, and end it there."""
    original = getattr(target, method)

    def dying(*arguments: object, **named: object) -> None:
        if after:
            original(*arguments, **named)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, method, dying)
        with pytest.raises(Killed):
            attempt()


def test_a_budget_counts_a_grow_that_was_left_unfinished(vm: Control, state: StateDirectory) -> None:
    die_in(FileVolume, "grow", lambda: vm.resize_disk("vm", "disk0", SizeRequest(exact=90 * MIB)))
    disk = vm.disk("vm", "disk0")
    assert (disk.size, disk.pending_size) == (2 * MIB, 90 * MIB)
    assert vm.vm("vm").used == 92 * MIB
    with pytest.raises(InsufficientSpace):
        vm.add_disk("vm", SizeRequest(exact=10 * MIB))
    assert vm.disk("vm", "disk0").size == 90 * MIB
    assert problems(state) == []


def test_a_shrink_that_was_left_unfinished_is_charged_at_its_larger_size(vm: Control, state: StateDirectory) -> None:
    die_in(FileVolume, "shrink", lambda: vm.resize_disk("vm", "disk0", SMALLER, SHRINK))
    disk = vm.disk("vm", "disk0")
    assert (disk.size, disk.pending_size) == (MIB, 2 * MIB)
    assert vm.vm("vm").used == 4 * MIB
    Control.open(state).close()
    assert vm.vm("vm").used == 3 * MIB
    assert problems(state) == []


def test_what_is_being_made_or_deleted_is_not_listed_but_charged(vm: Control, state: StateDirectory) -> None:
    def look_then_make(pool: FilePool, name: str, *_: object, **__: object) -> None:
        seen.append(vm.vm("vm"))
        raise Killed

    seen: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FilePool, "create", look_then_make)
        patch.setattr(FilePool, "delete", look_then_make)
        with pytest.raises(Killed):
            vm.add_disk("vm", SizeRequest(exact=90 * MIB))
    (then,) = seen[:1]
    assert then.used == 94 * MIB  # type: ignore[attr-defined]
    assert then.reserved == 90 * MIB  # type: ignore[attr-defined]
    assert len(then.disks) == 2  # type: ignore[attr-defined]
    Control.open(state).close()
    assert vm.vm("vm").used == 4 * MIB
    assert problems(state) == []


def test_the_intent_of_a_process_at_work_is_left_alone(vm: Control, state: StateDirectory) -> None:
    """Its process holds the lock of the VM; neither a start nor another operation may finish or undo its change."""
    die_in(FileVolume, "grow", lambda: vm.resize_disk("vm", "disk0", BIGGER))
    with lock_vm(state.locks, "vm", 0), Control.open(state) as other:
        assert other.disk("vm", "disk0").pending_size == 4 * MIB
        with pytest.raises(ResourceInUse, match="VM vm is being changed"):
            other.resize_disk("vm", "disk1", BIGGER, ResizeOptions(wait=0.05))
        other.create_vm("other", MIB)
    with Control.open(state) as other:
        assert (other.disk("vm", "disk0").size, other.disk("vm", "disk0").pending_size) == (4 * MIB, None)
    assert problems(state) == []


def test_a_start_completes_what_several_vms_have_left(control: Control, state: StateDirectory) -> None:
    for name in ("a", "b", "c"):
        control.create_vm(name, 100 * MIB, [SizeRequest(exact=2 * MIB)] * 2)
    die_in(FileVolume, "grow", lambda: control.resize_disk("a", "disk0", BIGGER), after=True)
    die_in(FilePool, "delete", lambda: control.delete_disk("b", "disk1"))
    die_in(FilePool, "delete", lambda: control.delete_vm("c"), after=True)
    with suppress(ResourceNotFound), Control.open(state) as other:
        assert other.disk("a", "disk0").size == 4 * MIB
        assert [len(vm.disks) for vm in other.vms()] == [2, 1]
    assert problems(state) == []


def test_deleting_again_what_was_half_deleted_succeeds(vm: Control, state: StateDirectory) -> None:
    die_in(FilePool, "delete", lambda: vm.delete_vm("vm"), after=True)
    assert vm.vms() == []
    vm.delete_vm("vm")
    with pytest.raises(ResourceNotFound):
        vm.delete_vm("vm")
    assert problems(state) == []


def test_a_retry_after_a_kill_says_what_recovery_has_finished(vm: Control) -> None:
    grow = SizeRequest(relative=2 * MIB)
    die_in(FileVolume, "grow", lambda: vm.resize_disk("vm", "disk0", grow, operation="one"))
    outcome = vm.resize_disk("vm", "disk0", grow, operation="one")
    assert (outcome.old_size, outcome.size, outcome.generation) == (2 * MIB, 4 * MIB, 2)
    assert vm.disk("vm", "disk0").size == 4 * MIB


@pytest.mark.parametrize("damage", ["deleted", "longer", "shorter", "directory"])
def test_a_volume_changed_behind_our_back_is_named_and_its_disk_can_be_deleted(
    vm: Control, state: StateDirectory, damage: str
) -> None:
    path = volume_of(state, vm.disk("vm", "disk1"))
    if damage in ("deleted", "directory"):
        path.unlink()
    if damage == "directory":
        path.mkdir()
    if damage in ("longer", "shorter"):
        os.truncate(path, MIB if damage == "shorter" else 3 * MIB)
    for size, options in ((BIGGER, ResizeOptions()), (SMALLER, SHRINK), (SizeRequest(exact=2 * MIB), SHRINK)):
        with pytest.raises(VolumeFailed) as caught:
            vm.resize_disk("vm", "disk1", size, options)
        assert str(path) in caught.value.problem
        assert caught.value.way_out
    assert vm.disk("vm", "disk1").generation == 1
    if damage == "directory":
        with pytest.raises(VolumeFailed):
            vm.delete_disk("vm", "disk1")
        path.rmdir()
    vm.delete_disk("vm", "disk1")
    assert problems(state) == []
    volume_of(state, vm.disk("vm", "disk0")).unlink()
    vm.delete_vm("vm")
    assert problems(state) == []


def test_an_unfinished_resize_of_a_volume_that_is_gone_waits_for_it(vm: Control, state: StateDirectory) -> None:
    """Its file system may just not be mounted."""
    die_in(FileVolume, "grow", lambda: vm.resize_disk("vm", "disk1", BIGGER), after=True)
    path = volume_of(state, vm.disk("vm", "disk1"))
    aside = state.root / "aside"
    path.rename(aside)
    with Control.open(state) as other:
        with pytest.raises(VolumeFailed) as caught:
            other.resize_disk("vm", "disk1", SizeRequest(exact=8 * MIB))
        assert "earlier resize of vm/disk1" in caught.value.problem
        assert str(path) in caught.value.problem
        assert other.vm("vm").used == 6 * MIB
    aside.rename(path)
    with Control.open(state) as other:
        assert (other.disk("vm", "disk1").size, other.disk("vm", "disk1").pending_size) == (4 * MIB, None)
    assert problems(state) == []


def test_a_disk_whose_unfinished_resize_waits_for_a_lost_volume_can_be_deleted(
    vm: Control, state: StateDirectory
) -> None:
    for disk in ("disk1", "disk0"):
        die_in(FileVolume, "grow", lambda disk=disk: vm.resize_disk("vm", disk, BIGGER))  # type: ignore[misc]
        volume_of(state, vm.disk("vm", disk)).unlink()
    vm.delete_disk("vm", "disk1")
    vm.delete_vm("vm")
    assert problems(state) == []


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """A file that even root can neither change nor delete."""
    run("chattr", "+i", path)
    try:
        yield
    finally:
        run("chattr", "-i", path)


@pytest.fixture
def on_ext4(tmp_path: Path) -> Iterator[StateDirectory]:
    with mounted("ext4", tmp_path, size=64 * MIB) as point:
        state = StateDirectory(point / "state")
        with Control.open(state) as control:
            control.update_pool(overcommit="unlimited")
        yield state


def test_a_volume_that_can_not_be_changed_leaves_all_as_it_was(on_ext4: StateDirectory) -> None:
    with Control.open(on_ext4) as control:
        control.create_vm("vm", 100 * MIB, [SizeRequest(exact=2 * MIB)] * 2)
        before = control.vm("vm")
        with immutable(volume_of(on_ext4, before.disks[1])):
            for attempt in (
                lambda: control.resize_disk("vm", "disk1", BIGGER),
                lambda: control.resize_disk("vm", "disk1", SMALLER, SHRINK),
                lambda: control.delete_disk("vm", "disk1"),
            ):
                with pytest.raises(VolumeFailed, match="immutable"):
                    attempt()
                now = control.vm("vm")
                assert [disk.size for disk in now.disks] == [2 * MIB, 2 * MIB]
                assert now.used == before.used
                assert problems(on_ext4) == []
            # disk0 goes first, so this deletion can't be taken back; it is finished as soon as it can be.
            with pytest.raises(VolumeFailed):
                control.delete_vm("vm")
            assert control.vms() == []
            with pytest.raises(ResourceInUse, match="remains of an earlier VM vm"):
                control.create_vm("vm", MIB)
        control.create_vm("vm", MIB)
    assert problems(on_ext4) == []


def test_an_unfinished_change_that_can_not_be_completed_holds_up_only_its_disk(on_ext4: StateDirectory) -> None:
    with Control.open(on_ext4) as control:
        control.create_vm("vm", 100 * MIB, [SizeRequest(exact=2 * MIB)] * 2)
        die_in(FileVolume, "grow", lambda: control.resize_disk("vm", "disk1", BIGGER), after=True)
        with immutable(volume_of(on_ext4, control.disk("vm", "disk1"))), Control.open(on_ext4) as other:
            with pytest.raises(VolumeFailed, match="earlier resize of vm/disk1 could not be completed"):
                other.resize_disk("vm", "disk1", SizeRequest(exact=8 * MIB))
            assert other.resize_disk("vm", "disk0", BIGGER).size == 4 * MIB
            assert other.add_disk("vm", SMALLER).name == "disk2"
            assert other.vm("vm").used == 9 * MIB
        assert control.resize_disk("vm", "disk1", SizeRequest(exact=8 * MIB)).old_size == 4 * MIB
    assert problems(on_ext4) == []


def test_a_full_pool_refuses_and_keeps_nothing(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path, size=8 * MIB) as point:
        state = StateDirectory(point / "state")
        with Control.open(state) as control:
            control.update_pool(overcommit="unlimited")
            small, large = SizeRequest(exact=MIB), SizeRequest(exact=64 * MIB)
            control.create_vm("vm", 100 * MIB, [small])
            for attempt in (
                lambda: control.create_vm("full", 100 * MIB, [small, large], preallocate=True),
                lambda: control.add_disk("vm", large, preallocate=True),
            ):
                with pytest.raises(InsufficientSpace) as caught:
                    attempt()
                assert str(state.volumes) in str(caught.value)
                assert problems(state) == []
            assert [vm.used for vm in control.vms()] == [MIB]


def test_a_grow_that_the_pool_does_not_hold_gives_its_reservation_back(on_ext4: StateDirectory) -> None:
    """Of a preallocated disk, because growing a sparse one takes no space."""
    with Control.open(on_ext4) as control:
        control.create_vm("vm", 1000 * MIB, [SizeRequest(exact=MIB)], preallocate=True)
        with pytest.raises(InsufficientSpace):
            control.resize_disk("vm", "disk0", SizeRequest(exact=500 * MIB))
        assert control.vm("vm").used == MIB
        assert control.disk("vm", "disk0").generation == 1
        assert problems(on_ext4) == []
        die_in(FileVolume, "grow", lambda: control.resize_disk("vm", "disk0", SizeRequest(exact=500 * MIB)))
        assert control.vm("vm").used == 500 * MIB
    with Control.open(on_ext4) as control:
        assert control.vm("vm").used == MIB
    assert problems(on_ext4) == []


def test_a_killed_grow_has_the_room_that_it_has_reserved_already(on_ext4: StateDirectory) -> None:
    with Control.open(on_ext4) as control:
        control.create_vm("vm", 1000 * MIB, [SizeRequest(exact=MIB)], preallocate=True)
        half = control.pool().available // 2
        size = SizeRequest(exact=(half + 8 * MIB) // MIB * MIB)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(file, "set_size", killed)
            patch.setattr(os, "ftruncate", killed)
            with pytest.raises(Killed):
                control.resize_disk("vm", "disk0", size)
        assert control.pool().available < half
    with Control.open(on_ext4) as control:
        assert control.disk("vm", "disk0").size == size.exact
    assert problems(on_ext4) == []


def killed(*_: object) -> None:
    raise Killed


def not_supported(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def test_a_killed_grow_that_would_take_long_is_undone(on_ext4: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where space is reserved by writing zeroes, whoever comes next does not wait for terabytes of them."""
    with Control.open(on_ext4) as control:
        control.create_vm("vm", 1000 * MIB, [SizeRequest(exact=MIB)], preallocate=True)
        die_in(FileVolume, "grow", lambda: control.resize_disk("vm", "disk0", BIGGER, operation="one"))
    monkeypatch.setattr(syscalls, "allocate", not_supported)
    with monkeypatch.context() as patch:
        patch.setattr(recovery, "PATIENCE", 0.0)
        with Control.open(on_ext4) as control:
            assert (control.disk("vm", "disk0").size, control.vm("vm").used) == (MIB, MIB)
            assert control.operation("one").error == "its process was killed"
    assert problems(on_ext4) == []
    with Control.open(on_ext4) as control:
        assert control.resize_disk("vm", "disk0", BIGGER, operation="one").size == 4 * MIB
        die_in(FileVolume, "grow", lambda: control.resize_disk("vm", "disk0", SizeRequest(exact=6 * MIB)))
    monkeypatch.setattr(recovery, "PATIENCE", 600.0)
    with Control.open(on_ext4) as control:
        assert control.disk("vm", "disk0").size == 6 * MIB
    assert problems(on_ext4) == []


def test_a_volume_that_can_not_be_looked_at_keeps_its_reservation(vm: Control, state: StateDirectory) -> None:
    """A failed grow gives nothing back before the volume is known to be at its old size."""

    def fail(*_: object) -> int:
        raise VolumeFailed("Growing failed (Input/output error)")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileVolume, "grow", fail)
        sizes = iter([2 * MIB])
        patch.setattr(FileVolume, "size", lambda _: next(sizes, None) or fail())
        with pytest.raises(VolumeFailed):
            vm.resize_disk("vm", "disk0", SizeRequest(exact=90 * MIB))
        assert vm.vm("vm").used == 92 * MIB
        with pytest.raises(NbdresizeError):
            vm.add_disk("vm", SizeRequest(exact=20 * MIB))
    Control.open(state).close()
    assert vm.disk("vm", "disk0").size == 90 * MIB
    assert problems(state) == []


def test_sigkill_during_a_preallocation_leaves_nothing(state: StateDirectory) -> None:
    """The real signal, to a real process, while it is busy."""
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from nbdresize.config import StateDirectory; from nbdresize.control.control import Control\n"
        "from nbdresize.storage import file; from nbdresize.units import SizeRequest\n"
        "control = Control.open(StateDirectory(Path(sys.argv[1])))\n"
        "file.set_size = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "control.create_vm('vm', 100 << 20, [SizeRequest(exact=8 << 20)], preallocate=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(state.root)], cwd=CHECKOUT, timeout=100, check=False)
    assert done.returncode == -9
    assert len(list(state.volumes.iterdir())) == 1
    with closing(sqlite3.connect(state.ledger)) as ledger:
        assert ledger.execute("SELECT kind FROM intents").fetchall() == [("create_vm",)]
    with Control.open(state) as control:
        assert control.vms() == []
    assert problems(state) == []


def test_a_write_map_that_was_left_is_removed_by_the_next_start(vm: Control, state: StateDirectory) -> None:
    """Unless somebody is at work on its VM, who may be copying just then."""
    left = state.write_map(vm.disk("vm", "disk0").volume)
    left.touch()
    with lock_vm(state.locks, "vm", 0):
        Control.open(state).close()
        assert left.exists()
    Control.open(state).close()
    assert problems(state) == []


def test_a_deletion_is_not_taken_back_where_only_the_answer_to_its_commit_was_lost(
    control: Control, state: StateDirectory
) -> None:
    control.create_vm("bare", MIB)

    def commit_and_fail(connection: object, intent: object, *more: object) -> None:
        with closing(sqlite3.connect(state.ledger)) as ledger, ledger:
            ledger.executescript("DELETE FROM intents; DELETE FROM vms; UPDATE operations SET state = 'done'")
        raise StateUnusable("disk I/O error")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nbdresize.control.recovery.finish", commit_and_fail)
        with pytest.raises(StateUnusable):
            control.delete_vm("bare", operation="one")
    assert control.operation("one").state is OperationState.DONE
