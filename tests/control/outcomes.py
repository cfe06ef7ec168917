"""What users see before and after each change of `victim`; wholly the one or wholly the other, whatever happens."""

from typing import Any

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from tests.control.victim import BUDGET, PATTERN, SIZE

Seen = dict[str, Any]


def disks(*sizes_and_generations: tuple[int, int, int]) -> tuple[tuple[int, int, int], ...]:
    """Slot, size and generation of each disk."""
    return sizes_and_generations


BEFORE: Seen = {
    "vm": (BUDGET, None, False, disks((0, SIZE, 1), (1, SIZE, 1))),
    "full": (3 * SIZE, None, False, disks((0, SIZE, 1), (1, SIZE, 1), (2, SIZE, 1))),
    "thick": (BUDGET, None, False, disks((0, SIZE, 1))),
    "packed": (BUDGET, "small", False, ()),
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
    "delete_image": {name: seen for name, seen in BEFORE.items() if name != "image base"},
}


def before(change: str) -> Seen:
    return {} if change == "create_first" else BEFORE


def seen(control: Control) -> Seen:
    """VMs with their budgets, packages, protection and disks; images with their sizes."""
    found: Seen = {
        vm.name: (
            vm.budget,
            vm.package,
            vm.protected,
            tuple((disk.slot, disk.size, disk.generation) for disk in vm.disks),
        )
        for vm in control.vms()
    }
    return found | {f"image {image.name}": (image.size, image.original_size) for image in control.images()}


def check_content(state: StateDirectory, control: Control, what: str) -> None:
    """What was written is there, up to the new end; what is new reads as zeroes."""
    for vm in control.vms():
        _, _, _, known = BEFORE.get(vm.name, (0, None, False, ()))
        for disk in vm.disks:
            content = (state.volumes / f"{disk.volume}.raw").read_bytes()
            written = disk.image is not None or any(slot == disk.slot for slot, *_ in known)
            kept = min(SIZE, disk.size) if written else 0
            assert content[:kept] == PATTERN * (kept // len(PATTERN)), (what, disk)
            assert not any(content[kept:]), (what, disk)
    for image in control.images():
        content = (state.volumes / f"{image.volume}.raw").read_bytes()
        assert content == PATTERN * (SIZE // len(PATTERN)), (what, image)
