"""The `@size` control export: what lies where, who may ask for what, and the read that waits for news."""

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from nbdresize.control.model import ClientResize
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
from nbdresize.export.size_device import SizeDevice
from nbdresize.protocol.constants import NBD_CMD_FLAG_FIT, NBD_CMD_FLAG_QUERY, NBD_CMD_FLAG_SHRINK
from nbdresize.protocol.size_record import SizeRecord, SizeWish, parse_record
from tests.wait import until

SIZE = 10_000
LARGEST = 100_000
LONG = 60.0
WAITING = 1024


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def backing(path: Path) -> FileBacking:
    return FileBacking(path, ClientResize.ALL, LARGEST)


@pytest.fixture
def device(backing: FileBacking) -> SizeDevice:
    return SizeDevice(backing)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def record(device: SizeDevice, offset: int = 0) -> SizeRecord:
    return parse_record(device.read(64, offset))


def ask(device: SizeDevice, size: int, flags: int = 0) -> None:
    device.write(SizeWish(size, flags).pack(), 512)


def begin_waiting(threads: ThreadPoolExecutor, device: SizeDevice) -> Future[SizeRecord]:
    """A waiting read that really waits: this connection has read the present generation."""
    record(device)
    waiting = threads.submit(record, device, WAITING)
    until(lambda: device.waiting, LONG, "the read to wait")
    return waiting


def test_the_record_lies_at_0_and_at_1024_and_everything_else_is_zero(device: SizeDevice, backing: FileBacking) -> None:
    packed = backing.record().pack()
    assert device.read(4096, 0) == packed + bytes(960) + packed + bytes(4096 - 1088)
    assert device.read(448, 64) == bytes(448)
    assert device.read(64, 512) == bytes(64)
    assert device.read(960, 64) == bytes(960)
    assert device.read(4096 - 1088, 1088) == bytes(4096 - 1088)


def test_any_piece_of_the_record_can_be_read(device: SizeDevice, backing: FileBacking) -> None:
    packed = backing.record().pack()
    for offset in range(64):
        assert device.read(1, offset) == packed[offset : offset + 1]
    buffer = bytearray(16)
    device.read_into(buffer, 8)
    assert buffer == packed[8:24]
    assert device.read(0, 0) == b""
    assert device.read(0, 4096) == b""


@pytest.mark.parametrize(
    ("length", "offset"), [(1, 4096), (4097, 0), (2, 4095), (1, -1), (-1, 1), (0, 4097), (1, 2**64 - 1), (2**64, 0)]
)
def test_outside_of_it_there_is_nothing_to_read(device: SizeDevice, length: int, offset: int) -> None:
    with pytest.raises(InvalidArgument):
        device.read(length, offset)


def test_a_read_of_the_record_is_fresh_after_a_change_that_nobody_told_of(device: SizeDevice, path: Path) -> None:
    assert record(device).size == SIZE
    os.truncate(path, 20_000)
    assert (record(device).size, record(device).generation) == (20_000, 2)


def test_a_request_resizes_and_the_record_tells(device: SizeDevice, path: Path) -> None:
    ask(device, 12_345)
    assert path.stat().st_size == record(device).size == 12_345
    ask(device, 100, NBD_CMD_FLAG_SHRINK)
    assert path.stat().st_size == record(device).size == 100
    ask(device, 2**64 - 1, NBD_CMD_FLAG_FIT)
    assert path.stat().st_size == record(device).size == LARGEST
    assert record(device).generation == 4


def test_a_query_and_the_present_size_change_nothing(device: SizeDevice) -> None:
    before = record(device)
    ask(device, 5, NBD_CMD_FLAG_QUERY | NBD_CMD_FLAG_SHRINK)
    ask(device, SIZE)
    assert record(device) == before


@pytest.mark.parametrize(
    ("length", "offset"), [(64, 0), (64, 1024), (64, 511), (64, 513), (63, 512), (65, 512), (0, 512), (4096, 0), (1, 9)]
)
def test_only_a_whole_request_in_its_place_can_be_written(
    device: SizeDevice, path: Path, length: int, offset: int
) -> None:
    data = SizeWish(20_000).pack().ljust(4096, b"\0")[:length]
    with pytest.raises(InvalidArgument) as error:
        device.write(data, offset)
    assert error.value.nbd_errno == errno.EINVAL
    assert path.stat().st_size == SIZE


def test_a_request_in_any_kind_of_buffer(device: SizeDevice) -> None:
    device.write(memoryview(SizeWish(11_000).pack()), 512, fua=True)
    device.write(bytearray(SizeWish(12_000).pack()), 512)
    device.flush()
    assert record(device).size == 12_000


@pytest.mark.parametrize(
    ("policy", "read_only", "size", "flags", "expected"),
    [
        (ClientResize.OFF, True, 0, 0, errno.EINVAL),
        (ClientResize.OFF, False, 2**64 - 1, NBD_CMD_FLAG_SHRINK, errno.EINVAL),
        (ClientResize.ALL, True, 20_000, 1 << 6, errno.EINVAL),
        (ClientResize.OFF, False, LARGEST * 2, 0, errno.EPERM),
        (ClientResize.ALL, True, LARGEST * 2, 0, errno.EPERM),
        (ClientResize.ALL, True, SIZE, 0, errno.EPERM),
        (ClientResize.ALL, False, SIZE - 1, NBD_CMD_FLAG_FIT, errno.EPERM),
        (ClientResize.GROW, False, SIZE - 1, NBD_CMD_FLAG_SHRINK, errno.EPERM),
        (ClientResize.ALL, False, LARGEST + 1, 0, errno.ENOSPC),
        (ClientResize.GROW, False, 2**64 - 2, NBD_CMD_FLAG_SHRINK, errno.ENOSPC),
    ],
)
def test_of_several_reasons_to_refuse_the_first_is_told(
    path: Path, policy: ClientResize, read_only: bool, size: int, flags: int, expected: int
) -> None:
    device = SizeDevice(FileBacking(path, policy, LARGEST), read_only=read_only)
    with pytest.raises(NbdresizeError) as error:
        ask(device, size, flags)
    assert error.value.nbd_errno == expected
    assert path.stat().st_size == SIZE


def test_a_read_only_connection_looks_and_may_not_touch(backing: FileBacking) -> None:
    device = SizeDevice(backing, read_only=True)
    seen = record(device)
    assert (seen.minimum, seen.features) == (SIZE, 2)
    ask(device, 0, NBD_CMD_FLAG_QUERY)
    with pytest.raises(NotAuthorized):
        ask(device, SIZE + 1)


def test_looking_at_the_size_is_not_using_the_disk(backing: FileBacking, device: SizeDevice, path: Path) -> None:
    disk = DiskExport(backing)
    with pytest.raises(ResourceInUse):
        ask(device, 100, NBD_CMD_FLAG_SHRINK)
    disk.close()
    other = SizeDevice(backing)
    ask(device, 100, NBD_CMD_FLAG_SHRINK)
    assert record(other).size == path.stat().st_size == 100


def test_a_disk_that_is_gone_is_an_input_output_error(device: SizeDevice, path: Path) -> None:
    path.unlink()
    with pytest.raises(VolumeFailed):
        record(device)
    with pytest.raises(VolumeFailed):
        record(device, WAITING)
    with pytest.raises(VolumeFailed):
        ask(device, 20_000)
    assert device.read(100, 100) == bytes(100)


def test_a_full_file_system_or_budget_is_no_space(device: SizeDevice) -> None:
    with pytest.raises(InsufficientSpace):
        ask(device, LARGEST + 1)


# The waiting read


def test_the_first_waiting_read_of_a_connection_is_answered_at_once(device: SizeDevice) -> None:
    assert record(device, WAITING).generation == 1


def test_a_waiting_read_ends_with_the_next_change(
    device: SizeDevice, backing: FileBacking, threads: ThreadPoolExecutor
) -> None:
    waiting = begin_waiting(threads, device)
    backing.resize(12_000, 0)
    assert waiting.result(LONG).size == 12_000
    again = begin_waiting(threads, device)
    backing.resize(13_000, 0)
    assert (again.result(LONG).size, again.result().generation) == (13_000, 3)


@pytest.mark.parametrize(("length", "offset"), [(1, 1024), (1, 1087), (4096, 0), (961, 64), (2, 1023), (2, 1087)])
def test_whatever_touches_the_second_record_waits(
    device: SizeDevice, backing: FileBacking, threads: ThreadPoolExecutor, length: int, offset: int
) -> None:
    record(device)
    waiting = threads.submit(device.read, length, offset)
    until(lambda: device.waiting, LONG, "the read to wait")
    backing.resize(12_000, 0)
    expected = backing.record().pack() + bytes(960) + backing.record().pack() + bytes(4096 - 1088)
    assert waiting.result(LONG) == expected[offset : offset + length]


def test_a_change_between_two_reads_is_news_to_the_second(device: SizeDevice, backing: FileBacking) -> None:
    assert record(device, WAITING).generation == 1
    backing.resize(12_000, 0)
    assert record(device, WAITING).generation == 2


def test_what_is_news_is_told_by_connection(backing: FileBacking, threads: ThreadPoolExecutor) -> None:
    first, second = SizeDevice(backing), SizeDevice(backing)
    record(first)
    backing.resize(12_000, 0)
    record(second)
    assert record(first, WAITING).generation == 2
    waiting = begin_waiting(threads, second)
    backing.resize(13_000, 0)
    assert waiting.result(LONG).generation == 3


def test_a_change_that_nobody_told_of_ends_the_wait_too(
    device: SizeDevice, path: Path, threads: ThreadPoolExecutor
) -> None:
    waiting = begin_waiting(threads, device)
    os.truncate(path, 20_000)
    assert waiting.result(LONG).size == 20_000


def test_a_waiting_read_without_news_is_answered_in_the_end(backing: FileBacking) -> None:
    device = SizeDevice(backing, patience=0.05)
    assert record(device).generation == 1
    assert record(device, WAITING).generation == 1


def test_a_waiting_read_ends_with_its_connection(backing: FileBacking, threads: ThreadPoolExecutor) -> None:
    gone = threading.Event()
    device = SizeDevice(backing, alive=lambda: not gone.is_set())
    waiting = begin_waiting(threads, device)
    gone.set()
    assert waiting.result(LONG).generation == 1


def test_a_waiting_read_ends_when_its_export_is_closed(device: SizeDevice, threads: ThreadPoolExecutor) -> None:
    waiting = begin_waiting(threads, device)
    device.close()
    assert waiting.result(LONG).generation == 1
    assert record(device, WAITING).generation == 1, "later ones don't wait"


def test_a_waiting_read_ends_where_the_disk_has_gone(
    device: SizeDevice, path: Path, threads: ThreadPoolExecutor
) -> None:
    waiting = begin_waiting(threads, device)
    path.unlink()
    with pytest.raises(VolumeFailed):
        waiting.result(LONG)


def test_many_wait_and_all_are_told(backing: FileBacking, threads: ThreadPoolExecutor) -> None:
    waits = [begin_waiting(threads, SizeDevice(backing)) for _ in range(6)]
    ask(SizeDevice(backing), 12_000)
    assert {waiting.result(LONG).size for waiting in waits} == {12_000}
