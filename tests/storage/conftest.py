"""Real file systems and devices for the tests of storage, made once per module."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nbdresize.storage.file import FilePool
from nbdresize.storage.reserving import PREALLOCATED
from tests.filesystems import FILE_SYSTEMS, loop_device, mounted


@dataclass(frozen=True)
class FileSystem:
    """A mounted, small file system of some kind, and what it can do as Linux has it today."""

    kind: str
    path: Path

    @property
    def pool(self) -> FilePool:
        return FilePool(self.path)

    @property
    def has_holes(self) -> bool:
        """Gives space back by punching, and shows its holes."""
        return self.kind != "ramfs"

    @property
    def zeroes_in_place(self) -> bool:
        """Zeroes a range without writing it, and with its space kept."""
        return self.kind != "ramfs"

    @property
    def remembers_preallocation(self) -> bool:
        """Has extended attributes for users; tmpfs only since Linux 6.6."""
        probe = self.path / "probe"
        probe.touch()
        try:
            os.setxattr(probe, PREALLOCATED, b"1")
        except OSError:
            return False
        finally:
            probe.unlink()
        return True


@pytest.fixture(scope="module", params=FILE_SYSTEMS)
def file_system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileSystem]:
    kind = str(request.param)
    with mounted(kind, tmp_path_factory.mktemp("mount")) as path:
        yield FileSystem(kind, path)


@dataclass(frozen=True)
class LoopDevice:
    """A loop device: `path`, on the sparse file `backing`, which lies on a tmpfs of its own."""

    path: Path
    backing: Path
    sector_size: int


DEVICE_SIZE = 8 << 20


@pytest.fixture(params=(512, 4096))
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LoopDevice]:
    """A device of DEVICE_SIZE bytes, all zeroes."""
    sector_size = int(request.param)
    backing = tmp_path / "device.image"
    with backing.open("wb") as file:
        file.truncate(DEVICE_SIZE)
    with loop_device(backing, sector_size=sector_size) as path:
        yield LoopDevice(path, backing, sector_size)
