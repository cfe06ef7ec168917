"""What the fronts serve in these tests: a disk of a ledger, or a single file, behind one `nbdresize serve`."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbd
import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.units import SizeRequest
from tests.peers import Serve

MIB = 1 << 20
SIZE = 64 * MIB
BUDGET = 512 * MIB

FRONTS = ("native", "nbdkit")


@dataclass(frozen=True)
class Kind:
    """Something to serve, of SIZE bytes, that clients may grow to BUDGET."""

    name: str
    arguments: tuple[str | Path, ...]
    export: str
    root: Path | None
    volume: Path

    def grow(self, size: int) -> None:
        """Grow it as its operator does, while it is served."""
        if self.root is None:
            os.truncate(self.volume, size)
        else:
            with Control.open(StateDirectory(self.root), create=False) as control:
                control.resize_disk("web1", "disk0", SizeRequest(exact=size))


@dataclass(frozen=True)
class Served:
    """A running server with one disk."""

    server: Serve
    kind: Kind

    @property
    def uri(self) -> str:
        return self.server.uri(self.kind.export)

    @property
    def size_uri(self) -> str:
        """That of its control export. A single file's name is empty, and so is what stands before the suffix."""
        return self.server.uri(self.kind.export + "@size")

    @property
    def volume(self) -> Path:
        return self.kind.volume

    def grow(self, size: int) -> None:
        self.kind.grow(size)

    def connect(self, *, structured: bool = True) -> nbd.NBD:
        """A connection to the disk, by libnbd."""
        return connect(self.uri, structured=structured)


def connect(uri: str, *, structured: bool = True) -> nbd.NBD:
    """A libnbd handle, connected."""
    handle = nbd.NBD()
    handle.set_request_structured_replies(structured)
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.set_uri_allow_local_file(True)
    handle.connect_uri(uri)
    return handle


@pytest.fixture(params=FRONTS)
def front(request: pytest.FixtureRequest) -> str:
    """Each front in turn."""
    name: str = request.param
    return name


def make_ledger(directory: Path, *disks: int) -> Path:
    """A state directory with the VM web1 and disks of these sizes; its root."""
    root = directory / "state"
    with Control.open(StateDirectory(root)) as control:
        control.create_vm("web1", BUDGET, [SizeRequest(exact=size) for size in disks])
    return root


@pytest.fixture
def ledger_root(tmp_path: Path) -> Path:
    """A state directory with one VM, web1, and one disk of SIZE bytes."""
    return make_ledger(tmp_path, SIZE)


def ledger_kind(root: Path) -> Kind:
    [volume] = (root / "volumes").iterdir()
    return Kind("ledger", (), "web1/disk0", root, volume)


def file_kind(directory: Path) -> Kind:
    image = directory / "disk.img"
    image.touch()
    os.truncate(image, SIZE)
    return Kind("file", ("--file", image, "--max-size", str(BUDGET)), "", None, image)


@pytest.fixture(params=("ledger", "file"))
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    """Each kind of thing that can be served, in turn."""
    return file_kind(tmp_path) if request.param == "file" else ledger_kind(make_ledger(tmp_path, SIZE))


@pytest.fixture
def served(front: str, kind: Kind, tmp_path: Path) -> Iterator[Served]:
    """Every kind behind every front."""
    with Serve(*kind.arguments, front=front, directory=tmp_path, root=kind.root) as server:
        yield Served(server, kind)
