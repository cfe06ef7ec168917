"""The commands on VMs and disks: what they do, what they print, the shape of their JSON."""

import json
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from tests.cli.command import Command, Inside

pytestmark = pytest.mark.slow

GIB = 2**30
DISK_KEYS = ["slot", "size", "boot", "image", "pci_slot", "generation", "pending_size", "export"]


def test_the_list_of_disks_has_the_documented_shape(web1: Command) -> None:
    answer = web1("disk", "list", "web1", "--json").ok().json
    assert list(answer) == ["vm", "total_space", "used_space", "free_space", "snapshot_space", "disks"]
    assert [list(disk) for disk in answer["disks"]] == [DISK_KEYS, DISK_KEYS]
    assert answer == {
        "vm": "web1",
        "total_space": 100 * GIB,
        "used_space": 25 * GIB,
        "free_space": 75 * GIB,
        "snapshot_space": 0,
        "disks": [
            {
                "slot": "disk0",
                "size": 20 * GIB,
                "boot": True,
                "image": None,
                "pci_slot": "0:4:0",
                "generation": 1,
                "pending_size": None,
                "export": "web1/disk0",
            },
            {
                "slot": "disk1",
                "size": 5 * GIB,
                "boot": False,
                "image": None,
                "pci_slot": "0:4:1",
                "generation": 1,
                "pending_size": None,
                "export": "web1/disk1",
            },
        ],
    }


def test_a_vm_from_creation_to_deletion(inside: Inside) -> None:
    created = inside(
        "vm",
        "create",
        "web1",
        "--disk-space",
        "100G",
        "--disk",
        "20G",
        "--disk",
        "remaining",
        "--owner",
        "ann",
        "--json",
    ).ok()
    assert {key: value for key, value in created.json.items() if key != "disks"} == {
        "name": "web1",
        "owner": "ann",
        "package": None,
        "image": None,
        "protected": False,
        "client_resize": None,
        "allowed": {"client_resize": None, "snapshots": True, "flexible_disks": True},
        "total_space": 100 * GIB,
        "used_space": 100 * GIB,
        "free_space": 0,
        "snapshots": 0,
        "snapshot_limit": 128,
        "snapshot_space": 0,
    }
    assert [disk["size"] for disk in created.json["disks"]] == [20 * GIB, 80 * GIB]
    assert inside("vm", "show", "web1", "--json").ok().json == created.json
    assert inside("vm", "list", "--json").ok().json == {"vms": [created.json]}

    updated = inside("vm", "update", "web1", "--disk-space", "200G", "--json").ok().json
    assert updated == {**created.json, "total_space": 200 * GIB, "free_space": 100 * GIB}

    assert inside("vm", "delete", "web1", "--yes", "--json").ok().json == {"vm": "web1", "deleted": True}
    assert inside("vm", "list", "--json").ok().json == {"vms": []}
    assert "vm create" in inside("vm", "list").ok().out
    assert list(StateDirectory(inside.root).volumes.iterdir()) == []


def test_a_disk_from_adding_to_deletion(web1: Command, inside: Inside) -> None:
    added = inside("disk", "add", "web1", "10G", "--json").ok().json
    assert list(added) == ["vm", *DISK_KEYS]
    assert (added["slot"], added["size"], added["export"]) == ("disk2", 10 * GIB, "web1/disk2")

    grown = inside("disk", "resize", "web1", "disk2", "+5G", "--json").ok().json
    assert list(grown) == ["vm", "disk", "old_size", "size", "generation", "cause", "operation", "stages"]
    assert (grown["vm"], grown["disk"], grown["old_size"], grown["size"]) == ("web1", "disk2", 10 * GIB, 15 * GIB)
    assert (grown["generation"], grown["cause"]) == (2, "as_requested")
    assert [stage["name"] for stage in grown["stages"]] == ["volume", "ledger", "servers"]
    assert all(stage["done"] and stage["seconds"] >= 0 for stage in grown["stages"])

    assert inside("disk", "resize", "web1", "disk2", "remaining", "--json").ok().json["size"] == 75 * GIB
    shrunk = inside("disk", "resize", "web1", "disk2", "1G", "--dangerous-allow-shrink", "--json").ok().json
    assert (shrunk["old_size"], shrunk["size"]) == (75 * GIB, GIB)

    deleted = inside("disk", "delete", "web1", "disk2", "--yes", "--json").ok().json
    assert deleted == {"vm": "web1", "disk": "disk2", "deleted": True}
    assert len(inside("disk", "list", "web1", "--json").ok().json["disks"]) == 2


def test_a_resize_prints_where_the_new_size_has_arrived(web1: Command, inside: Inside) -> None:
    first, *stages = inside("disk", "resize", "web1", "disk0", "30G").ok().out.splitlines()
    assert first == "web1/disk0: 20 GiB → 30 GiB"
    assert [line.split()[0] for line in stages] == ["volume", "ledger", "servers"]
    assert "20 GiB → 30 GiB" in stages[0]
    assert all(line.startswith("  ") and line.endswith(("ms", "s")) for line in stages)
    assert inside("disk", "resize", "web1", "disk0", "30G").ok().out == "web1/disk0: 30 GiB already\n"
    exact = inside("disk", "resize", "web1", "disk0", "31G", "--bytes").ok().out
    assert exact.startswith(f"web1/disk0: {30 * GIB} → {31 * GIB}\n")


def test_a_repeated_operation_happens_once(web1: Command, inside: Inside) -> None:
    words = ("disk", "resize", "web1", "disk0", "+10G", "--operation-id", "retry-1", "--json")
    first = inside(*words).ok().json
    again = inside(*words).ok().json
    assert first["operation"] == again["operation"] == "retry-1"
    assert first["size"] == again["size"] == 30 * GIB
    assert inside("disk", "list", "web1", "--json").ok().json["disks"][0]["size"] == 30 * GIB


def test_numbers_stand_below_each_other(web1: Command, inside: Inside) -> None:
    inside("vm", "create", "db", "--disk-space", "4M", "--disk", "4096").ok()
    header, *rows = inside("vm", "list", "--bytes").ok().out.splitlines()
    for title in ("DISKS", "BUDGET", "USED", "FREE"):
        end = header.index(title) + len(title)
        for row in rows:
            assert row[end - 1].isdigit()
            assert row[end : end + 1] in ("", " ")
    header, *rows = inside("disk", "list", "web1").ok().out.splitlines()
    assert [row[: header.index("SIZE") + 4].split(None, 1)[1] for row in rows[:2]] == ["20 GiB", "5 GiB"]


def test_a_table_is_whole_where_no_terminal_limits_it(inside: Inside) -> None:
    name = "n" * 63
    inside("vm", "create", name, "--disk-space", "8M", "--disk", "4M", "--owner", "o" * 255).ok()
    out = inside("vm", "list").ok().out.splitlines()
    assert len(out) == 2
    assert name in out[1]
    assert "o" * 255 in out[1]
    assert f"{name}/disk0" in inside("disk", "list", name).ok().out


def test_markup_in_names_is_only_text(inside: Inside) -> None:
    inside("vm", "create", "web1", "--disk-space", "8M", "--owner", "[red]ann[/red] :smile:").ok()
    for command in (("vm", "list"), ("vm", "show", "web1"), ("status",)):
        assert "[red]ann[/red] :smile:" in inside(*command).ok().out


def test_the_state_directory_is_named_before_or_after_the_command(tmp_path: Path, web1: Command) -> None:
    other = tmp_path / "other"
    for root, words in (
        (other, ("--root", other, "vm", "create", "vm2", "--disk-space", "1G")),
        (other, ("--root", tmp_path / "no", "vm", "show", "vm2", "--root", other)),
        (other, ("vm", "show", "--root", other, "vm2")),
    ):
        web1(*words).ok()
        assert StateDirectory(root).ledger.exists()
    assert not (tmp_path / "no").exists()
    assert web1("--root", other, "status", "--json").ok().json["root"] == str(other)
    assert [vm["name"] for vm in web1("vm", "list", "--json").ok().json["vms"]] == ["web1"]


def test_what_clients_may_do_to_sizes_is_a_vm_s_own(inside: Inside) -> None:
    created = inside("vm", "create", "web1", "--disk-space", "1G", "--client-resize", "grow", "--json").ok()
    assert created.json["client_resize"] == "grow"
    assert inside("vm", "update", "web1", "--client-resize", "off", "--json").ok().json["client_resize"] == "off"
    assert "its clients may resize: off" in inside("vm", "show", "web1").ok().out
    assert inside("vm", "update", "web1", "--client-resize", "default", "--json").ok().json["client_resize"] is None
    assert inside("vm", "update", "web1").code == 2, "nothing to change"


def test_one_update_changes_several_things_or_none(web1: Command, inside: Inside) -> None:
    words = ("vm", "update", "web1", "--owner", "ann", "--client-resize", "off", "--protected", "--json")
    refused = inside(*words, "--disk-space", "24G")
    assert (refused.code, json.loads(refused.err)["error"]) == (4, "InsufficientSpace")
    before = inside("vm", "show", "web1", "--json").ok().json
    assert (before["owner"], before["client_resize"], before["protected"]) == (None, None, False)
    after = inside(*words, "--disk-space", "30G").ok().json
    assert after == inside("vm", "show", "web1", "--json").ok().json
    assert (after["owner"], after["client_resize"], after["protected"]) == ("ann", "off", True)
    assert after["total_space"] == 30 * GIB


def test_show_tells_what_is_out_of_the_ordinary(web1: Command, inside: Inside) -> None:
    assert inside("vm", "show", "web1").ok().out.startswith("DISK ")
    with Control.open(StateDirectory(inside.root)) as control:
        control.create_package("small", 30 * GIB)
        control.set_switch("snapshots", "off", vm="web1")
        control.set_switch("flexible_disks", "off", vm="web1")
    inside("vm", "update", "web1", "--package", "small", "--client-resize", "grow", "--protected").ok()
    lines = inside("vm", "show", "web1").ok().out.splitlines()
    assert lines[:5] == [
        "its package: small",
        "protected: its disks can't be shrunk, deleted or rolled back",
        "its clients may resize: grow",
        "snapshots: switched off",
        "flexible disks: switched off",
    ]
    assert inside("vm", "show", "web1", "--json").ok().json["allowed"] == {
        "client_resize": "grow",
        "snapshots": False,
        "flexible_disks": False,
    }


def test_the_list_has_columns_for_what_there_is_and_fits_a_terminal(web1: Command, inside: Inside) -> None:
    assert inside("vm", "list").ok().out.split("\n")[0].split() == ["NAME", "OWNER", "DISKS", "BUDGET", "USED", "FREE"]
    with Control.open(StateDirectory(inside.root)) as control:
        control.create_package("large-2026", 800 * GIB)
    inside("vm", "update", "web1", "--package", "large-2026", "--owner", "customer-17").ok()
    out = inside("vm", "list").ok().out.splitlines()
    assert out[0].split() == ["NAME", "OWNER", "PACKAGE", "DISKS", "BUDGET", "USED", "FREE"]
    assert out[1].split()[:4] == ["web1", "customer-17", "large-2026", "2"]
    assert max(map(len, out)) <= 80


def test_a_deletion_says_all_that_goes(web1: Command, inside: Inside) -> None:
    refusal = inside("vm", "delete", "web1").failed(2, "UsageError")
    assert "Deleting web1 and its 2 disks (25 GiB) needs --yes" in refusal
    assert inside("vm", "delete", "web1", "--yes").ok().out == "web1 and its 2 disks (25 GiB): deleted\n"


def test_snapshots_are_counted_where_there_are_any_and_go_with_their_vm(inside: Inside) -> None:
    inside("vm", "create", "web1", "--disk-space", "64M", "--disk", "8M").ok()
    assert "SNAPSHOTS" not in inside("vm", "list").ok().out
    with Control.open(StateDirectory(inside.root)) as control:
        volume = control.state.volumes / f"{control.disk('web1', 'disk0').volume}.raw"
        with volume.open("r+b") as file:
            file.write(b"x" * 2**20)
        control.create_snapshot("web1", "one")
    vm = inside("vm", "show", "web1", "--json").ok().json
    assert (vm["snapshots"], vm["snapshot_space"], vm["used_space"]) == (1, 2**20, 9 * 2**20)
    assert inside("vm", "show", "web1").ok().out.splitlines()[-1] == "1 snapshot of at most 128: 1 MiB of that"
    assert inside("vm", "list").ok().out.splitlines()[0].split()[2:4] == ["DISKS", "SNAPSHOTS"]
    refusal = inside("vm", "delete", "web1").failed(2, "UsageError")
    assert "Deleting web1 and its 1 disk and 1 snapshot (9 MiB) needs --yes" in refusal
    inside("vm", "delete", "web1", "--yes").ok()
    assert list(StateDirectory(inside.root).volumes.iterdir()) == []


def test_a_deletion_can_be_retried_by_its_id_without_being_asked_again(web1: Command, inside: Inside) -> None:
    for words in (("disk", "delete", "web1", "disk1"), ("vm", "delete", "web1")):
        inside(*words, "--yes", "--operation-id", words[0]).ok()
        assert inside(*words, "--operation-id", words[0], "--json").ok().json["deleted"] is True
        inside(*words, "--yes", "--operation-id", "another").failed(5, "ResourceNotFound")


def test_a_retried_deletion_spares_the_disk_that_has_taken_the_slot(web1: Command, inside: Inside) -> None:
    inside("disk", "delete", "web1", "disk1", "--yes", "--operation-id", "one").ok()
    inside("disk", "add", "web1", "1G").ok()
    inside("disk", "delete", "web1", "disk1", "--yes", "--operation-id", "one").ok()
    assert [disk["slot"] for disk in inside("disk", "list", "web1", "--json").ok().json["disks"]] == ["disk0", "disk1"]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("vm", "update", "web1"), 2, "give --disk-space or --package"),
        (("vm", "update", "web1", "--preallocate"), 2, "are for the disks of --from-json"),
        (("vm", "update", "web1", "--disconnect", "--protected"), 2, "are for the disks of --from-json"),
        (("vm", "update", "web1", "--package", "p", "--disk-space", "1G"), 3, "either a package or a budget"),
        (("vm", "update", "web1", "--package", "p"), 5, "There is no package p"),
        (("vm", "update", "web1", "--owner", ""), 3, "can't be an owner"),
        (("vm", "update", "web1", "--protected=yes"), 2, "--protected"),
        (("vm", "show"), 2, "Missing argument"),
        (("vm", "show", "web2"), 5, "no VM web2"),
        (("vm", "show", "web1", "web2"), 2, "unexpected"),
        (("vm", "list", "web1"), 2, "unexpected"),
        (("vm", "list", "--yes"), 2, "--yes"),
        (("vm", "list", "--root"), 2, "--root"),
        (("vm", "delete"), 2, "Missing argument"),
        (("vm", "delete", "web2", "--yes"), 5, "no VM web2"),
        (("vm", "delete", "web1", "--yes", "--operation-id", "a b"), 3, "can't be the id"),
        (("disk", "resize", "web1"), 2, "Missing argument 'DISK'"),
        (("disk", "resize", "web1", "disk0"), 2, "Missing argument 'SIZE'"),
        (("disk", "resize", "web1", "disk0", "20X"), 3, "not a size"),
        (("disk", "add", "web1"), 2, "Missing argument"),
        (("disk", "add", "web1", "+5G"), 3, "no size yet to add to"),
        (("disk", "add", "web1", "80G"), 4, "at most 75 GiB more"),
        (("disk", "delete", "web1"), 2, "Missing argument"),
        (("disk", "delete", "web1", "disk0", "--yes"), 3, "delete the VM to delete it"),
        (("disk", "delete", "web1", "disk7", "--yes"), 5, "it has disk0, disk1"),
    ],
)
def test_wrong_usage_is_told_with_a_way_out_and_changes_nothing(
    words: tuple[str, ...], code: int, told: str, web1: Command, inside: Inside
) -> None:
    before = inside("vm", "list", "--json").ok().json
    answer = inside(*words)
    assert answer.code == code, answer.err
    assert told in answer.err
    assert answer.out == ""
    assert len(answer.err.splitlines()) == 1
    assert inside("vm", "list", "--json").ok().json == before
