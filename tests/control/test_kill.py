"""A process killed before every single step of every change: the next one finds it wholly done or wholly undone."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.errors import ResourceNotFound
from tests.control import victim
from tests.control.consistency import problems
from tests.control.victim import BUDGET, CHANGES, PATTERN, SIZE
from tests.filesystems import mounted

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
VM = ("vm", BUDGET, ((0, SIZE, 1), (1, SIZE, 1)))

AFTER: dict[str, list[Any]] = {
    "create_first": [("new", BUDGET, ((0, SIZE, 1), (1, BUDGET - SIZE, 1)))],
    "create": [("new", BUDGET, ((0, SIZE, 1), (1, BUDGET - SIZE, 1))), VM],
    "create_preallocated": [("new", BUDGET, ((0, SIZE, 1),)), VM],
    "add": [("vm", BUDGET, ((0, SIZE, 1), (1, SIZE, 1), (2, SIZE, 1)))],
    "grow": [("vm", BUDGET, ((0, 2 * SIZE, 2), (1, SIZE, 1)))],
    "shrink": [("vm", BUDGET, ((0, SIZE // 2, 2), (1, SIZE, 1)))],
    "delete_disk": [("vm", BUDGET, ((0, SIZE, 1),))],
    "delete_vm": [],
}
"""What users see after each change: VMs with their budgets, and slot, size and generation of their disks."""

MUST_MEET = {
    "create_first": {"mkdir", "open", "ftruncate", "fsync", "Connection.commit"},
    "create": {"flock", "open", "ftruncate", "fsync", "Connection.commit"},
    "create_preallocated": {"setxattr", "ftruncate", "fsync", "Connection.commit"},
    "add": {"flock", "open", "ftruncate", "fsync", "Connection.commit"},
    "grow": {"flock", "ftruncate", "fsync", "Connection.commit"},
    "shrink": {"flock", "ftruncate", "fsync", "Connection.commit"},
    "delete_disk": {"flock", "unlink", "fsync", "Connection.commit"},
    "delete_vm": {"flock", "unlink", "fsync", "Connection.commit"},
}
"""Steps at which each change has to be killed; were one not met, the test would look away."""


@pytest.mark.parametrize("change", CHANGES)
def test_killed_at_any_step_a_change_is_wholly_done_or_wholly_undone(change: str, tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path) as fast:  # a thousand fsyncs on a disk take minutes, and prove no more
        _kill_at_every_step(change, fast)


def _kill_at_every_step(change: str, directory: Path) -> None:
    before = [] if change == "create_first" else [VM]
    steps: list[str | None] = []
    done = False
    for root, step in _killed(change, directory):
        steps.append(step)
        what = f"{change} killed before {step} (step {len(steps)})"
        intended = "resize_disk" in _intents(root)
        with Control.open(root) as control:
            assert problems(root) == [], what
            seen = _seen(control)
            assert seen in (before, AFTER[change]), what
            assert not (done and seen == before), f"{what}: an earlier kill left it done"
            assert not (intended and seen == before), f"{what}: a recorded resize is finished"
            done = seen == AFTER[change]
            _check_content(root, control, change, done=done)
            _retry(control, change, done=done)
            assert _seen(control) == AFTER[change], what
        assert problems(root) == [], what
    assert steps[-1] is None
    assert done
    assert set(steps) >= MUST_MEET[change]


def _killed(change: str, directory: Path) -> Any:
    """The state directories that kills have left, in the order of the steps."""
    command = [sys.executable, "-m", victim.__name__, str(directory), change]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        report = json.loads(line)
        yield StateDirectory(Path(report["root"])), report["step"]


def _intents(state: StateDirectory) -> list[str]:
    if not state.ledger.exists():
        return []
    with closing(sqlite3.connect(state.ledger)) as ledger:
        if not ledger.execute("SELECT name FROM sqlite_master WHERE name = 'intents'").fetchall():
            return []
        return [row[0] for row in ledger.execute("SELECT kind FROM intents")]


def _seen(control: Control) -> list[Any]:
    return [
        (vm.name, vm.budget, tuple((disk.slot, disk.size, disk.generation) for disk in vm.disks))
        for vm in control.vms()
    ]


def _check_content(state: StateDirectory, control: Control, change: str, *, done: bool) -> None:
    """What was written is there, up to the new end; what is new reads as zeroes."""
    for vm in control.vms():
        for disk in vm.disks:
            content = (state.volumes / f"{disk.volume}.raw").read_bytes()
            kept = min(SIZE, disk.size) if vm.name == "vm" and disk.slot < 2 else 0
            assert content[:kept] == PATTERN * (kept // len(PATTERN)), (change, done, disk)
            assert not any(content[kept:]), (change, done, disk)


def _retry(control: Control, change: str, *, done: bool) -> None:
    if change.startswith("delete"):
        with suppress(ResourceNotFound):
            CHANGES[change](control)
            assert not done
    else:
        CHANGES[change](control)
