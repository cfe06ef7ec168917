"""A sysfs of plain files with an NBD device in it, for what does not need the kernel's own."""

import os
import stat
from pathlib import Path

from nbdresize.guests.kernel.device import MAJOR, KernelDevice

MIB = 2**20


class FakeDevice(KernelDevice):
    """A device whose size is set by writing it into its file."""

    def _set(self, size: int) -> None:
        (self.directory / "size").write_text(f"{size // 512}\n")

    def _read(self, offset: int, length: int) -> None:
        assert offset + length == self.size


def planted_sysfs(directory: Path, name: str, *, minor: int, size: int, block_size: int = 512) -> Path:
    """A directory like /sys with the connected device `name` of `size` bytes."""
    sysfs = directory / "sysfs"
    device = sysfs / "devices" / "virtual" / "block" / name
    for folder in (device / "queue", sysfs / "dev" / "block", sysfs / "module" / "nbd"):
        folder.mkdir(parents=True)
    (sysfs / "dev" / "block" / f"{MAJOR}:{minor}").symlink_to(f"../../devices/virtual/block/{name}")
    (device / "size").write_text(f"{size // 512}\n")
    (device / "queue" / "logical_block_size").write_text(f"{block_size}\n")
    (device / "pid").write_text("17\n")
    return sysfs


def node(path: Path, minor: int, *, major: int = MAJOR) -> Path:
    """A block device node at `path`, which nothing opens."""
    os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(major, minor))
    return path


def fake_device(
    directory: Path, *, size: int = MIB, block_size: int = 512, kind: type[FakeDevice] = FakeDevice
) -> FakeDevice:
    """A connected device of `size` bytes."""
    sysfs = planted_sysfs(directory, "nbd0", minor=0, size=size, block_size=block_size)
    return kind.at(str(node(directory / "nbd0", 0)), sysfs)
