"""`disk resize --set`: several disks at once, or none."""

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from tests.cli.command import Command, Inside

pytestmark = pytest.mark.slow

GIB = 2**30
SHRINK = "--dangerous-allow-shrink"


def sizes(inside: Inside) -> list[int]:
    """Of the disks of web1, in GiB."""
    return [disk["size"] // GIB for disk in inside("disk", "list", "web1", "--json").ok().json["disks"]]


def test_several_disks_are_resized_at_once(web1: Command, inside: Inside) -> None:
    out = inside("disk", "resize", "web1", "--set", "disk0=30G", "--set", "disk1=+15G").ok().out.splitlines()
    assert out[:2] == ["web1/disk0: 20 GiB → 30 GiB", "web1/disk1: 5 GiB → 20 GiB"]
    assert [line.split()[0] for line in out[2:]] == ["volume", "ledger", "servers"]
    partly = inside("disk", "resize", "web1", "--set", "disk0=30G", "--set", "disk1=21G").ok().out.splitlines()
    assert partly[:2] == ["web1/disk1: 20 GiB → 21 GiB", "web1/disk0: no change"]
    again = inside("disk", "resize", "web1", "--set", "disk0=30G", "--set", "disk1=21G").ok().out.splitlines()
    assert again == ["web1/disk0: 30 GiB already", "web1/disk1: 21 GiB already"]
    exact = inside("disk", "resize", "web1", "--set", "disk0=31G", "--bytes").ok().out.splitlines()
    assert exact[0] == f"web1/disk0: {30 * GIB} → {31 * GIB}"


def test_space_moves_from_one_disk_to_another_in_one_step(web1: Command, inside: Inside) -> None:
    inside("disk", "resize", "web1", "disk1", "remaining").ok()
    assert sizes(inside) == [20, 80]
    move = ("disk", "resize", "web1", "--set", "disk1=60G", "--set", "disk0=+20G")
    inside(*move).failed(8, "NotAuthorized")
    assert sizes(inside) == [20, 80]
    inside(*move, SHRINK).ok()
    assert sizes(inside) == [40, 60]
    inside("disk", "resize", "web1", "--set", "disk1=10G", "--set", "disk0=remaining", SHRINK).ok()
    assert sizes(inside) == [90, 10]


def test_the_answer_in_json_has_an_outcome_for_each_disk(web1: Command, inside: Inside) -> None:
    words = ("disk", "resize", "web1", "--set", "disk0=30G", "--set", "disk1=5G", "--operation-id", "one", "--json")
    done = inside(*words).ok().json
    assert list(done) == ["vm", "operation", "added", "resized", "removed", "stages"]
    assert (done["vm"], done["operation"], done["added"], done["removed"]) == ("web1", "one", [], [])
    single = inside("disk", "resize", "web1", "disk0", "30G", "--json").ok().json
    assert [list(each) for each in done["resized"]] == [list(single)], "disk1 has its size already"
    assert [(each["disk"], each["size"], each["generation"]) for each in done["resized"]] == [("disk0", 30 * GIB, 2)]
    again = inside(*words).ok().json
    assert [each["size"] for each in again["resized"]] == [each["size"] for each in done["resized"]]
    assert inside("disk", "list", "web1", "--json").ok().json["disks"][0]["generation"] == 2


def test_a_client_on_one_of_them_stops_all(web1: Command, inside: Inside) -> None:
    with Control.open(StateDirectory(inside.root)) as control, control.take_lease("web1", "disk1")[1]:
        words = ("disk", "resize", "web1", "--set", "disk0=30G", "--set", "disk1=1G", SHRINK)
        assert "web1/disk1 has clients attached" in inside(*words).failed(6, "ResourceInUse")
        assert sizes(inside) == [20, 5]
        inside("disk", "resize", "web1", "--set", "disk0=30G", "--set", "disk1=6G").ok()
    inside("disk", "resize", "web1", "--set", "disk0=29G", "--set", "disk1=1G", SHRINK).ok()
    assert sizes(inside) == [29, 1]


@pytest.mark.parametrize(
    ("words", "code", "name", "told"),
    [
        (("--set", "disk0"), 2, "UsageError", "as in --set disk0=30G"),
        (("--set", ""), 2, "UsageError", "as in --set disk0=30G"),
        (("disk0", "30G", "--set", "disk1=6G"), 2, "UsageError", "--set disk0=SIZE"),
        (("disk0", "--set", "disk1=6G"), 2, "UsageError", "--set disk0=SIZE"),
        (("--set", "disk0=30G", "--set", "disk0=31G"), 3, "InvalidArgument", "name each disk once"),
        (("--set", "disk0=", "--set", "disk1=6G"), 3, "InvalidArgument", "give a size such as 20G"),
        (("--set", "=30G"), 3, "InvalidArgument", "disks are disk0 to disk7"),
        (("--set", "disk8=30G"), 3, "InvalidArgument", "disks are disk0 to disk7"),
        (("--set", "disk0=30G=31G"), 3, "InvalidArgument", "is not a size"),
        (("--set", "disk0=-5G"), 3, "InvalidArgument", "is negative"),
        (("--set", "disk0=remaining", "--set", "disk1=remaining"), 3, "InvalidArgument", "give all disks but one"),
        (("--set", "disk0=30G", "--set", "disk5=30G"), 5, "ResourceNotFound", "it has disk0, disk1"),
        (("--set", "disk0=60G", "--set", "disk1=60G"), 4, "InsufficientSpace", "vm update web1 --disk-space"),
        (("--set", "\x1b[2Jdisk0=\x1b[2J"), 3, "InvalidArgument", "disks are disk0 to disk7"),
        (("--set", "disk0=30G", "--operation-id", "a b"), 3, "InvalidArgument", "the first a letter or digit"),
    ],
)
def test_wrong_settings_are_told_with_a_way_out_and_change_nothing(
    web1: Command, inside: Inside, words: tuple[str, ...], code: int, name: str, told: str
) -> None:
    assert told in inside("disk", "resize", "web1", *words).failed(code, name)
    assert sizes(inside) == [20, 5]
