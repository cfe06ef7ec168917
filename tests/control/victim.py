"""A process that is killed on its way through an operation. Run by test_kill: `python -m tests.control.victim …`.

Python tells a profile function of every call into C. Each call into the operating system or into SQLite is a step;
the victim kills itself before the step of a given number; of a transaction, before its commit, since what comes in
between is SQLite's to undo. So no step is forgotten when the code changes, and the
product has no test code in it.

    ROOT CHANGE        for step 0, 1, 2 … : a state directory ROOT/N, and a fork that is killed there

It prints one JSON object per step: {"root": …, "step": name or null}, and ends after the step that is null, where the
operation came to its end. Forked, because starting Python for each of a thousand kills would take minutes.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.model import ResizeOptions
from nbdresize.units import SizeRequest

KIB = 1024
BUDGET = 1024 * KIB
SIZE = 64 * KIB
OPERATION = "the-operation"
PATTERN = b"\xa5" * 4096

_STEPS = {
    "posix": {"open", "close", "ftruncate", "fsync", "fdatasync", "unlink", "mkdir", "pwrite", "setxattr"},
    "fcntl": {"flock"},
    "sqlite3": {"connect", "commit"},
}


def create(control: Control) -> None:
    control.create_vm("new", BUDGET, [SizeRequest(exact=SIZE), SizeRequest(remaining=True)], operation=OPERATION)


def create_preallocated(control: Control) -> None:
    control.create_vm("new", BUDGET, [SizeRequest(exact=SIZE)], preallocate=True, operation=OPERATION)


def add(control: Control) -> None:
    control.add_disk("vm", SizeRequest(exact=SIZE), operation=OPERATION)


def grow(control: Control) -> None:
    control.resize_disk("vm", "disk0", SizeRequest(relative=SIZE), operation=OPERATION)


def shrink(control: Control) -> None:
    size = SizeRequest(exact=SIZE // 2)
    control.resize_disk("vm", "disk0", size, ResizeOptions(shrink=True), operation=OPERATION)


def delete_disk(control: Control) -> None:
    control.delete_disk("vm", "disk1")


def delete_vm(control: Control) -> None:
    control.delete_vm("vm")


def create_first(control: Control) -> None:
    create(control)


_ALL = (create_first, create, create_preallocated, add, grow, shrink, delete_disk, delete_vm)
CHANGES: dict[str, Callable[[Control], None]] = {change.__name__: change for change in _ALL}


def prepare(state: StateDirectory) -> None:
    """A VM with two full disks, as every change finds it; for the very first one, nothing at all."""
    with Control.open(state) as control:
        vm = control.create_vm("vm", BUDGET, [SizeRequest(exact=SIZE)] * 2)
        for disk in vm.disks:
            path = state.volumes / f"{disk.volume}.raw"
            with path.open("r+b") as file:
                file.write(PATTERN * (SIZE // len(PATTERN)))


class Killer:
    """A profile function that counts steps, and ends the process before one of them."""

    def __init__(self, last: int, report: int) -> None:
        self._left = last
        self._report = report

    def __call__(self, frame: FrameType, event: str, called: Any) -> None:
        if event != "c_call" or not _is_step(called):
            return
        if self._left == 0:
            sys.setprofile(None)
            os.write(self._report, _name(called).encode())
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1


def _is_step(called: Any) -> bool:
    module = getattr(called, "__module__", None)
    if module is None:  # a method: of a sqlite3 object?
        module = type(getattr(called, "__self__", None)).__module__
    return called.__name__ in _STEPS.get(module, ())


def _name(called: Any) -> str:
    return str(getattr(called, "__qualname__", called.__name__))


def run(change: str, template: Path, root: Path, step: int) -> str | None:
    """Fork a process that is killed before that step; the step's name, None where the operation came to its end."""
    shutil.copytree(template, root)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        sys.setprofile(Killer(step, writing))
        try:
            with Control.open(StateDirectory(root)) as control:
                CHANGES[change](control)
            sys.setprofile(None)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading) as report:  # noqa: PTH123 - a descriptor
        name = report.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{change} failed with {code}, killed before step {step}")
    return name if code else None


def main() -> None:
    directory, change = Path(sys.argv[1]), sys.argv[2]
    template = directory / "template"
    template.mkdir()
    if change != create_first.__name__:
        prepare(StateDirectory(template))
    step = 0
    while True:
        root = directory / str(step)
        name = run(change, template, root, step)
        print(json.dumps({"root": str(root), "step": name}), flush=True)
        if name is None:
            return
        step += 1


if __name__ == "__main__":
    main()
