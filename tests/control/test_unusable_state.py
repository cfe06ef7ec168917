"""State directories that can't be used: one clear line, nothing half-made, and well again when the cause is gone."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.model import ResizeOptions
from nbdresize.errors import InsufficientSpace, ResourceNotFound, StateUnusable, VolumeFailed
from nbdresize.units import SizeRequest
from tests.control.consistency import problems
from tests.filesystems import fill, mounted, mounted_in_memory, run

CHECKOUT = Path(__file__).parents[2]
MIB = 1 << 20


def refused(state: StateDirectory, *, create: bool = True) -> str:
    """The one line that opening it ends with."""
    with pytest.raises(StateUnusable) as caught:
        Control.open(state, create=create).close()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    assert caught.value.way_out
    return text


def test_a_directory_never_used_is_not_made_by_those_who_only_look(state: StateDirectory) -> None:
    assert "There is no state directory at" in refused(state, create=False)
    assert not state.root.exists()
    state.root.mkdir()
    assert "make a VM first" in refused(state, create=False)
    assert list(state.root.iterdir()) == []
    Control.open(state).close()
    with Control.open(state, create=False) as control:
        assert control.vms() == []


def test_a_new_directory_is_for_its_owner_only(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "new" / "state")
    Control.open(state).close()
    assert state.root.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in state.root.iterdir() if path.is_dir()} == {"volumes", "leases", "locks", "run"}


def test_missing_folders_are_made_again(state: StateDirectory) -> None:
    Control.open(state).close()
    for directory in (state.leases, state.locks, state.run):
        shutil.rmtree(directory)
    with Control.open(state, create=False) as control:
        control.create_vm("vm", MIB, [SizeRequest(exact=MIB)])
    assert problems(state) == []


def test_a_root_that_is_a_file_is_refused(state: StateDirectory) -> None:
    state.root.write_text("mine")
    assert "a file is in the way" in refused(state)
    refused(state, create=False)
    refused(StateDirectory(state.root / "below"))
    assert state.root.read_text() == "mine"


def test_a_folder_that_is_a_file_is_refused(state: StateDirectory) -> None:
    state.root.mkdir()
    state.volumes.touch()
    assert "volumes" in refused(state)


def test_a_root_with_odd_characters_works_or_is_shown_escaped(tmp_path: Path) -> None:
    for name in ("with space", "quo'te", "per%cent?query#hash", "back\\slash", "ünï", os.fsdecode(b"\xff\xfe")):
        state = StateDirectory(tmp_path / name)
        refused(state, create=False).encode()
        with Control.open(state) as control:
            control.create_vm("vm", MIB, [SizeRequest(exact=MIB)])
        assert problems(state) == []
    long = StateDirectory(tmp_path / ("x" * 300))
    assert "File name too long" in refused(long)
    assert "null byte" in refused(StateDirectory(tmp_path / "a\0b"))


def test_a_read_only_file_system_is_refused(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path) as point:
        state = StateDirectory(point / "state")
        Control.open(state).close()
        run("mount", "-o", "remount,ro", point)
        assert "Read-only file system: remount its file system for writing" in refused(state)
        assert "Read-only file system" in refused(StateDirectory(point / "new"))
        run("mount", "-o", "remount,rw", point)
        Control.open(state).close()


AS_NOBODY = """
import os, sys
from pathlib import Path
from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.errors import StateUnusable
os.chdir(sys.argv[1])
Control.open(StateDirectory(Path("warm"))).close()  # so that all modules are there when nothing can be read any more
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    Control.open(StateDirectory(Path(sys.argv[2])), create=sys.argv[3] == "create")
except StateUnusable as error:
    print(error)
"""


def as_nobody(directory: Path, name: str, how: str = "create") -> str:
    """What opening the state directory of that name says to a user without rights; names below where it stands."""
    command = [sys.executable, "-c", AS_NOBODY, str(directory), name, how]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_another_users_directory_is_refused(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    Control.open(state).close()
    assert "Permission denied" in as_nobody(tmp_path, "state")
    assert "Permission denied" in as_nobody(tmp_path, "state", "look")
    for path in (state.root, state.volumes, state.leases, state.locks, state.run):
        path.chmod(0o755)
    assert "Permission denied" in as_nobody(tmp_path, "state")
    assert "Permission denied" in as_nobody(tmp_path, "new")
    Control.open(state).close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"this is no database, and longer than the header of one" * 100),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        lambda path: path.write_bytes(path.read_bytes()[:1024] + b"\xa5" * (64 * 1024)),
    ],
    ids=["no database", "cut short", "overwritten"],
)
def test_a_damaged_ledger_is_named(state: StateDirectory, damage: object) -> None:
    assert callable(damage)
    with Control.open(state) as control:
        control.create_vm("vm", MIB, [SizeRequest(exact=MIB)])
    with closing(sqlite3.connect(state.ledger)) as ledger:
        ledger.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damage(state.ledger)
    text = refused(state)
    assert str(state.ledger) in text
    assert "damaged" in text
    assert len(list(state.volumes.iterdir())) == 1


def test_a_ledger_that_is_a_directory_is_refused(state: StateDirectory) -> None:
    state.ledger.mkdir(parents=True)
    assert "Is a directory" in refused(state)


def test_an_empty_ledger_is_one_that_was_never_written(state: StateDirectory) -> None:
    """What a kill during the very first start leaves."""
    state.root.mkdir()
    state.ledger.touch()
    with Control.open(state) as control:
        assert control.vms() == []


def test_a_file_system_without_room_for_what_sqlite_makes_beside_the_ledger_is_named_as_full(tmp_path: Path) -> None:
    """xfs says that a few blocks are left, which nobody gets."""
    with mounted_in_memory("xfs", tmp_path) as directory:
        state = StateDirectory(directory / "state")
        Control.open(state).close()
        fill(directory / "filler")
        told = refused(state)
        assert "No space for the ledger" in told
        assert told.endswith("free some space on its file system")
        (directory / "filler").unlink()
        with Control.open(state) as control:
            assert control.vms() == []


def test_a_full_file_system_is_named_and_nothing_is_half_made(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path, size=MIB) as point:
        filling = _fill(point)
        state = StateDirectory(point / "state")
        with suppress(OSError):
            state.root.mkdir()
        assert "pace" in refused(state)
        filling.unlink()
        with Control.open(state) as control:
            control.create_vm("vm", MIB, [SizeRequest(exact=64 * 1024)])
        assert problems(state) == []


SHRINK = ResizeOptions(shrink=True)
ATTEMPTS: tuple[Callable[[Control], object], ...] = (
    lambda control: control.create_vm("new", MIB, [SizeRequest(exact=MIB)]),
    lambda control: control.resize_disk("vm", "disk0", SizeRequest(relative=MIB)),
    lambda control: control.add_disk("vm", SizeRequest(exact=MIB)),
    lambda control: control.resize_disk("vm", "disk0", SizeRequest(exact=MIB), SHRINK),
    lambda control: control.delete_disk("vm", "disk1"),
    lambda control: control.delete_vm("new"),
)


def test_a_file_system_that_fills_up_fails_operations_and_no_more(tmp_path: Path) -> None:
    """Whatever the room that is left: every operation is done, or refused and gone."""
    with mounted("tmpfs", tmp_path, size=2 * MIB) as point:
        state = StateDirectory(point / "state")
        with Control.open(state) as control:
            control.update_pool(overcommit="unlimited")
            control.create_vm("vm", 1024 * MIB, [SizeRequest(exact=MIB)])
        failures: list[str] = []
        for room in range(0, 240 * 1024, 12 * 1024):
            filling = _fill(point, room)
            failures += _attempt_all(state)
            filling.unlink()
            with Control.open(state) as control:
                assert problems(state) == [], room
                for disk in control.vm("vm").disks[1:]:
                    control.delete_disk("vm", disk.name)
                with suppress(ResourceNotFound):
                    control.delete_vm("new")
        assert any("No space for the ledger" in failure for failure in failures), failures
        assert all("\n" not in failure for failure in failures)


def _attempt_all(state: StateDirectory) -> list[str]:
    """Why operations failed for lack of space; one that finds nothing to work on, since another failed, is as good."""
    failures = []
    try:
        with Control.open(state) as control:
            for attempt in ATTEMPTS:
                try:
                    attempt(control)
                except ResourceNotFound:
                    pass
                except (StateUnusable, InsufficientSpace, VolumeFailed) as error:
                    failures.append(str(error))
    except StateUnusable as error:
        failures.append(str(error))
    return failures


def _fill(point: Path, room: int = 0) -> Path:
    """A file that takes all of the file system but about `room` bytes."""
    path = point / "filling"
    fill(path, leave=room)
    return path
