"""The disks of guests, as QEMU is told of them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Way = Literal["raw", "direct", "drive"]
Device = Literal["virtio-blk", "virtio-scsi"]


@dataclass(frozen=True)
class NbdDisk:
    """A disk that QEMU gets from the export `export` of a server that listens on `socket`.

    `way` is how QEMU is told: "raw" with a raw node over the nbd node (the first way to grow it), "direct" with the
    device on the nbd node itself (the second way), "drive" with a legacy -drive. In the guest the n-th disk of its
    kind is /dev/vda, vdb … (virtio-blk) or /dev/sda, sdb … (virtio-scsi). Nodes and devices are named after `name`,
    or else d0, d1 … as they come: `d0-nbd`, `d0` over it, and the device `d0-device`.
    """

    socket: Path
    export: str = ""
    way: Way = "raw"
    device: Device = "virtio-blk"
    reconnect_delay: int = 60
    name: str = ""

    def arguments(self, number: int) -> list[str]:
        name = self.name or f"d{number}"
        return [*self._block(name), *self._device(name)]

    def _block(self, name: str) -> list[str]:
        node = {
            "driver": "nbd",
            "server": {"type": "unix", "path": str(self.socket)},
            "export": self.export,
            "reconnect-delay": self.reconnect_delay,
        }
        if self.way == "raw":
            raw = {"driver": "raw", "node-name": name, "file": f"{name}-nbd"}
            return ["-blockdev", json.dumps({**node, "node-name": f"{name}-nbd"}), "-blockdev", json.dumps(raw)]
        if self.way == "direct":
            return ["-blockdev", json.dumps({**node, "node-name": name})]
        flat = f"file.driver=nbd,file.server.type=unix,file.server.path={self.socket},file.export={self.export}"
        return ["-drive", f"if=none,id={name},format=raw,{flat},file.reconnect-delay={self.reconnect_delay}"]

    def _device(self, name: str) -> list[str]:
        if self.device == "virtio-blk":
            return ["-device", f"virtio-blk-pci,drive={name},id={name}-device"]
        # A controller of its own for each, so that each disk of a guest says all that it needs.
        controller = ["-device", f"virtio-scsi-pci,id={name}-scsi"]
        return [*controller, "-device", f"scsi-hd,bus={name}-scsi.0,drive={name},id={name}-device"]
