"""A QEMU without a guest: what is tried with its block graph needs none, and it starts in a fraction of a second."""

import contextlib
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nbdresize.guests.qemu.monitor import Monitor
from tests.peers import Server
from tests.wait import until


class Machine(Server):
    """`qemu-system-x86_64` with nothing but what `arguments` give it; its guest does not run unless `running`.

    `directory` gets the monitor's socket and the log, and is where QEMU runs.
    """

    def __init__(self, *arguments: str | Path, directory: Path, name: str = "qemu", running: bool = False) -> None:
        self.qmp = directory / f"{name}.qmp"
        hardware = ["-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none", *([] if running else ["-S"])]
        monitor = ["-qmp", f"unix:{self.qmp},server=on,wait=off"]
        super().__init__(
            ["-C", directory, "qemu-system-x86_64", *hardware, *monitor, *arguments], directory / f"{name}.log"
        )

    def wait_ready(self) -> None:
        until(lambda: self._listens() or self.process.poll() is not None, what="QEMU's monitor")
        if self.process.poll() is not None:
            raise AssertionError(f"QEMU did not start, exit code {self.process.returncode}: {self.said()}")
        with self.monitor(30):  # it greets once its devices are made
            pass

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.connect(str(self.qmp))
            return True
        return False

    def monitor(self, timeout: float = 10) -> Monitor:
        """A session, to be closed."""
        return Monitor.connect(self.qmp, timeout)

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """One command in a session of its own."""
        with self.monitor() as monitor:
            return monitor.execute(command, arguments)

    def nodes(self) -> dict[str, dict[str, Any]]:
        """What `query-named-block-nodes` tells, by the nodes' names."""
        told: Sequence[dict[str, Any]] = self.execute("query-named-block-nodes", {"flat": True})
        return {node["node-name"]: node for node in told}

    def devices(self) -> dict[str, dict[str, Any]]:
        """What `query-block` tells of the devices, by the last part of their names that says something."""
        told: Sequence[dict[str, Any]] = self.execute("query-block")
        return {device["qdev"].removesuffix("/virtio-backend").rpartition("/")[2]: device for device in told}

    def size(self, device: str) -> int:
        """The size in bytes that a device shows."""
        size: int = self.devices()[device]["inserted"]["image"]["virtual-size"]
        return size
