"""`nbdresize vm create` from packages and images."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Inside

pytestmark = pytest.mark.slow

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture
def small(inside: Inside, tmp_path: Path) -> Inside:
    """With a package small of 100 GiB, and an image debian of 10 GiB."""
    path = tmp_path / "debian.raw"
    with path.open("wb") as file:
        file.write(os.urandom(MIB))
        file.truncate(10 * GIB)
    inside("image", "add", "debian", str(path)).ok()
    inside("pool", "update", "--overcommit", "unlimited").ok()
    inside("package", "create", "small", "--disk-space", "100G").ok()
    return inside


def disks(vm: dict[str, Any]) -> list[tuple[int, str | None]]:
    return [(disk["size"] // GIB, disk["image"]) for disk in vm["disks"]]


def test_three_disks_as_the_example_has_them(small: Inside) -> None:
    made = small(
        *("vm", "create", "a", "--package", "small", "--image", "debian", "--json"),
        *("--disk", "image", "--disk", "20G", "--disk", "remaining"),
    )
    vm = made.ok().json
    assert disks(vm) == [(10, "debian"), (20, None), (80, None)]
    assert (vm["package"], vm["image"], vm["total_space"], vm["free_space"]) == ("small", "debian", 110 * GIB, 0)
    assert small("vm", "show", "a", "--json").ok().json == vm
    assert [disk["image"] for disk in small("disk", "list", "a", "--json").ok().json["disks"]] == ["debian", None, None]


def test_the_boot_disk_may_be_larger_than_its_image(small: Inside) -> None:
    vm = small("vm", "create", "a", "--disk-space", "20G", "--image", "debian", "--disk", "30G", "--json").ok().json
    assert disks(vm) == [(30, "debian")]
    assert (vm["package"], vm["total_space"]) == (None, 30 * GIB)
    content = next((small.root / "volumes").glob("a-disk0-*.raw"))
    image = next((small.root / "volumes").glob("image-debian-*.raw"))
    assert content.stat().st_size == 30 * GIB
    with content.open("rb") as ours, image.open("rb") as its:
        assert ours.read(2 * MIB) == its.read(2 * MIB)
    assert content.stat().st_blocks * 512 < 2 * MIB


def test_without_disks_there_is_the_images_or_none(small: Inside) -> None:
    assert disks(small("vm", "create", "a", "--package", "small", "--image", "debian", "--json").ok().json) == [
        (10, "debian")
    ]
    assert disks(small("vm", "create", "b", "--package", "small", "--json").ok().json) == []


@pytest.mark.parametrize(
    ("arguments", "code", "name", "hint"),
    [
        ("", 3, "InvalidArgument", "exactly one of --disk-space and --package"),
        ("--disk-space 1G --package small", 3, "InvalidArgument", "exactly one of --disk-space and --package"),
        ("--package nope", 5, "ResourceNotFound", "there are fixed, small, tiny"),
        ("--package small --image nope", 5, "ResourceNotFound", "there are debian"),
        ("--package small --disk image", 3, "InvalidArgument", "give one such as 20G"),
        ("--package small --image debian --disk 20G --disk image", 3, "InvalidArgument", "boot disk"),
        ("--package small --image debian --disk 5G", 3, "InvalidArgument", "10 GiB"),
        ("--package small --image debian --disk 111G", 4, "InsufficientSpace", "110 GiB"),
        ("--package tiny --image debian", 9, "LimitExceeded", "at most 1 GiB"),
        ("--package fixed --image debian --disk 1G", 3, "InvalidArgument", "leave the disks out"),
    ],
)
def test_refusals_are_one_line_with_the_way_out(small: Inside, arguments: str, code: int, name: str, hint: str) -> None:
    small("package", "create", "tiny", "--disk-space", "10G", "--max-image", "1G").ok()
    small("package", "create", "fixed", "--disk-space", "10G", "--fixed").ok()
    line = small("vm", "create", "a", *arguments.split()).failed(code, name)
    assert hint in line
    assert small("vm", "list", "--json").ok().json == {"vms": []}
