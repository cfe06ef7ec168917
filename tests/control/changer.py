"""A process that changes VMs for a while. Run by test_check_race: `python -m tests.control.changer ROOT SEED SECONDS`.

What it asks for may be refused, since others change the same VMs; it fails only by what is no refusal.
"""

import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.model import DiskSource, ResizeOptions
from nbdresize.errors import Inconsistent, NbdresizeError, StateUnusable, VolumeFailed
from nbdresize.storage.file import FilePool
from nbdresize.units import SizeRequest

KIB = 1 << 10
MIB = 1 << 20
VMS = 4


def changes(control: Control, chance: random.Random) -> list[Callable[[], object]]:
    vm = f"vm{chance.randrange(VMS)}"
    size = SizeRequest(exact=64 * KIB * chance.randint(1, 64))
    name = f"s{chance.randrange(3)}"
    return [
        lambda: control.create_vm(vm, 64 * MIB, [size, size]),
        lambda: control.add_disk(vm, size),
        lambda: control.resize_disk(vm, "disk0", size, ResizeOptions(shrink=True, wait=1)),
        lambda: control.resize_disk(vm, "disk1", size, ResizeOptions(shrink=True, wait=1)),
        lambda: control.delete_disk(vm, "disk1"),
        lambda: control.create_snapshot(vm, name),
        lambda: control.delete_snapshot(vm, name),
        lambda: control.rollback(vm, name),
        lambda: control.delete_vm(vm),
        lambda: control.add_image(name, DiskSource(vm, "disk0")),
        lambda: control.create_vm(vm, 64 * MIB, [None], image=name),
        lambda: control.delete_image(name),
        lambda: write(control, vm),
        lambda: write(control, vm),
        lambda: control.set_switch("snapshots", "on", vm=vm),
    ]


def write(control: Control, vm: str) -> None:
    """As a client that fills the disk."""
    disk, lease = control.take_lease(vm, "disk0", wait=0.1)
    with lease, FilePool(control.state.volumes).volume(disk.volume).open() as handle:
        handle.write(os.urandom(disk.size), 0)
        handle.flush()


def main() -> None:
    root, seed, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    done = 0
    while time.monotonic() < end:
        with Control.open(StateDirectory(root)) as control:
            for _ in range(20):
                if time.monotonic() >= end:
                    break
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
