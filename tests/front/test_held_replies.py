"""Both fronts while replies are held back: nothing is answered, everything else goes on."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbd
import pytest

from nbdresize.config import StateDirectory
from nbdresize.control import admin_client
from nbdresize.control.admin_client import Conversation
from tests.front.conftest import MIB, SIZE, connect, make_ledger
from tests.peers import CHECKOUT, Serve, next_line
from tests.wait import until

pytestmark = pytest.mark.slow

LONG = 60.0
DISK = "web1/disk0"
FREEZE = {"command": "freeze", "exports": [DISK], "seconds": 1.0}
PATTERN = b"held" * 1024


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_ledger(tmp_path, SIZE, MIB)


@pytest.fixture
def server(front: str, root: Path, tmp_path: Path) -> Iterator[Serve]:
    with Serve(front=front, directory=tmp_path, root=root) as server:
        yield server


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


@pytest.fixture
def admin(server: Serve, root: Path) -> Path:
    """The admin socket of the only worker."""
    [admin] = admin_client.servers(StateDirectory(root))
    return admin


class Asker(Conversation):
    """Somebody who holds replies back, or asks otherwise."""

    def __init__(self, admin: Path) -> None:
        super().__init__(admin, time.monotonic() + LONG)

    def __call__(self, command: str, **message: Any) -> dict[str, Any]:
        deadline = time.monotonic() + LONG
        self.tell({"command": command, **message}, deadline)
        return self.answer(deadline)

    def freeze(self) -> float:
        """Hold replies back; when that was asked."""
        start = time.monotonic()
        assert self("freeze", exports=[DISK], seconds=1.0)["ok"]
        return start


def volume(root: Path) -> Path:
    [volume] = (root / "volumes").glob("web1-disk0-*")
    return volume


def written(root: Path, offset: int = 0) -> bool:
    """Whether the pattern is in the volume."""
    with volume(root).open("rb") as file:
        file.seek(offset)
        return file.read(len(PATTERN)) == PATTERN


def asked(threads: ThreadPoolExecutor, client: nbd.NBD, offset: int = 0) -> "Future[float]":
    """A write that is under way; when it was answered."""

    def write() -> float:
        client.pwrite(PATTERN, offset)
        return time.monotonic()

    return threads.submit(write)


def test_a_write_is_done_but_answered_only_at_the_thaw(
    server: Serve, root: Path, admin: Path, threads: ThreadPoolExecutor
) -> None:
    client = connect(server.uri(DISK))
    with Asker(admin) as asker:
        start = asker.freeze()
        reply = asked(threads, client)
        until(lambda: written(root), what="the write to be done")
        assert not reply.done()
        before = time.monotonic()
        if asker("thaw")["held"]:  # a machine that is slow enough may need longer than a second for this
            assert reply.result(LONG) >= before
        else:
            assert reply.result(LONG) >= start + 1.0
    client.shutdown()


@pytest.mark.parametrize("length", [512, 4096, 64 << 10, MIB])
def test_no_kind_of_reply_leaves(
    server: Serve, front: str, admin: Path, threads: ThreadPoolExecutor, length: int
) -> None:
    def request(client: nbd.NBD, number: int) -> object:
        whole: list[Callable[[], object]] = [
            lambda: client.pread(length, 0),
            lambda: client.pwrite(bytes(length), 0),
            lambda: client.pwrite(bytes(length), 0, nbd.CMD_FLAG_FUA),
            lambda: client.zero(length, 0),
            lambda: client.trim(length, 0),
            lambda: client.flush(),
            lambda: client.cache(length, 0),
            lambda: client.block_status(length, 0, lambda *_: 0),
            lambda: refused(client),
        ]
        return whole[number]()

    def refused(client: nbd.NBD) -> None:
        client.set_strict_mode(0)
        with pytest.raises(nbd.Error):
            client.pread(length, 2 * SIZE)

    kinds = 9 if front == "native" else 8  # what nbdkit refuses by itself tells nothing of the disk
    clients = [connect(server.uri(DISK)) for _ in range(kinds)]
    clients[0].pwrite(b"x" * length, 0)
    clients[0].pread(length, 0)
    with Asker(admin) as asker, ThreadPoolExecutor(len(clients)) as pool:
        start = asker.freeze()
        replies = [pool.submit(request, client, number) for number, client in enumerate(clients)]
        stamps: list[float] = []
        for reply in replies:
            reply.add_done_callback(lambda _: stamps.append(time.monotonic()))
        for reply in replies:
            reply.result(LONG)
        assert min(stamps) >= start + 0.999  # nobody thawed: it ended by itself
        assert asker("thaw")["held"] is False
    for client in clients:
        client.shutdown()


def test_a_hold_ends_with_its_asker_however_that_ends(
    server: Serve, root: Path, admin: Path, threads: ThreadPoolExecutor
) -> None:
    program = (
        "import sys, time; from pathlib import Path; from nbdresize.control.admin_client import Conversation\n"
        "asker = Conversation(Path(sys.argv[1]), time.monotonic() + 60)\n"
        f"asker.tell({FREEZE!r}, time.monotonic() + 60); print(asker.answer(time.monotonic() + 60), flush=True)\n"
        "sys.stdin.read()"
    )
    client = connect(server.uri(DISK))
    quickest = LONG
    for attempt in range(5):
        command = [sys.executable, "-c", program, str(admin)]
        with subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as asker:
            assert "'ok': True" in next_line(asker)
            start = time.monotonic()
            reply = asked(threads, client, attempt * MIB)
            until(lambda at=attempt * MIB: written(root, at), what="the write to be done")  # type: ignore[misc]
            assert not reply.done() or time.monotonic() > start + 0.9
            asker.send_signal(signal.SIGKILL)
            quickest = min(quickest, reply.result(LONG) - start)
    assert quickest < 0.9
    client.shutdown()


def test_a_client_that_connects_during_a_hold_is_held_too(
    server: Serve, root: Path, admin: Path, threads: ThreadPoolExecutor
) -> None:
    with Asker(admin) as asker:
        start = asker.freeze()
        client = connect(server.uri(DISK))
        reply = asked(threads, client)
        until(lambda: written(root), what="the write to be done")
        assert reply.result(LONG) >= start + 0.999
    client.shutdown()


def test_other_disks_are_answered_during_a_hold(server: Serve, admin: Path) -> None:
    client = connect(server.uri("web1/disk1"))
    with Asker(admin) as asker:
        for _ in range(5):
            asker.freeze()
            client.pwrite(PATTERN, 0)
            if asker("thaw")["held"]:
                break
        else:
            raise AssertionError("Every time the answer took a second")
    client.shutdown()


def test_status_and_drop_work_during_a_hold(
    server: Serve, root: Path, admin: Path, threads: ThreadPoolExecutor
) -> None:
    client = connect(server.uri(DISK))
    with Asker(admin) as asker, Asker(admin) as other:
        for _ in range(5):
            asker.freeze()
            reply = asked(threads, client)
            until(lambda: written(root), what="the write to be done")
            assert [each["export"] for each in other("clients")["clients"]] == [DISK]
            assert other("sizes", exports=[DISK])["clients"] == 1
            assert other("drop", exports=[DISK])["dropped"] == 1
            with pytest.raises(nbd.Error):
                reply.result(LONG)
            until(lambda: not other("clients")["clients"], what="the connection to end")
            if asker("thaw")["held"]:
                return
            client = connect(server.uri(DISK))
            volume(root).write_bytes(bytes(SIZE))
    raise AssertionError("Every time it took a second")


def test_a_server_that_ends_does_not_wait_for_the_thaw(
    server: Serve, root: Path, admin: Path, threads: ThreadPoolExecutor
) -> None:
    client = connect(server.uri(DISK))
    with Asker(admin) as asker:
        asker.freeze()
        reply = asked(threads, client)
        until(lambda: written(root), what="the write to be done")
        assert server.end() == 0
    reply.result(LONG)  # what it had done, it answered
