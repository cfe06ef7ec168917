"""`check` on the command line."""

import os
import pty
from pathlib import Path

import pytest

from nbdresize.cli.main import run
from nbdresize.config import StateDirectory
from nbdresize.control.locks import lock_vm
from tests.cli.command import INTERRUPTIBLE, Command, Inside
from tests.wait import until

pytestmark = pytest.mark.slow


@pytest.fixture
def orphan(web1: Command) -> Path:
    """A volume of 1 MiB without data that no row names."""
    path = StateDirectory(web1.root).volumes / "stray.raw"
    path.touch()
    os.truncate(path, 1 << 20)
    return path


def test_all_is_well(web1: Command) -> None:
    assert web1("check").ok().out == "Checked 1 VM, 2 disks, 0 snapshots, 0 images and 0 servers: all is well\n"
    assert web1("check", "--json").ok().json == {
        "checked": {"vms": 1, "disks": 2, "snapshots": 0, "images": 0, "servers": 0},
        "skipped": [],
        "problems": [],
        "warnings": [],
    }
    assert web1("check", "--repair", "--yes").ok().out.endswith(": all is well\n")


def test_a_warning_is_not_all_well(web1: Command) -> None:
    web1("pool", "update", "--capacity", "1M", "--overcommit", "1").ok()
    answer = web1("check").ok().out.splitlines()
    assert answer[0].startswith("warning: pool: ")
    assert answer[-1].endswith(" and 0 servers: nothing is wrong, 1 warning")


def test_what_is_wrong_is_one_line_and_an_exit_code(inside: Inside, web1: Command, orphan: Path) -> None:
    answer = inside("check")
    error = answer.failed(16, "Inconsistent")
    assert error == "nbdresize: Inconsistent: 1 problem remains: nbdresize check --repair puts it right"
    first, last = answer.out.splitlines()
    assert first.startswith("stray: No disk, snapshot or image has this volume")
    assert first.endswith(": nbdresize check --repair removes it")
    assert last == "Checked 1 VM, 2 disks, 0 snapshots, 0 images and 0 servers"
    assert orphan.exists()


def test_json_has_the_report_and_the_error(inside: Inside, web1: Command, orphan: Path) -> None:
    answer = inside("check", "--json")
    assert answer.code == 16
    (problem,) = answer.json["problems"]
    assert list(problem) == ["what", "subject", "detail", "repaired", "way_out"]
    assert (problem["what"], problem["subject"], problem["repaired"]) == ("orphan_volume", "stray", False)
    assert '"error": "Inconsistent"' in answer.err


def test_repair_with_yes(inside: Inside, web1: Command, orphan: Path) -> None:
    orphan.with_name("data.raw").write_bytes(b"x")
    answer = inside("check", "--repair", "--yes")
    error = answer.failed(16, "Inconsistent")
    assert error == "nbdresize: Inconsistent: 1 problem remains: each one says above what to do"
    assert "stray: " in answer.out
    assert "repaired: it was removed" in answer.out
    assert not orphan.exists()
    orphan.with_name("data.raw").unlink()
    inside("check").ok()


def test_repair_without_a_terminal_needs_yes(web1: Command, orphan: Path) -> None:
    assert "--yes" in web1("check", "--repair").failed(2, "UsageError")
    assert orphan.exists()


def on_terminal(command: Command, answer: bytes) -> tuple[int, str]:
    """`check --repair` where somebody sits at a terminal and answers; its exit code, and all that was shown."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(
            INTERRUPTIBLE[0], [str(word) for word in (*INTERRUPTIBLE, "check", "--repair")], command.environment()
        )
    shown = bytearray()

    def read() -> bool:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # the other end is closed
            return True
        shown.extend(piece)
        if b"?" in piece:
            os.write(terminal, answer)
        return not piece

    until(read, what="the command to end")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown.decode()


def test_repair_on_a_terminal_shows_what_there_is_and_asks(web1: Command, orphan: Path) -> None:
    code, shown = on_terminal(web1, b"n\n")
    assert code == 130
    assert "stray: " in shown
    assert "Repair 1 problem?" in shown
    assert orphan.exists()
    code, shown = on_terminal(web1, b"y\n")
    assert code == 0
    assert "repaired: it was removed" in shown
    assert not orphan.exists()
    code, shown = on_terminal(web1, b"")
    assert code == 0
    assert "Repair" not in shown


def test_what_is_being_changed_is_named_and_no_failure(inside: Inside, web1: Command) -> None:
    with lock_vm(StateDirectory(web1.root).locks, "web1", 0):
        out = inside("check").ok().out
        (skipped,) = inside("check", "--json").ok().json["skipped"]
    assert "skipped: VM web1 is being changed by another command\n" in out
    assert list(skipped) == ["subject", "detail"]


def test_a_warning_is_no_failure(inside: Inside, web1: Command) -> None:
    inside("pool", "update", "--capacity", "1M", "--overcommit", "1").ok()
    assert "\nwarning: pool: " in f"\n{inside('check').ok().out}"
    assert [each["what"] for each in inside("check", "--json").ok().json["warnings"]] == ["over_pool"]


def test_without_a_state_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--root", str(tmp_path / "none"), "check"]) == 11
    assert "There is no state directory" in capsys.readouterr().err
