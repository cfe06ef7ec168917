"""What the proofs in booted guests share: a VM behind a server, and a writer in the guest that believes nobody."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.units import SizeRequest
from tests.cli.command import Command
from tests.guest.disks import Device, NbdDisk, Way
from tests.guest.machine import Job, QemuGuest
from tests.peers import Serve
from tests.wait import until

MIB = 1 << 20
FIRST = 64 * MIB
"""The size of each disk at first."""
BUDGET = 2048 * MIB
FRONTS = ("native", "nbdkit")
WRITER = Path(__file__).parent / "writer.py"
TROUBLE = re.compile(r"I/O error|EXT4-fs (error|warning)|critical \w+ error|timed? ?out|hung|aborted", re.IGNORECASE)
"""What a guest's kernel says where a disk failed it."""


@dataclass
class Site:
    """A VM web1 behind a server, whose disks the guest has."""

    directory: Path
    front: str
    command: Command

    @classmethod
    def make(cls, disks: int, front: str, directory: Path) -> Self:
        """The VM, with so many disks of FIRST bytes. Nobody serves them yet."""
        command = Command(directory / "state")
        with Control.open(StateDirectory(command.root)) as control:
            control.update_pool(overcommit="unlimited")
            control.create_vm("web1", BUDGET, [SizeRequest(exact=FIRST)] * disks)
        return cls(directory, front, command)

    @property
    def socket(self) -> Path:
        return self.directory / "nbd.sock"

    def server(self) -> Serve:
        """What serves the disks, not started."""
        return Serve(front=self.front, directory=self.directory, root=self.command.root)

    def disk(self, number: int, way: Way = "raw", device: Device = "virtio-blk") -> NbdDisk:
        """One of the disks, for a guest."""
        return NbdDisk(self.socket, f"web1/disk{number}", way, device)

    def size(self, disk: str) -> int:
        """The size in bytes that the ledger has."""
        with Control.open(StateDirectory(self.command.root), create=False) as control:
            return control.disk("web1", disk).size

    def resize(self, sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """Resize disks in one command; what it says of each one's device in the guest."""
        wanted = [word for disk, size in sizes.items() for word in ("--set", f"{disk}={size}")]
        answer = self.command("disk", "resize", "web1", *wanted, "--json")
        assert answer.code == 0, answer.err
        return {stage["disk"]: stage for stage in answer.json["stages"] if stage["name"] == "QEMU"}


@contextmanager
def writing(guest: QemuGuest, disk: str) -> Iterator[Job]:
    """A new ext4 on a disk such as vda, mounted, with a writer; after the block all of it has to be sound."""
    guest.put("/srv/writer.py", WRITER.read_bytes())
    guest.run(f"mkfs.ext4 -q /dev/{disk}; mkdir -p /mnt/{disk}; mount /dev/{disk} /mnt/{disk}")
    job = guest.start(f"exec python3 -IS /srv/writer.py /mnt/{disk}")
    job.until("writing")
    yield job
    guest.run(f"pkill -f writer.py./mnt/{disk}$")
    result = job.wait(180)
    assert result.code == 0, result.output
    summary = json.loads(result.output.splitlines()[-1])
    print(f"{disk}: {summary}")
    assert (summary["errors"], summary["wrong"]) == (0, 0), result.output
    guest.run(f"umount /dev/{disk}; e2fsck -fn /dev/{disk}")


def trouble(guest: QemuGuest) -> list[str]:
    """The lines of the guest's kernel log that tell of failed requests, timeouts, or a broken file system."""
    return [line for line in guest.kernel_log().splitlines() if TROUBLE.search(line)]


def shown(guest: QemuGuest, disk: str) -> int:
    """The size in bytes that the guest's kernel knows of a disk, such as vda."""
    return int(guest.run(f"cat /sys/class/block/{disk}/size").output) * 512


def sees(guest: QemuGuest, disk: str, size: int) -> None:
    """Wait until the guest's kernel knows the size, which is a moment after QEMU has told it."""
    until(lambda: shown(guest, disk) == size, what=f"{disk} to have {size} bytes")
