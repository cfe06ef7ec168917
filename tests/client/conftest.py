"""Real servers for the client: ours on both fronts, and the ones that know nothing of resizing."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.units import SizeRequest
from tests.peers import Serve, Server
from tests.wait import until

GIB = 2**30
MIB = 2**20


class Listening(Server):
    """A stock server on a unix socket; ready when it accepts connections."""

    def __init__(self, directory: Path, *command: str | Path) -> None:
        self.socket = directory / "peer.sock"
        super().__init__([part if part != "SOCKET" else self.socket for part in command], directory / "peer.log")

    def wait_ready(self) -> None:
        until(lambda: self.process.poll() is not None or self._listens(), what="the server to listen")
        assert self.process.poll() is None, self.said()

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.connect(str(self.socket))
            return True
        return False

    def uri(self, export: str = "") -> str:
        return f"nbd+unix:///{export}?socket={self.socket}"


def stock_nbdkit(directory: Path, *more: str) -> Listening:
    """nbdkit with a disk of 64 MiB in memory, under every name."""
    return Listening(directory, "nbdkit", "--foreground", "--unix", "SOCKET", "memory", "64M", *more)


def qemu_nbd(directory: Path, *more: str) -> Listening:
    """qemu-nbd with a file of 64 MiB as the export `disk`."""
    image = directory / "image.raw"
    image.touch()
    os.truncate(image, 64 * MIB)
    options = ("--format=raw", "--persistent", "--shared=8", "--discard=unmap", "--export-name=disk", *more)
    return Listening(directory, "qemu-nbd", "--socket", "SOCKET", *options, image)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A state directory with a VM web1: budget 100 GiB, disk0 of 20 GiB."""
    root = tmp_path / "state"
    with Control.open(StateDirectory(root)) as control:
        control.update_pool(overcommit="unlimited")  # whatever this machine's disk holds
        control.create_vm("web1", 100 * GIB, [SizeRequest(exact=20 * GIB)])
    return root


@pytest.fixture
def native(root: Path, tmp_path: Path) -> Iterator[Serve]:
    """Our own server, with the VM."""
    with Serve(front="native", directory=tmp_path, root=root, tcp=True) as server:
        yield server


@pytest.fixture(params=["native", "nbdkit"])
def ours(request: pytest.FixtureRequest, root: Path, tmp_path: Path) -> Iterator[Serve]:
    """Either front, with the VM."""
    with Serve(front=request.param, directory=tmp_path, root=root, tcp=True) as server:
        yield server


def grow_to(root: Path, size: int) -> None:
    """Grow web1/disk0, as its operator does."""
    with Control.open(StateDirectory(root), create=False) as control:
        control.resize_disk("web1", "disk0", SizeRequest(exact=size))
