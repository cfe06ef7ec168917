"""The checker of the kill tests, checked itself with planted bugs."""

import os
import sqlite3
from contextlib import closing

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.units import SizeRequest
from tests.control.consistency import problems

SIZE = 1 << 20
SPACE = 8192


@pytest.fixture
def sound(state: StateDirectory) -> StateDirectory:
    """A VM with two disks, two snapshots, an image and a package, written by hand; all as it should be."""
    with Control.open(state) as control:
        control.create_vm("vm", 4 * SIZE, [SizeRequest(exact=SIZE)] * 2)
    for volume in ("vm-monday", "vm-tuesday", "image-debian"):
        path = state.volumes / f"{volume}.raw"
        path.write_bytes(b"x" * SPACE)
        os.truncate(path, SIZE)
    for number, name, space in ((1, "monday", SPACE), (2, "tuesday", 4096)):
        _insert(state, "snapshots", id=number, vm_id=1, name=name)
        of_disk = {"snapshot_id": number, "disk_id": 1, "size": SIZE, "space": space, "volume": f"vm-{name}"}
        _insert(state, "snapshot_disks", **of_disk)
    _insert(state, "images", name="debian", size=SIZE, original_size=SIZE, space=SPACE, volume="image-debian")
    _insert(state, "packages", id=1, name="small", disk_space=4 * SIZE)
    _execute(state, "UPDATE vms SET package_id = 1")
    assert problems(state) == []
    return state


def _insert(state: StateDirectory, table: str, **values: object) -> None:
    """A new row; what it has to have and nothing is said of is 0."""
    with closing(sqlite3.connect(state.ledger)) as ledger, ledger:
        columns = ledger.execute(f"SELECT name, pk FROM pragma_table_info('{table}') WHERE \"notnull\"").fetchall()
        row = {name: 0 for name, key in columns if not key} | values
        marks = ", ".join("?" * len(row))
        ledger.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", list(row.values()))


def _execute(state: StateDirectory, statement: str) -> None:
    with closing(sqlite3.connect(state.ledger)) as ledger, ledger:
        ledger.execute(statement)


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("UPDATE vms SET budget = 4096", f"vm uses {2 * SIZE + SPACE + 4096} of 4096"),
        (f"UPDATE vms SET package_id = NULL, budget = {2 * SIZE + SPACE}", "vm uses"),
        ("UPDATE vms SET budget = budget + 4096", "vm has not the budget of package small"),
        ("UPDATE disks SET size = 4096 WHERE slot = 0", "vm/disk0 has 4096 bytes, its volume 1048576"),
        ("UPDATE disks SET size = 4097 WHERE slot = 0", "vm/disk0 has 4097 bytes"),
        ("UPDATE disks SET minimum = size + 1 WHERE slot = 1", "vm/disk1 is smaller than its image"),
        ("DELETE FROM disks WHERE slot = 1", "orphan volume vm-disk1"),
        ("DELETE FROM vms", "disk0 of no VM"),
        ("DELETE FROM vms", "snapshot monday of no VM"),
        ("DELETE FROM vms", "disks refers to nothing"),
        ("DELETE FROM vms", "orphan lock"),
        ("DELETE FROM snapshots WHERE id = 1", "disk0 of snapshot that is gone: vm-monday"),
        ("DELETE FROM snapshot_disks WHERE snapshot_id = 2", "snapshot tuesday has no disks"),
        ("DELETE FROM snapshot_disks WHERE snapshot_id = 2", "orphan volume vm-tuesday.raw"),
        ("UPDATE snapshot_disks SET size = 4096", "disk0 of snapshot monday has 4096 bytes, its volume 1048576"),
        ("UPDATE snapshot_disks SET space = 4096", "disk0 of snapshot monday is charged 4096 bytes, and takes 8192"),
        (
            "UPDATE snapshot_disks SET space = 12288 WHERE snapshot_id = 2",
            "disk0 of snapshot tuesday is charged 12288 bytes, and takes 8192",
        ),
        ("DELETE FROM images", "orphan volume image-debian.raw"),
        ("UPDATE images SET volume = 'gone'", "image debian has no volume"),
        ("UPDATE images SET size = 4096", "image debian has 4096 bytes, its volume 1048576"),
        ("UPDATE images SET space = 0", "image debian is charged 0 bytes, and takes 8192"),
        ("INSERT INTO switches VALUES ('snapshots', 'vm', '7', 'off')", "switch snapshots of no VM"),
        (f"INSERT INTO settings VALUES ('pool_capacity', '{4 * SIZE}')", "of the pool's 4194304 are promised"),
        (
            "INSERT INTO settings VALUES ('pool_overcommit', '1/100000000000')",
            f"{4 * SIZE + SPACE} of the pool's",
        ),
        (
            "INSERT INTO intents (operation, kind, vm_id, committed) VALUES ('x', 'create_vm', 1, 0)",
            "unfinished create_vm x",
        ),
        ("UPDATE operations SET state = 'running'", "runs for ever"),
    ],
)
def test_a_wrong_ledger_is_noticed(sound: StateDirectory, statement: str, complaint: str) -> None:
    _execute(sound, statement)
    (sound.locks / "vm.lock").touch()
    assert any(complaint in problem for problem in problems(sound)), problems(sound)


def test_wrong_files_are_noticed(sound: StateDirectory) -> None:
    for path in list(sound.volumes.iterdir()):
        path.unlink()
    (sound.volumes / "other.raw").touch()
    (sound.volumes / "vm-disk0-staged.raw").touch()
    (sound.leases / "other.lock").touch()
    (sound.leases / "vm-disk0.door").touch()
    (sound.locks / "other.lock").touch()
    (sound.locks / ".image-other.lock").touch()
    (sound.run / "vm-disk0.written").touch()
    assert {
        "orphan volume other.raw",
        "orphan volume vm-disk0-staged.raw",
        "orphan lease other.lock",
        "orphan lease vm-disk0.door",
        "orphan lock other.lock",
        "orphan lock .image-other.lock",
        "left write map vm-disk0.written",
        "vm/disk0 has no volume",
        "disk0 of snapshot monday has no volume",
        "image debian has no volume",
    } <= set(problems(sound))
