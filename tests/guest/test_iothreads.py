"""Disks whose requests QEMU carries out in threads of their own: where the graph is changed under them."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest.disks import NbdDisk
from tests.guest.machine import QemuGuest
from tests.guest.site import FIRST, MIB, Site, sees, trouble, writing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

GROWS = 10
STEP = 8 * MIB


@dataclass(frozen=True)
class ThreadedDisk(NbdDisk):
    """A disk with an iothread: of its own, or its controller's."""

    def arguments(self, number: int) -> list[str]:
        thread = f"io{number}"
        threaded = ("virtio-blk-pci", "virtio-scsi-pci")
        given = [
            f"{word},iothread={thread}" if word.startswith(threaded) else word for word in super().arguments(number)
        ]
        return ["-object", f"iothread,id={thread}", *given]


def test_disks_with_threads_of_their_own_grow_under_writers(tmp_path: Path) -> None:
    site = Site.make(3, "native", tmp_path)
    disks = [
        ThreadedDisk(site.socket, "web1/disk0", "raw"),
        ThreadedDisk(site.socket, "web1/disk1", "direct"),
        ThreadedDisk(site.socket, "web1/disk2", "direct", "virtio-scsi"),
    ]
    with site.server(), QemuGuest(tmp_path, disks=disks) as guest:
        site.command("guest", "attach", "web1", "--qmp", guest.qmp_path).ok()
        with writing(guest, "vda"), writing(guest, "vdb"), writing(guest, "sda"):
            for number in range(1, GROWS + 1):
                size = FIRST + number * STEP
                told = site.resize({f"disk{disk}": size for disk in range(3)})
                assert {disk: stage["done"] for disk, stage in told.items()} == {f"disk{n}": True for n in range(3)}, (
                    told
                )
                for device in ("vda", "vdb", "sda"):
                    sees(guest, device, size)
        assert trouble(guest) == []
