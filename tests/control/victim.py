"""A process that is killed on its way through an operation. Run by test_kill: `python -m tests.control.victim …`.

    ROOT CHANGE        for step 0, 1, 2 … : a state directory ROOT/N, and a fork that is killed there

Steps are those of `steps`. It prints one JSON object per step: {"root": …, "step": name or null}, and ends after the
step that is null, where the operation came to its end. Forked, because starting Python for each of a thousand kills
would take minutes.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.model import DiskChanges, DiskSource, DiskUpdate, ResizeOptions
from nbdresize.units import REMAINING, SizeRequest
from tests.control.steps import step_of

KIB = 1024
BUDGET = 1024 * KIB
SIZE = 64 * KIB
OPERATION = "the-operation"
PATTERN = b"\xa5" * 4096

Change = Callable[[Control], object]


def exact(size: int) -> SizeRequest:
    return SizeRequest(exact=size)


def create(control: Control) -> None:
    control.create_vm("new", BUDGET, [exact(SIZE), REMAINING], operation=OPERATION)


def create_first(control: Control) -> None:
    create(control)


def create_preallocated(control: Control) -> None:
    control.create_vm("new", BUDGET, [exact(SIZE)], preallocate=True, operation=OPERATION)


def create_from_image(control: Control) -> None:
    control.create_vm("new", disks=[None, exact(SIZE)], package="small", image="base", operation=OPERATION)


def add(control: Control) -> None:
    control.add_disk("vm", exact(SIZE), operation=OPERATION)


def grow(control: Control) -> None:
    control.resize_disk("vm", "disk0", SizeRequest(relative=SIZE), operation=OPERATION)


def grow_preallocated(control: Control) -> None:
    control.resize_disk("thick", "disk0", SizeRequest(relative=SIZE), operation=OPERATION)


def shrink(control: Control) -> None:
    control.resize_disk("vm", "disk0", exact(SIZE // 2), ResizeOptions(shrink=True), operation=OPERATION)


def delete_disk(control: Control) -> None:
    control.delete_disk("vm", "disk1", operation=OPERATION)


def move(control: Control) -> None:
    """Space from one disk to another, where there is no more."""
    smaller = DiskUpdate(1, exact(SIZE // 2), shrink=True)
    control.change_disks("full", DiskChanges(update=(DiskUpdate(0, REMAINING), smaller)), operation=OPERATION)


def change_disks(control: Control) -> None:
    """All at once: one is added, one grows, one shrinks, one goes; none of it would fit without the rest."""
    update = (DiskUpdate(0, exact(SIZE + SIZE // 2)), DiskUpdate(1, exact(SIZE // 2), shrink=True))
    changes = DiskChanges(add=(exact(SIZE),), update=update, remove=(2,))
    control.change_disks("full", changes, operation=OPERATION)


def change_package(control: Control) -> None:
    control.update_vm("packed", package="large", protected=True, operation=OPERATION)


def delete_vm(control: Control) -> None:
    control.delete_vm("full", operation=OPERATION)


def add_image(control: Control) -> None:
    control.add_image("new", source_of_images(control.state), operation=OPERATION)


def add_image_of_disk(control: Control) -> None:
    control.add_image("new", DiskSource("full", "disk0"), operation=OPERATION)


def delete_image(control: Control) -> None:
    control.delete_image("base", operation=OPERATION)


_ALL = (
    *(create_first, create, create_preallocated, create_from_image, change_package, delete_vm),
    *(add, grow, grow_preallocated, shrink, delete_disk, move, change_disks),
    *(add_image, add_image_of_disk, delete_image),
)
CHANGES: dict[str, Change] = {change.__name__: change for change in _ALL}


def source_of_images(state: StateDirectory) -> Path:
    return state.root / "image.raw"


def prepare(state: StateDirectory) -> None:
    """VMs with full disks, packages and an image, as every change finds them but the very first."""
    with Control.open(state) as control:
        source_of_images(state).write_bytes(PATTERN * (SIZE // len(PATTERN)))
        control.create_package("small", BUDGET)
        control.create_package("large", 2 * BUDGET)
        control.add_image("base", source_of_images(state))
        control.create_vm("vm", BUDGET, [exact(SIZE)] * 2)
        control.create_vm("full", 3 * SIZE, [exact(SIZE)] * 3)
        control.create_vm("thick", BUDGET, [exact(SIZE)], preallocate=True)
        control.create_vm("packed", package="small")
        for vm in control.vms():
            for disk in vm.disks:
                with (state.volumes / f"{disk.volume}.raw").open("r+b") as file:
                    file.write(PATTERN * (SIZE // len(PATTERN)))


def copy_of(template: Path, root: Path) -> StateDirectory:
    """A state directory as `template`: files that share blocks still do where that is possible."""
    subprocess.run(["cp", "-a", "--reflink=auto", template, root], check=True)
    return StateDirectory(root)


class Killer:
    """A profile function that counts steps, and ends the process before one of them."""

    def __init__(self, last: int, report: int) -> None:
        self._left = last
        self._report = report

    def __call__(self, frame: FrameType, event: str, called: Any) -> None:
        step = step_of(frame, event, called)
        if step is None:
            return
        if self._left == 0:
            sys.setprofile(None)
            os.write(self._report, step.encode())
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1


def run(change: str, template: Path, root: Path, step: int) -> str | None:
    """Fork a process that is killed before that step; the step's name, None where the operation came to its end."""
    state = copy_of(template, root)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        sys.setprofile(Killer(step, writing))
        try:
            with Control.open(state) as control:
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
