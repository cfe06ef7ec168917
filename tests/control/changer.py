"""A process that changes VMs for a while. Run by test_check_race: `python -m tests.control.changer ROOT SEED SECONDS`.

What it asks for may be refused, since others change the same VMs; it fails only by what is no refusal.
"""

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.model import DiskSource, ResizeOptions
from nbdresize.errors import Inconsistent, NbdresizeError, StateUnusable, VolumeFailed
from nbdresize.units import SizeRequest

KIB = 1024
VMS = 4


def changes(control: Control, chance: random.Random) -> list[Callable[[], object]]:
    vm = f"vm{chance.randrange(VMS)}"
    size = SizeRequest(exact=4 * KIB * chance.randint(1, 64))
    name = f"s{chance.randrange(3)}"
    return [
        lambda: control.create_vm(vm, 4096 * KIB, [size, size]),
        lambda: control.add_disk(vm, size),
        lambda: control.resize_disk(vm, "disk0", size, ResizeOptions(shrink=True, wait=1)),
        lambda: control.resize_disk(vm, "disk1", size, ResizeOptions(shrink=True, wait=1)),
        lambda: control.delete_disk(vm, "disk1"),
        lambda: control.create_snapshot(vm, name),
        lambda: control.delete_snapshot(vm, name),
        lambda: control.rollback(vm, name),
        lambda: control.delete_vm(vm),
        lambda: control.add_image(name, DiskSource(vm, "disk0")),
        lambda: control.create_vm(vm, 4096 * KIB, [None], image=name),
        lambda: control.delete_image(name),
        lambda: control.take_lease(vm, "disk0", wait=0.1)[1].release(),
        lambda: control.set_switch("snapshots", "on", vm=vm),
    ]


def main() -> None:
    root, seed, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    done = 0
    while time.monotonic() < end:
        with Control.open(StateDirectory(root)) as control:
            for _ in range(20):
                try:
                    chance.choice(changes(control, chance))()
                    done += 1
                except (StateUnusable, VolumeFailed, Inconsistent):
                    raise
                except NbdresizeError:
                    continue
    print(done)


if __name__ == "__main__":
    main()
