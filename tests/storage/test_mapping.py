"""A file's pages as memory: only where every read of them is at hand, and only for a while."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nbdresize.storage import mapping
from nbdresize.storage.mapping import CHUNK_SHIFT, Mapping
from nbdresize.storage.page_cache import PageCache
from tests.filesystems import FILE_SYSTEMS, MIB, loop_device, mounted, run

CHUNK = 1 << CHUNK_SHIFT
SIZE = 4 * MIB


@dataclass
class Live:
    """A size as an export has it."""

    size: int


class Cached:
    """Stands for the kernel's answers: the chunks that are in the page cache."""

    known = True
    chunks: frozenset[int] = frozenset(range(100))

    def __init__(self, fd: int) -> None:
        return

    def holds(self, offset: int, length: int) -> bool:
        assert length == CHUNK and offset % CHUNK == 0
        return offset // CHUNK in self.chunks


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted("ext4", tmp_path_factory.mktemp("mapping"), size=64 * MIB) as directory:
        yield directory


@pytest.fixture
def fd(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(mapping, "PageCache", Cached)
    path = place / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    opened = os.open(path, os.O_RDWR)
    yield opened
    os.close(opened)
    path.unlink()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is: its only element."""
    now = [1000.0]
    monkeypatch.setattr("nbdresize.storage.mapping.time.monotonic", lambda: now[0])
    return now


def begun(fd: int, live: Live) -> tuple[Mapping, memoryview]:
    """A mapping in use, with all chunks known, and its view."""
    mapped = Mapping(fd, live)
    mapped.renew()
    every = list(range(live.size // CHUNK))
    mapped.read(every + every)
    assert mapped.known == set(every)
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


def test_a_chunk_is_known_when_it_was_read_twice_and_is_in_memory(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cached, "chunks", frozenset({1, 2}))
    mapped = Mapping(fd, Live(SIZE))
    mapped.renew()
    mapped.read([1, 3])
    assert mapped.known == set() and mapped.view is None
    mapped.read([1, 2, 3])
    assert mapped.known == {1}
    assert mapped.view is not None and len(mapped.view) == SIZE
    assert by_the_kernel(mapped.view[CHUNK : CHUNK + 4096]) == os.pread(fd, 4096, CHUNK)


def test_what_is_written_is_in_it_at_once(fd: int) -> None:
    _, view = begun(fd, Live(SIZE))
    os.pwrite(fd, b"new" * 100, 1000)
    assert by_the_kernel(view[1000:1300]) == b"new" * 100


def test_nothing_is_known_for_long(fd: int, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    mapped, _ = begun(fd, Live(SIZE))
    clock[0] += 0.4
    mapped.renew()
    assert len(mapped.known) == SIZE // CHUNK
    clock[0] += 0.2
    monkeypatch.setattr(Cached, "chunks", frozenset({2}))
    mapped.renew()
    assert mapped.known == set()
    mapped.read([1, 2])
    assert mapped.known == {2}


def test_it_follows_the_size(fd: int, clock: list[float]) -> None:
    live = Live(SIZE)
    mapped, _ = begun(fd, live)
    os.ftruncate(fd, 2 * SIZE)
    live.size = 2 * SIZE
    last = 2 * SIZE // CHUNK - 1
    mapped.read([last, last])
    assert last not in mapped.known
    clock[0] += 1
    mapped.renew()
    assert mapped.view is None
    mapped.read([last, last])
    assert last in mapped.known
    assert mapped.view is not None and len(mapped.view) == 2 * SIZE


def test_a_chunk_that_is_not_whole_is_never_known(fd: int) -> None:
    mapped = Mapping(fd, Live(SIZE - 1))
    mapped.renew()
    mapped.read([SIZE // CHUNK - 1] * 2)
    assert mapped.known == set()


def test_what_was_cut_off_is_an_error_to_the_kernel(fd: int) -> None:
    _, view = begun(fd, Live(SIZE))
    os.ftruncate(fd, SIZE // 2)
    with pytest.raises(OSError, match="Bad address"):
        by_the_kernel(view[SIZE // 2 : SIZE // 2 + 4096])


def test_a_file_shorter_than_it_is_said_to_be_is_not_mapped(fd: int) -> None:
    mapped = Mapping(fd, Live(2 * SIZE))
    mapped.renew()
    mapped.read([0, 0])
    assert mapped.known == set() and mapped.view is None


def test_it_is_made_anew_before_its_tables_take_much_memory(
    fd: int, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped, first = begun(fd, Live(SIZE))
    clock[0] += 1
    mapped.renew()
    assert mapped.view is first
    monkeypatch.setattr(mapping, "_MOST_FAULTS", -1)
    clock[0] += 1
    mapped.renew()
    assert mapped.view is None


def test_what_is_remembered_of_a_large_disk_is_bounded(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "_MOST_CHUNKS", 3)
    mapped = Mapping(fd, Live(SIZE))
    mapped.renew()
    mapped.read([0, 1, 2, 3, 4] * 2)
    assert mapped.known == {0, 1, 2}


@pytest.mark.parametrize("name", FILE_SYSTEMS)
def test_only_file_systems_whose_pages_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    """On tmpfs, looking at a hole in a mapping takes memory."""
    with mounted(name, tmp_path) as directory, (directory / "disk").open("w+b") as file:
        file.write(os.urandom(SIZE))
        file.flush()
        tells = PageCache(file.fileno()).known
        mapped = Mapping(file.fileno(), Live(SIZE))
        mapped.renew()
        mapped.read([0, 0])
        assert (mapped.known == {0}) is (tells and name in ("ext4", "xfs", "btrfs"))
        mapped.view = None


def test_devices_are_not_mapped(tmp_path: Path) -> None:
    """Nobody could take old pages out of the cache any more."""
    backing = tmp_path / "backing"
    run("truncate", "--size", str(SIZE), backing)
    with loop_device(backing) as device:
        opened = os.open(device, os.O_RDWR)
        try:
            os.pread(opened, CHUNK, 0)
            mapped = Mapping(opened, Live(SIZE))
            mapped.renew()
            mapped.read([0, 0])
            assert mapped.known == set()
        finally:
            os.close(opened)
