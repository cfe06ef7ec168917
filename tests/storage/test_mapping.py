"""A file's pages as memory: only where and while every read of them is at hand."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nbdresize.storage import mapping
from nbdresize.storage.mapping import Mapping
from tests.filesystems import FILE_SYSTEMS, MIB, loop_device, mounted, run

SURE = 1024
SIZE = 4 * MIB


@dataclass
class Live:
    """A size as an export has it."""

    size: int


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted("ext4", tmp_path_factory.mktemp("mapping"), size=64 * MIB) as directory:
        yield directory


@pytest.fixture
def fd(place: Path, request: pytest.FixtureRequest) -> Iterator[int]:
    path = place / f"{abs(hash(request.node.name))}.img"
    path.write_bytes(os.urandom(SIZE))
    opened = os.open(path, os.O_RDWR)
    yield opened
    os.close(opened)
    path.unlink()


def begun(fd: int, live: Live) -> tuple[Mapping, memoryview]:
    """A mapping in use, and its view."""
    mapped = Mapping(fd, live)
    mapped.note(SURE, waited=False)
    assert mapped.view is not None
    return mapped, mapped.view


def by_the_kernel(view: memoryview) -> bytes:
    """What a system call sees of it."""
    reading, writing = os.pipe()
    try:
        assert os.writev(writing, [view]) == len(view)
        return os.read(reading, len(view))
    finally:
        os.close(reading)
        os.close(writing)


def test_it_begins_when_enough_reads_in_a_row_were_at_hand(fd: int) -> None:
    mapped = Mapping(fd, Live(SIZE))
    mapped.note(SURE - 1, waited=False)
    mapped.note(1, waited=True)
    mapped.note(SURE - 1, waited=False)
    assert mapped.view is None
    mapped.note(1, waited=False)
    assert mapped.view is not None
    assert len(mapped.view) == SIZE
    assert by_the_kernel(mapped.view[4096:8192]) == os.pread(fd, 4096, 4096)


def test_what_is_written_is_in_it_at_once(fd: int) -> None:
    _, view = begun(fd, Live(SIZE))
    os.pwrite(fd, b"new" * 100, 1000)
    assert by_the_kernel(view[1000:1300]) == b"new" * 100


def test_it_ends_with_the_first_read_that_waits(fd: int) -> None:
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    mapped, view = begun(fd, Live(SIZE))
    by_the_kernel(view[:4096])
    mapped.note(64, waited=False)
    assert mapped.view is None
    mapped.note(SURE - 1, waited=False)
    assert mapped.view is None


def test_it_follows_the_size(fd: int) -> None:
    live = Live(SIZE)
    mapped, _ = begun(fd, live)
    os.ftruncate(fd, 2 * SIZE)
    live.size = 2 * SIZE
    mapped.note(64, waited=False)
    assert mapped.view is not None
    assert len(mapped.view) == 2 * SIZE


def test_what_was_cut_off_is_an_error_to_the_kernel(fd: int) -> None:
    _, view = begun(fd, Live(SIZE))
    os.ftruncate(fd, SIZE // 2)
    with pytest.raises(OSError, match="Bad address"):
        by_the_kernel(view[SIZE // 2 : SIZE // 2 + 4096])


def test_a_file_shorter_than_it_is_said_to_be_is_not_mapped(fd: int) -> None:
    mapped = Mapping(fd, Live(2 * SIZE))
    mapped.note(SURE, waited=False)
    assert mapped.view is None


def test_it_is_made_anew_before_its_tables_take_much_memory(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped, first = begun(fd, Live(SIZE))
    mapped.note(64, waited=False)
    assert mapped.view is first
    monkeypatch.setattr(mapping, "_MOST_FAULTS", -1)
    mapped.note(64, waited=False)
    assert mapped.view is not None
    assert mapped.view is not first


@pytest.mark.parametrize("name", FILE_SYSTEMS)
def test_only_file_systems_whose_pages_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    """On tmpfs, looking at a hole in a mapping takes memory."""
    with mounted(name, tmp_path) as directory, (directory / "disk").open("w+b") as file:
        file.truncate(SIZE)
        mapped = Mapping(file.fileno(), Live(SIZE))
        mapped.note(SURE, waited=False)
        assert (mapped.view is not None) is (name in ("ext4", "xfs", "btrfs"))
        mapped.end()


def test_devices_are_not_mapped(tmp_path: Path) -> None:
    """Nobody could take old pages out of the cache any more."""
    backing = tmp_path / "backing"
    run("truncate", "--size", str(SIZE), backing)
    with loop_device(backing) as device:
        opened = os.open(device, os.O_RDWR)
        try:
            mapped = Mapping(opened, Live(SIZE))
            mapped.note(SURE, waited=False)
            assert mapped.view is None
        finally:
            os.close(opened)
