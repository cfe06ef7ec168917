"""A process that is killed on its way through an operation. Run by test_kill: `python -m tests.control.victim …`.

    ROOT CHANGE        leaves a state directory ROOT/N for each step N, as a kill before that step leaves it

Steps are those of `steps`. It prints one JSON object per step: {"root": …, "step": name or null}, and ends after the
step that is null, where the operation came to its end.

A kill changes no file: what it leaves is what the files have at that moment, and locks end. So the directory is copied
before each step, instead of killing hundreds of processes; just the step in the middle gets a process that is really
killed there.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.model import Disk, DiskChanges, DiskSource, DiskUpdate, ResizeOptions
from nbdresize.units import REMAINING, SizeRequest
from tests.control.steps import counting

KIB = 1024
BUDGET = 1024 * KIB
SIZE = 64 * KIB
OPERATION = "the-operation"
PATTERN = b"\xa5" * 4096
LATER = b"\x5a" * 4096

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


def create_snapshot(control: Control) -> None:
    control.create_snapshot("kept", "wednesday", operation=OPERATION)


def delete_snapshot(control: Control) -> None:
    control.delete_snapshot("kept", "monday", operation=OPERATION)


def roll_back(control: Control) -> None:
    control.rollback("kept", "monday", operation=OPERATION)


def delete_vm_with_snapshots(control: Control) -> None:
    control.delete_vm("kept", operation=OPERATION)


_ALL = (
    *(create_first, create, create_preallocated, create_from_image, change_package, delete_vm),
    *(add, grow, grow_preallocated, shrink, delete_disk, move, change_disks),
    *(add_image, add_image_of_disk, delete_image),
    *(create_snapshot, delete_snapshot, roll_back, delete_vm_with_snapshots),
)
CHANGES: dict[str, Change] = {change.__name__: change for change in _ALL}


def source_of_images(state: StateDirectory) -> Path:
    return state.root.with_name("image.raw")


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
        control.create_vm("kept", BUDGET, [exact(SIZE)] * 3)
        for vm in control.vms():
            for disk in vm.disks:
                _fill(state, disk, PATTERN)
        control.create_snapshot("kept", "monday")
        control.delete_disk("kept", "disk2")
        control.resize_disk("kept", "disk1", exact(2 * SIZE))
        _fill(state, control.disk("kept", "disk0"), LATER)
        control.create_snapshot("kept", "tuesday")


def _fill(state: StateDirectory, disk: Disk, pattern: bytes) -> None:
    with (state.volumes / f"{disk.volume}.raw").open("r+b") as file:
        file.write(pattern * (SIZE // len(pattern)))


def copy_of(template: Path, root: Path) -> StateDirectory:
    """A state directory as `template`: files that share blocks still do where that is possible."""
    subprocess.run(["cp", "-a", "--reflink=auto", template, root], check=True)
    return StateDirectory(root)


class Copier:
    """Counts steps, and copies the state directory before each."""

    def __init__(self, state: StateDirectory) -> None:
        self.steps: list[tuple[Path, str | None]] = []
        self._state = state

    def take(self, step: str | None) -> None:
        root = self._state.root.with_name(str(len(self.steps)))
        copy_of(self._state.root, root)
        self.steps.append((root, step))


class Killer:
    """Counts steps, and ends the process before one of them."""

    def __init__(self, last: int) -> None:
        self._left = last

    def take(self, step: str) -> None:
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1


def run(change: str, state: StateDirectory, take: Callable[[str], None]) -> None:
    """Do it, with `take` called before each step."""
    sys.setprofile(counting(take))
    try:
        with Control.open(state) as control:
            CHANGES[change](control)
    finally:
        sys.setprofile(None)


def kill(change: str, state: StateDirectory, step: int) -> None:
    """Have a process killed before that step."""
    child = os.fork()
    if child == 0:
        try:
            run(change, state, Killer(step).take)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        raise RuntimeError(f"{change} could not be killed before step {step}")


def main() -> None:
    directory, change = Path(sys.argv[1]), sys.argv[2]
    template = StateDirectory(directory / "template")
    template.root.mkdir()
    if change != create_first.__name__:
        prepare(template)
    state = copy_of(template.root, directory / "running")
    copier = Copier(state)
    run(change, state, copier.take)
    copier.take(None)
    middle = len(copier.steps) // 2
    killed, _ = copier.steps[middle]
    shutil.rmtree(killed)
    kill(change, copy_of(template.root, killed), middle)
    for root, step in copier.steps:
        print(json.dumps({"root": str(root), "step": step}))


if __name__ == "__main__":
    main()
