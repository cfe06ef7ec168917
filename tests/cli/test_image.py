"""The commands on images: what they do, what they print, and how their copies are interrupted."""

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from tests.cli.command import SECONDS, Command, Inside
from tests.cli.terminal import Terminal
from tests.control.consistency import problems
from tests.wait import until

pytestmark = pytest.mark.slow

MIB = 1 << 20
LARGE = 256 * MIB
"""More than can be copied before somebody who looks all the time has seen that it began."""


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "debian.raw"
    path.write_bytes(os.urandom(MIB))
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("large") / "large.raw"
    with path.open("wb") as file:
        for _ in range(LARGE // MIB):
            file.write(b"x" * MIB)
    yield path
    path.unlink()


def test_an_image_from_addition_to_deletion(inside: Inside, raw: Path) -> None:
    line = inside("image", "add", "debian", str(raw)).ok().out.splitlines()[1]
    assert re.fullmatch(r"debian  1 MiB +1 MiB  1 MiB  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", line)
    assert inside("image", "list").ok().out.splitlines()[1] == line
    assert inside("image", "show", "debian").ok().out.splitlines()[1] == line
    assert str(MIB) in inside("image", "show", "debian", "--bytes").ok().out
    inside("vm", "create", "web1", "--disk-space", "10M", "--image", "debian").ok()
    inside("image", "add", "golden", "--disk", "web1/disk0").ok()
    inside("snapshot", "create", "web1", "before").ok()
    inside("image", "add", "then", "--snapshot", "web1/before/disk0").ok()
    assert inside("image", "delete", "debian", "--yes").ok().out == "image debian: deleted\n"
    assert inside("image", "delete", "then", "--yes", "--json").ok().json == {"image": "then", "deleted": True}
    assert [each["name"] for each in inside("image", "list", "--json").ok().json["images"]] == ["golden"]


def test_json_has_the_documented_shape(inside: Inside, raw: Path) -> None:
    added = inside("image", "add", "debian", str(raw), "--original-size", "0", "--json").ok().json
    assert list(added) == ["name", "size", "original_size", "space", "created"]
    assert {**added, "created": ""} == {
        "name": "debian",
        "size": MIB,
        "original_size": 0,
        "space": MIB,
        "created": "",
    }
    assert inside("image", "list", "--json").ok().json == {"images": [added]}
    assert inside("image", "show", "debian", "--json").ok().json == added
    assert inside("image", "add", "half", str(raw), "--original-size", "512K", "--json").ok().json["original_size"] == (
        MIB // 2
    )


def test_no_images_yet(inside: Inside) -> None:
    inside("vm", "create", "web1", "--disk-space", "1M").ok()
    assert inside("image", "list").ok().out.startswith("No images yet: ")


def test_errors_are_one_line_with_their_code(inside: Inside, raw: Path, tmp_path: Path) -> None:
    inside("image", "add", "debian", str(raw)).ok()
    inside("image", "add", "debian", str(raw)).failed(6, "ResourceInUse")
    inside("image", "add", "x", str(tmp_path / "no\nthing")).failed(5, "ResourceNotFound")
    inside("image", "add", "x").failed(2, "UsageError")
    inside("image", "add", "x", str(raw), "--disk", "web1/disk0").failed(2, "UsageError")
    inside("image", "add", "x", "--disk", "web1").failed(2, "UsageError")
    inside("image", "add", "x", "--snapshot", "web1/disk0").failed(2, "UsageError")
    inside("image", "add", "x", "--disk", "web1/disk0").failed(5, "ResourceNotFound")
    inside("image", "add", "x", str(raw), "--original-size", "2M").failed(3, "InvalidArgument")
    inside("image", "delete", "debian").failed(2, "UsageError")
    line = inside("image", "show", "nope").failed(5, "ResourceNotFound")
    assert "there are debian;" in line


def test_the_command_that_makes_a_file_raw_does_so(nbdresize: Command, raw: Path, tmp_path: Path) -> None:
    other = tmp_path / "debian of today.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, other], check=True, timeout=SECONDS)
    line = nbdresize("image", "add", "debian", other).failed(3, "InvalidArgument")
    command = line[line.index("qemu-img") :]
    subprocess.run(shlex.split(command), check=True, timeout=SECONDS)
    nbdresize("image", "add", "debian", shlex.split(command)[-1]).ok()
    assert volume(nbdresize).read_bytes() == raw.read_bytes()


def test_changes_happen_once_with_an_operation_id(inside: Inside, raw: Path) -> None:
    add = ("image", "add", "debian", str(raw), "--operation-id", "a")
    assert inside(*add).ok().out == inside(*add).ok().out
    delete = ("image", "delete", "debian", "--operation-id", "b")
    inside(*delete, "--yes").ok()
    inside(*delete).ok()


def test_the_shell_completes_names(nbdresize: Command, raw: Path) -> None:
    nbdresize("image", "add", "debian", raw).ok()
    nbdresize("vm", "create", "web1", "--disk-space", "2M", "--image", "debian").ok()
    wanted = {
        "nbdresize image delete ": "debian",
        "nbdresize vm create web2 --image de": "debian",
        "nbdresize image add new --disk we": "web1/disk0",
    }
    for line, name in wanted.items():
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        assert nbdresize(_NBDRESIZE_COMPLETE="complete_bash", **words).ok().out.split() == [name]


def volume(nbdresize: Command) -> Path:
    """The volume of the only image."""
    (found,) = (nbdresize.root / "volumes").glob("image-*.raw")
    return found


@contextmanager
def standing_still(nbdresize: Command, pid: int) -> Iterator[None]:
    """A command that adds an image, stopped in the middle of its copy while this lasts."""

    def copying() -> bool:
        return any(path.stat().st_blocks for path in (nbdresize.root / "volumes").glob("image-*.raw"))

    deadline = time.monotonic() + SECONDS
    while not copying():  # looked at more often than `until` does
        assert time.monotonic() < deadline, "the copy does not begin"
        time.sleep(0.001)
    os.kill(pid, signal.SIGSTOP)
    try:
        with Control.open(StateDirectory(nbdresize.root)) as control:
            assert control.images() == [], "it was too fast to be stopped"
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def pool(nbdresize: Command) -> None:
    with Control.open(StateDirectory(nbdresize.root)) as control:
        control.update_pool(overcommit="unlimited")


def nothing_left(nbdresize: Command) -> None:
    with Control.open(StateDirectory(nbdresize.root)) as control:
        assert control.images() == []
        assert control.pool().images == 0
    assert list((nbdresize.root / "volumes").iterdir()) == []
    assert problems(StateDirectory(nbdresize.root)) == []


def test_control_c_undoes_a_copy(nbdresize: Command, large: Path) -> None:
    pool(nbdresize)
    with nbdresize.start("image", "add", "debian", large) as process:
        with standing_still(nbdresize, process.pid):
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out, err) == (130, b"", b"")
    nothing_left(nbdresize)


def test_a_killed_copy_is_undone_by_the_next_command(nbdresize: Command, large: Path) -> None:
    pool(nbdresize)
    with nbdresize.start("image", "add", "debian", large) as process:
        with standing_still(nbdresize, process.pid):
            process.kill()
        process.communicate(timeout=SECONDS)
    assert nbdresize("image", "list").ok().out.startswith("No images yet")
    nothing_left(nbdresize)


def test_a_cancelled_copy_says_so(nbdresize: Command, large: Path) -> None:
    pool(nbdresize)
    with (
        nbdresize.start("image", "add", "debian", large, "--operation-id", "slow") as process,
        Control.open(StateDirectory(nbdresize.root)) as control,
    ):
        with standing_still(nbdresize, process.pid):
            control.cancel_operation("slow")
            long_enough_for_a_report()
        _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 15
    assert err.decode().startswith("nbdresize: OperationCancelled: ")
    nothing_left(nbdresize)


def test_a_long_copy_shows_a_bar_on_a_terminal(nbdresize: Command, large: Path) -> None:
    pool(nbdresize)
    terminal = Terminal(nbdresize, "image", "add", "debian", str(large))
    with standing_still(nbdresize, terminal.pid):
        long_enough_for_a_report()
    assert terminal.end() == 0
    bar, _, table = terminal.text.rpartition("\x1b[2K")
    assert "copying large.raw" in bar
    assert "of 256 MiB" in bar
    assert "%" in bar
    assert "\x1b[?25h" in bar, "the cursor is back"
    assert "debian  256 MiB" in table


def test_a_long_copy_shows_none_elsewhere(nbdresize: Command, large: Path) -> None:
    pool(nbdresize)
    with nbdresize.start("image", "add", "debian", large, "--json") as process:
        with standing_still(nbdresize, process.pid):
            long_enough_for_a_report()
        _, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (0, b"")


def long_enough_for_a_report() -> None:
    """Let the time pass after which an operation tells how far it is, and looks whether it was cancelled."""
    then = time.monotonic() + 0.6
    until(lambda: time.monotonic() > then)
