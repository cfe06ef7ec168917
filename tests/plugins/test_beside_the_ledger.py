"""A server and other processes on one ledger."""

from pathlib import Path

import pytest

from tests.peers import PROGRAM, Serve, run

pytestmark = pytest.mark.slow


def test_a_server_sees_every_vm_that_is_made_while_it_runs(tmp_path: Path) -> None:
    """Had it dropped SQLite's locks, the first command to end would remove the log from under it."""
    root = tmp_path / "state"
    run(PROGRAM, "--root", root, "vm", "create", "first", "--disk-space", "1M", "--disk", "1M")
    with Serve("--root", root, directory=tmp_path) as server:
        for number in range(4):
            run(PROGRAM, "--root", root, "vm", "create", f"web{number}", "--disk-space", "2M", "--disk", "1M")
            assert run("nbdinfo", "--size", server.uri(f"web{number}/disk0")) == "1048576\n"
            run(PROGRAM, "grow", server.uri(f"web{number}/disk0"), "2M")


def test_a_server_holds_its_locks_on_the_ledger(tmp_path: Path) -> None:
    root = tmp_path / "state"
    run(PROGRAM, "--root", root, "vm", "create", "web1", "--disk-space", "1M", "--disk", "1M")
    with Serve("--root", root, directory=tmp_path) as server:
        for _ in range(3):
            run("nbdinfo", "--list", server.uri())
        inode = (root / "ledger.sqlite").stat().st_ino
        held = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        assert any(int(fields[5].split(":")[2]) == inode for fields in held if fields[1] == "POSIX"), held
