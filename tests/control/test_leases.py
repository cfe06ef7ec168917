"""Leases and VM locks, across threads and processes."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from nbdresize.control import locks
from nbdresize.control.leases import Lease, closed_door, enter, remove_left_doors
from nbdresize.errors import ResourceInUse, StateUnusable, VolumeFailed
from tests.filesystems import mounted, run
from tests.peers import next_line
from tests.wait import until

CHECKOUT = Path(__file__).parents[2]
HOLDER = """
import sys
from pathlib import Path
from nbdresize.control.leases import Lease
lease = (Lease.acquire_exclusive if sys.argv[2] == "exclusive" else Lease.acquire_shared)(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_another_process(path: Path, how: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(path), how]
    with subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert next_line(process) == "held\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "volume.lock"


def test_many_connections_share_a_lease_and_keep_a_shrink_out(path: Path) -> None:
    with Lease.acquire_shared(path), Lease.acquire_shared(path), pytest.raises(ResourceInUse, match="attached"):
        Lease.acquire_exclusive(path)
    with Lease.acquire_exclusive(path), pytest.raises(ResourceInUse, match="shrunk or deleted"):
        Lease.acquire_shared(path)


@pytest.mark.parametrize("how", ["shared", "exclusive"])
def test_a_lease_ends_with_its_process_however_that_ends(path: Path, how: str) -> None:
    with held_by_another_process(path, how) as process:
        with pytest.raises(ResourceInUse):
            Lease.acquire_exclusive(path)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        Lease.acquire_exclusive(path, wait=30).release()


def test_a_lease_is_waited_for(path: Path) -> None:
    with held_by_another_process(path, "exclusive") as process:
        assert process.stdin is not None
        process.stdin.close()
        Lease.acquire_shared(path, wait=60).release()


def test_the_only_connection_may_upgrade_and_comes_back_shared(path: Path) -> None:
    with Lease.acquire_shared(path) as lease:
        assert lease.upgrade()
        assert lease.upgrade()
        assert lease.exclusive
        with pytest.raises(ResourceInUse):
            Lease.acquire_shared(path)
        lease.downgrade()
        with Lease.acquire_shared(path):
            assert not lease.upgrade()
            assert not lease.exclusive
            with pytest.raises(ResourceInUse):
                Lease.acquire_exclusive(path)
        assert lease.upgrade()


def test_a_lease_that_is_lost_while_converted_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes somebody who ignores the lock of the VM; the connection must then end."""
    lease = Lease.acquire_shared(path)
    monkeypatch.setattr(locks, "lock_descriptor", lambda *_, **__: False)
    with pytest.raises(VolumeFailed, match="lost"):
        lease.upgrade()
    assert not lease.held
    with pytest.raises(ValueError, match="released"):
        lease.fileno()


def test_releasing_twice_closes_nobody_elses_descriptor(path: Path) -> None:
    lease = Lease.acquire_shared(path)
    lease.release()
    other = os.open(path, os.O_RDONLY)
    lease.release()
    os.fstat(other)
    os.close(other)


def test_children_do_not_inherit_a_lease(path: Path) -> None:
    with Lease.acquire_shared(path) as lease:
        command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, close_fds=False) as child:
            lease.release()
            Lease.acquire_exclusive(path, wait=30).release()
            assert child.poll() is None


def test_a_lock_file_removed_by_its_holder_locks_nobody_out(path: Path) -> None:
    """Who waited for the removed file takes a new one; two never hold the lock on different files."""
    first = locks.FileLock(path, locks.lock_within(path, 0, exclusive=True, held_by=_never), exclusive=True)
    old = os.open(path, os.O_RDWR)
    first.remove_file()
    first.release()
    assert locks.lock_descriptor(path, old, exclusive=True)
    with Lease.acquire_exclusive(path) as new:
        assert not os.path.samestat(os.fstat(old), os.fstat(new.fileno()))
        with pytest.raises(ResourceInUse):
            Lease.acquire_shared(path)
    os.close(old)


def test_only_an_exclusive_holder_removes_the_file(path: Path) -> None:
    with Lease.acquire_shared(path) as lease, pytest.raises(ValueError, match="shared"):
        lease.remove_file()
    assert path.exists()


def test_a_busy_vm_is_waited_for_then_named(tmp_path: Path) -> None:
    with locks.lock_vm(tmp_path, "web1", 0):
        with pytest.raises(ResourceInUse, match="web1 is being changed"):
            locks.lock_vm(tmp_path, "web1", 0.05)
        locks.lock_vm(tmp_path, "web2", 0).release()


def test_lock_files_that_can_not_be_are_explained_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StateUnusable, match="is gone"):
        Lease.acquire_shared(tmp_path / "missing" / "volume.lock")
    (tmp_path / "directory.lock").mkdir()
    with pytest.raises(StateUnusable, match="Is a directory"):
        Lease.acquire_shared(tmp_path / "directory.lock")
    (tmp_path / "link.lock").symlink_to("/etc/hostname")
    with pytest.raises(StateUnusable, match="can't be used"):
        Lease.acquire_exclusive(tmp_path / "link.lock")


def test_a_file_system_without_locks_is_explained(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As NFS answers where its lock daemon does not run: it can't be had here."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(StateUnusable, match="No locks available") as caught:
        Lease.acquire_shared(path)
    assert "no working file locks" in caught.value.way_out


def test_a_read_only_file_system_has_no_locks(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path) as point:
        run("mount", "-o", "remount,ro", point)
        with pytest.raises(StateUnusable, match="Read-only file system"):
            Lease.acquire_shared(point / "volume.lock")


def test_descriptors_do_not_leak(path: Path) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    with Lease.acquire_exclusive(path):
        for _ in range(50):
            with pytest.raises(ResourceInUse):
                Lease.acquire_shared(path)
    until(lambda: count() <= before, what="all descriptors to be closed")


def _never() -> ResourceInUse:
    raise AssertionError("nobody holds it")


# Doors

DOOR_HOLDER = """
import sys
from pathlib import Path
from nbdresize.control.leases import closed_door
with closed_door(Path(sys.argv[1]), "volume"):
    print("held", flush=True)
    sys.stdin.read()
"""


def enters(directory: Path, wait: float = 0.0) -> bool:
    """Whether a connection comes in, at once or in so many seconds."""
    try:
        enter(directory, "volume", wait).release()
    except ResourceInUse:
        return False
    return True


def test_a_closed_door_keeps_new_connections_out_and_lets_others_stay(tmp_path: Path) -> None:
    with enter(tmp_path, "volume") as inside:
        with closed_door(tmp_path, "volume"):
            with pytest.raises(ResourceInUse, match=r"kept from .* volume\.door"):
                enter(tmp_path, "volume", 0.02)
            assert inside.held
            with enter(tmp_path, "another volume"):
                pass
        assert enters(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"volume.lock", "another volume.lock"}


def test_a_door_is_waited_for(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as threads:
        with closed_door(tmp_path, "volume"):
            waiting = threads.submit(enters, tmp_path, 60)
            with pytest.raises(TimeoutError):
                waiting.result(0.05)
        assert waiting.result(60)


def test_who_gets_the_lease_just_as_the_door_closes_gives_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The door closes between the look at it and the lease."""
    with ExitStack() as stack:
        acquire = Lease.acquire_shared

        def close_and_acquire(path: Path, wait: float) -> Lease:
            monkeypatch.setattr(Lease, "acquire_shared", acquire)
            stack.enter_context(closed_door(tmp_path, "volume"))
            return acquire(path, wait)

        monkeypatch.setattr(Lease, "acquire_shared", close_and_acquire)
        assert not enters(tmp_path)
        Lease.acquire_exclusive(tmp_path / "volume.lock").release()


def test_a_door_whose_holder_was_killed_is_open(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DOOR_HOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert next_line(process) == "held\n"
            assert not enters(tmp_path)
        finally:
            process.kill()
        process.wait(30)
    assert (tmp_path / "volume.door").exists()
    assert enters(tmp_path, 30)
    assert not (tmp_path / "volume.door").exists()
    (tmp_path / "volume.door").touch()
    with closed_door(tmp_path, "volume"):
        assert not enters(tmp_path)


def test_doors_that_were_left_are_removed_and_held_ones_stay(tmp_path: Path) -> None:
    (tmp_path / "left.door").touch()
    with closed_door(tmp_path, "volume"):
        remove_left_doors(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"volume.door"}
    remove_left_doors(tmp_path / "missing")


def test_doors_hold_while_many_look_at_them(tmp_path: Path) -> None:
    """Nobody who tidies up ever removes a door that somebody holds."""
    inside: list[int] = []
    closed, ended = threading.Event(), threading.Event()

    def come_and_go() -> int:
        entered = 0
        while not ended.is_set():
            with enter(tmp_path, "volume", 60):
                entered += 1
                if closed.is_set():
                    inside.append(entered)
        return entered

    with ThreadPoolExecutor(6) as threads:
        clients = [threads.submit(come_and_go) for _ in range(6)]
        try:
            for _ in range(100):
                (tmp_path / "volume.door").touch()
                with closed_door(tmp_path, "volume"):
                    Lease.acquire_exclusive(tmp_path / "volume.lock", 60).release()
                    closed.set()
                    time.sleep(0.001)  # a chance for whoever gets in wrongly
                    closed.clear()
        finally:
            ended.set()
        assert all(client.result(60) for client in clients)
    assert inside == []
