"""Every error a user can make ends in one line, with the exit code of its class, and changes nothing."""

import contextlib
import json
import sqlite3
import subprocess
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.model import MAX_DISKS
from tests.cli.command import PROGRAM, SECONDS, Answer, Command, Inside
from tests.filesystems import mounted, run

pytestmark = pytest.mark.slow

LONG_NAME = "x" * 300
HOSTILE_NAMES = [
    "",
    ".",
    "..",
    "../web1",
    "a/b",
    "a b",
    "a\nb",
    "\x1b[31mred",
    "[red]x[/red]",
    "é",
    LONG_NAME,
    b"\xff\xfe",
]
BAD_SIZES = [
    "",
    "0",
    "abc",
    "9999P",
    "1" * 300,
    "1001",
    "12.5",
    "1e9",
    "nan",
    "20X",
    "+",
    "++5G",
    "+0",
    "20G;ls",
    "\x1b[2J",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_a_name_that_no_vm_can_have(name: str, inside: Inside) -> None:
    line = inside("vm", "create", name, "--disk-space", "1G").failed(3, "InvalidArgument")
    assert len(line) < 400
    assert line.isprintable()
    assert not inside.root.exists() or inside("vm", "list", "--json").ok().json == {"vms": []}


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_a_name_that_no_vm_has_in_every_other_command(name: str, web1: Command, inside: Inside) -> None:
    before = inside("vm", "list", "--json").ok().json
    for command in (
        ("vm", "show", name),
        ("vm", "delete", name, "--yes"),
        ("vm", "update", name, "--disk-space", "1G"),
        ("disk", "list", name),
        ("disk", "add", name, "1G"),
        ("disk", "resize", name, "disk0", "30G"),
        ("disk", "resize", "web1", name, "30G"),
        ("disk", "delete", name, "disk1", "--yes"),
        ("disk", "delete", "web1", name, "--yes"),
    ):
        inside(*command).failed(3, "InvalidArgument")
    assert inside("vm", "list", "--json").ok().json == before


def test_bytes_that_are_no_text_are_a_name_like_any_other(web1: Command) -> None:
    web1("vm", "create", b"\xff\xfe", "--disk-space", "1G").failed(3, "InvalidArgument")
    web1("vm", "show", b"\xff\xfe").failed(3, "InvalidArgument")
    web1("vm", "create", LONG_NAME, "--disk-space", "1G").failed(3, "InvalidArgument")
    assert [vm["name"] for vm in web1("vm", "list", "--json").ok().json["vms"]] == ["web1"]


@pytest.mark.parametrize("size", BAD_SIZES, ids=ascii)
def test_a_size_that_is_none(size: str, web1: Command, inside: Inside) -> None:
    before = inside("vm", "list", "--json").ok().json
    for command in (
        ("vm", "create", "web2", "--disk-space", "1G", "--disk", size),
        ("disk", "add", "web1", size),
        ("disk", "resize", "web1", "disk0", size),
    ):
        line = inside(*command).failed(3, "InvalidArgument")
        assert len(line) < 400
        assert line.isprintable()
    if size != "1001":  # any number of bytes can be asked for over NBD: the server rounds up
        inside("grow", "nbd://localhost:1/web1/disk0", size).failed(3, "InvalidArgument")
    assert inside("vm", "list", "--json").ok().json == before


@pytest.mark.parametrize("size", ["-5G", "-1", "-0"])
def test_a_negative_size_is_no_unknown_option(size: str, web1: Command, inside: Inside) -> None:
    for command in (
        ("disk", "resize", "web1", "disk0", size),
        ("disk", "resize", "web1", "disk0", "--", size),
        ("disk", "add", "web1", size),
        ("grow", "nbd://localhost:1/web1/disk0", size),
    ):
        assert "negative" in inside(*command).failed(3, "InvalidArgument")
    inside("vm", "create", "web2", "--disk-space", size).failed(3, "InvalidArgument")


def test_more_than_the_budget_holds(web1: Command) -> None:
    line = web1("disk", "resize", "web1", "disk0", "+500G").failed(4, "InsufficientSpace")
    assert "75 GiB" in line
    web1("disk", "add", "web1", "76G").failed(4, "InsufficientSpace")
    web1("vm", "create", "web2", "--disk-space", "10G", "--disk", "8G", "--disk", "8G").failed(4, "InsufficientSpace")
    web1("vm", "update", "web1", "--disk-space", "10G").failed(4, "InsufficientSpace")
    assert [vm["name"] for vm in web1("vm", "list", "--json").ok().json["vms"]] == ["web1"]


def test_what_is_not_there(web1: Command) -> None:
    web1("vm", "show", "web2").failed(5, "ResourceNotFound")
    web1("disk", "resize", "web1", "disk7", "1G").failed(5, "ResourceNotFound")
    web1("disk", "delete", "web1", "disk7", "--yes").failed(5, "ResourceNotFound")
    web1("vm", "delete", "web2").failed(5, "ResourceNotFound")


def test_a_name_that_is_taken(web1: Command) -> None:
    web1("vm", "create", "web1", "--disk-space", "1G").failed(6, "ResourceInUse")


def test_what_clients_have_attached(web1: Command) -> None:
    with Control.open(StateDirectory(web1.root)) as control:
        _, lease = control.take_lease("web1", "disk1")
        try:
            web1("vm", "delete", "web1", "--yes").failed(6, "ResourceInUse")
            web1("disk", "delete", "web1", "disk1", "--yes").failed(6, "ResourceInUse")
            web1("disk", "resize", "web1", "disk1", "1G", "--dangerous-allow-shrink").failed(6, "ResourceInUse")
            web1("disk", "resize", "web1", "disk1", "6G").ok()
        finally:
            lease.release()
    web1("vm", "delete", "web1", "--yes").ok()


def test_a_smaller_size_by_mistake(web1: Command) -> None:
    line = web1("disk", "resize", "web1", "disk0", "10G").failed(8, "NotAuthorized")
    assert "--dangerous-allow-shrink" in line


def test_one_disk_more_than_slots(nbdresize: Command) -> None:
    disks = ["--disk", "1M"] * MAX_DISKS
    nbdresize("vm", "create", "web1", "--disk-space", "1G", *disks, "--disk", "1M").failed(9, "LimitExceeded")
    nbdresize("vm", "create", "web1", "--disk-space", "1G", *disks).ok()
    nbdresize("disk", "add", "web1", "1M").failed(9, "LimitExceeded")


def test_a_volume_deleted_behind_our_back(web1: Command) -> None:
    for volume in StateDirectory(web1.root).volumes.iterdir():
        volume.unlink()
    web1("disk", "resize", "web1", "disk0", "30G").failed(10, "VolumeFailed")
    assert web1("disk", "list", "web1", "--json").ok().json["disks"][0]["size"] == 20 * 2**30


def test_a_state_directory_that_is_missing_is_not_made_by_reading(nbdresize: Command) -> None:
    for command in (("vm", "list"), ("status",), ("disk", "list", "web1"), ("vm", "delete", "web1", "--yes")):
        nbdresize(*command).failed(11, "StateUnusable")
    assert not nbdresize.root.exists()


def test_a_state_directory_that_can_be_none(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    for root in (file, file / "below", Path("/proc/none"), tmp_path / ("y" * 300)):
        Command(root)("vm", "create", "web1", "--disk-space", "1G").failed(11, "StateUnusable")
    assert file.read_text() == "in the way"


def test_a_state_directory_of_nobody(nbdresize: Command, tmp_path: Path) -> None:
    nbdresize("--root", "~nobody-of-that-name/state", "vm", "list").failed(11, "StateUnusable")
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'cd "$1" && rmdir "$1" && exec "$0" --root state vm list'
    done = subprocess.run(["/bin/sh", "-c", script, PROGRAM, gone], capture_output=True, text=True, timeout=SECONDS)
    Answer(done.returncode, done.stdout, done.stderr).failed(11, "StateUnusable")


def test_a_state_directory_on_a_full_or_read_only_file_system(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path, size=4 << 20) as point:
        nbdresize = Command(point / "state")
        with Control.open(StateDirectory(nbdresize.root)) as control:
            control.update_pool(overcommit="unlimited")
        nbdresize("vm", "create", "web1", "--disk-space", "100G", "--disk", "1G").ok()
        changes = (
            ("vm", "create", "web2", "--disk-space", "10G", "--disk", "1G"),
            ("disk", "add", "web1", "1G"),
            ("disk", "resize", "web1", "disk0", "+1G"),
        )
        with contextlib.suppress(OSError), (point / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(65536))
        for words in changes:
            nbdresize(*words).failed(11, "StateUnusable")
        (point / "filler").unlink()
        run("mount", "-o", "remount,ro", point)
        for words in changes:
            nbdresize(*words).failed(11, "StateUnusable")
        run("mount", "-o", "remount,rw", point)
        (vm,) = nbdresize("vm", "list", "--json").ok().json["vms"]
        assert [disk["size"] for disk in vm["disks"]] == [2**30]
        assert len(list(StateDirectory(point / "state").volumes.iterdir())) == 1


def test_a_ledger_that_is_none(web1: Command) -> None:
    StateDirectory(web1.root).ledger.write_bytes(b"this is no database" * 1000)
    for command in (("vm", "list"), ("status",), ("disk", "resize", "web1", "disk0", "30G")):
        web1(*command).failed(11, "StateUnusable")


def test_a_ledger_from_a_newer_version(web1: Command) -> None:
    with sqlite3.connect(StateDirectory(web1.root).ledger) as database:
        database.execute("UPDATE meta SET version = version + 1000")
    database.close()
    assert "newer" in web1("vm", "list").failed(11, "StateUnusable")


def test_nobody_serves(nbdresize: Command, tmp_path: Path) -> None:
    uri = f"nbd+unix:///web1/disk0?socket={tmp_path / 'none'}"
    nbdresize("size", uri).failed(14, "PeerFailed")
    nbdresize("grow", uri, "1G").failed(14, "PeerFailed")
    nbdresize("size", "web1/disk0").failed(3, "InvalidArgument")
    nbdresize("size", b"nbd://h/\xff").failed(3, "InvalidArgument")


@pytest.mark.parametrize(
    "words",
    [
        ("frobnicate",),
        ("vm", "frobnicate"),
        ("vm", "create"),
        ("vm", "list", "surplus"),
        ("vm", "list", "--frobnicate"),
        ("disk", "resize", "web1", "disk0", "1G", "--wait", "soon"),
        ("disk", "resize", "web1", "disk0", "1G", "--wait", "-1"),
        ("disk", "resize", "web1", "disk0", "1G", "--wait", "nan"),
        ("size", "nbd://localhost/x", "--timeout", "inf"),
        ("size", "nbd://localhost/x", "--timeout", "0"),
        ("size",),
        ("--root",),
        ("vm", "list", "\x1b[31m\n"),
        ("vm", "list", "--\x1b[31m\n"),
    ],
    ids=ascii,
)
def test_arguments_that_do_not_parse(words: tuple[str, ...], inside: Inside) -> None:
    line = inside(*words).failed(2, "UsageError")
    assert line.endswith("--help'")
    assert line.isprintable()


def test_errors_as_json(web1: Command) -> None:
    for words, code, name in (
        (("vm", "show", "web2"), 5, "ResourceNotFound"),
        (("disk", "resize", "web1", "disk0", "-5G"), 3, "InvalidArgument"),
        (("vm", "list", "surplus\n"), 2, "UsageError"),
        (("disk", "delete", "web1", "disk1"), 2, "UsageError"),
    ):
        answer = web1(*words, "--json")
        assert (answer.code, answer.out) == (code, "")
        error = json.loads(answer.err)
        assert list(error) == ["error", "message", "way_out"]
        assert error["error"] == name
        assert error["message"]
        assert error["way_out"]
        assert answer.err.count("\n") == 1


def test_a_bug_is_one_line_and_a_traceback_only_on_request(web1: Command, tmp_path: Path) -> None:
    (tmp_path / "sqlalchemy.py").write_text("raise RuntimeError('planted\\nbug')\n")
    line = web1("vm", "list", PYTHONPATH=str(tmp_path)).failed(1, "InternalError")
    assert "RuntimeError: planted\\nbug" in line
    assert "report" in line
    assert "Traceback" in web1("vm", "list", PYTHONPATH=str(tmp_path), NBDRESIZE_DEBUG="1").err


def test_ctrl_c_while_modules_are_loaded_is_as_quiet_as_later(nbdresize: Command, tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    answer = nbdresize("vm", "list", PYTHONPATH=str(tmp_path))
    assert (answer.code, answer.out, answer.err) == (130, "", "")


def test_ctrl_c_in_the_middle_of_a_command(web1: Command, tmp_path: Path) -> None:
    (tmp_path / "sqlalchemy.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    answer = web1("vm", "list", PYTHONPATH=str(tmp_path))
    assert (answer.code, answer.out, answer.err) == (130, "", "")
