"""Disks of a real ledger, resized by clients of one server while others change them."""

import errno
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.model import VM, Cause, ClientResize, ResizeOptions
from nbdresize.errors import InsufficientSpace, NotAuthorized, ResourceInUse, VolumeFailed
from nbdresize.export.backing import Resized
from nbdresize.export.disk_export import DiskExport
from nbdresize.export.exports import Exports
from nbdresize.export.ledger_backing import LedgerBacking
from nbdresize.export.size_device import SizeDevice
from nbdresize.protocol.constants import NBD_CMD_FLAG_FIT, NBD_CMD_FLAG_SHRINK
from nbdresize.protocol.size_record import FEATURE_NOTIFY, FEATURE_SHRINK, SizeRecord, SizeWish, parse_record
from nbdresize.storage.handle import Handle
from nbdresize.storage.write_map import WriteMap
from nbdresize.units import SizeRequest
from tests.wait import until

MIB = 1 << 20
BUDGET = 64 * MIB
SIZE = 16 * MIB
EVERYTHING = 2**64 - 1
SHRINK = NBD_CMD_FLAG_SHRINK
FIT = NBD_CMD_FLAG_FIT
LONG = 60.0


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path / "state")


@pytest.fixture
def operator(state: StateDirectory) -> Iterator[Control]:
    """Whoever sits at the command line: another process than the server, as far as ledger and locks can tell."""
    with Control.open(state) as control:
        control.create_vm("web1", BUDGET, [SizeRequest(exact=SIZE), SizeRequest(exact=SIZE)])
        yield control


@pytest.fixture
def server(operator: Control, state: StateDirectory) -> Iterator[Control]:
    with Control.open(state) as control:
        yield control


def backing_of(server: Control, policy: ClientResize = ClientResize.ALL, disk: str = "disk0") -> LedgerBacking:
    return LedgerBacking(server, server.disk("web1", disk), policy)


@pytest.fixture
def backing(server: Control) -> LedgerBacking:
    return backing_of(server)


@pytest.fixture
def disk(backing: LedgerBacking) -> Iterator[DiskExport]:
    disk = DiskExport(backing)
    yield disk
    disk.close()


def resize(control: Control, size: int, *, shrink: bool = False) -> None:
    control.resize_disk("web1", "disk0", SizeRequest(exact=size), ResizeOptions(shrink=shrink))


def volume_size(backing: LedgerBacking) -> int:
    return backing.volume.size()


def test_a_client_grows_its_disk_inside_the_budget(backing: LedgerBacking, operator: Control) -> None:
    generation = backing.live.generation
    assert backing.resize(2 * SIZE, 0) == Resized(2 * SIZE, generation + 1, Cause.AS_REQUESTED)
    row = operator.disk("web1", "disk0")
    assert (row.size, row.generation) == backing.live.state == (volume_size(backing), generation + 1)


def test_a_size_is_rounded_up_and_that_is_said(backing: LedgerBacking) -> None:
    assert backing.resize(SIZE + 1, 0).cause is Cause.ROUNDED_UP
    assert backing.live.size == volume_size(backing) == SIZE + 4096


def test_a_smaller_size_that_is_none_when_rounded_leaves_all_as_it_is(backing: LedgerBacking) -> None:
    before = backing.live.state
    for policy in (ClientResize.GROW, ClientResize.ALL):
        backing.policy = policy
        for flags in (0, SHRINK, FIT):
            assert backing.resize(SIZE - 1, flags) == Resized(*before, Cause.ROUNDED_UP)
            assert backing.resize(SIZE, flags) == Resized(*before, Cause.AS_REQUESTED)


def test_more_than_the_budget_is_refused_with_what_there_is(backing: LedgerBacking) -> None:
    for size in (BUDGET - SIZE + 1, BUDGET, 2**63 - 4096, 2**63, 2**64 - 2):
        with pytest.raises(InsufficientSpace) as error:
            backing.resize(size, 0)
        assert error.value.nbd_errno == errno.ENOSPC
    assert backing.live.size == volume_size(backing) == SIZE


@pytest.mark.parametrize("size", [BUDGET, 2**63 - 4096, 2**63, 2**64 - 2, EVERYTHING])
def test_fit_takes_all_that_remains_and_nothing_where_nothing_does(backing: LedgerBacking, size: int) -> None:
    generation = backing.live.generation
    for _ in range(2):
        assert backing.resize(size, FIT) == Resized(BUDGET - SIZE, generation + 1, Cause.FITTED)
    assert volume_size(backing) == BUDGET - SIZE


def test_a_client_shrinks_only_with_flag_and_policy(server: Control, backing: LedgerBacking) -> None:
    with pytest.raises(NotAuthorized):
        backing.resize(4096, 0)
    with pytest.raises(NotAuthorized, match="--client-resize all"):
        backing_of(server, ClientResize.GROW).resize(4096, SHRINK)
    with pytest.raises(NotAuthorized):
        backing_of(server, ClientResize.OFF).resize(2 * SIZE, 0)
    assert backing.resize(4095, SHRINK).cause is Cause.ROUNDED_UP
    assert backing.live.size == volume_size(backing) == 4096


def test_a_disk_that_grew_meanwhile_is_not_shrunk_by_a_client_that_may_only_grow(
    server: Control, operator: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy was checked against a size that is outdated by the time control decides."""
    backing = backing_of(server, ClientResize.GROW)
    look = backing.refresh

    def look_and_be_late() -> None:
        look()
        resize(operator, 3 * SIZE)

    monkeypatch.setattr(backing, "refresh", look_and_be_late)
    with pytest.raises(NotAuthorized):
        backing.resize(2 * SIZE, SHRINK)
    assert operator.disk("web1", "disk0").size == volume_size(backing) == 3 * SIZE


def test_the_record_tells_what_the_budget_allows_now(server: Control, operator: Control) -> None:
    generation = server.disk("web1", "disk0").generation
    features = FEATURE_NOTIFY | FEATURE_SHRINK
    everything, growing = backing_of(server), backing_of(server, ClientResize.GROW)
    assert everything.record() == SizeRecord(SIZE, generation, 4096, BUDGET - SIZE, 4096, features)
    assert growing.record() == SizeRecord(SIZE, generation, SIZE, BUDGET - SIZE, 4096, FEATURE_NOTIFY)
    operator.resize_disk("web1", "disk1", SizeRequest(exact=2 * SIZE))
    assert everything.record().maximum == BUDGET - 2 * SIZE


def test_a_grow_that_was_committed_is_seen_by_the_next_request(disk: DiskExport, operator: Control) -> None:
    for step in range(1, 9):
        size = SIZE + step * MIB
        resize(operator, size)
        disk.write(b"x", size - 1)
        assert disk.size == size


def test_the_sole_connection_shrinks_its_own_disk_and_keeps_its_lease(
    disk: DiskExport, backing: LedgerBacking, operator: Control
) -> None:
    assert disk.resize(4096, SHRINK).size == 4096
    assert operator.disk("web1", "disk0").size == volume_size(backing) == 4096
    with pytest.raises(InsufficientSpace):
        disk.write(b"x", 4096)
    assert volume_size(backing) == 4096
    with pytest.raises(ResourceInUse):
        operator.delete_vm("web1")
    disk.resize(SIZE, 0)
    with pytest.raises(ResourceInUse):
        resize(operator, 8192, shrink=True)


def test_nobody_shrinks_or_deletes_what_another_connection_uses(
    server: Control, disk: DiskExport, operator: Control, backing: LedgerBacking
) -> None:
    other = DiskExport(backing_of(server))
    for shrink in (
        lambda: disk.resize(4096, SHRINK),
        lambda: other.resize(4096, SHRINK),
        lambda: backing.resize(4096, SHRINK),
        lambda: resize(operator, 4096, shrink=True),
        lambda: operator.delete_vm("web1"),
    ):
        with pytest.raises(ResourceInUse) as error:
            shrink()
        assert error.value.nbd_errno == errno.EPERM
    assert len(other.read(SIZE, 0)) == SIZE == volume_size(backing)
    other.close()


def test_a_client_that_looks_only_keeps_nobody_from_deleting(
    server: Control, operator: Control, state: StateDirectory
) -> None:
    device = SizeDevice(backing_of(server, disk="disk1"))
    assert parse_record(device.read(64, 0)).size == SIZE
    operator.delete_disk("web1", "disk1")
    operator.add_disk("web1", SizeRequest(exact=MIB))
    for ask in (
        lambda: device.read(64, 0),
        lambda: device.read(64, 1024),
        lambda: device.write(SizeWish(2 * SIZE).pack(), 512),
    ):
        with pytest.raises(VolumeFailed, match="deleted"):
            ask()
    assert operator.disk("web1", "disk1").size == MIB, "a new disk of that name is another disk"
    assert not any("disk1" in lease.name for lease in state.leases.iterdir())


def test_a_disk_deleted_just_before_it_is_opened_leaves_no_lease(
    server: Control, operator: Control, state: StateDirectory
) -> None:
    late = backing_of(server, disk="disk1")
    operator.delete_disk("web1", "disk1")
    with pytest.raises(VolumeFailed, match="deleted"):
        DiskExport(late)
    operator.add_disk("web1", SizeRequest(exact=MIB))
    with pytest.raises(VolumeFailed, match="deleted"):
        DiskExport(late)
    assert len(DiskExport(backing_of(server, disk="disk1")).read(MIB, 0)) == MIB


def test_a_volume_deleted_behind_our_back_is_an_error_of_the_volume(
    server: Control, operator: Control, backing: LedgerBacking
) -> None:
    backing.volume.path.unlink()
    with pytest.raises(VolumeFailed):
        DiskExport(backing)
    operator.delete_vm("web1")  # and the lease was given back


# Looking once more


class SlowLedger:
    """Holds the looks of one backing up, after they have read the ledger; counts them, and who comes for one."""

    def __init__(self, control: Control, backing: LedgerBacking, monkeypatch: pytest.MonkeyPatch) -> None:
        self._vm = control.vm
        self._lock = threading.Lock()
        self.looks = 0
        self.came = 0
        self.read = threading.Event()
        self.go = threading.Event()
        monkeypatch.setattr(control, "vm", self.vm)
        monkeypatch.setattr(backing, "_looking", self)

    def vm(self, name: str) -> VM:
        vm = self._vm(name)
        self.looks += 1
        self.read.set()
        assert self.go.wait(LONG)
        return vm

    def __enter__(self) -> None:
        self.came += 1
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


def test_a_look_that_began_too_early_is_not_taken_for_ones_own(
    server: Control, operator: Control, backing: LedgerBacking, disk: DiskExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowLedger(server, backing, monkeypatch)
    with ThreadPoolExecutor(2) as threads:
        early = threads.submit(backing.refresh)
        assert slow.read.wait(LONG)
        resize(operator, 2 * SIZE)
        late = threads.submit(disk.read, 1, 2 * SIZE - 1)
        try:
            until(lambda: slow.came == 2, LONG, "the late one to come")
        finally:
            slow.go.set()
        early.result(LONG)
        assert late.result(LONG) == b"\0"


def test_a_flood_of_requests_past_the_end_shares_its_looks(
    server: Control, backing: LedgerBacking, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowLedger(server, backing, monkeypatch)
    with ThreadPoolExecutor(21) as threads:
        first = threads.submit(backing.refresh)
        assert slow.read.wait(LONG)
        flood = [threads.submit(backing.refresh) for _ in range(20)]
        try:
            until(lambda: slow.came == 21, LONG, "all to come")
        finally:
            slow.go.set()
        for each in (first, *flood):
            each.result(LONG)
    assert slow.looks == 2
    backing.refresh()
    assert slow.looks == 3, "none is shared with one that has ended"


def test_two_clients_that_ask_for_all_that_remains_get_it_once(server: Control) -> None:
    backings = [backing_of(server), backing_of(server, disk="disk1")]
    with ThreadPoolExecutor(2) as threads:
        sizes = list(threads.map(lambda backing: backing.resize(EVERYTHING, FIT).size, backings))
    assert sum(sizes) == BUDGET
    assert [volume_size(backing) for backing in backings] == sizes


@pytest.mark.parametrize(
    ("server_policy", "vm_policy", "grows", "shrinks"),
    [
        (ClientResize.ALL, None, True, True),
        (ClientResize.ALL, ClientResize.GROW, True, False),
        (ClientResize.ALL, ClientResize.OFF, False, False),
        (ClientResize.GROW, ClientResize.ALL, True, False),
        (ClientResize.OFF, ClientResize.ALL, False, False),
    ],
)
def test_clients_may_do_what_both_server_and_vm_allow_as_it_is_when_they_ask(
    server: Control, server_policy: ClientResize, vm_policy: ClientResize | None, grows: bool, shrinks: bool
) -> None:
    backing = backing_of(server, server_policy)
    server.update_vm("web1", client_resize=vm_policy or "default")
    for size, flags, allowed in ((2 * SIZE, 0, grows), (SIZE // 2, SHRINK, shrinks)):
        if allowed:
            assert backing.resize(size, flags).size == size
        else:
            with pytest.raises(NotAuthorized):
                backing.resize(size, flags)


# The write map of whoever copies the disk


@pytest.fixture
def map_path(backing: LedgerBacking, state: StateDirectory) -> Path:
    return state.write_map(backing.volume.path.stem)


def test_what_is_written_is_marked_from_the_refresh_that_finds_a_map_to_the_one_that_does_not(
    disk: DiskExport, backing: LedgerBacking, map_path: Path
) -> None:
    disk.write(b"x" * 4096, 0)
    write_map = WriteMap.create(map_path, SIZE)
    backing.refresh()
    assert write_map.take() == []
    disk.write(b"x" * 4096, 4096)
    disk.write(b"x", 3 * 4096 - 1, fua=True)
    disk.zero(2, 5 * 4096 - 1)
    disk.trim(4096, 7 * 4096)
    assert write_map.take() == [(4096, 8192), (4 * 4096, 8192), (7 * 4096, 4096)]
    write_map.remove()
    backing.refresh()
    disk.write(b"x", 0)
    assert write_map.take() == []


def test_a_disk_that_is_attached_later_is_marked_from_its_first_write(server: Control, map_path: Path) -> None:
    write_map = WriteMap.create(map_path, SIZE)
    disk = DiskExport(backing_of(server))
    disk.write(b"x", 8192)
    assert write_map.take() == [(8192, 4096)]
    disk.close()


def test_a_map_in_the_place_of_another_is_taken_for_what_it_is(
    disk: DiskExport, backing: LedgerBacking, map_path: Path
) -> None:
    first = WriteMap.create(map_path, SIZE)
    backing.refresh()
    first.remove()
    second = WriteMap.create(map_path, SIZE)
    backing.refresh()
    disk.write(b"x", 0)
    assert (first.take(), second.take()) == ([], [(0, 4096)])


def test_a_map_that_can_not_be_used_disturbs_nobody_and_is_told(
    server: Control, map_path: Path, state: StateDirectory
) -> None:
    exports = Exports.of_ledger(server)
    disk = exports.open("web1/disk0")
    assert isinstance(disk, DiskExport)
    for content in (b"", b"no map", bytes(8192)):
        map_path.write_bytes(content)
        refreshed = exports.refresh(["web1/disk0", "web1/disk1"])
        assert (refreshed.clients, refreshed.marking, refreshed.unmarked) == (1, (), ("web1/disk0",))
        disk.write(b"x", 0)
    map_path.unlink()
    map_path.mkdir()
    assert exports.refresh(["web1/disk0"]).unmarked == ("web1/disk0",)
    map_path.rmdir()
    map_path.symlink_to(map_path)
    assert exports.refresh(["web1/disk0"]).unmarked == ("web1/disk0",)
    map_path.unlink()
    WriteMap.create(map_path, SIZE)
    assert exports.refresh(["web1/disk0"]).marking == ("web1/disk0",)
    exports.close(disk)


def test_a_write_that_fails_is_marked_too(
    disk: DiskExport, backing: LedgerBacking, map_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_map = WriteMap.create(map_path, SIZE)
    backing.refresh()

    def fail(*_: object, **__: object) -> None:
        raise VolumeFailed("a planted failure", "none")

    for name in ("write", "zero", "trim"):
        monkeypatch.setattr(Handle, name, fail)
    requests: list[Callable[[int], None]] = [
        lambda at: disk.write(b"x", at),
        lambda at: disk.zero(1, at),
        lambda at: disk.trim(1, at),
    ]
    for number, request in enumerate(requests):
        with pytest.raises(VolumeFailed, match="planted"):
            request(number * 8192)
        assert write_map.take() == [(number * 8192, 4096)]


def test_a_map_that_is_let_go_while_threads_mark_in_it_harms_nobody(
    disk: DiskExport, backing: LedgerBacking, map_path: Path
) -> None:
    ended = threading.Event()

    def write() -> int:
        written = 0
        while not ended.is_set():
            disk.write(b"x", written * 4096 % SIZE)
            written += 1
        return written

    with ThreadPoolExecutor(2) as threads:
        writers = [threads.submit(write) for _ in range(2)]
        try:
            for _ in range(100):
                write_map = WriteMap.create(map_path, SIZE)
                backing.refresh()
                until(write_map.marked, what="marks")
                write_map.remove()
                backing.refresh()
        finally:
            ended.set()
        assert all(writer.result(LONG) > 0 for writer in writers)


@pytest.mark.parametrize("scope", [{"vm": "web1"}, {"owner": "ada"}, {}])
def test_every_switch_counts_beside_the_policy_of_the_server(
    server: Control, operator: Control, backing: LedgerBacking, scope: dict[str, str]
) -> None:
    operator.update_vm("web1", owner="ada")
    operator.set_switch("client_resize", "grow", **scope)
    with pytest.raises(NotAuthorized, match="switch list") as refused:
        backing.resize(SIZE // 2, SHRINK)
    assert refused.value.nbd_errno == errno.EPERM
    assert backing.resize(2 * SIZE, 0).size == 2 * SIZE
    with pytest.raises(NotAuthorized, match="--client-resize grow or all"):
        backing_of(server, ClientResize.OFF).resize(SIZE, 0)
    operator.unset_switch("client_resize", **scope)
    assert backing.resize(SIZE // 2, SHRINK).size == SIZE // 2


def test_nothing_changes_the_size_of_fixed_disks(operator: Control, backing: LedgerBacking) -> None:
    operator.set_switch("flexible_disks", "off")
    for size, flags in ((2 * SIZE, 0), (SIZE // 2, SHRINK), (2**63, 0), (EVERYTHING, FIT), (2 * SIZE, FIT)):
        with pytest.raises(NotAuthorized, match="switched off"):
            backing.resize(size, flags)
    record = backing.record()
    assert (record.minimum, record.maximum, record.features) == (SIZE, SIZE, FEATURE_NOTIFY)
    operator.unset_switch("flexible_disks")
    assert backing.resize(EVERYTHING, FIT).size == backing.record().maximum == BUDGET - SIZE
