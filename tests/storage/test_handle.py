"""Reading and writing through a handle: whole or an error, inside or across every boundary."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nbdresize.errors import InsufficientSpace, VolumeFailed
from nbdresize.storage.file import FilePool, FileVolume
from nbdresize.storage.handle import Handle
from nbdresize.storage.kinds import open_volume
from tests.filesystems import mounted, run
from tests.storage.conftest import DEVICE_SIZE, LoopDevice
from tests.wait import until

SIZE = 1 << 20


@pytest.fixture
def volume(tmp_path: Path) -> FileVolume:
    return FilePool(tmp_path).create("disk", SIZE)


@pytest.fixture
def handle(volume: FileVolume) -> Iterator[Handle]:
    with volume.open() as handle:
        yield handle


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (511, 2), (4095, 4098), (SIZE - 1, 1), (0, SIZE)])
@pytest.mark.parametrize("fua", [False, True])
def test_what_is_written_is_read_back_and_nothing_else_changes(
    handle: Handle, volume: FileVolume, offset: int, length: int, fua: bool
) -> None:
    data = os.urandom(length)
    handle.write(data, offset, fua=fua)
    expected = bytes(offset) + data + bytes(SIZE - offset - length)
    assert handle.read(SIZE, 0) == expected
    assert volume.path.read_bytes() == expected


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_of_bytes_is_written_and_filled(
    handle: Handle, kind: type[bytes] | type[bytearray] | type[memoryview]
) -> None:
    handle.write(kind(b"abcdefgh"), 4)
    buffer = bytearray(10)
    handle.read_into(memoryview(buffer)[1:9], 4)
    assert buffer == b"\0abcdefgh\0"
    handle.read_into(buffer, 3)
    assert buffer == b"\0abcdefgh\0"


def test_nothing_is_read_and_written_without_an_error(handle: Handle) -> None:
    assert handle.read(0, 100) == b""
    handle.read_into(bytearray(), 100)
    handle.write(b"", 100)
    handle.trim(100, 0)
    handle.zero(100, 0)
    handle.cache(100, 0)
    assert handle.extents(100, 0) == []


def test_a_read_past_the_end_fails_and_says_where_the_volume_ended(handle: Handle, volume: FileVolume) -> None:
    with pytest.raises(VolumeFailed, match=f"{volume.path} ended at {SIZE}, within a read of 20 bytes at {SIZE - 10}"):
        handle.read(20, SIZE - 10)
    with pytest.raises(VolumeFailed, match=f"ended at {SIZE + 5}"):
        handle.read_into(bytearray(1), SIZE + 5)


def _in_small_pieces(monkeypatch: pytest.MonkeyPatch, most: int = 1000) -> None:
    """Have the kernel transfer at most `most` bytes per call, as it may at any time."""
    pread, preadv, pwrite, pwritev = os.pread, os.preadv, os.pwrite, os.pwritev
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: pread(fd, min(length, most), offset))
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: preadv(fd, [memoryview(buffers[0])[:most]], offset))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, memoryview(data)[:most], offset))
    monkeypatch.setattr(
        os,
        "pwritev",
        lambda fd, buffers, offset, flags: pwritev(fd, [memoryview(buffers[0])[:most]], offset, flags),
    )


@pytest.mark.parametrize("fua", [False, True])
def test_short_reads_and_writes_are_completed(handle: Handle, monkeypatch: pytest.MonkeyPatch, fua: bool) -> None:
    data = os.urandom(12_345)
    with monkeypatch.context() as shortened:
        _in_small_pieces(shortened)
        handle.write(data, 77, fua=fua)
        assert handle.read(len(data), 77) == data
        buffer = bytearray(len(data))
        handle.read_into(buffer, 77)
        assert buffer == data
        handle.write(b"", 0)
    assert handle.read(len(data) + 200, 0) == bytes(77) + data + bytes(123)


def test_the_usual_request_is_one_system_call(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("pread", "preadv", "pwrite", "pwritev", "fdatasync", "fstat", "lseek"):

        def counted(*arguments: object, _name: str = name, _real: object = getattr(os, name)) -> object:
            calls.append(_name)
            assert callable(_real)
            return _real(*arguments)

        monkeypatch.setattr(os, name, counted)
    handle.read(4096, 0)
    handle.read_into(bytearray(4096), 0)
    handle.write(bytes(4096), 0)
    handle.write(bytes(4096), 0, fua=True)
    handle.flush()
    assert calls == ["pread", "preadv", "pwrite", "pwritev", "fdatasync"]


def test_write_through_works_where_the_kernel_has_no_flag_for_it(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    flushed: list[int] = []
    fdatasync = os.fdatasync

    def flush(fd: int) -> None:
        flushed.append(fd)
        fdatasync(fd)

    def refuse(*arguments: object) -> int:
        tried.append("pwritev")
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "pwritev", refuse)
    monkeypatch.setattr(os, "fdatasync", flush)
    for offset in (10, 20):
        handle.write(b"through", offset, fua=True)
    assert handle.read(17, 10) == b"through\0\0\0through"
    assert tried == ["pwritev"]
    assert flushed == [handle.fileno()] * 2


@pytest.mark.parametrize("fua", [False, True])
def test_trim_and_zero_with_fua_flush_after(handle: Handle, monkeypatch: pytest.MonkeyPatch, fua: bool) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fdatasync", flushed.append)
    handle.trim(0, 4096, fua=fua)
    handle.zero(0, 4096, fua=fua)
    assert len(flushed) == (2 if fua else 0)


def test_size_is_looked_at_each_time(handle: Handle, volume: FileVolume) -> None:
    assert handle.size() == SIZE
    volume.grow(2 * SIZE)
    assert handle.size() == 2 * SIZE
    assert handle.read(10, 2 * SIZE - 10) == bytes(10)


def test_read_ahead_takes_any_range(handle: Handle) -> None:
    for offset, length in ((0, 1), (5, SIZE), (SIZE, SIZE)):
        handle.cache(offset, length)


def test_read_ahead_brings_the_range_into_the_page_cache(tmp_path: Path) -> None:
    with mounted("ext4", tmp_path) as path, FilePool(path).create("disk", SIZE).open() as handle:

        def cached() -> int:
            return int(run("fincore", "--bytes", "--noheadings", "--output", "RES", handle.path))

        def dropped() -> bool:
            os.posix_fadvise(handle.fileno(), 0, SIZE, os.POSIX_FADV_DONTNEED)
            return cached() == 0

        handle.write(os.urandom(SIZE), 0)
        handle.flush()
        until(dropped, what="the page cache to be dropped")
        handle.cache(0, 0)  # which to the kernel would mean everything
        assert cached() == 0
        handle.cache(256 << 10, 128 << 10)
        until(lambda: cached() >= 128 << 10, what="the range to be read ahead")


def test_a_handle_for_reading_does_not_write(volume: FileVolume) -> None:
    with volume.open(read_only=True) as handle:
        assert handle.read_only
        assert handle.read(3, 0) == bytes(3)
        handle.flush()
        attempts: list[Callable[[], None]] = [
            lambda: handle.write(b"x", 0),
            lambda: handle.write(b"x", 0, fua=True),
            lambda: handle.trim(0, 4096),
            lambda: handle.zero(0, 4096),
        ]
        for attempt in attempts:
            with pytest.raises(VolumeFailed, match="open it for writing"):
                attempt()
    assert volume.path.read_bytes() == bytes(SIZE)


def test_a_closed_handle_fails_and_leaves_whoever_has_its_descriptor_alone(tmp_path: Path, volume: FileVolume) -> None:
    handle = volume.open()
    number = handle.fileno()
    handle.close()
    handle.close()
    assert handle.fileno() == -1
    other = tmp_path / "other"
    other.write_bytes(b"precious")
    with other.open("r+b") as file:
        if number != file.fileno():
            os.dup2(file.fileno(), number, inheritable=False)
        attempts: list[Callable[[], object]] = [
            handle.size,
            handle.flush,
            lambda: handle.read(1, 0),
            lambda: handle.read_into(bytearray(1), 0),
            lambda: handle.write(b"x", 0),
            lambda: handle.write(b"x", 0, fua=True),
            lambda: handle.trim(0, 8),
            lambda: handle.zero(0, 8),
            lambda: handle.extents(0, 8),
            lambda: handle.cache(0, 8),
        ]
        for attempt in attempts:
            with pytest.raises(VolumeFailed, match="Bad file descriptor"):
                attempt()
        if number != file.fileno():
            os.close(number)
    assert other.read_bytes() == b"precious"


def test_a_descriptor_does_not_reach_child_processes(handle: Handle) -> None:
    assert not os.get_inheritable(handle.fileno())


class TestOnDevices:
    @pytest.mark.parametrize("fua", [False, True])
    def test_any_range_is_written_and_read_back(self, device: LoopDevice, fua: bool) -> None:
        expected = bytearray(DEVICE_SIZE)
        with open_volume(device.path).open() as handle:
            assert handle.block_size == device.sector_size
            assert handle.size() == DEVICE_SIZE
            for offset, length in ((0, 1), (511, 2), (4095, 8195), (DEVICE_SIZE - 1, 1)):
                data = os.urandom(length)
                handle.write(data, offset, fua=fua)
                expected[offset : offset + length] = data
            assert handle.read(DEVICE_SIZE, 0) == expected
            handle.flush()
        assert device.backing.read_bytes() == expected

    def test_past_the_end_nothing_is_read_or_written(self, device: LoopDevice) -> None:
        with open_volume(device.path).open() as handle:
            with pytest.raises(VolumeFailed, match=f"ended at {DEVICE_SIZE}"):
                handle.read(2, DEVICE_SIZE - 1)
            with pytest.raises(InsufficientSpace):
                handle.write(b"xy", DEVICE_SIZE - 1)
            with pytest.raises(InsufficientSpace):
                handle.write(b"xy", DEVICE_SIZE - 1, fua=True)


def test_a_file_with_blocks_for_all_of_it_is_not_searched_for_holes(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle.write(os.urandom(SIZE), 0)
    handle.flush()
    monkeypatch.delattr(os, "lseek")  # on tmpfs, it looks at every page
    assert handle.holds_only_data(0, SIZE)
