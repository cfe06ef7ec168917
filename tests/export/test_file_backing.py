"""A single file or device that clients resize: no ledger, real files, real locks, several servers of one file."""

import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nbdresize.control.model import Cause, ClientResize
from nbdresize.errors import InsufficientSpace, InvalidArgument, NotAuthorized, ResourceInUse, VolumeFailed
from nbdresize.export.backing import Resized
from nbdresize.export.disk_export import DiskExport
from nbdresize.export.file_backing import FileBacking
from nbdresize.export.file_lease import FileLease, changing_size
from nbdresize.protocol.constants import NBD_CMD_FLAG_FIT, NBD_CMD_FLAG_NOTIFY, NBD_CMD_FLAG_QUERY, NBD_CMD_FLAG_SHRINK
from nbdresize.protocol.size_record import FEATURE_NOTIFY, FEATURE_SHRINK, SizeRecord
from tests.filesystems import loop_device, notice_growth

SIZE = 10_000
LARGEST = 100_000
EVERYTHING = 2**64 - 1
SHRINK = NBD_CMD_FLAG_SHRINK
FIT = NBD_CMD_FLAG_FIT
LONG = 60.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def backing(path: Path) -> FileBacking:
    return FileBacking(path, ClientResize.ALL, LARGEST)


def test_a_file_grows_by_any_number_of_bytes_and_reads_as_zeroes_there(backing: FileBacking, path: Path) -> None:
    before = path.read_bytes()
    assert backing.resize(12_345, 0) == Resized(12_345, 2, Cause.AS_REQUESTED)
    assert path.read_bytes() == before + bytes(2_345)


@pytest.mark.parametrize("flags", [0, SHRINK, FIT, SHRINK | FIT])
def test_the_present_size_changes_nothing_though_it_is_no_multiple_of_anything(
    backing: FileBacking, flags: int
) -> None:
    assert backing.resize(SIZE, flags) == Resized(SIZE, 1, Cause.AS_REQUESTED)


def test_up_to_max_size_and_not_a_byte_more(backing: FileBacking, path: Path) -> None:
    with pytest.raises(InsufficientSpace, match="--max-size is"):
        backing.resize(LARGEST + 1, 0)
    assert path.stat().st_size == SIZE
    assert backing.resize(LARGEST, 0).size == LARGEST


@pytest.mark.parametrize("size", [LARGEST + 1, 2**63, 2**64 - 2, EVERYTHING])
def test_fit_grows_as_far_as_max_size_reaches(backing: FileBacking, path: Path, size: int) -> None:
    assert backing.resize(size, FIT) == Resized(LARGEST, 2, Cause.FITTED)
    assert path.stat().st_size == LARGEST
    assert backing.resize(size, FIT) == Resized(LARGEST, 2, Cause.FITTED)


@pytest.mark.parametrize("size", [2**63 - 4096, 2**63, 2**64 - 2])
def test_absurd_sizes_are_more_space_than_there_is(backing: FileBacking, path: Path, size: int) -> None:
    with pytest.raises(InsufficientSpace) as error:
        backing.resize(size, 0)
    assert error.value.nbd_errno == errno.ENOSPC
    assert path.stat().st_size == SIZE


@pytest.mark.parametrize(
    ("size", "flags"),
    [(0, 0), (0, SHRINK), (0, FIT), (EVERYTHING, 0), (EVERYTHING, SHRINK), (SIZE, 1), (SIZE, NBD_CMD_FLAG_NOTIFY)],
)
@pytest.mark.parametrize("policy", list(ClientResize))
def test_what_makes_no_sense_is_invalid_whatever_is_allowed(
    path: Path, policy: ClientResize, size: int, flags: int
) -> None:
    with pytest.raises(InvalidArgument) as error:
        FileBacking(path, policy, LARGEST).resize(size, flags)
    assert error.value.nbd_errno == errno.EINVAL


@pytest.mark.parametrize("policy", list(ClientResize))
def test_a_query_changes_nothing_and_is_always_allowed(path: Path, policy: ClientResize) -> None:
    backing = FileBacking(path, policy, LARGEST)
    for size in (0, 1, LARGEST, EVERYTHING):
        assert backing.resize(size, NBD_CMD_FLAG_QUERY) == Resized(SIZE, 1, Cause.QUERY)


@pytest.mark.parametrize("size", [1, SIZE, LARGEST, LARGEST * 2])
def test_where_clients_may_not_resize_every_change_is_refused(path: Path, size: int) -> None:
    with pytest.raises(NotAuthorized, match="--client-resize") as error:
        FileBacking(path, ClientResize.OFF, LARGEST).resize(size, SHRINK | FIT)
    assert error.value.nbd_errno == errno.EPERM


def test_without_max_size_a_client_may_not_grow(path: Path) -> None:
    backing = FileBacking(path, ClientResize.ALL)
    for flags in (0, FIT):
        with pytest.raises(NotAuthorized, match="--max-size"):
            backing.resize(SIZE + 1, flags)
    assert backing.maximum() == SIZE
    assert backing.resize(100, SHRINK).size == 100


def test_a_smaller_size_takes_the_flag_and_the_policy(path: Path, backing: FileBacking) -> None:
    for flags in (0, FIT):
        with pytest.raises(NotAuthorized, match="SHRINK"):
            backing.resize(SIZE - 1, flags)
    with pytest.raises(NotAuthorized, match="--client-resize all"):
        FileBacking(path, ClientResize.GROW, LARGEST).resize(SIZE - 1, SHRINK)
    assert path.stat().st_size == SIZE
    assert backing.resize(SIZE - 1, SHRINK) == Resized(SIZE - 1, 2, Cause.AS_REQUESTED)
    assert path.stat().st_size == SIZE - 1


def test_a_file_larger_than_max_size_stays_as_it_is(path: Path) -> None:
    backing = FileBacking(path, ClientResize.ALL, SIZE - 1)
    assert backing.maximum() == SIZE
    assert backing.resize(EVERYTHING, FIT) == Resized(SIZE, 1, Cause.FITTED)
    with pytest.raises(InsufficientSpace):
        backing.resize(SIZE + 1, 0)


def test_the_record_tells_what_a_client_may_ask_for(path: Path) -> None:
    everything = FileBacking(path, ClientResize.ALL, LARGEST)
    assert everything.record() == SizeRecord(SIZE, 1, 1, LARGEST, 1, FEATURE_NOTIFY | FEATURE_SHRINK)
    assert everything.record(read_only=True) == SizeRecord(SIZE, 1, SIZE, LARGEST, 1, FEATURE_NOTIFY)
    assert FileBacking(path, ClientResize.GROW).record() == SizeRecord(SIZE, 1, SIZE, SIZE, 1, FEATURE_NOTIFY)


def test_the_record_is_fresh(backing: FileBacking, path: Path) -> None:
    os.truncate(path, 20_000)
    assert (backing.record().size, backing.record().generation) == (20_000, 2)


def test_another_server_with_the_file_attached_prevents_a_shrink(backing: FileBacking, path: Path) -> None:
    other = DiskExport(FileBacking(path, ClientResize.OFF))
    with pytest.raises(ResourceInUse, match="attached"):
        backing.resize(100, SHRINK)
    other.close()
    assert backing.resize(100, SHRINK).size == 100


def test_a_lease_ends_with_its_process_however_that_ends(backing: FileBacking, path: Path) -> None:
    hold = "import sys; from nbdresize.export.file_lease import FileLease; from pathlib import Path\n"
    hold += "lease = FileLease(Path(sys.argv[1])).share(10)\nprint('held', flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(ResourceInUse):
                backing.resize(100, SHRINK)
        finally:
            holder.kill()
        holder.wait(LONG)
        assert backing.resize(100, SHRINK).size == 100


def test_a_connection_waits_for_a_shrink_by_another_server_and_sees_the_new_size(
    backing: FileBacking, path: Path
) -> None:
    fence = FileLease(path).exclude()
    with ThreadPoolExecutor(1) as threads:
        opening = threads.submit(DiskExport, backing)
        os.truncate(path, 4096)
        fence.release()
        disk = opening.result(LONG)
    assert disk.size == 4096
    disk.close()


def test_two_servers_that_grow_one_file_at_the_same_time_never_cut_it(path: Path) -> None:
    servers = [FileBacking(path, ClientResize.ALL, 10_000_000) for _ in range(2)]

    def grow(server: FileBacking) -> list[int]:
        sizes = []
        for step in range(1, 201):
            try:
                sizes.append(server.resize(SIZE + step * 1_000, 0).size)
            except NotAuthorized:  # the other one is further already
                sizes.append(path.stat().st_size)
        return sizes

    with ThreadPoolExecutor(2) as threads:
        for sizes in threads.map(grow, servers):
            assert sizes == sorted(sizes)
    assert path.stat().st_size == SIZE + 200_000
    assert all(server.record().size == SIZE + 200_000 for server in servers)


@pytest.mark.parametrize(("kind", "size"), [("grow", 12_000), ("shrink", 100)])
def test_no_other_server_changes_the_size_while_one_does(
    backing: FileBacking, path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, size: int
) -> None:
    changing, go = threading.Event(), threading.Event()
    change = getattr(backing.volume, kind)

    def slow_change(size: int) -> None:
        changing.set()
        assert go.wait(LONG)
        change(size)

    monkeypatch.setattr(backing.volume, kind, slow_change)
    other = FileBacking(path, ClientResize.ALL, LARGEST)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(backing.resize, size, SHRINK)
        assert changing.wait(LONG)
        try:
            with pytest.raises(ResourceInUse), changing_size(path, 0.01):
                raise AssertionError("two changed the size at once")
            second = threads.submit(other.resize, 20_000, 0)
        finally:
            go.set()
        assert first.result(LONG).size == size
        assert second.result(LONG).size == path.stat().st_size == 20_000


def test_a_change_by_another_server_that_takes_for_ever_is_not_waited_for(path: Path) -> None:
    with changing_size(path, LONG), pytest.raises(ResourceInUse, match="Another server"), changing_size(path, 0.01):
        raise AssertionError("two changed the size at once")
    with changing_size(path, 0.01):
        pass


def test_a_file_that_has_gone_is_a_failed_volume(backing: FileBacking, path: Path) -> None:
    path.unlink()
    for ask in (backing.refresh, backing.record, backing.take_lease):
        with pytest.raises(VolumeFailed) as error:
            ask()
        assert error.value.nbd_errno == errno.EIO
    with pytest.raises(VolumeFailed):
        backing.resize(20_000, 0)
    assert not path.exists()


@pytest.mark.parametrize("kind", ["missing", "directory", "pipe", "/dev/null"])
def test_only_files_and_block_devices_are_served(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind  # which, for an absolute path, is that path
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(VolumeFailed):
        FileBacking(path, ClientResize.GROW)


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_a_device_is_as_large_as_its_owner_makes_it(tmp_path: Path, sector_size: int) -> None:
    image = tmp_path / "device.img"
    image.write_bytes(bytes(1 << 20))
    with loop_device(image, sector_size=sector_size) as device:
        backing = FileBacking(device, ClientResize.ALL, 1 << 30)
        record = backing.record()
        assert record == SizeRecord(1 << 20, 1, 1 << 20, 1 << 20, sector_size, FEATURE_NOTIFY)
        for size, flags in ((2 << 20, 0), (4096, SHRINK), (EVERYTHING, FIT)):
            with pytest.raises(VolumeFailed, match="resize the device itself"):
                backing.resize(size, flags)
        assert backing.resize(1 << 20, 0) == Resized(1 << 20, 1, Cause.AS_REQUESTED)
        assert backing.resize((1 << 20) - 1, 0) == Resized(1 << 20, 1, Cause.ROUNDED_UP)
        reader = DiskExport(backing, read_only=True)
        image_grows(image, device, 2 << 20)
        backing.refresh()
        assert reader.size == 1 << 20, "new bytes are offered only once somebody may zero them"
        reader.close()
        disk = DiskExport(backing)
        assert (backing.live.size, backing.maximum()) == (2 << 20, 2 << 20)
        disk.write(b"x" * 100, 1000)
        image_grows(image, device, 3 << 20)
        disk.write(b"y", (3 << 20) - 1)
        assert disk.read((2 << 20) - 1, 1 << 20) == bytes((2 << 20) - 1), "stale bytes are zeroed"
        disk.close()
        backing.close()
    assert image.read_bytes()[-1:] == b"y"
    assert image.read_bytes()[1000:1100] == b"x" * 100


def image_grows(image: Path, device: Path, size: int) -> None:
    """Make a loop device larger, with bytes of somebody else in the new range."""
    with image.open("ab") as opened:
        opened.write(b"stale" * size)
        opened.truncate(size)
    notice_growth(device)


def test_one_server_at_a_time_lets_clients_write_to_a_device(tmp_path: Path) -> None:
    image = tmp_path / "device.img"
    image.write_bytes(bytes(1 << 20))
    with loop_device(image) as device:
        first, second = (FileBacking(device, ClientResize.GROW) for _ in range(2))
        disk = DiskExport(first)
        file_backing = sys.modules[FileBacking.__module__]
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ResourceInUse, match="Another server"):
            patch.setattr(file_backing, "_CHANGE_WAIT", 0.0)
            DiskExport(second)
        DiskExport(second, read_only=True).close()
        disk.close()
        first.close()
        DiskExport(second).close()
        second.close()
