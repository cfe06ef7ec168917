"""Files that belong to nothing, and what `check` makes of them."""

import os
import socket
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.checks.report import What
from nbdresize.control.control import Control
from nbdresize.control.leases import Lease, closed_door, lease_path
from nbdresize.control.locks import lock_image, lock_vm
from nbdresize.units import SizeRequest
from tests.control.consistency import problems
from tests.control.planting import MIB, assert_repaired, assert_stays, assert_well, only


@pytest.fixture
def vm(control: Control) -> Control:
    control.create_vm("vm", 100 * MIB, [SizeRequest(exact=2 * MIB)])
    return control


# Volumes


@pytest.mark.parametrize("content", [b"", bytes(10_000)], ids=["hole", "zeroes"])
def test_an_orphan_without_data_is_removed(vm: Control, state: StateDirectory, content: bytes) -> None:
    path = state.volumes / "stray.raw"
    path.write_bytes(content)
    os.truncate(path, 8 * MIB)
    assert assert_repaired(vm, What.ORPHAN_VOLUME).subject == "stray"
    assert problems(state) == []


def test_an_orphan_with_data_is_for_people(vm: Control, state: StateDirectory) -> None:
    path = state.volumes / "stray.raw"
    path.write_bytes(bytes(1_000_000) + b"x")
    assert assert_stays(vm, What.ORPHAN_VOLUME).way_out.endswith(f"rm {path}")
    path.unlink()
    path.mkdir()
    assert_stays(vm, What.ORPHAN_VOLUME)


def test_an_orphan_that_clients_use_is_let_be(vm: Control, state: StateDirectory) -> None:
    (state.volumes / "stray.raw").touch()
    lease = lease_path(state.leases, "stray")
    with Lease.acquire_shared(lease):
        assert not only(vm.check(repair=True), What.ORPHAN_VOLUME).repaired
    lease.unlink()
    assert_repaired(vm, What.ORPHAN_VOLUME)


def test_other_files_in_the_pool_are_nobodys_business(vm: Control, state: StateDirectory) -> None:
    (state.volumes / "notes.txt").touch()
    assert_well(vm)


# Locks


@pytest.mark.parametrize("name", ["leases/gone.lock", "locks/gone.lock", "locks/.image-gone.lock"])
def test_a_lock_file_of_nothing(vm: Control, state: StateDirectory, name: str) -> None:
    path = state.root / name
    path.touch()
    assert assert_repaired(vm, What.LEFT_BEHIND).subject == str(path)
    assert problems(state) == []


def test_locks_that_somebody_holds_are_no_leftovers(vm: Control, state: StateDirectory) -> None:
    with (
        lock_vm(state.locks, "coming", 0),
        lock_image(state.locks, "coming", 0, exclusive=True),
        Lease.acquire_shared(lease_path(state.leases, "gone")),
        closed_door(state.leases, vm.disk("vm", "disk0").volume),
    ):
        assert_well(vm)
        assert vm.check(repair=True).problems == ()


def test_a_door_that_nobody_holds(vm: Control, state: StateDirectory) -> None:
    path = state.leases / f"{vm.disk('vm', 'disk0').volume}.door"
    path.touch()
    assert assert_repaired(vm, What.LEFT_BEHIND).subject == str(path)


def test_locks_of_what_is_there_stay(vm: Control, state: StateDirectory) -> None:
    with vm.take_lease("vm", "disk0")[1]:
        pass
    before = sorted(state.root.glob("*/*.lock"))
    assert_well(vm)
    assert vm.check(repair=True).problems == ()
    assert sorted(state.root.glob("*/*.lock")) == before


# What servers leave


@pytest.mark.parametrize("name", ["gone.written", "gone.written.new", ".1-00000000.admin.new"])
def test_a_file_of_servers_for_nothing(vm: Control, state: StateDirectory, name: str) -> None:
    path = state.run / name
    path.touch()
    assert assert_repaired(vm, What.LEFT_BEHIND).subject == str(path)
    assert not path.exists()


def test_a_socket_of_a_dead_server(vm: Control, state: StateDirectory) -> None:
    path = state.run / "1-00000000.admin"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    assert assert_repaired(vm, What.LEFT_BEHIND).subject == str(path)


def test_what_can_not_be_removed_stays_a_problem(
    vm: Control, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    (state.run / "gone.written").touch()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        found = only(vm.check(repair=True), What.LEFT_BEHIND)
    assert not found.repaired
    assert "Permission denied" in found.detail
    assert_repaired(vm, What.LEFT_BEHIND)
