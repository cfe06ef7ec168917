"""The commands on packages: what they do, what they print, the shape of their JSON."""

import pytest

from tests.cli.command import Command, Inside

pytestmark = pytest.mark.slow

GIB = 2**30
LIST = ("--default-disk", "image", "--default-disk", "20G", "--default-disk", "remaining")


def test_a_package_from_creation_to_deletion(inside: Inside) -> None:
    made = inside("package", "create", "big", "--disk-space", "1T", "--max-image", "50G", *LIST).ok()
    assert made.out.splitlines() == [
        "NAME  DISK SPACE  DISKS                     LARGEST IMAGE  SNAPSHOTS",
        "big        1 TiB  image, 20 GiB, remaining         50 GiB        128",
    ]
    inside("package", "create", "fix", "--disk-space", "100G", "--fixed", "--snapshot-limit", "3").ok()
    inside("package", "create", "free", "--disk-space", "100G", "--flexible").ok()
    assert [line.split()[:4] for line in inside("package", "list").ok().out.splitlines()[1:]] == [
        ["big", "1", "TiB", "image,"],
        ["fix", "100", "GiB", "fixed"],
        ["free", "100", "GiB", "flexible"],
    ]
    assert inside("package", "delete", "big", "--yes").ok().out == "package big: deleted\n"
    assert inside("package", "delete", "free", "--yes", "--json").ok().json == {"package": "free", "deleted": True}
    assert [each["name"] for each in inside("package", "list", "--json").ok().json["packages"]] == ["fix"]


def test_json_has_the_documented_shape(inside: Inside) -> None:
    big = {
        "name": "big",
        "disk_space": 1024 * GIB,
        "flexible": True,
        "default_disks": ["image", 20 * GIB, "remaining"],
        "max_image": None,
        "snapshot_limit": 128,
    }
    assert inside("package", "create", "big", "--disk-space", "1T", *LIST, "--json").ok().json == big
    assert inside("package", "list", "--json").ok().json == {"packages": [big]}
    inside("pool", "update", "--overcommit", "unlimited").ok()
    inside("vm", "create", "web1", "--package", "big", "--disk", "1G").ok()
    assert inside("package", "show", "big", "--json").ok().json == {**big, "vms": ["web1"]}
    assert inside("package", "show", "big").ok().out.splitlines()[-1] == "VMs: web1"
    assert str(1024 * GIB) in inside("package", "show", "big", "--bytes").ok().out


def test_no_packages_yet(inside: Inside) -> None:
    inside("vm", "create", "web1", "--disk-space", "1M").ok()
    assert inside("package", "list").ok().out.startswith("No packages yet: ")
    assert inside("package", "list", "--json").ok().json == {"packages": []}


def test_errors_are_one_line_with_their_code(inside: Inside) -> None:
    inside("package", "create", "p", "--disk-space", "10G").ok()
    inside("pool", "update", "--overcommit", "unlimited").ok()
    inside("vm", "create", "web1", "--package", "p").ok()
    inside("package", "create", "p", "--disk-space", "10G").failed(6, "ResourceInUse")
    line = inside("package", "delete", "p", "--yes").failed(6, "ResourceInUse")
    assert "web1" in line
    inside("package", "delete", "p").failed(2, "UsageError")
    line = inside("package", "show", "nope").failed(5, "ResourceNotFound")
    assert "there are p;" in line
    inside("package", "create", "q", "--disk-space", "10G", "--default-disk", "11G", "--default-disk", "image").failed(
        3, "InvalidArgument"
    )
    inside("package", "create", "q", "--disk-space", "10G", "--fixed", "--default-disk", "1G").failed(
        3, "InvalidArgument"
    )
    inside("package", "create", "q", "--disk-space", "much").failed(3, "InvalidArgument")
    inside("package", "create", "q").failed(2, "UsageError")


def test_changes_happen_once_with_an_operation_id(inside: Inside) -> None:
    create = ("package", "create", "p", "--disk-space", "10G", "--operation-id", "a")
    assert inside(*create).ok().out == inside(*create).ok().out
    delete = ("package", "delete", "p", "--operation-id", "b")
    inside(*delete, "--yes").ok()
    inside(*delete).ok()


def test_the_shell_completes_names(nbdresize: Command) -> None:
    nbdresize("package", "create", "small", "--disk-space", "1M").ok()
    for line in ("nbdresize package delete ", "nbdresize vm create web1 --package sm"):
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        assert nbdresize(_NBDRESIZE_COMPLETE="complete_bash", **words).ok().out.split() == ["small"]
