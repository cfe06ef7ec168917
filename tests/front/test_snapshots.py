"""Snapshots of disks that clients write to, through both fronts and on file systems that share blocks or don't."""

import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbd
import pytest

from nbdresize.client import connect_resizable
from nbdresize.config import StateDirectory
from nbdresize.control import live_copy, snapshot_copies
from nbdresize.control.control import Control
from nbdresize.control.model import Snapshot
from nbdresize.errors import InsufficientSpace, ResourceInUse, ServerFailed
from nbdresize.units import SizeRequest
from tests.control.consistency import problems
from tests.filesystems import mounted
from tests.front.conftest import MIB, connect
from tests.peers import CHECKOUT, Serve, alive, next_line
from tests.wait import until

pytestmark = pytest.mark.slow

SIZE = 8 * MIB
BUDGET = 240 * MIB
LONG = 60.0
NUMBER = struct.Struct(">Q")
SHARING = ("xfs", "btrfs")
COPYING = ("ext4", "tmpfs")
SNAPSHOTS = 20


@pytest.fixture(params=SHARING + COPYING)
def kind(request: pytest.FixtureRequest) -> str:
    """Each file system in turn."""
    name: str = request.param
    return name


@pytest.fixture
def pool(kind: str, tmp_path: Path) -> Iterator[Path]:
    with mounted(kind, tmp_path, size=700 * MIB) as point:
        yield point


@dataclass(frozen=True)
class Site:
    """A served state directory, and its Control."""

    control: Control
    server: Serve

    @property
    def state(self) -> StateDirectory:
        return self.control.state

    def client(self, slot: int) -> nbd.NBD:
        return connect(self.server.uri(f"web1/disk{slot}"))

    def snapshot(self, name: str) -> Snapshot:
        """A new one of web1. As whoever takes one tries: again, where the instant was lost or the clients too fast."""
        for _ in range(20):
            with suppress(ResourceInUse):
                return self.control.create_snapshot("web1", name)
        raise AssertionError("Each of 20 snapshots took too long")

    def content(self, snapshot: Snapshot, slot: int) -> bytes:
        return (self.state.volumes / f"{snapshot.disks[slot].volume}.raw").read_bytes()


@contextmanager
def served(front: str, pool: Path, directory: Path, *disks: int, budget: int = BUDGET) -> Iterator[Site]:
    """A VM web1 with these disks, served."""
    with Control.open(StateDirectory(pool / "state")) as control:
        control.create_vm("web1", budget, [SizeRequest(exact=size) for size in disks])
        with Serve(front=front, directory=directory, root=pool / "state") as server:
            yield Site(control, server)


@dataclass
class Counting:
    """A client that counts: each number goes to disk0, and once that is answered to disk1, at a place of its own.

    So disk1 never has a number that disk0 lacks, and each has just those up to some number.
    """

    first: nbd.NBD
    second: nbd.NBD
    block: int
    answered: int = 0
    _end: threading.Event = field(default_factory=threading.Event)

    @property
    def places(self) -> int:
        return SIZE // self.block

    def run(self) -> None:
        while not self._end.is_set():
            number = self.answered + 1
            data = NUMBER.pack(number) * (self.block // NUMBER.size)
            self.first.pwrite(data, self.place(number))
            self.second.pwrite(data, self.place(number))
            self.answered = number

    def end(self) -> None:
        self._end.set()

    def place(self, number: int) -> int:
        return (number * 7919) % self.places * self.block

    def state(self, number: int) -> bytes:
        """What a disk has that got all numbers up to this one."""
        disk = bytearray(SIZE)
        for each in range(max(1, number - self.places + 1), number + 1):
            disk[self.place(each) : self.place(each) + self.block] = NUMBER.pack(each) * (self.block // NUMBER.size)
        return bytes(disk)

    def check(self, first: bytes, second: bytes, least: int, most: int) -> None:
        """Both disks are as they were at one moment between these two numbers."""
        numbers = []
        for content in (first, second):
            number = max(NUMBER.unpack_from(content, place)[0] for place in range(0, SIZE, self.block))
            whole = self.state(number)
            if content != whole:  # the write that was under way may be there in part, and no other
                place = self.place(number)
                assert content[:place] == whole[:place], number
                assert content[place + self.block :] == whole[place + self.block :], number
            numbers.append(number)
        assert numbers[0] >= numbers[1] >= numbers[0] - 1
        assert numbers[1] >= least
        assert numbers[0] <= most + 1


@contextmanager
def counting(site: Site, block: int) -> Iterator[Counting]:
    counter = Counting(site.client(0), site.client(1), block)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(counter.run)
        try:
            until(lambda: counter.answered > 0 or running.done(), what="the first answer")
            yield counter
        finally:
            counter.end()
            running.result(LONG)
    counter.first.shutdown()
    counter.second.shutdown()


@pytest.mark.parametrize("block", [4096, 256 << 10])
def test_every_snapshot_shows_all_disks_at_one_instant(
    front: str, kind: str, pool: Path, tmp_path: Path, block: int
) -> None:
    with served(front, pool, tmp_path, SIZE, SIZE) as site:
        with counting(site, block) as counter:
            for number in range(SNAPSHOTS):
                least = counter.answered
                snapshot = site.snapshot(f"s{number}")
                counter.check(site.content(snapshot, 0), site.content(snapshot, 1), least=least, most=counter.answered)
                assert [disk.shared for disk in snapshot.disks] == [kind in SHARING] * 2
                until(lambda: counter.answered > least + 1, what="the client to go on")  # noqa: B023
                if number % 5 == 4:
                    for each in site.control.snapshots("web1"):
                        site.control.delete_snapshot("web1", each.name)
        assert list(site.state.run.glob("*.written*")) == []
        last = site.snapshot("last")
        assert site.content(last, 0) == site.content(last, 1) == counter.state(counter.answered)
        assert problems(site.state) == []


def test_a_writer_at_full_speed_gets_a_whole_snapshot_or_is_told_why_not(
    front: str, kind: str, pool: Path, tmp_path: Path
) -> None:
    taken = 0
    with served(front, pool, tmp_path, SIZE, SIZE) as site, counting(site, MIB) as counter, crowd(site):
        for number in range(30):
            least = counter.answered
            try:
                snapshot = site.control.create_snapshot("web1", f"s{number}")
            except ResourceInUse as error:
                assert "write" in str(error)
                continue
            taken += 1
            counter.check(site.content(snapshot, 0), site.content(snapshot, 1), least=least, most=counter.answered)
            if number >= 4:
                break
    assert taken


@contextmanager
def crowd(site: Site) -> Iterator[None]:
    """Three more clients that read and flush as fast as they can."""
    end = threading.Event()

    def run(client: nbd.NBD) -> None:
        while not end.is_set():
            client.pread(64 << 10, 0)
            client.flush()
        client.shutdown()

    with ThreadPoolExecutor(3) as threads:
        running = [threads.submit(run, site.client(slot)) for slot in (0, 1, 1)]
        try:
            yield
        finally:
            end.set()
            for each in running:
                each.result(LONG)


def test_trimming_in_a_client_makes_room_for_a_snapshot(front: str, kind: str, pool: Path, tmp_path: Path) -> None:
    with served(front, pool, tmp_path, 16 * MIB, budget=32 * MIB) as site:
        client = site.client(0)
        for offset in range(0, 12 * MIB, MIB):
            client.pwrite(os.urandom(MIB), offset)
        first = site.snapshot("first")
        assert first.space == 12 * MIB
        for offset in range(0, 12 * MIB, MIB):
            client.pwrite(os.urandom(MIB), offset)
        with pytest.raises(InsufficientSpace, match="needs 12 MiB, but it has 4 MiB free"):
            site.snapshot("second")
        client.trim(9 * MIB, 0)
        second = site.snapshot("second")
        assert second.space == 3 * MIB
        assert site.content(second, 0)[: 9 * MIB] == bytes(9 * MIB)
        client.trim(12 * MIB, 0)
        client.flush()
        report = site.control.snapshot_report("web1")
        assert (report.space, report.held) == (15 * MIB, 15 * MIB)
        site.control.delete_snapshot("web1", "first")
        assert site.control.vm("web1").snapshot_space == 3 * MIB
        client.shutdown()


def test_a_rollback_drops_clients_and_tells_watchers(front: str, kind: str, pool: Path, tmp_path: Path) -> None:
    with served(front, pool, tmp_path, SIZE, SIZE) as site:
        client = site.client(0)
        client.pwrite(b"before" * 1000, 0)
        site.snapshot("before")
        site.control.resize_disk("web1", "disk0", SizeRequest(exact=2 * SIZE))
        client.pwrite(b"after!" * 1000, 0)
        with pytest.raises(ResourceInUse, match="web1/disk0 has clients attached"):
            site.control.rollback("web1", "before")
        assert client.pread(6, 0) == b"after!"
        with connect_resizable(site.server.uri("web1/disk0@size"), LONG) as watcher, ThreadPoolExecutor(1) as threads:
            known = watcher.query()
            assert (known.size, known.generation) == (2 * SIZE, 2)
            news = threads.submit(lambda: next(each for each in watcher.watch() if each.generation > 2))
            site.control.rollback("web1", "before", disconnect=True)
            told = news.result(LONG)
            assert (told.size, told.generation) == (SIZE, 3)
        with pytest.raises(nbd.Error):
            client.pread(6, 0)
        again = site.client(0)
        assert again.get_size() == SIZE
        assert again.pread(6000, 0) == b"before" * 1000
        again.shutdown()
        assert problems(site.state) == []


_KILLED = """
import sys
from contextlib import suppress
from pathlib import Path
from nbdresize.config import StateDirectory
from nbdresize.control import live_copy, snapshots
from nbdresize.control.control import Control
from nbdresize.errors import ResourceInUse

def stop(*_):
    print("there", flush=True)
    sys.stdin.read()

where = sys.argv[2]
if where == "copy":
    live_copy.LiveCopies.catch_up = stop
elif where == "instant":
    live_copy.LiveCopies.take_rest = stop
else:
    snapshots._settle = stop
with Control.open(StateDirectory(Path(sys.argv[1]))) as control:
    for _ in range(20):
        with suppress(ResourceInUse):
            control.create_snapshot("web1", "s1")
"""


@pytest.mark.parametrize("where", ["copy", "instant", "end"])
def test_killed_while_it_is_made_nothing_of_it_stays(
    front: str, kind: str, pool: Path, tmp_path: Path, where: str
) -> None:
    with served(front, pool, tmp_path, SIZE, SIZE) as site, counting(site, 64 << 10) as counter:
        command = [sys.executable, "-c", _KILLED, str(site.state.root), where]
        with subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as asker:
            try:
                assert next_line(asker) == "there\n"
            finally:
                asker.kill()
        answered = counter.answered
        until(lambda: counter.answered > answered + 1, what="answers")
        with Control.open(site.state) as control:
            assert control.snapshots("web1") == []
        assert [each.name for each in site.state.run.iterdir() if ".written" in each.name] == []
        assert list(site.state.leases.glob("*.door")) == []
        assert problems(site.state) == []
        least = counter.answered
        snapshot = site.snapshot("s1")
        counter.check(site.content(snapshot, 0), site.content(snapshot, 1), least=least, most=counter.answered)


def test_a_server_that_does_not_answer_is_named_and_nothing_stays(
    front: str, kind: str, pool: Path, tmp_path: Path
) -> None:
    with served(front, pool, tmp_path, SIZE, SIZE) as site:
        client = site.client(0)
        client.pwrite(b"x" * 4096, 0)
        for worker in site.server.workers():
            os.kill(worker, signal.SIGSTOP)
        try:
            with pytest.raises(ServerFailed, match="did not answer"):
                site.snapshot("s1")
        finally:
            for worker in site.server.workers():
                os.kill(worker, signal.SIGCONT)
        assert problems(site.state) == []
        client.pwrite(b"y" * 4096, 0)
        assert site.content(site.snapshot("s1"), 0)[:4096] == b"y" * 4096
        client.shutdown()


@pytest.mark.parametrize("kind", SHARING, indirect=True)
def test_disks_whose_blocks_take_too_long_to_share_are_shared_before_the_instant(
    front: str, kind: str, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = snapshot_copies._share
    slow: list[object] = []

    def shared_slowly(*arguments: Any) -> None:
        share(*arguments)
        time.sleep(1.1)  # as for some hundred thousand extents
        slow.append(arguments)

    monkeypatch.setattr(snapshot_copies, "_share", shared_slowly)
    with served(front, pool, tmp_path, SIZE, SIZE) as site, counting(site, 64 << 10) as counter:
        until(lambda: counter.answered > counter.places, what="all places to be written")
        least = counter.answered
        snapshot = site.snapshot("s1")
        counter.check(site.content(snapshot, 0), site.content(snapshot, 1), least=least, most=counter.answered)
        assert len(slow) >= 2
        assert [disk.shared for disk in snapshot.disks] == [True, True]
        assert site.control.operations()[0].stages[3].seconds > 2
        assert list(site.state.run.glob("*.written*")) == []


@pytest.mark.parametrize("kind", COPYING, indirect=True)
def test_what_a_killed_server_wrote_last_is_in_the_copy(
    front: str, kind: str, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have written what it did not mark any more, and what the next client reads must not be missing."""
    with served(front, pool, tmp_path, SIZE, SIZE) as site:
        client = site.client(0)
        client.pwrite(b"x" * 4096, 0)
        catch_up = live_copy.LiveCopies.catch_up
        calls: list[object] = []

        def killed_after(copies: live_copy.LiveCopies) -> None:
            catch_up(copies)
            if not calls:
                for worker in site.server.workers():
                    os.kill(worker, signal.SIGKILL)
                    until(lambda: not alive(worker), what="the worker to be gone")  # noqa: B023
                [volume] = site.state.volumes.glob(f"{site.control.disk('web1', 'disk0').volume}.raw")
                with volume.open("r+b") as file:
                    file.write(b"unmarked")
            calls.append(copies)

        monkeypatch.setattr(live_copy.LiveCopies, "catch_up", killed_after)
        snapshot = site.snapshot("s1")
        assert site.content(snapshot, 0)[:8] == b"unmarked"
        assert len(calls) >= 2
