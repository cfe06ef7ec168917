"""File systems in booted guests, grown by the guest's own agent, and by a udev rule, after their disks have."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nbdresize.guests.agent import Agent, FileSystems, Place, grow_file_systems, place_of
from nbdresize.guests.agent.file_systems import SCRIPT
from nbdresize.guests.qemu.monitor import Monitor
from tests.guest.machine import QemuGuest
from tests.peers import CHECKOUT
from tests.wait import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MIB = 1 << 20
SMALL, LARGE = 384 * MIB, 640 * MIB
SLOW = 90.0
# Without udev, of which these tests need none but for its rule, lvm2 waits for it long.
ENVIRONMENT = "set -e; export DM_DISABLE_UDEV=1\n"
DEVICES = {
    "whole": "virtio-blk-pci,id=whole-device",
    "unnamed": "virtio-blk-pci,addr=10,serial=a-serial-of-its-own",
    "last": "virtio-blk-pci,id=last-device,bus=bridge,addr=3",
    "volume": "scsi-hd,id=volume-device,bus=scsi.0,scsi-id=1,lun=0",
    "several": "scsi-hd,id=several-device,bus=scsi.0,scsi-id=2,lun=3",
    "mapped": "scsi-hd,id=mapped-device,bus=scsi.0,scsi-id=3,lun=1",
}
MAKE = """
modprobe -a dm-mod xfs btrfs
mkdir -p /mnt/whole /mnt/last /mnt/volume /mnt/mapped
mkfs.ext4 -q /dev/vda; mount /dev/vda /mnt/whole
printf 'label: gpt\\n,32M\\n,,\\n' | sfdisk -q /dev/vdc
mkfs.xfs -q /dev/vdc2; mount /dev/vdc2 /mnt/last
printf 'label: dos\\n,32M\\n,,8e\\n' | sfdisk -q /dev/sda
pvcreate -q /dev/sda2; vgcreate -q one /dev/sda2
lvcreate -q -y -n swap -L 32M one; mkswap -q /dev/one/swap
lvcreate -q -y -n root -l 100%FREE one; mkfs.ext4 -q /dev/one/root; mount /dev/one/root /mnt/volume
pvcreate -q /dev/sdb; vgcreate -q two /dev/sdb
lvcreate -q -y -n a -L 64M two; lvcreate -q -y -n b -L 64M two
pvcreate -q /dev/sdc; vgcreate -q three /dev/sdc
lvcreate -q -y -n root -l 100%FREE three; mkfs.btrfs -q /dev/three/root; mount /dev/three/root /mnt/mapped
"""


@dataclass(frozen=True)
class FileDisk:
    """A disk of a guest in a file, so that a test decides when it grows."""

    file: Path
    name: str
    device: str

    def arguments(self, number: int) -> list[str]:
        with self.file.open("wb") as file:
            file.truncate(SMALL)
        node = {"driver": "raw", "node-name": self.name, "file": {"driver": "file", "filename": str(self.file)}}
        return ["-blockdev", json.dumps(node), "-device", f"{self.device},drive={self.name}"]


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QemuGuest]:
    directory = tmp_path_factory.mktemp("guest")
    disks = [FileDisk(directory / name, name, device) for name, device in DEVICES.items()]
    given = ["-device", "pci-bridge,id=bridge,chassis_nr=1", "-device", "virtio-scsi-pci,id=scsi"]
    with QemuGuest(directory, disks=disks, arguments=given, agent=True) as guest:
        guest.run(ENVIRONMENT + MAKE)
        start_agent(guest, "")
        yield guest


@pytest.fixture
def restarted_agent(guest: QemuGuest) -> Iterator[QemuGuest]:
    """A guest whose test may restart its agent with other options; it has the usual one again at the end."""
    yield guest
    start_agent(guest, "")


def start_agent(guest: QemuGuest, options: str) -> None:
    guest.run(
        f"""
        kill $(cat /run/qemu-ga.pid)
        while [ -e /run/qemu-ga.pid ]; do sleep 0.05; done
        export DM_DISABLE_UDEV=1
        qemu-ga --daemonize --logfile /run/qemu-ga.log --pidfile /run/qemu-ga.pid --statedir /run {options}
        """
    )


def place(guest: QemuGuest, device: str) -> Place:
    with Monitor.connect(guest.qmp_path) as monitor:
        return place_of(monitor, device)


def grow(guest: QemuGuest, name: str, size: int) -> FileSystems:
    """What the agent makes of a disk of the guest."""
    with Agent.connect(guest.agent_path, SLOW) as agent:
        return grow_file_systems(agent, place(guest, f"{name}-device"), size, SLOW)


def grow_device(guest: QemuGuest, name: str, size: int) -> None:
    guest.qmp("block_resize", node_name=name, size=size)


def room(guest: QemuGuest, point: str) -> int:
    """The size of a mounted file system, in MiB, as its users see it."""
    return int(guest.run(f"df --output=size -B1M {point} | tail -n 1").output)


def test_a_device_is_found_where_its_guest_sees_it(guest: QemuGuest) -> None:
    links = guest.run("for name in vda vdb vdc sda sdb; do readlink /sys/block/$name; done").output.splitlines()
    unnamed = next(each["qdev"] for each in guest.qmp("query-block") if each["inserted"]["node-name"] == "unnamed")
    places = [
        place(guest, name) for name in ("whole-device", unnamed, "last-device", "volume-device", "several-device")
    ]
    for link, found in zip(links, places, strict=True):
        assert f"/{found.pci}/virtio" in link
    assert [each.unit for each in places] == [None, None, None, (1, 0), (2, 3)]
    assert [each.serial for each in places] == [None, "a-serial-of-its-own", None, None, None]


@pytest.mark.parametrize(
    ("name", "device", "taken"),
    [
        ("whole", "/dev/vda ext4", 0),
        ("last", "/dev/vdc2 xfs", 33),
        ("volume", "/dev/one/root ext4", 65),
        ("mapped", "/dev/three/root btrfs", 4),
    ],
)
def test_what_lies_on_a_disk_grows_with_it(guest: QemuGuest, name: str, device: str, taken: int) -> None:
    guest.run(f"head -c 5000000 /dev/urandom >/mnt/{name}/data; sha256sum /mnt/{name}/data >/run/{name}.sum")
    before = room(guest, f"/mnt/{name}")
    assert not grow(guest, name, SMALL).changed
    grow_device(guest, name, LARGE)
    grown = grow(guest, name, LARGE)
    assert grown.error is None, grown.error
    assert grown.changed
    (told,) = grown.grown
    assert told.startswith(device)
    assert LARGE // MIB - taken - 80 < room(guest, f"/mnt/{name}") <= LARGE // MIB - taken
    assert room(guest, f"/mnt/{name}") - before > 200
    again = grow(guest, name, LARGE)
    assert (again.grown, again.changed, again.error) == (grown.grown, False, None)
    guest.run(f"sha256sum -c /run/{name}.sum")


def test_of_several_volumes_none_is_chosen(guest: QemuGuest) -> None:
    before = guest.run("lvs --noheadings -o lv_name,lv_size two").output
    grow_device(guest, "several", LARGE)
    grown = grow(guest, "several", LARGE)
    assert grown.error is not None
    assert "2 logical volumes besides swap" in grown.error.problem
    assert "lvextend" in grown.error.problem
    assert guest.run("lvs --noheadings -o lv_name,lv_size two").output == before


def test_a_disk_that_has_not_the_size_yet_is_left_as_it_is(guest: QemuGuest) -> None:
    grown = grow(guest, "last", 2 * LARGE)
    assert grown.error is not None
    assert f"not {2 * LARGE}" in grown.error.problem


def test_commands_are_told_where_the_agent_may_run_none(restarted_agent: QemuGuest) -> None:
    guest = restarted_agent
    start_agent(guest, "--blacklist=guest-exec")
    wanted = {
        "whole": "resize2fs /dev/vda (",
        "last": "growpart /dev/vdc 2 && xfs_growfs /mnt/last (",
        "volume": "nbdresize-grow /dev/sda (",
        "several": "nbdresize-grow /dev/sdb (",
    }
    for name, command in wanted.items():
        grown = grow(guest, name, LARGE)
        assert grown.error is not None
        assert "does not allow guest-exec" in grown.error.problem
        assert f"run in the guest, as root: {command}" in grown.error.way_out
    guest.run("growpart /dev/vdc 2 >/dev/null || test $? = 1; xfs_growfs /mnt/last >/dev/null; resize2fs /dev/vda")


def test_an_agent_that_comes_later_is_not_confused_by_what_was_asked_before(restarted_agent: QemuGuest) -> None:
    guest = restarted_agent
    guest.run("kill -STOP $(cat /run/qemu-ga.pid)")
    for _ in range(3):
        with pytest.raises(Exception, match="No guest agent answered"):
            Agent.connect(guest.agent_path, 0.5)
    guest.run("kill -CONT $(cat /run/qemu-ga.pid)")
    with Agent.connect(guest.agent_path, SLOW) as agent:
        assert agent.execute("guest-ping") == {}


def test_the_udev_rule_grows_what_lies_on_a_disk(guest: QemuGuest) -> None:
    guest.put("/usr/local/sbin/nbdresize-grow", SCRIPT.read_bytes(), mode=0o755)
    rule = (CHECKOUT / "scripts/guest/90-nbdresize-grow.rules").read_bytes()
    guest.put("/etc/udev/rules.d/90-nbdresize-grow.rules", rule)
    guest.run("/usr/lib/systemd/systemd-udevd --daemon >/run/udevd.log 2>&1")
    try:
        guest.run("udevadm trigger --action=add --subsystem-match=block; udevadm settle")
        for step, name in enumerate(("whole", "last"), 1):
            before = room(guest, f"/mnt/{name}")
            grow_device(guest, name, LARGE + step * 64 * MIB)
            until(lambda: room(guest, f"/mnt/{name}") > before + 32 * step, SLOW, "the rule")  # noqa: B023
    finally:
        guest.run("udevadm control --exit")


def test_file_systems_are_clean_after_all_this(guest: QemuGuest) -> None:
    guest.run(
        """
        set -e
        umount /mnt/whole /mnt/last /mnt/volume /mnt/mapped
        e2fsck -fn /dev/vda; xfs_repair -n /dev/vdc2; e2fsck -fn /dev/one/root; btrfs check /dev/three/root
        sfdisk --verify /dev/vdc
        ! dmesg | grep -i 'i/o error'
        """
    )
