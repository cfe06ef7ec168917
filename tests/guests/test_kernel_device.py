"""NBD devices of the kernel, found and looked at in a sysfs of files; the kernel's own are in tests/guest/."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nbdresize.errors import InvalidArgument, PeerFailed, ProgramMissing, ResourceNotFound, VolumeFailed
from nbdresize.guests.kernel.device import MAJOR, KernelDevice
from tests.guests.kernel_files import MIB, FakeDevice, fake_device, node, planted_sysfs


def test_a_device_is_found_by_its_number(tmp_path: Path) -> None:
    sysfs = planted_sysfs(tmp_path, "nbd3", minor=96, size=64 * MIB)
    path = node(tmp_path / "any name", 96)
    device = KernelDevice.at(str(path), sysfs)
    assert (device.path, device.name, device.index) == (str(path), "nbd3", 3)
    assert (device.size, device.block_size, device.connection) == (64 * MIB, 512, "17")
    (tmp_path / "link").symlink_to(path)
    assert KernelDevice.at(str(tmp_path / "link"), sysfs).name == "nbd3"


def test_a_device_without_a_connection_is_told(tmp_path: Path) -> None:
    device = fake_device(tmp_path)
    (device.directory / "pid").unlink()
    assert device.connection is None
    with pytest.raises(ResourceNotFound, match="not connected") as raised:
        device.check_connected()
    assert "nbd-client" in raised.value.way_out


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: node(path, 0, major=7)])
def test_what_is_no_nbd_device_is_refused(tmp_path: Path, make: Callable[[Path], object]) -> None:
    sysfs = planted_sysfs(tmp_path, "nbd0", minor=0, size=MIB)
    make(tmp_path / "thing")
    with pytest.raises(InvalidArgument, match=re.escape(str(tmp_path / "thing"))):
        KernelDevice.at(str(tmp_path / "thing"), sysfs)


def test_a_partition_is_refused_and_its_device_named(tmp_path: Path) -> None:
    sysfs = planted_sysfs(tmp_path, "nbd0", minor=0, size=MIB)
    (sysfs / "devices/virtual/block/nbd0/nbd0p1").mkdir()
    (sysfs / "dev/block/43:1").symlink_to("../../devices/virtual/block/nbd0/nbd0p1")
    with pytest.raises(InvalidArgument, match="nbd0p1") as raised:
        KernelDevice.at(str(node(tmp_path / "part", 1)), sysfs)
    assert "/dev/nbd0" in raised.value.way_out


def test_a_missing_module_is_told_with_its_command(tmp_path: Path) -> None:
    for path in (tmp_path / "nbd0", node(tmp_path / "node", 0)):
        with pytest.raises(ProgramMissing) as raised:
            KernelDevice.at(str(path), tmp_path / "sysfs")
        assert "modprobe nbd" in raised.value.way_out


@pytest.mark.parametrize("path", ["missing", "a\0b", "x" * 5000])
def test_a_path_to_nothing_is_not_found(tmp_path: Path, path: str) -> None:
    with pytest.raises(ResourceNotFound):
        KernelDevice.at(f"{tmp_path}/{path}", planted_sysfs(tmp_path, "nbd0", minor=0, size=MIB))


def test_a_node_of_a_device_that_the_kernel_does_not_have(tmp_path: Path) -> None:
    sysfs = planted_sysfs(tmp_path, "nbd0", minor=0, size=MIB)
    with pytest.raises(ResourceNotFound):
        KernelDevice.at(str(node(tmp_path / "nbd9", 288)), sysfs)
    assert MAJOR == 43


@pytest.mark.parametrize("content", ["", "many", "-5", "4²"])
def test_a_device_that_is_gone_has_no_size(tmp_path: Path, content: str) -> None:
    device = fake_device(tmp_path)
    (device.directory / "size").write_text(content)
    with pytest.raises(ResourceNotFound, match="gone"):
        _ = device.size


def test_a_size_is_whole_blocks(tmp_path: Path) -> None:
    device = fake_device(tmp_path, block_size=4096)
    assert device.fitting(2 * MIB) == 2 * MIB
    assert device.fitting(2 * MIB + 4095) == 2 * MIB
    assert device.fitting(2 * MIB - 1) == 2 * MIB - 4096
    (device.directory / "size").write_text(str(2 * MIB // 512 + 1))
    assert device.fitting(2 * MIB + 512) == 2 * MIB + 512  # as nbd-client has set it


def test_a_kernel_that_does_not_do_it_is_noticed(tmp_path: Path) -> None:
    class Idle(FakeDevice):
        def _set(self, size: int) -> None:
            pass

    device = fake_device(tmp_path, kind=Idle)
    with pytest.raises(VolumeFailed, match="2 MiB"):
        device.set_size(2 * MIB)


def test_a_refusal_of_the_kernel_is_told(tmp_path: Path) -> None:
    class Refusing(FakeDevice):
        def _set(self, size: int) -> None:
            raise OSError(22, os.strerror(22))

    device = fake_device(tmp_path, kind=Refusing)
    with pytest.raises(VolumeFailed, match="Invalid argument"):
        device.set_size(2 * MIB)
    (device.directory / "pid").unlink()
    with pytest.raises(ResourceNotFound, match="not connected"):
        device.set_size(2 * MIB)


def test_a_connection_that_can_not_use_the_new_size_gives_the_old_one_back(tmp_path: Path) -> None:
    class Fixed(FakeDevice):
        def _read(self, offset: int, length: int) -> None:
            raise OSError(5, os.strerror(5))

    device = fake_device(tmp_path, kind=Fixed)
    with pytest.raises(PeerFailed, match="more than 1 MiB") as raised:
        device.set_size(2 * MIB)
    assert "--front native" in raised.value.way_out
    assert device.size == MIB
    device.set_size(MIB // 2)
    assert device.size == MIB // 2
