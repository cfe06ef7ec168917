"""The servers of the wire tests. Each is started once per test process, and looked at after every test that used it."""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.units import SizeRequest
from tests.wire.layout import MIB
from tests.wire.peer import NativeServer

SIZE = 64 * MIB
MAX_SIZE = 256 * MIB

Paths = pytest.TempPathFactory


def make_image(directory: Path) -> Path:
    """A file of SIZE bytes with some data at its beginning, the rest a hole."""
    image = directory / "disk.img"
    image.write_bytes(bytes(range(1, 256)) * 1024)
    os.truncate(image, SIZE)
    return image


def file_server(paths: Paths, *arguments: str | Path) -> Iterator[NativeServer]:
    directory = paths.mktemp("native")
    with NativeServer("--file", make_image(directory), *arguments, directory=directory) as server:
        yield server


@pytest.fixture(scope="session")
def file_worker(tmp_path_factory: Paths) -> Iterator[NativeServer]:
    yield from file_server(tmp_path_factory, "--max-size", str(MAX_SIZE))


@pytest.fixture(scope="session")
def read_only_worker(tmp_path_factory: Paths) -> Iterator[NativeServer]:
    yield from file_server(tmp_path_factory, "--max-size", str(MAX_SIZE), "--read-only")


@pytest.fixture(scope="session")
def off_worker(tmp_path_factory: Paths) -> Iterator[NativeServer]:
    yield from file_server(tmp_path_factory, "--max-size", str(MAX_SIZE), "--client-resize", "off")


@pytest.fixture(scope="session")
def ledger(tmp_path_factory: Paths) -> Iterator[Control]:
    """The state directory of `grow_worker` and `all_worker`, for a test to have its own VM in."""
    root = tmp_path_factory.mktemp("ledger")
    with Control.open(StateDirectory(root)) as control:
        control.update_pool(overcommit="unlimited")  # a VM for every test, whatever this machine's disk holds
        yield control


def ledger_server(paths: Paths, ledger: Control, *arguments: str) -> Iterator[NativeServer]:
    state = ledger.state
    with NativeServer("--root", state.root, *arguments, directory=paths.mktemp("native"), run=state.run) as server:
        yield server


@pytest.fixture(scope="session")
def grow_worker(tmp_path_factory: Paths, ledger: Control) -> Iterator[NativeServer]:
    yield from ledger_server(tmp_path_factory, ledger)


@pytest.fixture(scope="session")
def all_worker(tmp_path_factory: Paths, ledger: Control) -> Iterator[NativeServer]:
    yield from ledger_server(tmp_path_factory, ledger, "--client-resize", "all")


def checked(server: NativeServer) -> Iterator[NativeServer]:
    """The server for one test; whatever that did to it, the next client is served."""
    yield server
    server.check()


@pytest.fixture
def server(file_worker: NativeServer) -> Iterator[NativeServer]:
    """Serves a file of SIZE bytes, which clients may grow to MAX_SIZE; tests that share it leave its size alone."""
    yield from checked(file_worker)


@pytest.fixture
def read_only_server(read_only_worker: NativeServer) -> Iterator[NativeServer]:
    yield from checked(read_only_worker)


@pytest.fixture
def off_server(off_worker: NativeServer) -> Iterator[NativeServer]:
    """Serves a file whose size clients may not change."""
    yield from checked(off_worker)


@pytest.fixture
def grow_server(grow_worker: NativeServer) -> Iterator[NativeServer]:
    """Serves the ledger's disks, which clients may grow."""
    yield from checked(grow_worker)


@pytest.fixture
def all_server(all_worker: NativeServer) -> Iterator[NativeServer]:
    """Serves the ledger's disks, which clients may grow and shrink."""
    yield from checked(all_worker)


@dataclass(frozen=True)
class LedgerDisk:
    """A disk of the ledger that only one test uses, of SIZE bytes in a budget of MAX_SIZE."""

    control: Control
    vm: str

    @property
    def export(self) -> bytes:
        return f"{self.vm}/disk0".encode()

    @property
    def size(self) -> int:
        return self.control.disk(self.vm, "disk0").size

    @property
    def volume(self) -> Path:
        return self.control.state.volumes / f"{self.control.disk(self.vm, 'disk0').volume}.raw"

    def resize(self, size: int) -> None:
        """Grow it as another process does."""
        self.control.resize_disk(self.vm, "disk0", SizeRequest(exact=size))


_NUMBERS = itertools.count()


@pytest.fixture
def disk(ledger: Control) -> LedgerDisk:
    name = f"vm{next(_NUMBERS)}"
    ledger.create_vm(name, MAX_SIZE, [SizeRequest(exact=SIZE)])
    return LedgerDisk(ledger, name)
