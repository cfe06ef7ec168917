"""What QEMU is attached to in these tests: VMs of a state directory, behind one `nbdresize serve`."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.guests.model import DiskNews
from nbdresize.guests.qemu.growing import Grown, grow_disk
from nbdresize.guests.servers import serving_uris
from nbdresize.units import SizeRequest
from tests.guests.machine import Machine
from tests.peers import Serve

MIB = 1 << 20
SIZE = 16 * MIB
BUDGET = 1024 * MIB


@dataclass
class Site:
    """A state directory and its server; every test makes VMs of its own."""

    directory: Path
    server: Serve
    state: StateDirectory
    front: str
    sizes: dict[str, int] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def unix(self) -> str:
        """The server's address in a -blockdev argument."""
        return f"server.type=unix,server.path={self.server.socket}"

    @property
    def port(self) -> str:
        return self.server.uris[1].partition("localhost:")[2].partition("/")[0]

    @property
    def tcp(self) -> str:
        return f"server.type=inet,server.host=localhost,server.port={self.port}"

    def make_vm(self, disks: int = 1) -> str:
        """A new VM with disks of SIZE bytes; its name."""
        name = f"web{next(self.numbers)}"
        with Control.open(self.state) as control:
            control.create_vm(name, BUDGET, [SizeRequest(exact=SIZE)] * disks)
        return name

    def news(self, vm: str, disk: str = "disk0") -> DiskNews:
        """What the guest is to learn of a disk."""
        export = f"{vm}/{disk}"
        return DiskNews(vm, disk, export, self.sizes.get(export, SIZE), 1, serving_uris(self.state))

    def resize(self, vm: str, disk: str = "disk0", by: int = SIZE) -> DiskNews:
        """Grow a disk as its operator does; what its guest is to learn."""
        size = self.sizes[f"{vm}/{disk}"] = self.sizes.get(f"{vm}/{disk}", SIZE) + by
        with Control.open(self.state, create=False) as control:
            control.resize_disk(vm, disk, SizeRequest(exact=size))
        return self.news(vm, disk)

    def tell(self, machine: Machine, news: DiskNews) -> Grown:
        with machine.monitor() as monitor:
            grown = grow_disk(monitor, news)
        assert grown.size == news.size
        return grown

    def grow(self, machine: Machine, vm: str, disk: str = "disk0") -> Grown:
        """Grow a disk, and have the guest see it."""
        return self.tell(machine, self.resize(vm, disk))


@contextmanager
def serving(directory: Path, front: str, *arguments: str | Path) -> Iterator[Site]:
    """A site with no VMs yet, on a unix socket and over TCP."""
    state = StateDirectory(directory / "state")
    with Control.open(state):
        pass
    with Serve(*arguments, front=front, directory=directory, root=state.root, tcp=True) as server:
        yield Site(directory, server, state, front)


def nbd(address: str, export: str, name: str = "n0", more: str = "") -> list[str]:
    return ["-blockdev", f"nbd,node-name={name},{address},export={export}{',' + more if more else ''}"]


def raw(name: str = "f0", file: str = "n0", more: str = "") -> list[str]:
    return ["-blockdev", f"raw,node-name={name},file={file}{',' + more if more else ''}"]


def virtio_blk(drive: str, name: str = "d0", more: str = "") -> list[str]:
    return ["-device", f"virtio-blk-pci,drive={drive},id={name}{',' + more if more else ''}"]


def virtio_scsi(drive: str, name: str = "d0") -> list[str]:
    return ["-device", f"virtio-scsi-pci,id={name}c", "-device", f"scsi-hd,bus={name}c.0,drive={drive},id={name}"]
