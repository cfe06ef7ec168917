"""The instant at which disks are copied: with nobody there, with clients of real servers, with servers that fail."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import nbd
import pytest

from nbdresize.config import StateDirectory
from nbdresize.control import admin_client, freeze
from nbdresize.control.control import Control
from nbdresize.control.freeze import InstantLost, instant
from nbdresize.control.leases import Lease, enter
from nbdresize.control.model import Disk
from nbdresize.control.site import Site, open_site
from nbdresize.errors import ResourceInUse, ServerFailed
from nbdresize.units import SizeRequest
from tests.peers import CHECKOUT, Serve, next_line, refuses
from tests.wait import until

pytestmark = pytest.mark.slow

MIB = 1 << 20
LONG = 60.0
Result = TypeVar("Result")
FRONTS = ("native", "nbdkit")


@pytest.fixture
def site(state: StateDirectory, control: Control) -> Iterator[Site]:
    control.create_vm("vm", 64 * MIB, [SizeRequest(exact=MIB), SizeRequest(exact=MIB)])
    site = open_site(state, create=False)
    yield site
    site.ledger.close()


@pytest.fixture
def disks(site: Site) -> tuple[Disk, ...]:
    return site.entry("vm").vm.disks


@contextmanager
def serving(site: Site, directory: Path, *arguments: str, front: str = "native") -> Iterator[Serve]:
    directory.mkdir()
    with Serve(*arguments, front=front, directory=directory, root=site.state.root) as server:
        yield server


@pytest.fixture(params=FRONTS)
def server(request: pytest.FixtureRequest, site: Site, tmp_path: Path) -> Iterator[Serve]:
    with serving(site, tmp_path / "server", front=request.param) as server:
        yield server


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


@contextmanager
def attached(server: Serve, export: str = "vm/disk0") -> Iterator[nbd.NBD]:
    client = nbd.NBD()
    client.set_uri_allow_local_file(True)
    client.connect_uri(server.uri(export))
    try:
        yield client
    finally:
        with suppress(nbd.Error):  # it has lost its server
            client.shutdown()


def write(client: nbd.NBD) -> float:
    """When a write was answered."""
    client.pwrite(b"x" * 4096, 0)
    return time.monotonic()


def volume(site: Site, disk: Disk) -> Path:
    return site.state.volumes / f"{disk.volume}.raw"


def is_written(site: Site, disk: Disk) -> bool:
    with volume(site, disk).open("rb") as file:
        return file.read(1) == b"x"


def doors(site: Site) -> list[Path]:
    return list(site.state.leases.glob("*.door"))


# Without clients


def test_nobody_gets_in_where_nobody_is_and_no_server_is_asked(
    site: Site, disks: tuple[Disk, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_client, "servers", lambda _: pytest.fail("asked"))
    with instant(site, disks) as now:
        assert now.servers == 0
        assert now.seconds_left() == float("inf")
        assert len(doors(site)) == 2
        for disk in disks:
            with pytest.raises(ResourceInUse):
                enter(site.state.leases, disk.volume)
            with pytest.raises(ResourceInUse):
                Lease.acquire_shared(site.lease(disk))
    assert doors(site) == []
    for disk in disks:
        enter(site.state.leases, disk.volume).release()


def test_what_the_block_raises_goes_on_and_all_is_as_before(site: Site, disks: tuple[Disk, ...]) -> None:
    with pytest.raises(ZeroDivisionError), instant(site, disks):
        raise ZeroDivisionError
    assert doors(site) == []
    enter(site.state.leases, disks[0].volume).release()


# With clients


def test_no_client_is_answered_until_the_end(
    site: Site, disks: tuple[Disk, ...], server: Serve, threads: ThreadPoolExecutor
) -> None:
    def attempt(client: nbd.NBD) -> bool:
        with instant(site, disks) as now:
            assert 0 < now.seconds_left() <= 1
            assert now.servers == 1
            reply = threads.submit(write, client)
            until(lambda: is_written(site, disks[0]), what="the write to be done")
            assert not reply.done() or now.seconds_left() < 0
            before_end = time.monotonic()
        assert reply.result(LONG) > before_end
        return True

    with attached(server) as client:
        assert tried(lambda: attempt(client))
        assert write(client)


def tried(attempt: Callable[[], Result]) -> Result:
    """As whoever copies tries: again, where the instant was lost."""
    for _ in range(20):
        try:
            return attempt()
        except InstantLost:
            continue
    raise AssertionError("Each of 20 instants was lost")


def test_all_goes_on_at_once_where_the_block_raises(site: Site, disks: tuple[Disk, ...], server: Serve) -> None:
    def attempt() -> bool:
        with pytest.raises(ZeroDivisionError), instant(site, disks):
            start = time.monotonic()
            raise ZeroDivisionError
        return write(client) - start < 0.9

    with attached(server) as client:
        assert any(tried(attempt) for _ in range(5)), "each of five writes took as long as a hold that nobody ends"


def test_an_instant_that_takes_too_long_is_lost(site: Site, disks: tuple[Disk, ...], server: Serve) -> None:
    with attached(server) as client, pytest.raises(InstantLost), instant(site, disks) as now:
        write(client)  # answered when the second is over
        assert now.seconds_left() <= 0
    assert doors(site) == []


def test_one_who_comes_meanwhile_waits_at_the_door(
    site: Site, disks: tuple[Disk, ...], server: Serve, threads: ThreadPoolExecutor
) -> None:
    def come() -> None:
        with attached(server, "vm/disk1"):
            pass

    def others_come_in() -> bool:
        with instant(site, disks[:1]):
            threads.submit(come).result(LONG)
        return True

    def waits() -> bool:
        with instant(site, disks):
            coming = threads.submit(come)
            with pytest.raises(TimeoutError):
                coming.result(0.1)
        coming.result(LONG)
        return True

    with attached(server):
        assert tried(others_come_in)
        assert tried(waits)


def test_the_death_of_who_copies_ends_it_at_once(
    site: Site, disks: tuple[Disk, ...], server: Serve, threads: ThreadPoolExecutor
) -> None:
    program = """
import sys
from pathlib import Path
from nbdresize.config import StateDirectory
from nbdresize.control.freeze import instant
from nbdresize.control.site import open_site
site = open_site(StateDirectory(Path(sys.argv[1])), create=False)
with instant(site, site.entry("vm").vm.disks):
    print("held", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", program, str(site.state.root)]

    def attempt() -> float:
        volume(site, disks[0]).write_bytes(bytes(MIB))
        with subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as copying:
            try:
                if next_line(copying) != "held\n":
                    raise InstantLost
                start = time.monotonic()
                reply = threads.submit(write, client)
                until(lambda: is_written(site, disks[0]), what="the write to be done")
            finally:
                copying.kill()
            seconds = reply.result(LONG) - start
        with attached(server), attached(server, "vm/disk1"):
            assert doors(site) == []
        return seconds

    with attached(server) as client:
        assert min(tried(attempt) for _ in range(5)) < 0.9


# Servers that fail


def test_a_server_that_does_not_answer_is_named(
    site: Site, disks: tuple[Disk, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeze, "TIME_LIMIT", 0.5)
    with serving(site, tmp_path / "server") as server, attached(server):
        [worker] = server.workers()
        os.kill(worker, signal.SIGSTOP)
        try:
            with pytest.raises(ServerFailed, match=rf"{worker}-.*did not answer") as caught, instant(site, disks):
                pytest.fail("an instant without the server")
        finally:
            os.kill(worker, signal.SIGCONT)
        assert f"restart it (process {worker}), or detach all clients of vm/disk0" in caught.value.way_out


def test_a_server_that_does_not_answer_matters_only_where_clients_are(
    site: Site, disks: tuple[Disk, ...], tmp_path: Path
) -> None:
    with serving(site, tmp_path / "server") as server, attached(server):
        [worker] = server.workers()
        os.kill(worker, signal.SIGSTOP)
        try:
            with instant(site, disks[1:]) as now:
                assert now.servers == 0
        finally:
            os.kill(worker, signal.SIGCONT)


def test_clients_of_a_server_that_nobody_finds_are_told_of(site: Site, disks: tuple[Disk, ...], tmp_path: Path) -> None:
    with serving(site, tmp_path / "server") as server, attached(server), serving(site, tmp_path / "other"):
        [worker] = server.workers()
        [path] = site.state.run.glob(f"{worker}-*.admin")
        path.unlink()
        refused = pytest.raises(ResourceInUse, match="vm/disk0 has clients of a server that can't be asked")
        with refused, instant(site, disks):
            pytest.fail("an instant without the server")


def test_a_server_that_was_killed_stands_in_nobodys_way(site: Site, disks: tuple[Disk, ...], tmp_path: Path) -> None:
    with serving(site, tmp_path / "server") as server, attached(server):
        (site.state.run / "1-00000000.admin").touch()  # what a server left that was killed while it was made
        with serving(site, tmp_path / "other") as other:
            [worker] = other.workers()
            [left] = site.state.run.glob(f"{worker}-*.admin")
            os.kill(other.pid, signal.SIGKILL)
            until(lambda: refuses(left), what="the other worker to end with its supervisor")
        assert tried(lambda: servers_asked(site, disks)) == 1


def servers_asked(site: Site, disks: tuple[Disk, ...]) -> int:
    """How many servers hold replies back in an instant."""
    with instant(site, disks) as now:
        return now.servers


def test_a_server_that_ends_meanwhile_loses_the_instant(site: Site, disks: tuple[Disk, ...], tmp_path: Path) -> None:
    with serving(site, tmp_path / "server") as server, attached(server) as client:
        with pytest.raises(InstantLost), instant(site, disks):
            server.end()
        with pytest.raises(nbd.Error):
            client.pwrite(b"x", 0)


@pytest.mark.parametrize("read", [1, 1 << 20], ids=["reset", "closed"])
def test_a_server_that_is_killed_while_it_is_asked_loses_the_instant(
    site: Site, disks: tuple[Disk, ...], read: int
) -> None:
    """A killed process closes its sockets one after the other: for a moment it can be reached, and says nothing."""
    site.state.run.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        with admin_client.reachable(site.state.run / "4242-0000aaaa.admin") as address:
            listening.bind(address)
        listening.listen()
        listening.settimeout(LONG)

        def die() -> None:
            with listening.accept()[0] as asking:
                asking.recv(read)
            for _ in range(3):
                listening.accept()[0].close()
            listening.close()

        dying = threading.Thread(target=die, daemon=True)
        dying.start()
        with pytest.raises(InstantLost):
            freeze._Frozen(site.state, disks)
        dying.join(LONG)


# The order of what clients do


class Counting:
    """A client that writes the next number to disk0, waits for the answer, and then writes it to disk1, in a loop."""

    def __init__(self, first: nbd.NBD, second: nbd.NBD, length: int) -> None:
        self._disks = (first, second)
        self._length = length
        self._ended = threading.Event()
        self.number = 0

    def run(self) -> int:
        while not self._ended.is_set():
            data = (self.number + 1).to_bytes(8, "big") * (self._length // 8)
            for disk in self._disks:
                disk.pwrite(data, 0)
            self.number += 1
        return self.number

    def end(self) -> None:
        self._ended.set()


@contextmanager
def counting(servers: list[Serve], threads: ThreadPoolExecutor, length: int) -> Iterator[Counting]:
    """One at work, on the first server for disk0 and on the last for disk1."""
    with attached(servers[0], "vm/disk0") as first, attached(servers[-1], "vm/disk1") as second:
        client = Counting(first, second, length)
        running: Future[int] = threads.submit(client.run)
        try:
            until(lambda: client.number > 10, what="the client to count")
            yield client
        finally:
            client.end()
            running.result(LONG)


def copied(site: Site, disks: tuple[Disk, ...]) -> list[int]:
    """The numbers in copies of both volumes that are taken one after the other."""
    return [int.from_bytes(volume(site, disk).read_bytes()[:8], "big") for disk in disks]


lengths = pytest.mark.parametrize("length", [4096, 256 << 10])


@lengths
@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("count", [1, 2])
def test_copies_taken_in_an_instant_keep_the_order_of_what_was_answered(
    site: Site,
    disks: tuple[Disk, ...],
    tmp_path: Path,
    threads: ThreadPoolExecutor,
    front: str,
    count: int,
    length: int,
) -> None:
    def attempt() -> bool:
        with instant(site, disks):
            before = client.number
            first, second = copied(site, disks)
        assert first >= second
        assert second >= before
        seen.append(first)
        return True

    seen: list[int] = []
    with ExitStack() as stack:
        servers = [
            stack.enter_context(serving(site, tmp_path / f"server{number}", "--workers", "2", front=front))
            for number in range(count)
        ]
        client = stack.enter_context(counting(servers, threads, length))
        for _ in range(15):
            assert tried(attempt)
            until(lambda: client.number > seen[-1], what="the client to go on")
    assert seen == sorted(set(seen))


@lengths
@pytest.mark.parametrize("front", FRONTS)
def test_copies_taken_at_any_time_do_not(
    site: Site, disks: tuple[Disk, ...], tmp_path: Path, threads: ThreadPoolExecutor, front: str, length: int
) -> None:
    """What the test above looks for is there to be found."""

    def disordered() -> bool:
        first, second = copied(site, disks)
        return first < second

    with serving(site, tmp_path / "server", front=front) as server, counting([server], threads, length):
        until(disordered, LONG, "copies in the wrong order")
