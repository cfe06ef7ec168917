"""The commands on snapshots: what they do, print and ask."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdresize.cli.snapshot import complete_snapshot
from nbdresize.config import ROOT_VARIABLE, StateDirectory
from nbdresize.control.control import Control
from nbdresize.units import SizeRequest
from tests.cli.command import Command, Inside
from tests.cli.terminal import Terminal
from tests.filesystems import mounted

GIB = 1 << 30
MIB = 1 << 20
LINE = re.compile(r"(\S+) +(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) +(\d) +(.*?)  +(.*?)  +(.*)")


@pytest.fixture
def vm(inside: Inside) -> Inside:
    """The command, with a VM web1 with two disks, the first of which has 3 MiB of data."""
    inside("vm", "create", "web1", "--disk-space", "100G", "--disk", "20G", "--disk", "5G").ok()
    fill(inside.root, 3)
    return inside


def fill(root: Path, mib: int) -> None:
    volume = min((root / "volumes").glob("web1-disk0-????????.raw"), key=lambda each: each.stat().st_ino)
    with volume.open("r+b") as file:
        file.write(os.urandom(mib * MIB))
        os.fsync(file.fileno())


def test_create_says_what_it_costs(vm: Inside) -> None:
    made = vm("snapshot", "create", "web1", "before").ok().out
    assert made.startswith("web1: snapshot before of 2 disks, charged 3 MiB")
    assert vm("vm", "show", "web1", "--json").ok().json["snapshot_space"] == 3 * MIB
    told = vm("snapshot", "create", "web1", "again", "--json").ok().json
    assert (told["vm"], told["name"], told["size"]) == ("web1", "again", 25 * GIB)
    assert [(disk["slot"], disk["size"]) for disk in told["disks"]] == [("disk0", 20 * GIB), ("disk1", 5 * GIB)]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", told["created"])
    assert told["copied"] in (0, 3 * MIB)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "preallocate", "said"),
    [
        ("xfs", False, ""),
        ("tmpfs", False, ", copied 3 MiB (this file system can't share blocks)"),
        ("xfs", True, ", copied 3 MiB (disk0: preallocated disks share no blocks)"),
    ],
)
def test_a_copy_in_full_is_announced_with_its_cost(
    kind: str, preallocate: bool, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mounted(kind, tmp_path) as point:
        with Control.open(StateDirectory(point / "state")) as control:
            control.create_vm("web1", 32 * MIB, [SizeRequest(exact=8 * MIB)], preallocate=preallocate)
        fill(point / "state", 3)
        made = Inside(point / "state", capsys)("snapshot", "create", "web1", "before").ok().out
        assert made == f"web1: snapshot before of 1 disk, charged 3 MiB{said}\n"


def test_list_shows_what_each_is_charged_and_frees(vm: Inside) -> None:
    assert vm("snapshot", "list", "web1").ok().out == (
        "web1 has no snapshots: nbdresize snapshot create web1 NAME makes one.\n"
    )
    vm("snapshot", "create", "web1", "s1").ok()
    fill(vm.root, 1)
    vm("snapshot", "create", "web1", "s2").ok()
    told = vm("snapshot", "list", "web1", "--json").ok().json
    assert [each["name"] for each in told["snapshots"]] == ["s1", "s2"]
    assert told["snapshot_space"] == sum(each["space"] for each in told["snapshots"])
    header, *rows, empty, last = vm("snapshot", "list", "web1", "--bytes").ok().out.splitlines()
    assert header.split() == ["NAME", "CREATED", "(UTC)", "DISKS", "SIZE", "CHARGED", "FREES"]
    assert empty == ""
    assert last == (
        f"web1: {told['snapshot_space']} charged for its snapshots; {told['held_space']} in blocks that only they hold"
    )
    for row, each in zip(rows, told["snapshots"], strict=True):
        match = LINE.fullmatch(row)
        assert match is not None, row
        name, created, *numbers = match.groups()
        assert (name, created.replace(" ", "T") + "Z") == (each["name"], each["created"])
        assert list(map(int, numbers)) == [2, 25 * GIB, each["space"], each["frees"]]


def test_disk_list_tells_what_snapshots_take(vm: Inside) -> None:
    vm("snapshot", "create", "web1", "s1").ok()
    told = vm("disk", "list", "web1", "--json").ok().json
    assert told["snapshot_space"] == 3 * MIB
    assert told["used_space"] == 25 * GIB + 3 * MIB


def test_rollback_says_what_became_of_each_disk(vm: Inside) -> None:
    vm("snapshot", "create", "web1", "before").ok()
    vm("disk", "resize", "web1", "disk0", "30G").ok()
    vm("disk", "delete", "web1", "disk1", "--yes").ok()
    out = vm("snapshot", "rollback", "web1", "before", "--yes").ok().out.replace("->", "→")
    assert out.splitlines() == [
        "web1/disk1: back as in before, 5 GiB, after it had been deleted",
        "web1/disk0: as in before, 30 GiB → 20 GiB, generation 3",
    ]
    told = vm("snapshot", "rollback", "web1", "before", "--yes", "--json", "--operation-id", "r1").ok().json
    assert (told["snapshot"], told["vm"], told["operation"], told["added"]) == ("before", "web1", "r1", [])
    assert [(each["disk"], each["size"], each["generation"]) for each in told["resized"]] == [
        ("disk0", 20 * GIB, 4),
        ("disk1", 5 * GIB, 2),
    ]


def test_what_loses_data_needs_yes_where_nobody_can_be_asked(vm: Inside) -> None:
    vm("snapshot", "create", "web1", "s1").ok()
    line = vm("snapshot", "rollback", "web1", "s1").failed(2, "UsageError")
    assert "Losing all that was written to web1/disk0 and web1/disk1 since 2" in line
    line = vm("snapshot", "delete", "web1", "s1").failed(2, "UsageError")
    assert "Deleting snapshot s1 of web1, made 2" in line
    assert vm("disk", "list", "web1", "--json").ok().json["disks"][0]["generation"] == 1
    assert vm("snapshot", "delete", "web1", "s1", "--yes").ok().out == "web1: snapshot s1 deleted\n"
    assert vm("snapshot", "list", "web1", "--json").ok().json["snapshots"] == []


@pytest.mark.slow
def test_on_a_terminal_it_asks_first(web1: Command) -> None:
    web1("snapshot", "create", "web1", "s1").ok()
    terminal = Terminal(web1, "snapshot", "rollback", "web1", "s1")
    terminal.expect("for good? [y/N]")
    assert "Lose all that was written to web1/disk0 and web1/disk1 since" in terminal.text.replace("\r\n", " ")
    terminal.type("n\n")
    assert terminal.end() == 130
    terminal = Terminal(web1, "snapshot", "delete", "web1", "s1")
    terminal.expect("for good? [y/N]")
    terminal.type("y\n")
    assert terminal.end() == 0
    assert web1("snapshot", "list", "web1", "--json").ok().json["snapshots"] == []


def test_a_retry_asks_nobody_and_answers_the_same(vm: Inside) -> None:
    first = vm("snapshot", "create", "web1", "s1", "--json", "--operation-id", "c1").ok().json
    assert vm("snapshot", "create", "web1", "s1", "--json", "--operation-id", "c1").ok().json == first
    vm("snapshot", "delete", "web1", "s1", "--yes", "--operation-id", "d1").ok()
    assert vm("snapshot", "delete", "web1", "s1", "--json", "--operation-id", "d1").ok().json == {
        "vm": "web1",
        "snapshot": "s1",
        "deleted": True,
    }


def test_refusals_are_one_line_with_their_exit_code(vm: Inside) -> None:
    vm("snapshot", "create", "web1", "s1").ok()
    assert "choose another name" in vm("snapshot", "create", "web1", "s1").failed(6, "ResourceInUse")
    for command in ("delete", "rollback"):
        assert "it has s1" in vm("snapshot", command, "web1", "s2", "--yes").failed(5, "ResourceNotFound")
    vm("snapshot", "create", "web2", "s1").failed(5, "ResourceNotFound")
    vm("snapshot", "list", "web2").failed(5, "ResourceNotFound")
    vm("snapshot", "create", "web1", "a/b").failed(3, "InvalidArgument")
    vm("vm", "update", "web1", "--protected").ok()
    vm("snapshot", "rollback", "web1", "s1", "--yes").failed(7, "DeletionProtected")


class _Typed:
    """The command line so far, as the completion sees it."""

    def __init__(self, **params: object) -> None:
        self.params = params


@pytest.fixture
def rooted(vm: Inside, monkeypatch: pytest.MonkeyPatch) -> Iterator[Inside]:
    monkeypatch.setenv(ROOT_VARIABLE, str(vm.root))
    yield vm


def test_names_complete(rooted: Inside) -> None:
    for name in ("before", "between", "later"):
        rooted("snapshot", "create", "web1", name).ok()
    assert complete_snapshot(_Typed(vm="web1"), "be") == ["before", "between"]  # type: ignore[arg-type]
    assert complete_snapshot(_Typed(vm="web2"), "be") == []  # type: ignore[arg-type]
    assert complete_snapshot(_Typed(vm=None), "") == []  # type: ignore[arg-type]
