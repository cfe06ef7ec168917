"""What lies at a path decides what it is opened as; whatever is no volume is refused in one clear sentence."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from nbdresize.errors import VolumeFailed
from nbdresize.storage.block import BlockVolume
from nbdresize.storage.file import FileVolume
from nbdresize.storage.kinds import open_volume
from nbdresize.storage.volume import Volume
from tests.filesystems import loop_device
from tests.storage.conftest import DEVICE_SIZE, LoopDevice


def test_files_and_devices_are_told_apart_through_links(tmp_path: Path, device: LoopDevice) -> None:
    (tmp_path / "disk").write_bytes(b"x")
    (tmp_path / "to-file").symlink_to("disk")
    (tmp_path / "to-device").symlink_to(device.path)
    file, block = open_volume(tmp_path / "to-file"), open_volume(tmp_path / "to-device")
    assert isinstance(file, FileVolume)
    assert file.size() == 1
    assert isinstance(block, BlockVolume)
    assert block.size() == block.allocated() == DEVICE_SIZE


def _make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: None, "There is no volume at .*/thing: see whether it was moved or deleted"),
        (Path.mkdir, "thing is a directory, not"),
        (os.mkfifo, "thing is a named pipe, not"),
        (_make_socket, "thing is a socket, not"),
        (lambda path: path.symlink_to("/dev/null"), "thing is a character device, not"),
        (lambda path: path.symlink_to("nowhere"), "There is no volume"),
        (lambda path: path.symlink_to("thing"), "Too many levels of symbolic links"),
    ],
    ids=["nothing", "directory", "pipe", "socket", "null", "dangling", "circle"],
)
def test_what_is_no_volume_is_refused(tmp_path: Path, make: Callable[[Path], None], expected: str) -> None:
    path = tmp_path / "thing"
    make(path)
    attempts: list[Callable[[], object]] = [lambda: open_volume(path)]
    for volume in (FileVolume(path), BlockVolume(path)):
        attempts += [volume.open, volume.size, volume.allocated]
        attempts += [lambda volume=volume: volume.grow(4096), lambda volume=volume: volume.shrink(0)]  # type: ignore[misc]
        attempts += [lambda volume=volume: volume.open(read_only=True)]  # type: ignore[misc]
    for attempt in attempts:
        with pytest.raises(VolumeFailed, match=expected):
            attempt()


def test_a_path_with_a_null_byte_is_none() -> None:
    with pytest.raises(VolumeFailed, match="is not a path"):
        open_volume(Path("a\0b"))


def test_a_file_is_not_opened_as_a_device_nor_the_other_way(tmp_path: Path, device: LoopDevice) -> None:
    with pytest.raises(VolumeFailed, match="is a block device, not a file"):
        FileVolume(device.path).open()
    with pytest.raises(VolumeFailed, match="is a file, not a block device"):
        BlockVolume(device.backing).open()


def test_a_volume_that_vanished_fails_for_whoever_comes_later(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"data")
    volume: Volume = open_volume(tmp_path / "disk")
    with volume.open() as handle:
        volume.path.unlink()
        assert handle.read(4, 0) == b"data"
        with pytest.raises(VolumeFailed, match="There is no volume"):
            volume.size()
        with pytest.raises(VolumeFailed, match="There is no volume"):
            volume.grow(MIB := 1 << 20)
        assert handle.size() < MIB


def test_a_device_for_reading_only_is_opened_only_so(tmp_path: Path) -> None:
    backing = tmp_path / "image"
    backing.write_bytes(b"x" * 8192)
    with loop_device(backing, read_only=True) as device:
        with pytest.raises(VolumeFailed, match="write-protected: open it for reading only"):
            open_volume(device).open()
        with open_volume(device).open(read_only=True) as handle:
            assert handle.read(8192, 0) == b"x" * 8192
