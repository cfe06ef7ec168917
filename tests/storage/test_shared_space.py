"""What copies share, measured on real file systems."""

import os
from pathlib import Path

import pytest

from nbdresize.errors import VolumeFailed
from nbdresize.storage.file import FilePool, FileVolume
from tests.filesystems import fill, mounted, mounted_in_memory, run
from tests.storage.conftest import FileSystem
from tests.wait import until

KIB = 1 << 10
MIB = 1 << 20
SHARING = ("xfs", "btrfs")


def written(pool: FilePool, name: str, size: int) -> FileVolume:
    volume = pool.create(name, 4 * size)
    with volume.open() as handle:
        handle.write(os.urandom(size), 0)
        handle.flush()
    return volume


def test_it_is_known_whether_copies_share_and_the_look_leaves_nothing(file_system: FileSystem) -> None:
    before = sorted(file_system.path.iterdir())
    assert file_system.pool.shares_copies() is (file_system.kind in SHARING)
    assert sorted(file_system.path.iterdir()) == before


def test_an_xfs_without_shared_blocks_says_so(tmp_path: Path) -> None:
    with mounted("xfs", tmp_path, make_options=("-m", "reflink=0")) as path:
        pool = FilePool(path)
        assert not pool.shares_copies()
        volume = written(pool, "disk", MIB)
        pool.copy(volume.path, "copy")
        assert pool.volume("copy").path.read_bytes() == volume.path.read_bytes()
        assert pool.spaces(["disk", "copy"]) == [volume.allocated(), pool.volume("copy").allocated()]


@pytest.mark.parametrize("kind", SHARING)
class TestShared:
    def test_a_copy_costs_nothing_until_one_of_the_two_is_written(self, tmp_path: Path, kind: str) -> None:
        with mounted(kind, tmp_path) as path:
            pool = FilePool(path)
            volume = written(pool, "disk", 4 * MIB)
            pool.copy(volume.path, "copy")
            assert pool.spaces(["disk", "copy"]) == pool.spaces(["copy", "disk"]) == [4 * MIB, 0]
            assert pool.held(["copy"], ["disk"]) == 0
            assert pool.held(["copy", "disk"], []) == 4 * MIB
            with volume.open() as handle:  # not flushed: measuring sees it all the same
                for block in (0, 7, 8, 100):
                    handle.write(os.urandom(4 * KIB), block * 4 * KIB)
            assert pool.held(["copy"], ["disk"]) == pool.held(["disk"], ["copy"]) == 16 * KIB
            assert pool.spaces(["disk", "copy"]) == [4 * MIB, 16 * KIB]

    def test_what_the_guest_trims_only_its_snapshots_hold(self, tmp_path: Path, kind: str) -> None:
        with mounted(kind, tmp_path) as path:
            pool = FilePool(path)
            volume = written(pool, "disk", 4 * MIB)
            pool.copy(volume.path, "first")
            pool.copy(volume.path, "second")
            with volume.open() as handle:
                handle.trim(MIB, 2 * MIB)
            assert pool.held(["first", "second"], ["disk"]) == 2 * MIB
            assert pool.held(["first"], ["second", "disk"]) == 0
            assert pool.held(["first", "disk"], ["disk"]) == 2 * MIB
            pool.delete("first")
            assert pool.held(["second"], ["disk"]) == 2 * MIB
            available = pool.capacity().available
            pool.delete("second")
            run("sync", "--file-system", path)
            if kind == "xfs":  # btrfs frees in its own time
                until(lambda: pool.capacity().available >= available + MIB, what="the space to be free")

    def test_a_volume_whose_space_is_reserved_is_copied_in_full(self, tmp_path: Path, kind: str) -> None:
        with mounted(kind, tmp_path) as path:
            pool = FilePool(path)
            volume = pool.create("disk", 4 * MIB, preallocate=True)
            with volume.open() as handle:
                handle.write(os.urandom(MIB), 0)
            pool.copy(volume.path, "copy")
            assert not pool.volume("copy").preallocated()
            assert pool.spaces(["disk", "copy"]) == [4 * MIB, MIB]
            pool.copy(pool.volume("copy").path, "reserved", preallocate=True)
            assert pool.volume("reserved").preallocated()
            assert pool.held(["reserved"], ["disk", "copy"]) == 4 * MIB

    def test_on_request_nothing_is_shared(self, tmp_path: Path, kind: str) -> None:
        with mounted(kind, tmp_path) as path:
            pool = FilePool(path)
            pool.copy(written(pool, "disk", MIB).path, "copy", share=False)
            assert pool.spaces(["disk", "copy"]) == [MIB, MIB]

    def test_measuring_goes_on_when_the_file_system_is_full(self, tmp_path: Path, kind: str) -> None:
        with mounted_in_memory(kind, tmp_path) as path:
            pool = FilePool(path)
            volume = written(pool, "disk", MIB)
            pool.copy(volume.path, "copy")
            fill(path / "filler")
            assert FilePool(path).spaces(["disk", "copy"]) == [MIB, 0]


def test_compressed_data_counts_in_full(tmp_path: Path) -> None:
    with mounted("btrfs", tmp_path) as path:
        run("mount", "-o", "remount,compress-force=zstd", path)
        pool = FilePool(path)
        volume = pool.create("disk", 4 * MIB)
        with volume.open() as handle:
            handle.write(b"compressible " * (MIB // 13), 0)
            handle.flush()
        pool.copy(volume.path, "copy")
        first, second = pool.spaces(["disk", "copy"])
        assert first == second >= MIB - 4 * KIB


def test_where_nothing_is_shared_each_counts_what_it_takes(file_system: FileSystem) -> None:
    if file_system.kind in SHARING:
        return
    pool = file_system.pool
    volume = written(pool, "disk", MIB)
    copy = pool.copy(volume.path, "copy")
    assert pool.spaces(["copy", "disk"]) == [copy.allocated(), volume.allocated()]
    assert pool.held(["copy", "disk"], ["disk"]) == copy.allocated()
    pool.delete("copy")
    pool.delete("disk")


def test_a_missing_volume_is_named(file_system: FileSystem) -> None:
    with pytest.raises(VolumeFailed, match=r"no volume at .*gone\.raw"):
        file_system.pool.spaces(["gone"])
    with pytest.raises(VolumeFailed, match=r"gone\.raw"):
        file_system.pool.held([], ["gone"])


def test_a_file_in_thousands_of_pieces(tmp_path: Path) -> None:
    """Several times what the kernel tells at once."""
    with mounted("tmpfs", tmp_path, size=400 * MIB) as memory, mounted("xfs", memory) as path:
        pool = FilePool(path)
        volume = pool.create("disk", 100 * MIB)
        block = os.urandom(4 * KIB)
        with volume.open() as handle:
            for offset in range(0, 72 * MIB, 8 * KIB):
                handle.write(block, offset)
        pool.copy(volume.path, "copy")
        assert pool.spaces(["disk", "copy"]) == [36 * MIB, 0]
        with volume.open() as handle:
            for offset in range(0, 72 * MIB, 32 * KIB):
                handle.write(block, offset)
        assert pool.spaces(["disk", "copy"]) == [36 * MIB, 9 * MIB]
        assert pool.held(["copy"], ["disk"]) == 9 * MIB
