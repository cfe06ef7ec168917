"""Documents on standard input or in a file: the RFD's own, and what contradicts them."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from tests.cli.command import INTERRUPTIBLE, SECONDS, Answer, Command, Inside

pytestmark = pytest.mark.slow

MIB = 2**20
GIB = 2**30


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Writes a document into a file, and names it."""

    def written(document: object) -> str:
        path = tmp_path / "document.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return str(path)

    return written


@pytest.fixture
def packaged(inside: Inside, tmp_path: Path) -> Inside:
    """The package of RFD 154, and an image of 10 GiB."""
    image = tmp_path / "image.raw"
    with image.open("wb") as file:
        file.truncate(10 * GIB)
    with Control.open(StateDirectory(inside.root)) as control:
        control.create_package("b4-highcpu-bhyve-3.75g", 102400 * MIB)
        control.add_image("debian", image)
    return inside


def piped(command: Command, document: bytes, *words: str) -> Answer:
    done = subprocess.run(
        [*INTERRUPTIBLE, *words], input=document, capture_output=True, env=command.environment(), timeout=SECONDS
    )
    return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())


def disks(vm: Any) -> dict[str, int]:
    return {disk["slot"]: disk["size"] // MIB for disk in vm["disks"]}


def test_the_three_disks_of_the_rfd_number_by_number(packaged: Inside, write: Any) -> None:
    document = {
        "package": "b4-highcpu-bhyve-3.75g",
        "image": "debian",
        "disks": [{}, {"size": 20480}, {"size": "remaining"}],
    }
    made = packaged("vm", "create", "web1", "--from-json", write(document), "--json").ok().json
    assert disks(made) == {"disk0": 10240, "disk1": 20480, "disk2": 81920}
    assert (made["package"], made["image"], made["free_space"]) == ("b4-highcpu-bhyve-3.75g", "debian", 0)
    assert made["total_space"] == (102400 + 10240) * MIB
    assert [disk["image"] for disk in made["disks"]] == ["debian", None, None]


def test_options_add_what_the_document_leaves_out(packaged: Inside, write: Any) -> None:
    only_disks = write({"disks": [{"image_uuid": "debian", "size": 20480, "boot": True}, {"size": "1024"}]})
    made = packaged("vm", "create", "web1", "--disk-space", "50G", "--from-json", only_disks, "--json").ok().json
    assert disks(made) == {"disk0": 20480, "disk1": 1024}
    assert made["image"] == "debian"
    only_package = write({"package": "b4-highcpu-bhyve-3.75g"})
    words = ("--image", "debian", "--disk", "image", "--disk", "5G", "--owner", "ann", "--json")
    made = packaged("vm", "create", "web2", "--from-json", only_package, *words).ok().json
    assert (disks(made), made["owner"]) == ({"disk0": 10240, "disk1": 5120}, "ann")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--package", "p"), "--package was given, and --from-json says package too"),
        (("--image", "i"), "--image was given, and --from-json says image too"),
        (("--disk", "1G"), "--disk was given, and --from-json says disks too"),
    ],
)
def test_what_is_said_twice_is_refused(inside: Inside, write: Any, words: tuple[str, ...], told: str) -> None:
    document = write({"package": "p", "image": "i", "disks": []})
    assert told in inside("vm", "create", "web1", "--from-json", document, *words).failed(2, "UsageError")
    assert inside("vm", "list", "--json").ok().json == {"vms": []}


def test_a_budget_beside_a_document_with_a_package_is_refused(packaged: Inside, write: Any) -> None:
    document = write({"package": "b4-highcpu-bhyve-3.75g"})
    refused = packaged("vm", "create", "web1", "--from-json", document, "--disk-space", "1G")
    assert "exactly one of --disk-space and --package" in refused.failed(3, "InvalidArgument")


def test_the_updates_of_the_rfd_through_standard_input(web1: Command) -> None:
    path = "/dev/zvol/rdsk/zones/web1/disk0"
    web1("vm", "update", "web1", "--disk-space", "300G").ok()

    def update(**keys: object) -> Answer:
        document = json.dumps({"update_disks": [{"path": path, **keys}]}).encode()
        return piped(web1, document, "vm", "update", "web1", "--from-json", "-")

    assert update(size=102400).ok().out.splitlines()[0] == "web1/disk0: 20 GiB → 100 GiB"
    refused = update(size=20480).failed(8, "NotAuthorized")
    assert "from 100 GiB to 20 GiB" in refused
    assert "dangerous_allow_shrink" in refused
    misspelt = update(size=20480, dangrous_allow_shrink=True).failed(3, "InvalidArgument")
    assert "is dangerous_allow_shrink what you mean?" in misspelt
    assert update(size=20480, dangerous_allow_shrink=True).ok().out.splitlines()[0] == "web1/disk0: 100 GiB → 20 GiB"


def test_all_three_kinds_of_change_in_one_document(web1: Command, inside: Inside, write: Any) -> None:
    document = write(
        {
            "add_disks": [{"size": 1024}, {"size": "remaining"}],
            "update_disks": [{"slot": "disk0", "size": 10240, "dangerous_allow_shrink": True}],
            "remove_disks": ["disk1"],
        }
    )
    words = ("vm", "update", "web1", "--from-json", document, "--operation-id", "one", "--json")
    done = inside(*words).ok().json
    assert list(done) == ["vm", "operation", "added", "resized", "removed", "stages"]
    assert (done["vm"], done["operation"], done["removed"]) == ("web1", "one", ["disk1"])
    assert [(disk["slot"], disk["size"]) for disk in done["added"]] == [("disk2", GIB), ("disk3", 89 * GIB)]
    assert [(each["disk"], each["old_size"], each["size"]) for each in done["resized"]] == [
        ("disk0", 20 * GIB, 10 * GIB)
    ]
    assert [stage["name"] for stage in done["stages"]] == ["volume", "ledger", "servers"]
    after = inside("vm", "show", "web1", "--json").ok().json
    assert disks(after) == {"disk0": 10240, "disk2": 1024, "disk3": 91136}
    again = inside(*words).ok().json
    assert [again[key] for key in ("added", "removed")] == [done[key] for key in ("added", "removed")]
    assert inside("vm", "show", "web1", "--json").ok().json == after


def test_a_set_is_shown_as_a_line_per_disk_and_one_table(web1: Command, inside: Inside, write: Any) -> None:
    document = write(
        {"add_disks": [{"size": 1024}], "update_disks": [{"slot": "disk0", "size": 30720}], "remove_disks": ["disk1"]}
    )
    lines = inside("vm", "update", "web1", "--from-json", document).ok().out.splitlines()
    assert lines[:3] == ["web1/disk2: 1 GiB, added", "web1/disk0: 20 GiB → 30 GiB", "web1/disk1: deleted"]
    assert [line.split()[0] for line in lines[3:]] == ["volume", "ledger", "servers"]


def test_new_disks_of_a_document_can_be_preallocated(inside: Inside, write: Any) -> None:
    inside("vm", "create", "vm", "--disk-space", "20M").ok()
    document = write({"add_disks": [{"size": 2}, {"size": 3}]})
    inside("vm", "update", "vm", "--from-json", document, "--preallocate").ok()
    volumes = StateDirectory(inside.root).volumes
    assert sorted(path.stat().st_blocks * 512 for path in volumes.iterdir()) == [2 * MIB, 3 * MIB]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--disk-space", "1G"), "changes disks, and nothing else"),
        (("--protected",), "changes disks, and nothing else"),
        (("--no-protected",), "changes disks, and nothing else"),
        (("--owner", "ann"), "changes disks, and nothing else"),
    ],
)
def test_other_options_beside_an_update_are_refused(
    web1: Command, inside: Inside, write: Any, words: tuple[str, ...], told: str
) -> None:
    document = write({"remove_disks": ["disk1"]})
    assert told in inside("vm", "update", "web1", "--from-json", document, *words).failed(2, "UsageError")
    assert len(inside("vm", "show", "web1", "--json").ok().json["disks"]) == 2


def test_a_document_that_can_not_be_read_is_wrong_usage(web1: Command, inside: Inside, tmp_path: Path) -> None:
    secret = tmp_path / "directory"
    secret.mkdir()
    for source in (str(tmp_path / "missing"), str(secret), "", "a\0b"):
        refusal = inside("vm", "update", "web1", "--from-json", source).failed(2, "UsageError")
        assert "can't be read" in refusal
        assert "- for standard input" in refusal
    assert "argument" in inside("vm", "update", "web1", "--from-json").failed(2, "UsageError")


def test_documents_that_are_none_end_in_one_line_and_change_nothing(web1: Command, inside: Inside, write: Any) -> None:
    before = inside("vm", "list", "--json").ok().json
    for document in ("", "[]", "{", "disk0=5G", '{"remove_disks": ["disk1"]} x', " " * (10 * MIB), "[" * 10**5, "{}"):
        path = write(document)
        inside("vm", "update", "web1", "--from-json", path).failed(3, "InvalidArgument")
        if document != "{}":
            inside("vm", "create", "web2", "--disk-space", "1G", "--from-json", path).failed(3, "InvalidArgument")
    assert inside("vm", "list", "--json").ok().json == before


def test_a_document_without_end_is_not_read_to_its_end(web1: Command) -> None:
    """Else it is the memory that ends."""
    answer = web1("vm", "update", "web1", "--from-json", "/dev/zero")
    assert "more than 1 MiB" in answer.failed(3, "InvalidArgument")
    endless = piped(web1, b"[" + b" " * (20 * MIB), "vm", "update", "web1", "--from-json", "-")
    assert "more than 1 MiB" in endless.failed(3, "InvalidArgument")


def test_only_documents_cost_what_reads_them(web1: Command, tmp_path: Path) -> None:
    """Its models take longer to load than most commands take to run."""
    document = tmp_path / "document.json"
    document.write_text('{"update_disks": [{"slot": "disk0", "size": 20481}]}')

    def loads_it(*words: str) -> bool:
        return "nbdresize.control.payloads" in web1(*words, PYTHONPROFILEIMPORTTIME="1").err

    assert not loads_it("vm", "update", "web1", "--owner", "ann")
    assert not loads_it("disk", "resize", "web1", "--set", "disk0=21G")
    assert loads_it("vm", "update", "web1", "--from-json", str(document))
