"""Fifty processes that change one VM, and make and delete others, all at once. Run by test_race.

    python -m tests.control.crowd ROOT SECONDS SEED

Forked, since starting Python for each takes longer than all they do. Each goes on for so many seconds, and has a
Control of its own. Printed at the end, one JSON list per attempt: what, "done" or the name of the error, seconds.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.model import DiskChanges, DiskUpdate, ResizeOptions
from nbdresize.errors import NbdresizeError
from nbdresize.units import REMAINING, SizeRequest

KIB = 1024
MIB = 1 << 20
SHARED = "shared"
BUDGET = 8 * MIB
CAPACITY = 32 * MIB
ON_THE_VM = 40
ON_THE_POOL = 10

_SHRINK = ResizeOptions(shrink=True)
Act = Callable[[Control, random.Random], object]


def some(chance: random.Random) -> SizeRequest:
    return SizeRequest(exact=chance.randint(1, 512) * 4 * KIB)


def disk(chance: random.Random) -> str:
    return f"disk{chance.randint(0, 7)}"


def add(control: Control, chance: random.Random) -> None:
    control.add_disk(SHARED, some(chance))


def grow(control: Control, chance: random.Random) -> None:
    request = REMAINING if chance.random() < 0.1 else SizeRequest(relative=chance.randint(1, 256) * 4 * KIB)
    control.resize_disk(SHARED, disk(chance), request)


def shrink(control: Control, chance: random.Random) -> None:
    control.resize_disk(SHARED, disk(chance), some(chance), _SHRINK)


def move(control: Control, chance: random.Random) -> None:
    first, second = chance.sample(range(8), 2)
    update = (DiskUpdate(first, REMAINING), DiskUpdate(second, SizeRequest(exact=4 * KIB), shrink=True))
    control.change_disks(SHARED, DiskChanges(update=update))


def replace(control: Control, chance: random.Random) -> None:
    control.change_disks(SHARED, DiskChanges(add=(some(chance),), remove=(chance.randint(1, 7),)))


def delete(control: Control, chance: random.Random) -> None:
    control.delete_disk(SHARED, f"disk{chance.randint(1, 7)}")


def write(control: Control, chance: random.Random) -> None:
    """What makes snapshots need space; as a client does, with a lease."""
    found, lease = control.take_lease(SHARED, disk(chance))
    with lease, (control.state.volumes / f"{found.volume}.raw").open("r+b") as volume:
        volume.write(chance.randbytes(min(found.size, 64 * KIB)))


def snapshot(control: Control, chance: random.Random) -> None:
    control.create_snapshot(SHARED, f"s{chance.randint(0, 3)}")


def delete_snapshot(control: Control, chance: random.Random) -> None:
    control.delete_snapshot(SHARED, f"s{chance.randint(0, 3)}")


def roll_back(control: Control, chance: random.Random) -> None:
    control.rollback(SHARED, f"s{chance.randint(0, 3)}")


def create_vm(control: Control, chance: random.Random) -> None:
    budget = chance.randint(1, 12) * MIB
    control.create_vm(f"vm{chance.randint(0, 5)}", budget, [SizeRequest(exact=64 * KIB), REMAINING])


def update_vm(control: Control, chance: random.Random) -> None:
    control.update_vm(f"vm{chance.randint(0, 5)}", chance.randint(1, 12) * MIB)


def delete_vm(control: Control, chance: random.Random) -> None:
    control.delete_vm(f"vm{chance.randint(0, 5)}")


THE_VM: tuple[Act, ...] = (add, add, grow, shrink, move, replace, delete, write, snapshot, delete_snapshot, roll_back)
THE_POOL: tuple[Act, ...] = (create_vm, create_vm, update_vm, delete_vm)


def take_part(root: Path, until: float, seed: int, acts: tuple[Act, ...], report: int) -> None:
    """One process: what it tried goes to the descriptor `report`, a line each, which a pipe keeps whole."""
    chance = random.Random(seed)
    with Control.open(StateDirectory(root)) as control:
        while time.monotonic() < until:
            act = chance.choice(acts)
            start = time.monotonic()
            try:
                act(control, chance)
                outcome = "done"
            except NbdresizeError as error:
                outcome = error.name
            line = json.dumps([act.__name__, outcome, round(time.monotonic() - start, 3)])
            os.write(report, line.encode() + b"\n")


def main() -> None:
    root, until, seed = Path(sys.argv[1]), time.monotonic() + float(sys.argv[2]), int(sys.argv[3])
    children = []
    for number in range(ON_THE_VM + ON_THE_POOL):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                acts = THE_VM if number < ON_THE_VM else THE_POOL
                take_part(root, until, seed + number, acts, sys.stdout.fileno())
                code = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
                raise
            finally:
                os._exit(code)
        children.append(child)
    ends = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(any(ends))


if __name__ == "__main__":
    main()
