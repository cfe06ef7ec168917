"""Leases and VM locks, across threads and processes."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nbdresize.control import locks
from nbdresize.control.leases import Lease
from nbdresize.errors import ResourceInUse, StateUnusable, VolumeFailed
from tests.filesystems import mounted, run
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
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
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
