"""A process killed before every single step of every change: the next one finds it wholly done or wholly undone."""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.model import OperationState
from tests.control import victim
from tests.control.consistency import problems
from tests.control.outcomes import AFTER, before, check_content, seen
from tests.control.victim import CHANGES, OPERATION
from tests.filesystems import MIB, mounted

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]

MUST_MEET = {
    "create_first": {"mkdir", "open", "ftruncate", "fsync", "Connection.commit"},
    "create": {"flock", "open", "ftruncate", "fsync", "Connection.commit"},
    "create_preallocated": {"setxattr", "fallocate", "ftruncate", "fsync", "Connection.commit"},
    "create_from_image": {"pwrite", "ftruncate", "fsync", "Connection.commit"},
    "change_package": {"flock", "Connection.commit"},
    "delete_vm": {"flock", "unlink", "fsync", "Connection.commit"},
    "add": {"flock", "open", "ftruncate", "fsync", "Connection.commit"},
    "grow": {"flock", "ftruncate", "fsync", "Connection.commit"},
    "grow_preallocated": {"fallocate", "ftruncate", "fsync", "Connection.commit"},
    "shrink": {"flock", "ftruncate", "fsync", "Connection.commit"},
    "delete_disk": {"flock", "unlink", "fsync", "Connection.commit"},
    "move": {"flock", "ftruncate", "fsync", "Connection.commit"},
    "change_disks": {"open", "flock", "ftruncate", "unlink", "fsync", "Connection.commit"},
    "add_image": {"flock", "pwrite", "fsync", "Connection.commit"},
    "add_image_of_disk": {"flock", "pwrite", "fsync", "Connection.commit"},
    "delete_image": {"flock", "unlink", "fsync", "Connection.commit"},
    "create_snapshot": {"flock", "open", "pwrite", "fsync", "unlink", "Connection.commit"},
    "delete_snapshot": {"flock", "unlink", "fsync", "Connection.commit"},
    "roll_back": {"flock", "open", "pwrite", "replace", "fsync", "Connection.commit"},
    "delete_vm_with_snapshots": {"flock", "unlink", "fsync", "Connection.commit"},
}
"""Steps at which each change has to be killed; were one not met, the test would look away."""

SHARING = ("create_from_image", "add_image_of_disk", "create_snapshot", "delete_snapshot", "roll_back")
"""What is done in another way where copies can share blocks."""


@pytest.mark.parametrize("change", CHANGES)
def test_killed_at_any_step_a_change_is_wholly_done_or_wholly_undone(change: str, tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path, size=512 * MIB) as fast:  # fsyncs on a disk take minutes, and prove no more
        _kill_at_every_step(change, fast, MUST_MEET[change])


@pytest.mark.parametrize("change", SHARING)
def test_the_same_holds_where_copies_share_blocks(change: str, tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path, size=600 * MIB) as fast, mounted("xfs", fast) as sharing:
        _kill_at_every_step(change, sharing, {"ioctl", "fsync", "Connection.commit"})


def _kill_at_every_step(change: str, directory: Path, must_meet: set[str]) -> None:
    steps: list[str | None] = []
    done = False
    for state, step in _killed(change, directory):
        steps.append(step)
        what = f"{change} killed before {step} (step {len(steps)})"
        bound = _is_bound_to_happen(state)
        with Control.open(state) as control:
            assert problems(state) == [], what
            found = seen(control)
            assert found in (before(change), AFTER[change]), what
            assert not (done and found == before(change)), f"{what}: an earlier kill left it done"
            assert not (bound and found == before(change)), f"{what}: what is committed is finished"
            done = found == AFTER[change]
            check_content(state, control, what)
            CHANGES[change](control)
            assert seen(control) == AFTER[change], what
            assert control.operation(OPERATION).state is OperationState.DONE, what
            check_content(state, control, what)
        assert problems(state) == [], what
        shutil.rmtree(state.root)
    assert steps[-1] is None
    assert done
    assert set(steps) >= must_meet


def _killed(change: str, directory: Path) -> Iterator[tuple[StateDirectory, str | None]]:
    """The state directories that kills have left, in the order of the steps."""
    command = [sys.executable, "-m", victim.__name__, str(directory), change]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        report = json.loads(line)
        yield StateDirectory(Path(report["root"])), report["step"]


def _is_bound_to_happen(state: StateDirectory) -> bool:
    """Whether the ledger says so: the change is committed, or only grows disks."""
    if not state.ledger.exists():
        return False
    with closing(sqlite3.connect(state.ledger)) as ledger:
        if not ledger.execute("SELECT name FROM sqlite_master WHERE name = 'intents'").fetchall():
            return False
        found = ledger.execute("SELECT committed, kind FROM intents").fetchall()
    return any(committed or kind == "resize_disk" for committed, kind in found)
