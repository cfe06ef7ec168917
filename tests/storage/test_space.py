"""Trim, zero and extents on real file systems and devices, those without the operation included."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdresize.errors import InsufficientSpace
from nbdresize.storage import syscalls
from nbdresize.storage.file import FilePool, FileVolume
from nbdresize.storage.handle import Extent, Handle, NotFast
from nbdresize.storage.kinds import open_volume
from tests.filesystems import loop_device, mounted
from tests.storage.conftest import DEVICE_SIZE, FileSystem, LoopDevice

KIB = 1 << 10
MIB = 1 << 20
HOLE = {"hole": True, "zero": True}
DATA = {"hole": False, "zero": False}
RESERVED = {"hole": False, "zero": True}


def fill(volume: FileVolume, size: int = MIB) -> bytes:
    data = os.urandom(size)
    with volume.open() as handle:
        handle.write(data, 0)
        handle.flush()
    return data


@pytest.fixture
def volume(file_system: FileSystem) -> Iterator[FileVolume]:
    yield file_system.pool.create("disk", MIB)
    file_system.pool.delete("disk")


@pytest.fixture
def handle(volume: FileVolume) -> Iterator[Handle]:
    with volume.open() as handle:
        yield handle


@pytest.fixture
def reserved(file_system: FileSystem) -> Iterator[FileVolume]:
    yield file_system.pool.create("reserved", MIB, preallocate=True)
    file_system.pool.delete("reserved")


def test_trim_gives_space_back_where_the_file_system_can(
    file_system: FileSystem, volume: FileVolume, handle: Handle
) -> None:
    data = fill(volume)
    handle.trim(256 * KIB, 512 * KIB)
    handle.flush()
    if file_system.has_holes:
        assert volume.allocated() <= MIB // 2 + 64 * KIB
        data = data[: 256 * KIB] + bytes(512 * KIB) + data[768 * KIB :]
    assert handle.read(MIB, 0) == data


@pytest.mark.parametrize(("offset", "length"), [(1, 1), (4095, 2), (5000, 100_000), (0, MIB), (MIB - 10, 10)])
@pytest.mark.parametrize("may_trim", [True, False])
def test_zero_makes_exactly_the_range_zeroes(
    file_system: FileSystem, volume: FileVolume, handle: Handle, offset: int, length: int, may_trim: bool
) -> None:
    data = fill(volume)
    handle.zero(offset, length, may_trim=may_trim)
    assert handle.read(MIB, 0) == data[:offset] + bytes(length) + data[offset + length :]
    assert handle.size() == MIB
    if not may_trim:
        assert volume.allocated() >= MIB


@pytest.mark.parametrize("may_trim", [True, False])
def test_fast_zero_is_done_at_once_or_changes_nothing(
    file_system: FileSystem, volume: FileVolume, handle: Handle, may_trim: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = fill(volume)
    written: list[int] = []
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: written.append(offset))
    if file_system.zeroes_in_place:
        handle.zero(1000, 500_000, may_trim=may_trim, fast=True)
        data = data[:1000] + bytes(500_000) + data[501_000:]
    else:
        with pytest.raises(NotFast):
            handle.zero(1000, 500_000, may_trim=may_trim, fast=True)
    assert handle.read(MIB, 0) == data
    assert written == []


def test_zero_that_may_trim_does_not_fill_a_sparse_file(
    file_system: FileSystem, volume: FileVolume, handle: Handle
) -> None:
    handle.zero(0, MIB)
    if file_system.has_holes:
        assert volume.allocated() <= 64 * KIB
        assert handle.extents(0, MIB) == [Extent(MIB, **HOLE)]


def test_nothing_makes_a_file_longer(volume: FileVolume, handle: Handle) -> None:
    handle.trim(MIB - 4096, 8192)
    for may_trim in (True, False):
        handle.zero(MIB - 4096, 8192, may_trim=may_trim)
        handle.zero(MIB + 4096, 8192, may_trim=may_trim)
    assert volume.size() == MIB


class TestPreallocated:
    def test_its_space_is_reserved_and_reads_as_zeroes(self, file_system: FileSystem, reserved: FileVolume) -> None:
        assert reserved.allocated() >= MIB
        assert reserved.path.read_bytes() == bytes(MIB)
        assert reserved.preallocated() == file_system.remembers_preallocation

    @pytest.mark.parametrize("how", ["trim", "zero"])
    def test_neither_trim_nor_zero_gives_it_back(self, file_system: FileSystem, reserved: FileVolume, how: str) -> None:
        assert file_system.remembers_preallocation or file_system.kind in ("tmpfs", "ramfs")
        if not file_system.remembers_preallocation:
            return
        data = fill(reserved)
        with reserved.open() as handle:
            if how == "trim":
                handle.trim(4096, 512 * KIB)
            else:
                handle.zero(4096, 512 * KIB)
            handle.flush()
            assert Extent(512 * KIB, **RESERVED) in handle.extents(0, MIB)
            # Last: what was reserved counts as data once it has been read into the page cache.
            found = handle.read(MIB, 0)
        assert reserved.allocated() >= MIB
        zeroed = data[:4096] + bytes(512 * KIB) + data[4096 + 512 * KIB :]
        assert found == zeroed

    def test_growing_reserves_the_new_range_too(self, file_system: FileSystem, reserved: FileVolume) -> None:
        data = fill(reserved)
        reserved.grow(3 * MIB)
        assert reserved.path.read_bytes() == data + bytes(2 * MIB)
        if file_system.remembers_preallocation:
            assert reserved.allocated() >= 3 * MIB


class TestExtents:
    def test_they_tell_data_from_holes(self, file_system: FileSystem, handle: Handle) -> None:
        handle.write(os.urandom(128 * KIB), 256 * KIB)
        found = handle.extents(0, MIB)
        if file_system.has_holes:
            assert found == [Extent(256 * KIB, **HOLE), Extent(128 * KIB, **DATA), Extent(640 * KIB, **HOLE)]
        else:
            assert found == [Extent(MIB, **DATA)]

    @pytest.mark.parametrize(
        ("offset", "length"), [(0, 1), (256 * KIB - 1, 2), (300_001, 5), (384 * KIB - 1, 2), (MIB - 1, 1)]
    )
    def test_they_cover_exactly_the_range(
        self, file_system: FileSystem, handle: Handle, offset: int, length: int
    ) -> None:
        handle.write(os.urandom(128 * KIB), 256 * KIB)
        found = handle.extents(offset, length)
        assert sum(extent.length for extent in found) == length
        assert all(extent.length > 0 for extent in found)
        assert all(one.zero != next_.zero for one, next_ in itertools.pairwise(found))

    def test_what_was_reserved_and_never_written_is_zero_but_no_hole(
        self, file_system: FileSystem, reserved: FileVolume
    ) -> None:
        expected = DATA
        if file_system.has_holes:
            expected = RESERVED if file_system.remembers_preallocation else HOLE
        with reserved.open() as handle:
            assert handle.extents(0, MIB) == [Extent(MIB, **expected)]

    def test_past_the_end_lies_a_hole(self, file_system: FileSystem, volume: FileVolume, handle: Handle) -> None:
        fill(volume)
        assert handle.extents(MIB, 10) == [Extent(10, **HOLE)]
        assert handle.extents(MIB - 10, 30) == [Extent(10, **DATA), Extent(20, **HOLE)]

    def test_no_more_are_looked_for_than_asked(self, file_system: FileSystem, handle: Handle) -> None:
        for offset in range(0, MIB, 128 * KIB):
            handle.write(os.urandom(64 * KIB), offset)
        every = handle.extents(0, MIB)
        assert len(every) == (16 if file_system.has_holes else 1)
        assert handle.extents(0, MIB, limit=3) == every[:3]


def test_a_file_system_that_punches_but_does_not_allocate(tmp_path: Path) -> None:
    """ext4 in the layout of ext2, without extents."""
    with mounted("ext4", tmp_path, make_options=("-O", "^extent,^64bit,^has_journal")) as path:
        volume = FilePool(path).create("disk", MIB, preallocate=True)
        assert volume.allocated() >= MIB
        data = fill(volume)
        with volume.open() as handle:
            with pytest.raises(NotFast):
                handle.zero(0, 512 * KIB, may_trim=False, fast=True)
            assert handle.read(MIB, 0) == data
            handle.trim(0, 512 * KIB)
            handle.zero(0, 512 * KIB)
            assert handle.read(MIB, 0) == bytes(512 * KIB) + data[512 * KIB :]
        assert volume.allocated() >= MIB
        sparse = FilePool(path).create("sparse", MIB)
        fill(sparse)
        with sparse.open() as handle:
            handle.zero(0, MIB, fast=True)
        assert sparse.allocated() <= 64 * KIB


def test_what_a_file_system_lacks_is_tried_once_per_handle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def lacking(name: str) -> None:
        def way(fd: int, offset: int, length: int) -> None:
            tried.append(name)
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(syscalls, name, way)

    volume = FilePool(tmp_path).create("disk", MIB)
    for name in ("punch_hole", "zero_range", "allocate"):
        lacking(name)
    with volume.open() as handle:
        handle.write(b"data", 5000)
        for _ in range(3):
            handle.trim(0, MIB)
            handle.zero(0, MIB)
            handle.zero(0, MIB, may_trim=False)
        assert handle.read(MIB, 0) == bytes(MIB)
    assert sorted(tried) == ["punch_hole", "zero_range"]


def test_zeroes_are_not_written_into_holes_that_may_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(fd: int, offset: int, length: int) -> None:
        raise OSError(95, "Operation not supported")

    for name in ("punch_hole", "zero_range", "allocate"):
        monkeypatch.setattr(syscalls, name, lacking)
    volume = FilePool(tmp_path).create("disk", 8 * MIB)
    with volume.open() as handle:
        handle.zero(0, 8 * MIB, fast=True)
        handle.write(b"data", 4 * MIB)
        with pytest.raises(NotFast):
            handle.zero(0, 8 * MIB, fast=True)
        assert handle.read(4, 4 * MIB) == b"data"
        handle.zero(0, 8 * MIB)
        handle.flush()
        assert handle.read(8 * MIB, 0) == bytes(8 * MIB)
    assert volume.allocated() <= MIB


def test_reserving_again_on_a_full_file_system_keeps_the_data(tmp_path: Path) -> None:
    """tmpfs, where zeroing means a hole that is reserved again."""
    with mounted("tmpfs", tmp_path, size=MIB) as path:
        volume = FilePool(path).create("disk", 2 * MIB)
        with volume.open() as handle:
            handle.write(b"x" * 512 * KIB, 0)
            handle.zero(0, 512 * KIB, may_trim=False)
            handle.write(b"y" * MIB, 0)
            with pytest.raises(InsufficientSpace):
                handle.zero(512 * KIB, MIB, may_trim=False)
            assert handle.read(MIB, 0) == b"y" * MIB


class TestOnDevices:
    @pytest.mark.parametrize("may_trim", [True, False])
    @pytest.mark.parametrize("fast", [True, False])
    @pytest.mark.parametrize(
        ("offset", "length"), [(0, DEVICE_SIZE), (4096, 4096), (1, 10), (511, 8195), (DEVICE_SIZE - 5000, 5000)]
    )
    def test_zero_makes_exactly_the_range_zeroes(
        self, device: LoopDevice, may_trim: bool, fast: bool, offset: int, length: int
    ) -> None:
        data = os.urandom(DEVICE_SIZE)
        with open_volume(device.path).open() as handle:
            handle.write(data, 0)
            handle.zero(offset, length, may_trim=may_trim, fast=fast)
            expected = data[:offset] + bytes(length) + data[offset + length :]
            assert handle.read(DEVICE_SIZE, 0) == expected
            handle.flush()
        assert device.backing.read_bytes() == expected

    def test_zero_gives_space_back_only_if_it_may(self, device: LoopDevice) -> None:
        backing = FileVolume(device.backing)
        with open_volume(device.path).open() as handle:
            handle.write(os.urandom(DEVICE_SIZE), 0)
            handle.flush()
            handle.zero(0, DEVICE_SIZE, may_trim=False)
            assert backing.allocated() >= DEVICE_SIZE
            handle.zero(0, DEVICE_SIZE, may_trim=True)
            assert backing.allocated() <= MIB

    def test_trim_gives_back_the_whole_sectors_within(self, device: LoopDevice) -> None:
        data = os.urandom(DEVICE_SIZE)
        with open_volume(device.path).open() as handle:
            handle.write(data, 0)
            handle.flush()
            handle.trim(1000, MIB)
            handle.trim(5 * MIB + 1, 4094)
            assert handle.read(1000, 0) == data[:1000]
            assert handle.read(DEVICE_SIZE - 1000 - MIB, 1000 + MIB)[: 3 * MIB] == data[1000 + MIB :][: 3 * MIB]
        assert FileVolume(device.backing).allocated() <= DEVICE_SIZE - MIB + 64 * KIB

    def test_all_of_it_is_data(self, device: LoopDevice) -> None:
        with open_volume(device.path).open() as handle:
            assert handle.extents(3, 5000) == [Extent(5000, **DATA)]
            handle.cache(0, DEVICE_SIZE)

    def test_zeroes_are_written_where_the_device_can_do_nothing(self, tmp_path: Path) -> None:
        with mounted("ramfs", tmp_path) as path:
            backing = path / "device.image"
            backing.write_bytes(os.urandom(MIB))
            data = backing.read_bytes()
            with loop_device(backing) as device, open_volume(device).open() as handle:
                for may_trim in (True, False):
                    with pytest.raises(NotFast):
                        handle.zero(0, MIB, may_trim=may_trim, fast=True)
                handle.trim(0, MIB)
                assert handle.read(MIB, 0) == data
                handle.zero(100, MIB - 200)
                assert handle.read(MIB, 0) == data[:100] + bytes(MIB - 200) + data[-100:]


def test_a_range_without_holes_is_known_by_one_look(
    file_system: FileSystem, volume: FileVolume, handle: Handle
) -> None:
    fill(volume)
    assert handle.holds_only_data(0, MIB)
    handle.trim(256 * KIB, 512 * KIB)
    assert handle.holds_only_data(0, 256 * KIB)
    assert handle.holds_only_data(0, MIB) is not file_system.has_holes
