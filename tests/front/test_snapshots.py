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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nbd
import pytest

from nbdresize.client import connect_resizable
from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.model import Snapshot
from nbdresize.errors import InsufficientSpace, ResourceInUse
from nbdresize.units import SizeRequest
from tests.control.consistency import problems
from tests.filesystems import mounted
from tests.front.conftest import MIB, connect
from tests.peers import CHECKOUT, Serve
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
                snapshot = site.control.create_snapshot("web1", f"s{number}")
                counter.check(site.content(snapshot, 0), site.content(snapshot, 1), least=least, most=counter.answered)
                assert [disk.shared for disk in snapshot.disks] == [kind in SHARING] * 2
                until(lambda: counter.answered > least + 1, what="the client to go on")  # noqa: B023
                if number % 5 == 4:
                    for each in site.control.snapshots("web1"):
                        site.control.delete_snapshot("web1", each.name)
        assert list(site.state.run.glob("*.written*")) == []
        last = site.control.create_snapshot("web1", "last")
        assert site.content(last, 0) == site.content(last, 1) == counter.state(counter.answered)
        assert problems(site.state) == []


def test_a_writer_at_full_speed_gets_a_whole_snapshot_or_is_told_why_not(
    front: str, kind: str, pool: Path, tmp_path: Path
) -> None:
    taken = 0
    with served(front, pool, tmp_path, SIZE, SIZE) as site, counting(site, MIB) as counter, crowd(site):
        for number in range(5):
            least = counter.answered
            try:
                snapshot = site.control.create_snapshot("web1", f"s{number}")
            except ResourceInUse as error:
                assert "write" in str(error)
                continue
            taken += 1
            counter.check(site.content(snapshot, 0), site.content(snapshot, 1), least=least, most=counter.answered)
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
