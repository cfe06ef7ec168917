"""The checker of the kill tests, checked itself with planted bugs."""

import sqlite3
from contextlib import closing

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.units import SizeRequest
from tests.control.consistency import problems

SIZE = 1 << 20


@pytest.fixture
def sound(state: StateDirectory) -> StateDirectory:
    with Control.open(state) as control:
        control.create_vm("vm", 4 * SIZE, [SizeRequest(exact=SIZE)] * 2)
    assert problems(state) == []
    return state


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("UPDATE vms SET budget = 4096", "vm uses 2097152 of 4096"),
        ("UPDATE disks SET size = 4096 WHERE slot = 0", "vm/disk0 has 4096 bytes, its volume 1048576"),
        ("UPDATE disks SET size = 4097 WHERE slot = 0", "vm/disk0 has 4097 bytes"),
        ("DELETE FROM disks WHERE slot = 1", "orphan volume vm-disk1"),
        ("DELETE FROM vms", "disk0 of no VM"),
        ("DELETE FROM vms", "orphan lock"),
        (
            "INSERT INTO intents (operation, kind, vm_id, committed) VALUES ('x', 'create_vm', 1, 0)",
            "unfinished create_vm x",
        ),
    ],
)
def test_a_wrong_ledger_is_noticed(sound: StateDirectory, statement: str, complaint: str) -> None:
    with closing(sqlite3.connect(sound.ledger)) as ledger, ledger:
        ledger.execute(statement)
    (sound.locks / "vm.lock").touch()
    assert any(complaint in problem for problem in problems(sound)), problems(sound)


def test_wrong_files_are_noticed(sound: StateDirectory) -> None:
    volume = next(sound.volumes.iterdir())
    volume.rename(sound.volumes / "other.raw")
    (sound.leases / "other.lock").touch()
    (sound.locks / "other.lock").touch()
    found = problems(sound)
    assert {"orphan volume other.raw", "orphan lease other.lock", "orphan lock other.lock"} <= set(found)
    assert any("has no volume" in problem for problem in found)
