"""Files as volumes, and directories as pools."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nbdresize.errors import InsufficientSpace, InvalidArgument, VolumeFailed
from nbdresize.storage.file import FilePool, FileVolume
from nbdresize.units import MAX_SIZE
from tests.filesystems import mounted
from tests.storage.conftest import FileSystem

KIB = 1 << 10
MIB = 1 << 20
TIB = 1 << 40


@pytest.fixture
def pool(tmp_path: Path) -> FilePool:
    return FilePool(tmp_path)


@pytest.fixture
def volume(file_system: FileSystem) -> Iterator[FileVolume]:
    yield file_system.pool.create("disk", MIB)
    file_system.pool.delete("disk")


class TestResize:
    def test_a_sparse_file_takes_no_space_and_reads_as_zeroes(self, volume: FileVolume) -> None:
        assert volume.size() == MIB
        assert volume.allocated() <= 64 * KIB
        assert not volume.preallocated()
        assert volume.path.read_bytes() == bytes(MIB)

    def test_growing_keeps_the_data_and_adds_zeroes(self, volume: FileVolume) -> None:
        with volume.open() as handle:
            handle.write(b"x" * 100, MIB - 100)
            volume.grow(4 * MIB + 512)
            assert handle.size() == volume.size() == 4 * MIB + 512
            assert handle.read(3 * MIB + 612, MIB - 100) == b"x" * 100 + bytes(3 * MIB + 512)

    @pytest.mark.parametrize("cut", [1, 511, 4095, 4096, 100_001, MIB - 1])
    def test_what_was_cut_off_never_comes_back(self, volume: FileVolume, cut: int) -> None:
        with volume.open() as handle:
            handle.write(b"\xff" * MIB, 0)
            handle.flush()
            handle.write(b"\xee" * MIB, 0)
            volume.shrink(cut)
            assert handle.size() == cut
            handle.write(b"\xdd", cut - 1)
            volume.grow(MIB)
            assert handle.read(MIB, 0) == b"\xee" * (cut - 1) + b"\xdd" + bytes(MIB - cut)

    def test_shrinking_gives_space_back(self, volume: FileVolume) -> None:
        with volume.open() as handle:
            handle.write(os.urandom(MIB), 0)
            handle.flush()
        volume.shrink(64 * KIB)
        assert volume.allocated() <= 128 * KIB

    def test_the_present_size_is_no_change(self, volume: FileVolume) -> None:
        volume.grow(MIB)
        volume.shrink(MIB)
        assert volume.size() == MIB

    def test_grow_does_not_shrink_and_shrink_does_not_grow(self, volume: FileVolume) -> None:
        with pytest.raises(VolumeFailed, match="shrink it instead"):
            volume.grow(MIB - 1)
        with pytest.raises(VolumeFailed, match="grow it instead"):
            volume.shrink(MIB + 1)
        assert volume.size() == MIB

    def test_sizes_that_are_none_are_refused(self, volume: FileVolume, pool: FilePool) -> None:
        for size in (-1, MAX_SIZE + 1, 2**64):
            with pytest.raises(InvalidArgument):
                pool.create("absurd", size)
        with pytest.raises(InvalidArgument):
            volume.grow(MAX_SIZE + 1)
        with pytest.raises(InvalidArgument):
            volume.shrink(-1)
        assert volume.size() == MIB
        assert pool.names() == []

    def test_a_preallocated_file_that_finds_no_space_stays_as_it_was(self, tmp_path: Path) -> None:
        for kind in ("tmpfs", "ext4", "xfs", "btrfs"):
            with mounted(kind, tmp_path, size=16 * MIB) as path:
                pool = FilePool(path)
                volume = pool.create("disk", MIB, preallocate=True)
                if not volume.preallocated():  # tmpfs before Linux 6.6 forgets it
                    continue
                available = pool.capacity().available
                with pytest.raises(InsufficientSpace, match="free space"):
                    volume.grow(TIB)
                assert volume.size() == MIB
                assert volume.allocated() <= 2 * MIB
                assert pool.capacity().available >= available - MIB


class TestVeryLarge:
    def test_xfs_holds_the_largest_size_there_is(self, tmp_path: Path) -> None:
        with mounted("xfs", tmp_path) as path:
            volume = FilePool(path).create("disk", MIB)
            volume.grow(MAX_SIZE)
            with volume.open() as handle:
                handle.write(b"end", MAX_SIZE - 3, fua=True)
                assert handle.read(6, MAX_SIZE - 6) == b"\0\0\0end"
                found = handle.extents(0, MAX_SIZE)
                assert sum(extent.length for extent in found) == MAX_SIZE
                assert [extent.hole for extent in found] == [True, False]
                handle.zero(0, MAX_SIZE)
                assert handle.read(3, MAX_SIZE - 3) == bytes(3)

    @pytest.mark.parametrize("preallocate", [False, True])
    def test_ext4_says_what_to_do_instead(self, tmp_path: Path, preallocate: bool) -> None:
        with mounted("ext4", tmp_path) as path:
            volume = FilePool(path).create("disk", MIB, preallocate=preallocate)
            with pytest.raises(VolumeFailed, match=r"File too large.*choose a smaller size.*xfs"):
                volume.grow(16 * TIB)
            assert volume.size() == MIB
            with pytest.raises(VolumeFailed, match="larger files"):
                FilePool(path).create("other", MAX_SIZE)
            assert FilePool(path).names() == ["disk"]


class TestPool:
    def test_what_was_created_is_listed_until_it_is_deleted(self, file_system: FileSystem) -> None:
        pool = file_system.pool
        assert pool.names() == []
        pool.create("b", 0)
        pool.create("a.1-x_Y", 4096)
        assert pool.names() == ["a.1-x_Y", "b"]
        assert pool.volume("a.1-x_Y").size() == 4096
        for _ in range(2):
            pool.delete("a.1-x_Y")
            pool.delete("b")
        assert pool.names() == []

    def test_only_its_owner_can_read_a_volume(self, pool: FilePool) -> None:
        assert stat.S_IMODE(pool.create("disk", 1).path.stat().st_mode) == 0o600

    def test_other_files_in_the_directory_are_no_volumes(self, pool: FilePool) -> None:
        for name in ("note.txt", ".hidden.raw", "with space.raw", "raw"):
            (pool.directory / name).touch()
        assert pool.names() == []

    def test_a_name_is_taken_once(self, pool: FilePool) -> None:
        volume = pool.create("disk", 4096)
        volume.path.write_bytes(b"precious")
        with pytest.raises(VolumeFailed, match="exists already"):
            pool.create("disk", MIB)
        assert volume.path.read_bytes() == b"precious"

    @pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\0b", "a\n", " a", "é", "x" * 201])
    def test_a_name_is_never_a_path(self, pool: FilePool, name: str) -> None:
        attempts: list[Callable[[], object]] = [
            lambda: pool.create(name, 4096),
            lambda: pool.volume(name),
            lambda: pool.delete(name),
        ]
        for attempt in attempts:
            with pytest.raises(InvalidArgument, match="is not the name of a volume"):
                attempt()
        assert list(pool.directory.iterdir()) == []

    def test_capacity_is_that_of_the_file_system(self, tmp_path: Path) -> None:
        with mounted("tmpfs", tmp_path, size=8 * MIB) as path:
            pool = FilePool(path)
            assert pool.capacity().total == pool.capacity().available == 8 * MIB
            pool.create("disk", 2 * MIB, preallocate=True)
            assert pool.capacity().available == 6 * MIB

    def test_what_the_file_system_keeps_for_others_is_no_capacity(self, tmp_path: Path) -> None:
        with mounted("ext4", tmp_path, size=256 * MIB, make_options=("-m", "25")) as path:
            pool = FilePool(path)
            before = pool.capacity()
            assert before.total < 200 * MIB
            pool.create("disk", 16 * MIB, preallocate=True)
            after = pool.capacity()
            assert after.total == before.total
            assert after.available <= before.available - 16 * MIB

    def test_preallocation_that_does_not_fit_leaves_nothing(self, tmp_path: Path) -> None:
        with mounted("ext4", tmp_path) as path:
            pool = FilePool(path)
            available = pool.capacity().available
            with pytest.raises(InsufficientSpace, match="1 TiB can't be reserved"):
                pool.create("disk", TIB, preallocate=True)
            assert pool.names() == []
            assert pool.capacity().available == available

    def test_a_missing_directory_is_named(self, tmp_path: Path) -> None:
        pool = FilePool(tmp_path / "gone")
        attempts: list[Callable[[], object]] = [
            lambda: pool.create("disk", 4096),
            lambda: pool.delete("disk"),
            pool.names,
            pool.capacity,
        ]
        for attempt in attempts:
            with pytest.raises(VolumeFailed, match="gone"):
                attempt()
