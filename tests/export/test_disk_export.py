"""A connection's requests, checked against a size that changes: on a real file, with real locks."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nbdresize.control.model import Cause, ClientResize
from nbdresize.errors import (
    InsufficientSpace,
    InvalidArgument,
    NbdresizeError,
    NotAuthorized,
    ResourceInUse,
    VolumeFailed,
)
from nbdresize.export.disk_export import DiskExport
from nbdresize.export.file_backing import FileBacking
from nbdresize.protocol.constants import NBD_CMD_FLAG_QUERY, NBD_CMD_FLAG_SHRINK
from nbdresize.storage.handle import Extent
from tests.wait import until

KIB = 1024
SIZE = 64 * KIB
LONG = 60.0
HOSTILE = [2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 1, 2**70]

Request = Callable[[DiskExport, int, int], object]
READING: dict[str, Request] = {
    "read": lambda disk, length, offset: disk.read(length, offset),
    "read_into": lambda disk, length, offset: disk.read_into(bytearray(length), offset),
    "cache": lambda disk, length, offset: disk.cache(length, offset),
    "extents": lambda disk, length, offset: disk.extents(length, offset),
}
WRITING: dict[str, Request] = {
    "write": lambda disk, length, offset: disk.write(bytes(length), offset),
    "zero": lambda disk, length, offset: disk.zero(length, offset),
}
TRIMMING: dict[str, Request] = {"trim": lambda disk, length, offset: disk.trim(length, offset)}
ALL = READING | WRITING | TRIMMING


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def backing(path: Path) -> FileBacking:
    return FileBacking(path, ClientResize.ALL, 1024 * KIB)


@pytest.fixture
def disk(backing: FileBacking) -> Iterator[DiskExport]:
    export = DiskExport(backing)
    yield export
    export.close()


def test_what_is_written_is_read_back(disk: DiskExport, path: Path) -> None:
    data = os.urandom(3000)
    disk.write(data, 1234, fua=True)
    buffer = bytearray(3000)
    disk.read_into(buffer, 1234)
    assert disk.read(3000, 1234) == data == bytes(buffer) == path.read_bytes()[1234:4234]
    disk.zero(1000, 1234)
    disk.trim(SIZE - 8192, 8192)
    disk.cache(SIZE, 0)
    disk.flush()
    assert disk.read(1000, 1234) == bytes(1000)
    assert disk.extents(SIZE, 0) == [Extent(8192, hole=False, zero=False), Extent(SIZE - 8192, hole=True, zero=True)]
    assert path.stat().st_size == SIZE


def test_requests_and_bytes_are_counted(disk: DiskExport) -> None:
    disk.read(100, 0)
    disk.read_into(bytearray(20), 0)
    disk.write(b"123", 5)
    disk.flush()
    with pytest.raises(InvalidArgument):
        disk.read(1, SIZE)
    assert (disk.requests, disk.bytes_read, disk.bytes_written) == (4, 120, 3)


@pytest.mark.parametrize("request_", ALL.values(), ids=ALL)
def test_requests_up_to_the_last_byte_pass(disk: DiskExport, request_: Request) -> None:
    request_(disk, SIZE, 0)
    request_(disk, 1, SIZE - 1)
    request_(disk, 0, SIZE)


@pytest.mark.parametrize("offset", [SIZE, SIZE - 1, *HOSTILE])
@pytest.mark.parametrize("request_", (READING | TRIMMING).values(), ids=READING | TRIMMING)
def test_what_was_never_there_can_not_be_read_nor_trimmed(disk: DiskExport, request_: Request, offset: int) -> None:
    with pytest.raises(InvalidArgument) as error:
        request_(disk, 2, offset)
    assert error.value.nbd_errno == errno.EINVAL


@pytest.mark.parametrize("offset", [SIZE, SIZE - 1, *HOSTILE])
@pytest.mark.parametrize("request_", WRITING.values(), ids=WRITING)
def test_there_is_no_space_for_a_write_past_the_end(
    disk: DiskExport, path: Path, request_: Request, offset: int
) -> None:
    before = path.read_bytes()
    with pytest.raises(InsufficientSpace) as error:
        request_(disk, 2, offset)
    assert error.value.nbd_errno == errno.ENOSPC
    assert path.read_bytes() == before


@pytest.mark.parametrize("length", HOSTILE)
def test_a_length_past_everything_is_refused(disk: DiskExport, path: Path, length: int) -> None:
    for name in ("trim", "cache", "extents"):
        with pytest.raises(InvalidArgument):
            ALL[name](disk, length, 1)
    with pytest.raises(InsufficientSpace):
        disk.zero(length, 1)
    assert path.stat().st_size == SIZE


@pytest.mark.parametrize(("length", "offset"), [(1, -1), (-1, 1), (-1, -1)])
def test_nothing_negative_passes(disk: DiskExport, length: int, offset: int) -> None:
    for name in ("trim", "cache", "extents", "zero"):
        with pytest.raises(InvalidArgument, match="negative"):
            ALL[name](disk, length, offset)


@pytest.mark.parametrize("request_", ALL.values(), ids=ALL)
def test_a_grow_that_nobody_told_of_is_seen_by_the_first_request_that_needs_it(
    disk: DiskExport, path: Path, request_: Request
) -> None:
    os.truncate(path, 2 * SIZE)
    assert disk.size == SIZE
    request_(disk, SIZE, SIZE)
    assert disk.size == 2 * SIZE
    assert disk.read(SIZE, SIZE) == bytes(SIZE)


@pytest.mark.parametrize("request_", ALL.values(), ids=ALL)
def test_a_shrunken_away_range_has_no_space_for_anything(disk: DiskExport, path: Path, request_: Request) -> None:
    disk.resize(SIZE // 2, NBD_CMD_FLAG_SHRINK)
    for offset in (SIZE // 2, SIZE // 2 - 1, SIZE - 2):
        with pytest.raises(InsufficientSpace) as error:
            request_(disk, 2, offset)
        assert error.value.nbd_errno == errno.ENOSPC
    assert path.stat().st_size == SIZE // 2
    request_(disk, 2, SIZE // 2 - 2)


def test_past_the_largest_size_ever_seen_nothing_was_shrunk_away(disk: DiskExport) -> None:
    disk.resize(SIZE * 2, 0)
    disk.resize(SIZE, NBD_CMD_FLAG_SHRINK)
    with pytest.raises(InsufficientSpace):
        disk.read(1, SIZE * 2 - 1)
    with pytest.raises(InvalidArgument):
        disk.read(1, SIZE * 2)


def test_a_connection_that_came_after_a_shrink_never_saw_what_was_cut_off(backing: FileBacking) -> None:
    first = DiskExport(backing)
    first.resize(SIZE // 2, NBD_CMD_FLAG_SHRINK)
    second = DiskExport(backing)
    for disk, expected in ((first, InsufficientSpace), (second, InvalidArgument)):
        with pytest.raises(expected):
            disk.read(1, SIZE // 2)
        disk.close()


def test_a_file_cut_behind_our_back_has_no_space_either(disk: DiskExport, path: Path) -> None:
    os.truncate(path, SIZE // 2)
    with pytest.raises(InsufficientSpace):
        disk.read(4096, SIZE // 2)
    assert disk.size == SIZE // 2
    with pytest.raises(InsufficientSpace):
        disk.write(b"x", SIZE // 2)
    assert path.stat().st_size == SIZE // 2


def test_grown_bytes_read_as_zeroes_also_after_a_shrink(disk: DiskExport) -> None:
    disk.write(b"\xff" * SIZE, 0)
    disk.resize(4096, NBD_CMD_FLAG_SHRINK)
    disk.resize(SIZE, 0)
    assert disk.read(SIZE, 0) == b"\xff" * 4096 + bytes(SIZE - 4096)


def test_a_read_only_export_reads_and_changes_nothing(backing: FileBacking, path: Path) -> None:
    before = path.read_bytes()
    disk = DiskExport(backing, read_only=True)
    assert disk.read(SIZE, 0) == before
    disk.extents(SIZE, 0)
    disk.cache(SIZE, 0)
    disk.flush()
    refused: list[Callable[[], object]] = [
        lambda: disk.write(b"x", 0),
        lambda: disk.write(b"x", SIZE * 9),
        lambda: disk.zero(1, 0),
        lambda: disk.trim(1, 0),
        lambda: disk.resize(SIZE * 2, 0),
        lambda: disk.resize(SIZE, 0),
        lambda: disk.resize(4096, NBD_CMD_FLAG_SHRINK),
    ]
    for change in refused:
        with pytest.raises(NotAuthorized) as error:
            change()
        assert error.value.nbd_errno == errno.EPERM
    assert disk.resize(0, NBD_CMD_FLAG_QUERY).cause is Cause.QUERY
    disk.close()
    assert path.read_bytes() == before


def test_a_file_that_may_not_be_written_is_served_read_only(path: Path) -> None:
    path.chmod(0o400)
    disk = DiskExport(FileBacking(path, ClientResize.GROW), read_only=True)
    assert len(disk.read(SIZE, 0)) == SIZE
    disk.close()


def test_closing_gives_the_lease_and_the_descriptors_back(backing: FileBacking, path: Path) -> None:
    def ours() -> int:
        return sum(_leads_to(link, path) for link in Path("/proc/self/fd").iterdir())

    disk = DiskExport(backing)
    assert ours() == 2
    with pytest.raises(ResourceInUse):
        backing.resize(4096, NBD_CMD_FLAG_SHRINK)
    disk.close()
    disk.close()
    assert ours() == 0
    assert backing.resize(4096, NBD_CMD_FLAG_SHRINK).size == 4096


def _leads_to(link: Path, path: Path) -> bool:
    """Whether a link of /proc/self/fd does; another thread may close its descriptor meanwhile."""
    try:
        return link.readlink() == path
    except FileNotFoundError:
        return False


def test_an_export_that_could_not_be_opened_holds_no_lease(backing: FileBacking, path: Path, tmp_path: Path) -> None:
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(VolumeFailed):
        DiskExport(backing)
    (tmp_path / "elsewhere").rename(path)
    assert backing.resize(4096, NBD_CMD_FLAG_SHRINK).size == 4096


def test_only_the_sole_connection_may_shrink(backing: FileBacking, path: Path) -> None:
    first, second = DiskExport(backing), DiskExport(backing)
    for disk in (first, second):
        with pytest.raises(ResourceInUse) as error:
            disk.resize(4096, NBD_CMD_FLAG_SHRINK)
        assert error.value.nbd_errno == errno.EPERM
    assert path.stat().st_size == SIZE
    assert len(first.read(SIZE, 0)) == SIZE
    second.close()
    assert first.resize(4096, NBD_CMD_FLAG_SHRINK).size == 4096
    assert first.resize(SIZE, NBD_CMD_FLAG_SHRINK).size == SIZE
    third = DiskExport(backing)
    with pytest.raises(ResourceInUse):
        first.resize(4096, NBD_CMD_FLAG_SHRINK)
    third.close()
    first.close()


def test_every_connection_sees_a_grow_by_one_of_them(backing: FileBacking) -> None:
    first, second = DiskExport(backing), DiskExport(backing)
    first.resize(SIZE * 2, 0)
    assert second.size == SIZE * 2
    second.write(b"x", SIZE * 2 - 1)
    assert first.read(1, SIZE * 2 - 1) == b"x"
    first.close()
    second.close()


class SlowHandle:
    """Stands before a connection's handle, and holds every write up until it is let go."""

    def __init__(self, disk: DiskExport) -> None:
        self._handle = disk.handle
        self.begun = threading.Event()
        self.go = threading.Event()
        self.order: list[str] = []

    def write(self, data: bytes, offset: int, *, fua: bool = False) -> None:
        self.begun.set()
        assert self.go.wait(LONG)
        self._handle.write(data, offset, fua=fua)
        self.order.append("written")

    def __getattr__(self, name: str) -> object:
        return getattr(self._handle, name)


def test_a_shrink_waits_for_the_write_in_flight_and_then_truncates(
    disk: DiskExport, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowHandle(disk)
    monkeypatch.setattr(disk, "_handle", slow)

    def shrink() -> None:
        disk.resize(4096, NBD_CMD_FLAG_SHRINK)
        slow.order.append("shrunk")

    with ThreadPoolExecutor(2) as threads:
        write = threads.submit(disk.write, b"x" * 4096, SIZE - 4096)
        assert slow.begun.wait(LONG)
        cut = threads.submit(shrink)
        try:
            until(lambda: disk._gate._closed, LONG, "the shrink to close the gate")
            assert path.stat().st_size == SIZE
        finally:
            slow.go.set()
        write.result(LONG)
        cut.result(LONG)
    assert slow.order == ["written", "shrunk"]
    assert path.stat().st_size == 4096
    with pytest.raises(InsufficientSpace):
        disk.write(b"x" * 4096, SIZE - 4096)


def test_a_write_that_waits_for_a_shrink_is_checked_against_the_new_size(
    disk: DiskExport, backing: FileBacking, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of a shrink: nothing inside, then published, then truncated; a write in between hears of it."""
    truncating = threading.Event()
    go = threading.Event()
    shrink = backing.volume.shrink

    def slow_shrink(size: int) -> None:
        assert disk.size == 4096, "published before it is truncated"
        assert path.stat().st_size == SIZE
        truncating.set()
        assert go.wait(LONG)
        shrink(size)

    monkeypatch.setattr(backing.volume, "shrink", slow_shrink)
    with ThreadPoolExecutor(2) as threads:
        cut = threads.submit(disk.resize, 4096, NBD_CMD_FLAG_SHRINK)
        assert truncating.wait(LONG)
        write = threads.submit(disk.write, b"x" * 4096, SIZE - 4096)
        look = threads.submit(backing.refresh)
        go.set()
        assert cut.result(LONG).size == 4096
        with pytest.raises(InsufficientSpace):
            write.result(LONG)
        look.result(LONG)
    assert backing.live.generation == 2, "a look during the shrink did not bring the old size back"
    assert path.stat().st_size == 4096


def test_a_failed_shrink_leaves_the_size_as_it_was(
    disk: DiskExport, backing: FileBacking, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(size: int) -> None:
        raise VolumeFailed("The file system has had enough")

    monkeypatch.setattr(backing.volume, "shrink", broken)
    with pytest.raises(VolumeFailed, match="enough"):
        disk.resize(4096, NBD_CMD_FLAG_SHRINK)
    assert disk.size == SIZE
    assert len(disk.read(SIZE, 0)) == SIZE
    second = DiskExport(backing)  # the lease is shared again
    second.close()


def test_no_write_ever_makes_a_file_longer_that_is_shrunk_and_grown_all_the_time(disk: DiskExport, path: Path) -> None:
    """Writers in threads of one connection; after each shrink the file has exactly the size that was asked for."""
    stop = threading.Event()
    outcomes: list[set[str]] = [set() for _ in range(3)]

    def write(number: int) -> None:
        data = bytes([number + 1]) * 4096
        ways: list[Callable[[int], None]] = [
            lambda offset: disk.write(data, offset),
            lambda offset: disk.zero(4096, offset, may_trim=False),
            lambda offset: disk.trim(4096, offset),
        ]
        while not stop.is_set():
            for offset in range(0, SIZE, 4096):
                try:
                    ways[number](offset)
                    outcomes[number].add("done")
                except NbdresizeError as error:
                    assert isinstance(error, InsufficientSpace), error
                    outcomes[number].add("refused")

    with ThreadPoolExecutor(3) as threads:
        writers = [threads.submit(write, number) for number in range(3)]
        try:
            for turn in range(150):
                size = 4096 * (1 + turn % 5)
                disk.resize(size, NBD_CMD_FLAG_SHRINK)
                assert path.stat().st_size == size
                assert disk.size == size
                if turn % 10 == 0:
                    until(lambda: all(len(seen) == 2 for seen in outcomes), LONG, "writes inside and outside")
                    assert path.stat().st_size == size
                disk.resize(SIZE, 0)
        finally:
            stop.set()
        for writer in writers:
            writer.result(LONG)
    assert path.stat().st_size == SIZE


def test_a_connection_whose_lease_was_lost_answers_nothing_any_more(
    disk: DiskExport, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(size: int, flags: int, *, lease: object, wanted: object) -> None:
        disk._lease.release()
        raise VolumeFailed("The lease was lost to another change")

    monkeypatch.setattr(disk.backing, "resize", lose)
    with pytest.raises(VolumeFailed):
        disk.resize(4096, NBD_CMD_FLAG_SHRINK)
    for request in ALL.values():
        with pytest.raises(VolumeFailed, match="connect again"):
            request(disk, 1, 0)
    assert path.stat().st_size == SIZE
