"""Maps of written blocks: every mark is taken, by whichever process it was made; nothing bad is ever mapped."""

import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbdresize.errors import InsufficientSpace, StateUnusable, VolumeFailed
from nbdresize.storage.write_map import WriteMap, discard
from nbdresize.units import MAX_SIZE
from tests.filesystems import fill, mounted_in_memory, program

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
BLOCK = 4 * KIB
SIZE = 64 * MIB + 1000
IMPORT = "from nbdresize.storage.write_map import WriteMap"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk.written"


@pytest.fixture
def written(path: Path) -> Iterator[WriteMap]:
    made = WriteMap.create(path, SIZE)
    yield made
    made.close()


class TestMarks:
    def test_they_are_taken_once_merged_and_in_order(self, written: WriteMap) -> None:
        for offset, length in ((9 * BLOCK, 1), (0, BLOCK), (BLOCK + 7, 3), (5 * BLOCK - 1, 2), (9 * BLOCK + 5, 100)):
            written.mark(offset, length)
        assert written.marked() == 5 * BLOCK
        assert written.take() == [(0, 2 * BLOCK), (4 * BLOCK, 2 * BLOCK), (9 * BLOCK, BLOCK)]
        assert written.take() == []
        assert written.marked() == 0
        written.mark(0, 1)
        assert written.take() == [(0, BLOCK)]

    def test_nothing_written_marks_nothing(self, written: WriteMap) -> None:
        for offset in (0, 5, BLOCK, SIZE, SIZE + BLOCK):
            written.mark(offset, 0)
        assert written.take() == []

    def test_what_lies_past_the_end_is_left_out(self, written: WriteMap) -> None:
        written.mark(SIZE + BLOCK, BLOCK)
        written.mark(SIZE + BLOCK, 100 * BLOCK)
        written.mark(2**62, 1)
        assert written.take() == []
        written.mark(SIZE - 1, 1)
        assert written.take() == [(64 * MIB, 1000)]
        written.mark(SIZE - BLOCK, GIB)
        assert written.take() == [(64 * MIB - BLOCK, BLOCK + 1000)]

    def test_all_of_the_volume(self, written: WriteMap) -> None:
        written.mark(0, SIZE)
        assert written.marked() == SIZE
        assert written.take() == [(0, SIZE)]

    def test_a_volume_without_bytes(self, path: Path) -> None:
        empty = WriteMap.create(path, 0)
        empty.mark(0, BLOCK)
        assert empty.take() == []
        empty.close()

    @pytest.mark.parametrize(
        ("size", "block_size"),
        [(1, 4 * KIB), (256 * GIB, 4 * KIB), (256 * GIB + 1, 8 * KIB), (MAX_SIZE, 128 * GIB)],
    )
    def test_a_large_volume_has_large_blocks(self, path: Path, size: int, block_size: int) -> None:
        made = WriteMap.create(path, size)
        assert made.block_size == block_size
        assert path.stat().st_size <= 4096 + (1 << 26)
        made.mark(size - 1, 1)
        [(offset, length)] = made.take()
        assert offset % block_size == 0
        assert offset + length == size
        made.mark(0, size)
        assert made.take() == [(0, size)]
        made.close()

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        rounds=st.lists(
            st.lists(st.tuples(st.integers(0, 22 * BLOCK), st.integers(0, 5 * BLOCK)), max_size=10), max_size=4
        )
    )
    def test_against_a_set_of_blocks(self, path: Path, rounds: list[list[tuple[int, int]]]) -> None:
        size = 20 * BLOCK + 5
        discard(path)
        made = WriteMap.create(path, size)
        for marks in rounds:
            for offset, length in marks:
                made.mark(offset, length)
            taken = made.take()
            assert blocks(taken) == blocks(marks) & set(range(21))
            assert sum(length for _, length in taken) <= size
            assert all(first + length < second for (first, length), (second, _) in pairwise(taken))
        made.close()


class TestShared:
    def test_another_process_marks_the_same_map(self, path: Path, written: WriteMap) -> None:
        found = WriteMap.open(path)
        assert found is not None
        assert found.identity == written.identity == (path.stat().st_dev, path.stat().st_ino)
        assert found.block_size == written.block_size
        mark_elsewhere(path, "written.mark(8192, 4096)")
        assert found.marked() == BLOCK
        assert written.take() == [(8192, BLOCK)]
        assert found.take() == []
        found.close()

    def test_no_mark_of_several_processes_is_lost_or_invented(self, path: Path, written: WriteMap) -> None:
        """Each marks every second block of its part while this one takes."""
        code = "[written.mark(block * 4096, 4096) for block in range(FIRST, FIRST + 8000, 2)]"
        firsts = (0, 1, 8000)
        markers = [
            threading.Thread(target=mark_elsewhere, args=(path, code.replace("FIRST", str(first)))) for first in firsts
        ]
        for marker in markers:
            marker.start()
        taken: list[tuple[int, int]] = []
        while any(marker.is_alive() for marker in markers):
            taken += written.take()
        taken += written.take()
        expected = {block for first in firsts for block in range(first, first + 8000, 2)}
        assert blocks(taken) == expected
        assert sum(length for _, length in taken) == len(expected) * BLOCK  # marked once, hence taken once

    def test_what_was_written_before_its_mark_is_seen_after_the_mark_was_taken(self, path: Path) -> None:
        """The promise that a live copy lies on: a copy made by taking marks ends up equal."""
        disk = path.with_name("disk")
        disk.write_bytes(bytes(16 * BLOCK))
        written = WriteMap.create(path, 16 * BLOCK)
        code = """
fd = os.open(sys.argv[2], os.O_RDWR)
for number in range(20_000):
    block = number * 7 % 16
    os.pwrite(fd, number.to_bytes(8, "little"), block * 4096)
    written.mark(block * 4096, 8)
"""
        writer = threading.Thread(target=mark_elsewhere, args=(path, code, disk))
        writer.start()
        copy = bytearray(16 * BLOCK)
        fd = os.open(disk, os.O_RDONLY)
        more = True
        while more:
            more = writer.is_alive()
            for offset, length in written.take():
                copy[offset : offset + length] = os.pread(fd, length, offset)
        os.close(fd)
        writer.join()
        assert copy == disk.read_bytes()
        assert any(copy)
        written.close()


def blocks(ranges: list[tuple[int, int]]) -> set[int]:
    return {
        block
        for offset, length in ranges
        if length
        for block in range(offset // BLOCK, (offset + length - 1) // BLOCK + 1)
    }


def mark_elsewhere(path: Path, code: str, *arguments: Path) -> None:
    """Run code with the map `written` opened in a process of its own."""
    prelude = """
import os, sys
from pathlib import Path
from nbdresize.storage.write_map import WriteMap
written = WriteMap.open(Path(sys.argv[1]))
"""
    command = [sys.executable, "-c", prelude + code, str(path), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


class TestFiles:
    def test_where_there_is_none(self, path: Path) -> None:
        assert WriteMap.open(path) is None
        discard(path)

    def test_removing_it_twice_and_what_is_open_goes_on(self, path: Path, written: WriteMap) -> None:
        for _ in range(2):
            written.remove()
            assert WriteMap.open(path) is None
        written.mark(0, 1)
        assert written.take() == [(0, BLOCK)]
        again = WriteMap.create(path, SIZE)
        assert again.identity != written.identity
        assert again.take() == []
        again.close()

    def test_there_is_one_at_a_time(self, path: Path, written: WriteMap) -> None:
        written.mark(0, 1)
        with pytest.raises(StateUnusable, match=r"disk\.written exists already: wait for the copy"):
            WriteMap.create(path, SIZE)
        assert written.take() == [(0, BLOCK)]
        assert [entry.name for entry in path.parent.iterdir()] == ["disk.written"]

    def test_only_its_owner_can_use_it(self, path: Path, written: WriteMap) -> None:
        assert path.stat().st_mode & 0o777 == 0o600

    def test_one_that_was_never_finished_is_no_map_and_in_nobodys_way(self, path: Path) -> None:
        """As a process leaves it that was killed at any call of the making."""
        unfinished = path.with_name("disk.written.new")
        for content in (b"", bytes(4096), b"x" * 10_000):
            unfinished.write_bytes(content)
            assert WriteMap.open(path) is None
            made = WriteMap.create(path, SIZE)
            assert not unfinished.exists()
            made.close()
            made.remove()
        unfinished.touch()
        discard(path)
        assert not unfinished.exists()

    def test_a_killed_process_leaves_all_of_a_map_or_none(self, path: Path) -> None:
        code = "WriteMap.create(Path(sys.argv[1]), 1 << 20)"
        before = ("openat", "fallocate", "ftruncate", "pwrite64", "mmap", "link")
        for call, when in (*((call, 1) for call in before), ("unlink", 2)):
            command = [sys.executable, "-c", f"import sys\nfrom pathlib import Path\n{IMPORT}\n{code}", str(path)]
            unfinished = path.with_name("disk.written.new")
            strace = [
                program("strace"),
                "-qq",
                "-o",
                str(path.with_name("log")),
                "-P",
                str(unfinished),
                "-P",
                str(path),
            ]
            strace += ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={when}"]
            done = subprocess.run([*strace, *command], capture_output=True, timeout=60, check=False)
            assert done.returncode != 0, call
            found = WriteMap.open(path)
            assert (found is not None) is (call == "unlink"), call
            if found is not None:
                assert found.take() == []
                found.close()
            discard(path)
            assert not unfinished.exists()

    @pytest.mark.parametrize(
        "damage",
        [
            lambda content: b"",
            lambda content: content[:20],
            lambda content: content[:4096],
            lambda content: content[:-1],
            lambda content: content + b"\0",
            lambda content: b"X" + content[1:],
            lambda content: content[:8] + struct.pack("=I", 2) + content[12:],
            lambda content: content[:16] + struct.pack("=Q", SIZE * 2) + content[24:],
            lambda content: content[:16] + struct.pack("=Q", 2**64 - 1) + content[24:],
            lambda content: content[:24] + struct.pack("=Q", 8192) + content[32:],
            lambda content: content[:24] + struct.pack("=Q", 0) + content[32:],
        ],
    )
    def test_a_damaged_one_is_told_and_never_mapped(self, path: Path, damage: object) -> None:
        made = WriteMap.create(path, SIZE)
        made.close()
        assert callable(damage)
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(StateUnusable, match=r"disk\.written .*: remove it, and begin the copy"):
            WriteMap.open(path)
        discard(path)
        assert WriteMap.open(path) is None

    def test_what_is_no_file(self, path: Path) -> None:
        os.mkfifo(path)
        with pytest.raises(StateUnusable, match="remove it"):
            WriteMap.open(path)
        path.unlink()
        path.mkdir()
        with pytest.raises(VolumeFailed, match="Is a directory"):
            WriteMap.open(path)

    def test_a_directory_that_is_gone(self, tmp_path: Path) -> None:
        with pytest.raises(VolumeFailed, match=r"Making .*gone/disk\.written failed"):
            WriteMap.create(tmp_path / "gone" / "disk.written", SIZE)


class TestFullFileSystem:
    @pytest.mark.parametrize("kind", ["tmpfs", "ext4", "xfs", "btrfs"])
    def test_a_map_without_room_is_refused_and_leaves_nothing(self, tmp_path: Path, kind: str) -> None:
        with mounted_in_memory(kind, tmp_path, size=16 * MIB) as directory:
            fill(directory / "filler", leave=MIB)
            with pytest.raises(InsufficientSpace, match="free space there, which a copy of a disk in use needs"):
                WriteMap.create(directory / "disk.written", 64 * GIB)
            assert {entry.name for entry in directory.iterdir()} <= {"filler", "lost+found"}

    # Not btrfs: there it depends on the kernel whether reserved space stays reserved (see WriteMap.create).
    @pytest.mark.parametrize("kind", ["tmpfs", "ext4", "xfs"])
    def test_a_process_that_marks_is_not_killed_when_it_fills_up(self, tmp_path: Path, kind: str) -> None:
        with mounted_in_memory(kind, tmp_path, size=16 * MIB) as directory:
            path = directory / "disk.written"
            made = WriteMap.create(path, 8 * GIB)
            fill(directory / "filler")
            code = """
for number in range(3):
    for offset in range(0, 8 << 30, 4 << 20):
        written.mark(offset, 4096)
    fd = os.open(sys.argv[1], os.O_RDWR)
    os.fsync(fd)
    os.close(fd)
"""
            mark_elsewhere(path, code)
            assert made.marked() == 2048 * BLOCK
            made.close()
