"""Copies of volumes: byte for byte, sparse, durable, and gone if anything goes wrong."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbdresize.errors import InsufficientSpace, InvalidArgument, VolumeFailed
from nbdresize.storage.block import BlockVolume
from nbdresize.storage.file import FilePool, FileVolume
from tests.filesystems import mounted
from tests.storage.conftest import DEVICE_SIZE, FileSystem, LoopDevice
from tests.wait import until

KIB = 1 << 10
MIB = 1 << 20
PIECES = [(0, 4 * KIB), (MIB - 8 * KIB, 100 * KIB), (3 * MIB + 5, 1), (5 * MIB, 2 * MIB + 100)]


def patchy(pool: FilePool, name: str = "disk", size: int = 8 * MIB + 1000) -> FileVolume:
    """A volume with data, holes, and written zeroes."""
    volume = pool.create(name, size)
    with volume.open() as handle:
        for offset, length in PIECES:
            handle.write(os.urandom(length), offset)
        handle.write(bytes(512 * KIB), 4 * MIB)
    return volume


@pytest.fixture
def pool(file_system: FileSystem) -> Iterator[FilePool]:
    yield file_system.pool
    for name in file_system.pool.names():
        file_system.pool.delete(name)


class Stop(BaseException):
    """As KeyboardInterrupt: nothing that `except Exception` would see."""


def stop_at(call: int) -> Callable[[int, int], None]:
    """A progress callback that raises at its n-th call."""
    calls = iter(range(1, call + 1))

    def progress(done: int, total: int) -> None:
        if next(calls) == call:
            raise Stop

    return progress


class TestCopy:
    @pytest.mark.parametrize("share", [True, False])
    def test_it_has_the_same_bytes_and_takes_no_more_space(
        self, pool: FilePool, file_system: FileSystem, share: bool
    ) -> None:
        volume = patchy(pool)
        copy = pool.copy(volume.path, "copy", share=share)
        assert copy.path.read_bytes() == volume.path.read_bytes()
        assert copy.path.stat().st_mode == volume.path.stat().st_mode
        assert pool.names() == ["copy", "disk"]
        if file_system.has_holes:
            written = volume.allocated() - (0 if share and pool.shares_copies() else 512 * KIB)
            assert copy.allocated() <= written + 64 * KIB  # the zeroes that were written became a hole

    @pytest.mark.parametrize("share", [True, False])
    def test_what_is_longer_than_the_source_is_zeroes(self, pool: FilePool, share: bool) -> None:
        volume = patchy(pool)
        copy = pool.copy(volume.path, "copy", size=20 * MIB, share=share)
        assert copy.path.read_bytes() == volume.path.read_bytes() + bytes(20 * MIB - volume.size())

    @pytest.mark.parametrize("share", [True, False])
    def test_nothing_is_ever_cut_off(self, pool: FilePool, share: bool) -> None:
        volume = patchy(pool)
        with pytest.raises(InvalidArgument, match=r"disk\.raw has 8\.00 MiB.*can't hold: ask for at least"):
            pool.copy(volume.path, "copy", size=volume.size() - 1, share=share)
        assert pool.names() == ["disk"]

    def test_two_volumes_go_their_own_ways(self, pool: FilePool) -> None:
        volume = patchy(pool)
        before = volume.path.read_bytes()
        copy = pool.copy(volume.path, "copy")
        with volume.open() as handle:
            handle.write(b"disk", 0)
            handle.zero(5 * MIB, MIB)
        assert copy.path.read_bytes() == before
        after = volume.path.read_bytes()
        with copy.open() as handle:
            handle.write(b"copy", 4 * KIB)
        assert volume.path.read_bytes() == after

    def test_an_empty_source(self, pool: FilePool) -> None:
        empty = pool.create("disk", 0)
        assert pool.copy(empty.path, "copy").size() == 0
        assert pool.copy(empty.path, "longer", size=MIB).path.read_bytes() == bytes(MIB)

    def test_reserved_in_full(self, pool: FilePool, file_system: FileSystem) -> None:
        volume = patchy(pool)
        copy = pool.copy(volume.path, "copy", size=10 * MIB, preallocate=True)
        assert copy.path.read_bytes() == volume.path.read_bytes() + bytes(10 * MIB - volume.size())
        assert copy.allocated() >= 10 * MIB
        assert copy.preallocated() is file_system.remembers_preallocation

    def test_a_name_is_taken_once(self, pool: FilePool) -> None:
        volume = patchy(pool)
        pool.create("copy", MIB).path.write_bytes(b"precious")
        with pytest.raises(VolumeFailed, match="copy exists already"):
            pool.copy(volume.path, "copy")
        assert pool.volume("copy").path.read_bytes() == b"precious"

    def test_only_files_and_devices_are_copied(self, tmp_path: Path) -> None:
        pool = FilePool(tmp_path)
        os.mkfifo(tmp_path / "pipe")
        for source, problem in (("pipe", "a named pipe"), (".", "a directory"), ("gone", "no volume at")):
            with pytest.raises(VolumeFailed, match=problem):
                pool.copy(tmp_path / source, "copy")
        with pytest.raises(VolumeFailed, match="a character device"):
            pool.copy(Path("/dev/zero"), "copy")
        assert pool.names() == []

    def test_from_another_file_system(self, pool: FilePool, tmp_path: Path) -> None:
        volume = patchy(FilePool(tmp_path))
        assert pool.copy(volume.path, "copy").path.read_bytes() == volume.path.read_bytes()

    def test_from_a_device(self, tmp_path: Path, device: LoopDevice) -> None:
        with BlockVolume(device.path).open() as handle:
            handle.write(os.urandom(300 * KIB), MIB)
            handle.flush()
        copy = FilePool(tmp_path).copy(device.path, "copy", size=DEVICE_SIZE + MIB)
        assert copy.path.read_bytes() == device.path.read_bytes() + bytes(MIB)
        assert copy.allocated() <= 512 * KIB  # a device does not tell its holes; its zeroes are seen all the same

    def test_progress_rises_to_all(self, pool: FilePool) -> None:
        volume = patchy(pool)
        for share, preallocate in ((True, False), (False, False), (False, True)):
            told: list[tuple[int, int]] = []
            pool.copy(
                volume.path,
                "copy",
                share=share,
                preallocate=preallocate,
                progress=lambda done, total, told=told: told.append((done, total)),  # type: ignore[misc]
            )
            assert {total for _, total in told} == {volume.size()}
            assert told == sorted(told)
            assert told[-1] == (volume.size(), volume.size())
            if not share:
                assert len(told) >= 6
            pool.delete("copy")


class TestStopped:
    @pytest.mark.parametrize("call", [1, 2, 5])
    def test_a_copy_that_is_stopped_leaves_nothing(self, pool: FilePool, call: int) -> None:
        volume = patchy(pool)
        before = volume.path.read_bytes()
        with pytest.raises(Stop):
            pool.copy(volume.path, "copy", share=False, preallocate=call == 1, progress=stop_at(call))
        assert pool.names() == ["disk"]
        assert volume.path.read_bytes() == before

    def test_so_does_one_that_shared_already(self, pool: FilePool) -> None:
        volume = patchy(pool)
        with pytest.raises(Stop):
            pool.copy(volume.path, "copy", progress=stop_at(1))
        assert pool.names() == ["disk"]

    def test_an_error_of_the_callback_stays_what_it_was(self, pool: FilePool) -> None:
        volume = patchy(pool)

        def lost(done: int, total: int) -> None:
            raise BrokenPipeError("nobody reads this")

        attempts: list[Callable[[], object]] = [
            lambda: pool.copy(volume.path, "copy", progress=lost),
            lambda: pool.copy(volume.path, "copy", preallocate=True, progress=lost),
            lambda: pool.create("copy", MIB, preallocate=True, progress=lost),
        ]
        for attempt in attempts:
            with pytest.raises(BrokenPipeError, match="nobody reads this"):
                attempt()
        assert pool.names() == ["disk"]

    def test_a_preallocation_that_is_stopped_leaves_nothing(self, pool: FilePool) -> None:
        available = pool.capacity().available
        with pytest.raises(Stop):
            pool.create("disk", 8 * MIB, preallocate=True, progress=stop_at(1))
        assert pool.names() == []
        until(lambda: pool.capacity().available >= available - MIB, what="the space to be free again")

    def test_a_growth_that_is_stopped_leaves_the_volume_as_it_was(
        self, pool: FilePool, file_system: FileSystem
    ) -> None:
        volume = pool.create("disk", MIB, preallocate=True)
        if not file_system.remembers_preallocation:
            return
        with pytest.raises(Stop):
            volume.grow(8 * MIB, stop_at(1))
        assert volume.size() == MIB
        assert volume.allocated() <= MIB + 64 * KIB
        told: list[tuple[int, int]] = []
        volume.grow(8 * MIB, lambda done, total: told.append((done, total)))
        assert told[-1] == (7 * MIB, 7 * MIB)
        assert volume.allocated() >= 8 * MIB

    def test_interrupted_from_the_keyboard(self, tmp_path: Path) -> None:
        code = """
import os, signal, sys
from pathlib import Path
from nbdresize.storage.file import FilePool
pool = FilePool(Path(sys.argv[1]))
def progress(done, total):
    if done >= 2 << 20:
        signal.raise_signal(signal.SIGINT)
try:
    pool.copy(pool.volume("disk").path, "copy", share=False, progress=progress)
except KeyboardInterrupt:
    print(pool.names())
"""
        patchy(FilePool(tmp_path))
        command = [sys.executable, "-c", code, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout == "['disk']\n"


class TestNoSpace:
    @pytest.mark.parametrize("kind", ["tmpfs", "ext4", "xfs", "btrfs"])
    @pytest.mark.parametrize("left", [MIB, 3 * MIB, 7 * MIB])
    def test_a_copy_that_finds_no_space_gives_back_what_it_took(self, tmp_path: Path, kind: str, left: int) -> None:
        source = FilePool(tmp_path).create("source", 64 * MIB)
        with source.open() as handle:
            handle.write(os.urandom(64 * MIB), 0)
        with mounted(kind, tmp_path, size=64 * MIB) as path:
            pool = FilePool(path)
            pool.create("ballast", pool.capacity().available - left, preallocate=True)
            with pytest.raises(InsufficientSpace, match=r"copy\.raw failed \(No space left on device\): free space"):
                pool.copy(source.path, "copy")
            with pytest.raises(InsufficientSpace, match=r"64 MiB can't be reserved"):
                pool.copy(source.path, "copy", preallocate=True)
            assert pool.names() == ["ballast"]

    def test_a_preallocation_that_can_not_fit_does_not_fill_the_file_system_first(self, tmp_path: Path) -> None:
        with mounted("ext4", tmp_path, size=64 * MIB) as path:
            pool = FilePool(path)
            volume = pool.create("disk", MIB, preallocate=True)
            told: list[int] = []
            with pytest.raises(InsufficientSpace, match="can't be reserved"):
                volume.grow(1 << 40, lambda done, total: told.append(done))
            assert told == []


class TestRanges:
    def test_only_they_are_copied_and_holes_become_zeroes(self, pool: FilePool) -> None:
        volume = patchy(pool)
        with pool.create("copy", volume.size()).open() as handle:
            handle.write(b"\xff" * volume.size(), 0)
        ranges = [(0, 64 * KIB), (2 * MIB, 2 * MIB + 64 * KIB), (6 * MIB, MIB)]
        expected = bytearray(b"\xff" * volume.size())
        for offset, length in ranges:
            expected[offset : offset + length] = volume.path.read_bytes()[offset : offset + length]
        told: list[tuple[int, int]] = []
        pool.copy_ranges(volume.path, "copy", iter(ranges), lambda done, total: told.append((done, total)))
        pool.sync("copy")
        assert pool.volume("copy").path.read_bytes() == expected
        total = sum(length for _, length in ranges)
        assert told[-1] == (total, total)
        assert told == sorted(told)

    def test_what_was_trimmed_gives_space_back_in_the_copy(self, pool: FilePool, file_system: FileSystem) -> None:
        volume = patchy(pool)
        copy = pool.copy(volume.path, "copy", share=False)
        with volume.open() as handle:
            handle.zero(5 * MIB, 2 * MIB)
        before = copy.allocated()
        pool.copy_ranges(volume.path, "copy", [(5 * MIB, 2 * MIB)])
        pool.sync("copy")
        assert copy.path.read_bytes() == volume.path.read_bytes()
        if file_system.has_holes:
            assert copy.allocated() <= before - 2 * MIB + 64 * KIB

    def test_a_source_that_became_shorter_or_longer(self, pool: FilePool) -> None:
        volume = patchy(pool)
        size = volume.size()
        copy = pool.copy(volume.path, "copy", share=False)
        volume.shrink(6 * MIB)
        pool.copy_ranges(volume.path, "copy", [(5 * MIB, size - 5 * MIB)])
        assert copy.path.read_bytes() == volume.path.read_bytes() + bytes(size - 6 * MIB)
        volume.grow(10 * MIB)
        with volume.open() as handle:
            handle.write(b"\xee" * 4 * MIB, 6 * MIB)
        pool.copy_ranges(volume.path, "copy", [(6 * MIB, 4 * MIB), (9 * MIB, MIB)])
        assert copy.size() == size
        assert copy.path.read_bytes() == volume.path.read_bytes()[:size]

    def test_it_may_be_stopped(self, pool: FilePool) -> None:
        volume = patchy(pool)
        pool.create("copy", volume.size())
        with pytest.raises(Stop):
            pool.copy_ranges(volume.path, "copy", [(0, volume.size())], stop_at(3))
        assert pool.names() == ["copy", "disk"]

    def test_nothing_to_copy(self, pool: FilePool) -> None:
        volume = patchy(pool)
        copy = pool.create("copy", MIB)
        pool.copy_ranges(volume.path, "copy", [])
        pool.copy_ranges(volume.path, "copy", [(5, 0), (2 * MIB, 4096)])
        assert copy.path.read_bytes() == bytes(MIB)


EDGE = st.sampled_from([0, 1, 511, 4096, 4097, 65536, MIB - 1, MIB, MIB + 4096, 2 * MIB - 1])
CHANGES = st.lists(
    st.tuples(st.sampled_from(["data", "zeroes", "hole"]), EDGE, st.sampled_from([1, 4095, 4096, 12288, 70_000])),
    max_size=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=CHANGES, later=CHANGES)
def test_a_copy_and_then_the_changes_make_the_same_bytes(
    tmp_path: Path, first: list[tuple[str, int, int]], later: list[tuple[str, int, int]]
) -> None:
    pool = FilePool(tmp_path)
    for name in pool.names():
        pool.delete(name)
    volume = pool.create("disk", 2 * MIB + 777)
    change(volume, first)
    copy = pool.copy(volume.path, "copy", share=False)
    assert copy.path.read_bytes() == volume.path.read_bytes()
    change(volume, later)
    pool.copy_ranges(volume.path, "copy", [(offset, length) for _, offset, length in later])
    assert copy.path.read_bytes() == volume.path.read_bytes()


def change(volume: FileVolume, changes: list[tuple[str, int, int]]) -> None:
    with volume.open() as handle:
        size = handle.size()
        for kind, offset, length in changes:
            count = min(length, size - offset)
            if kind == "hole":
                handle.zero(offset, count)
            else:
                handle.write((b"\xaa" if kind == "data" else b"\0") * count, offset)


class TestReplace:
    def test_one_volume_becomes_the_other(self, pool: FilePool) -> None:
        pool.create("disk", MIB).path.write_bytes(b"old")
        new = pool.create("new", MIB)
        new.path.write_bytes(b"new")
        with pool.volume("disk").open(read_only=True) as handle:
            for _ in range(2):  # the second time it was done before
                pool.replace("disk", "new")
                assert pool.names() == ["disk"]
                assert pool.volume("disk").path.read_bytes() == b"new"
            assert handle.read(3, 0) == b"old"

    def test_a_volume_that_is_not_there_yet(self, pool: FilePool) -> None:
        pool.create("new", MIB)
        pool.replace("disk", "new")
        assert pool.names() == ["disk"]

    def test_what_can_not_be_replaced_stays(self, tmp_path: Path) -> None:
        pool = FilePool(tmp_path)
        (tmp_path / "disk.raw").mkdir()
        pool.create("new", MIB)
        with pytest.raises(VolumeFailed, match=r"Replacing .*disk\.raw failed \(Is a directory\)"):
            pool.replace("disk", "new")
        assert pool.names() == ["disk", "new"]
