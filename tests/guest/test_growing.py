"""Disks of booted guests grow while they are used: the whole way from the command to a file system in the guest."""

from pathlib import Path

import pytest

from tests.guest.machine import QemuGuest
from tests.guest.site import FIRST, FRONTS, MIB, Site, trouble, writing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

GROWS = 20
STEP = 8 * MIB

# What a guest does with a grown disk; a kernel takes note a moment after QEMU has told it.
SEE_AND_USE = """
for disk in vda sda; do
    for try in $(seq 1000); do [ $(cat /sys/class/block/$disk/size) = $(({size} / 512)) ] && break; sleep 0.05; done
    [ $(cat /sys/class/block/$disk/size) = $(({size} / 512)) ] || exit 9
    resize2fs /dev/$disk || exit 8
done
"""


@pytest.mark.parametrize("front", FRONTS)
def test_twenty_grows_under_writers_that_read_back(front: str, tmp_path: Path) -> None:
    site = Site.make(2, front, tmp_path)
    disks = [site.disk(0), site.disk(1, device="virtio-scsi")]
    with site.server(), QemuGuest(tmp_path, disks=disks) as guest:
        with writing(guest, "vda"), writing(guest, "sda"):
            site.command("guest", "attach", "web1", "--qmp", guest.qmp_path).ok()
            for grow in range(1, GROWS + 1):
                size = FIRST + grow * STEP
                told = site.resize({"disk0": size, "disk1": size})
                assert told["disk0"]["done"], told
                assert told["disk1"]["done"], told
                guest.run(SEE_AND_USE.format(size=size))
        assert trouble(guest) == []
