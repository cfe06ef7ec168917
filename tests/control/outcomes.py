"""What users see before and after each change of `victim`; wholly the one or wholly the other, whatever happens."""

from typing import Any

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from tests.control.victim import BUDGET, LATER, PATTERN, SIZE

Seen = dict[str, Any]


def disks(*sizes_and_generations: tuple[int, int, int]) -> tuple[tuple[int, int, int], ...]:
    """Slot, size and generation of each disk."""
    return sizes_and_generations


BEFORE: Seen = {
    "vm": (BUDGET, None, False, disks((0, SIZE, 1), (1, SIZE, 1))),
    "full": (3 * SIZE, None, False, disks((0, SIZE, 1), (1, SIZE, 1), (2, SIZE, 1))),
    "thick": (BUDGET, None, False, disks((0, SIZE, 1))),
    "packed": (BUDGET, "small", False, ()),
    "kept": (BUDGET, None, False, disks((0, SIZE, 1), (1, 2 * SIZE, 2))),
    "snapshot kept/monday": ((0, SIZE), (1, SIZE), (2, SIZE)),
    "snapshot kept/tuesday": ((0, SIZE), (1, 2 * SIZE)),
    "image base": (SIZE, SIZE),
}

_NEW = (BUDGET, None, False, disks((0, SIZE, 1), (1, BUDGET - SIZE, 1)))
_MOVED = disks((0, SIZE + SIZE // 2, 2), (1, SIZE // 2, 2))

AFTER: dict[str, Seen] = {
    "create_first": {"new": _NEW},
    "create": {**BEFORE, "new": _NEW},
    "create_preallocated": {**BEFORE, "new": (BUDGET, None, False, disks((0, SIZE, 1)))},
    "create_from_image": {**BEFORE, "new": (BUDGET + SIZE, "small", False, disks((0, SIZE, 1), (1, SIZE, 1)))},
    "change_package": {**BEFORE, "packed": (2 * BUDGET, "large", True, ())},
    "delete_vm": {name: seen for name, seen in BEFORE.items() if name != "full"},
    "add": {**BEFORE, "vm": (BUDGET, None, False, disks((0, SIZE, 1), (1, SIZE, 1), (2, SIZE, 1)))},
    "grow": {**BEFORE, "vm": (BUDGET, None, False, disks((0, 2 * SIZE, 2), (1, SIZE, 1)))},
    "grow_preallocated": {**BEFORE, "thick": (BUDGET, None, False, disks((0, 2 * SIZE, 2)))},
    "shrink": {**BEFORE, "vm": (BUDGET, None, False, disks((0, SIZE // 2, 2), (1, SIZE, 1)))},
    "delete_disk": {**BEFORE, "vm": (BUDGET, None, False, disks((0, SIZE, 1)))},
    "move": {**BEFORE, "full": (3 * SIZE, None, False, disks(*_MOVED, (2, SIZE, 1)))},
    "change_disks": {**BEFORE, "full": (3 * SIZE, None, False, disks(*_MOVED, (3, SIZE, 1)))},
    "add_image": {**BEFORE, "image new": (SIZE, SIZE)},
    "add_image_of_disk": {**BEFORE, "image new": (SIZE, 0)},
    "create_snapshot": {**BEFORE, "snapshot kept/wednesday": ((0, SIZE), (1, 2 * SIZE))},
    "delete_snapshot": {name: seen for name, seen in BEFORE.items() if "monday" not in name},
    "roll_back": {**BEFORE, "kept": (BUDGET, None, False, disks((0, SIZE, 2), (1, SIZE, 3), (2, SIZE, 1)))},
    "delete_vm_with_snapshots": {name: seen for name, seen in BEFORE.items() if "kept" not in name},
    "delete_image": {name: seen for name, seen in BEFORE.items() if name != "image base"},
}


def before(change: str) -> Seen:
    return {} if change == "create_first" else BEFORE


def seen(control: Control) -> Seen:
    """VMs with their budgets, packages, protection and disks; snapshots and images with their sizes."""
    found: Seen = {
        vm.name: (
            vm.budget,
            vm.package,
            vm.protected,
            tuple((disk.slot, disk.size, disk.generation) for disk in vm.disks),
        )
        for vm in control.vms()
    }
    for vm in control.vms():
        for snapshot in control.snapshots(vm.name):
            found[f"snapshot {vm.name}/{snapshot.name}"] = tuple((disk.slot, disk.size) for disk in snapshot.disks)
    return found | {f"image {image.name}": (image.size, image.original_size) for image in control.images()}


def plain(found: Seen) -> Seen:
    """Without generations: what was done and taken back has raised them."""
    return {
        name: (*about[:3], tuple(disk[:2] for disk in about[3])) if len(about) == 4 else about
        for name, about in found.items()
    }


def check_content(state: StateDirectory, control: Control, what: str) -> None:
    """What was written is there, up to the new end; what is new reads as zeroes."""
    for vm in control.vms():
        _, _, _, known = BEFORE.get(vm.name, (0, None, False, ()))
        written = {slot for slot, *_ in known}
        for disk in vm.disks:
            here = vm.name == "kept" or disk.image is not None or disk.slot in written
            # disk0 of `kept` was written again after the snapshot that it may have been rolled back to.
            pattern = LATER if (vm.name, disk.slot, disk.generation) == ("kept", 0, 1) else PATTERN
            _check(state, disk.volume, pattern if here else b"", f"{what}: {disk.export_name}")
        for snapshot in control.snapshots(vm.name):
            for old in snapshot.disks:
                pattern = LATER if snapshot.name != "monday" and old.slot == 0 else PATTERN
                _check(state, old.volume, pattern, f"{what}: {old.name} of {snapshot.name}")
    for image in control.images():
        _check(state, image.volume, PATTERN, f"{what}: image {image.name}")


def _check(state: StateDirectory, volume: str, pattern: bytes, what: str) -> None:
    content = (state.volumes / f"{volume}.raw").read_bytes()
    kept = min(SIZE, len(content)) if pattern else 0
    assert content[:kept] == pattern * (kept // 4096), what
    assert not any(content[kept:]), what
