"""Disks that grow in a running QEMU: every way to attach them, over both fronts."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

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
BUDGET = 4096 * MIB


@dataclass
class Site:
    """A state directory with VMs of three disks, and its server."""

    directory: Path
    server: Serve
    state: StateDirectory
    sizes: dict[tuple[str, str], int] = field(default_factory=dict)

    @property
    def unix(self) -> str:
        """The server's address in a -blockdev argument."""
        return f"server.type=unix,server.path={self.server.socket}"

    @property
    def tcp(self) -> str:
        port = self.server.uris[1].rpartition(":")[2].split("/")[0]
        return f"server.type=inet,server.host=localhost,server.port={port}"

    def resize(self, vm: str = "web1", disk: str = "disk0", by: int = SIZE) -> DiskNews:
        """Grow a disk as its operator does; what its guest is to learn."""
        with Control.open(self.state, create=False) as control:
            size = self.sizes.get((vm, disk), SIZE) + by
            self.sizes[vm, disk] = size
            control.resize_disk(vm, disk, SizeRequest(exact=size))
        return DiskNews(vm, disk, f"{vm}/{disk}", size, 0, serving_uris(self.state))

    def grow(self, machine: Machine, vm: str = "web1", disk: str = "disk0") -> Grown:
        """Grow a disk, and have the guest see it."""
        news = self.resize(vm, disk)
        with machine.monitor() as monitor:
            grown = grow_disk(monitor, news)
        assert grown.size == news.size
        return grown


@pytest.fixture(params=("native", "nbdkit"))
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """VMs web1 and web2, served by each front on a unix socket and over TCP."""
    state = StateDirectory(tmp_path / "state")
    with Control.open(state) as control:
        for name in ("web1", "web2"):
            control.create_vm(name, BUDGET, [SizeRequest(exact=SIZE)] * 3)
    with Serve(front=request.param, directory=tmp_path, root=state.root, tcp=True) as server:
        yield Site(tmp_path, server, state)


def nbd(address: str, export: str = "web1/disk0", name: str = "n0", more: str = "") -> list[str]:
    return ["-blockdev", f"nbd,node-name={name},{address},export={export}{',' + more if more else ''}"]


def raw(name: str = "f0", file: str = "n0", more: str = "") -> list[str]:
    return ["-blockdev", f"raw,node-name={name},file={file}{',' + more if more else ''}"]


def virtio_blk(drive: str, name: str = "d0") -> list[str]:
    return ["-device", f"virtio-blk-pci,drive={drive},id={name}"]


def virtio_scsi(drive: str, name: str = "d0") -> list[str]:
    return ["-device", "virtio-scsi-pci,id=scsi0", "-device", f"scsi-hd,bus=scsi0.0,drive={drive},id={name}"]


def test_a_raw_node_gets_a_fresh_connection_below(site: Site) -> None:
    with Machine(*nbd(site.unix), *raw(), *virtio_blk("f0"), directory=site.directory) as machine:
        grown = site.grow(machine)
        assert machine.size("d0") == 2 * SIZE
        assert grown.device == "virtio-blk d0"
        assert grown.way == "a fresh connection under f0"
        assert set(machine.nodes()) == {"f0", grown.node}


@pytest.mark.parametrize("device", [virtio_blk, virtio_scsi])
def test_a_device_directly_on_the_connection_gets_a_fresh_one(site: Site, device: object) -> None:
    assert callable(device)
    with Machine(*nbd(site.unix), *device("n0"), directory=site.directory) as machine:
        grown = site.grow(machine)
        assert machine.size("d0") == 2 * SIZE
        assert grown.way == "a fresh connection under the device"
        assert set(machine.nodes()) == {grown.node}
