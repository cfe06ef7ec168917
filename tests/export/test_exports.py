"""Exports by name, whatever a client calls them, and the registry of a server's connections."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.errors import ResourceNotFound, VolumeFailed
from nbdresize.export.disk_export import DiskExport
from nbdresize.export.exports import Client, Exports
from nbdresize.export.size_device import SizeDevice
from nbdresize.protocol.size_record import parse_record
from nbdresize.units import SizeRequest

MIB = 1 << 20
HOSTILE_NAMES = [
    "web1",
    "web1/",
    "/disk0",
    "web1/disk1",
    "web1/disk8",
    "web1/disk00",
    "web1/disk0/",
    "web1/disk0 ",
    "web1//disk0",
    "WEB1/disk0",
    "web1/disk0\0",
    "web1/disk0@size@size",
    "web1/disk0@SIZE",
    "@size@size",
    "web1@size/disk0",
    "nothing@size",
    "../web1/disk0",
    "web1/../web1/disk0",
    "../../../../etc/passwd",
    "/etc/passwd",
    "web1/disk0'; DROP TABLE disks; --",
    "web1/disk\N{SUPERSCRIPT ZERO}",
    "web1/disk\N{ARABIC-INDIC DIGIT ZERO}",
    "\udc80\udcff",
    "a" * 4096,
    "a" * 5000,
    "web1/" + "disk0" * 1000,
]


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path / "state")


@pytest.fixture
def control(state: StateDirectory) -> Iterator[Control]:
    with Control.open(state) as control:
        control.create_vm("web1", 64 * MIB, [SizeRequest(exact=MIB)])
        yield control


@pytest.fixture
def exports(control: Control) -> Exports:
    return Exports.of_ledger(control)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(10_000))
    return path


def test_disks_are_listed_and_opened_by_name(exports: Exports, control: Control) -> None:
    control.create_vm("db-1.x", 64 * MIB, [SizeRequest(exact=MIB), SizeRequest(exact=2 * MIB)])
    assert exports.list() == [
        ("db-1.x/disk0", "disk0 of db-1.x, 1 MiB, boots"),
        ("db-1.x/disk1", "disk1 of db-1.x, 2 MiB"),
        ("web1/disk0", "disk0 of web1, 1 MiB, boots"),
    ]
    for name, description in exports.list():
        disk = exports.open(name)
        assert isinstance(disk, DiskExport)
        assert (disk.name, disk.description) == (name, description)
        device = exports.open(f"{name}@size")
        assert isinstance(device, SizeDevice)
        assert device.name == f"{name}@size"
        assert parse_record(device.read(64, 0)).size == disk.size
        exports.close(disk)
        exports.close(device)


def test_a_name_that_is_no_exports_name_opens_nothing(exports: Exports, state: StateDirectory) -> None:
    for name in HOSTILE_NAMES:
        with pytest.raises(ResourceNotFound) as error:
            exports.open(name)
        assert len(str(error.value)) < 300
        assert str(error.value).isprintable()
    assert exports.connections() == ()
    assert list(state.leases.iterdir()) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.one_of(st.text(), st.text(alphabet="web1/disk0@sz."), st.text().map(lambda end: f"web1/disk0{end}")))
def test_whatever_a_client_asks_for_it_gets_an_export_or_is_told_that_there_is_none(
    exports: Exports, name: str
) -> None:
    try:
        export = exports.open(name)
    except ResourceNotFound:
        return
    assert name in ("", "@size", "web1/disk0", "web1/disk0@size")
    exports.close(export)


def test_a_single_disk_is_the_default_export(exports: Exports) -> None:
    assert exports.default() == "web1/disk0"
    disk, device = exports.open(""), exports.open("@size")
    assert (disk.name, device.name) == ("web1/disk0", "web1/disk0@size")
    exports.close(disk)
    exports.close(device)


def test_of_several_disks_or_none_there_is_no_default(exports: Exports, control: Control) -> None:
    control.add_disk("web1", SizeRequest(exact=MIB))
    assert exports.default() is None
    with pytest.raises(ResourceNotFound, match="default"):
        exports.open("")
    control.delete_vm("web1")
    assert (exports.default(), exports.list()) == (None, [])
    for name in ("", "@size"):
        with pytest.raises(ResourceNotFound):
            exports.open(name)


def test_a_disk_made_while_serving_is_there_at_once_and_a_deleted_one_is_not(
    exports: Exports, control: Control
) -> None:
    control.add_disk("web1", SizeRequest(exact=2 * MIB))
    exports.close(exports.open("web1/disk1"))
    control.delete_disk("web1", "disk1")
    with pytest.raises(ResourceNotFound):
        exports.open("web1/disk1")
    control.add_disk("web1", SizeRequest(exact=3 * MIB))
    disk = exports.open("web1/disk1")
    assert disk.size == 3 * MIB
    exports.close(disk)


def test_a_single_file_is_the_default_export_and_has_its_files_name(image: Path) -> None:
    exports = Exports.of_file(image)
    assert exports.list() == [("", "disk.img, 10000 bytes")]
    assert exports.default() == ""
    for name in ("", "disk.img"):
        disk, device = exports.open(name), exports.open(f"{name}@size")
        assert isinstance(disk, DiskExport)
        assert isinstance(device, SizeDevice)
        exports.close(disk)
        exports.close(device)
    for name in (str(image), "./disk.img", "other", "web1/disk0"):
        with pytest.raises(ResourceNotFound):
            exports.open(name)


def test_a_files_path_holds_when_the_server_changes_its_directory(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(image.parent)
    exports = Exports.of_file(Path("disk.img"))
    monkeypatch.chdir("/")
    disk = exports.open("")
    assert disk.size == 10_000
    exports.close(disk)


def test_connections_to_one_disk_share_its_size(exports: Exports, control: Control) -> None:
    first, second, device = exports.open("web1/disk0"), exports.open("web1/disk0"), exports.open("web1/disk0@size")
    assert first.backing is second.backing is device.backing
    control.resize_disk("web1", "disk0", SizeRequest(exact=2 * MIB))
    assert first.size == MIB
    assert exports.refresh({"web1/disk0", "other/disk0"}).clients == 3
    assert first.size == second.size == 2 * MIB
    for export in (first, second, device):
        exports.close(export)
    again = exports.open("web1/disk0")
    assert again.backing is not first.backing
    assert exports.refresh({"web1/disk0@size"}).clients == 0
    exports.close(again)


def test_the_registry_knows_who_has_what_open(exports: Exports) -> None:
    export = exports.open("web1/disk0", read_only=True, client=Client(peer="unix:pid 7"))
    export.read_into(bytearray(100), 0)
    (connection,) = exports.connections()
    described = connection.describe()
    assert described.pop("since").endswith("+00:00")
    assert described == {
        "export": "web1/disk0",
        "size": export.backing.live.size,
        "generation": 1,
        "peer": "unix:pid 7",
        "read_only": True,
        "requests": 1,
        "bytes_read": 100,
        "bytes_written": 0,
    }
    exports.close(export)
    exports.close(export)
    assert exports.connections() == ()


def test_counters_keep_what_closed_connections_did(exports: Exports) -> None:
    for _ in range(2):
        export = exports.open("web1/disk0")
        export.write(b"12345", 0)
        export.read_into(bytearray(100), 0)
        exports.close(export)
    export = exports.open("web1/disk0")
    export.write(b"12345", 0)
    assert exports.counters() == {
        "connections": 1,
        "connections_total": 3,
        "requests": 5,
        "bytes_read": 200,
        "bytes_written": 15,
    }
    exports.close(export)


def test_dropping_tells_the_connections_of_these_exports_only(exports: Exports) -> None:
    dropped: list[str] = []

    def broken() -> None:
        raise OSError("gone already")

    names = ["web1/disk0", "web1/disk0", "web1/disk0@size"]
    opened = [
        exports.open(name, client=Client(drop=partial(dropped.append, str(number))))
        for number, name in enumerate(names)
    ]
    opened.append(exports.open("web1/disk0", client=Client(drop=broken)))
    assert exports.drop({"web1/disk0"}) == 3
    assert dropped == ["0", "1"]
    assert exports.drop({"web1/disk0@size"}) == 1
    assert exports.drop({"web1"}) == 0
    assert dropped == ["0", "1", "2"]
    for export in opened:
        exports.close(export)


def test_an_export_that_fails_to_open_is_not_registered(exports: Exports, control: Control) -> None:
    volume = control.state.volumes / f"{control.disk('web1', 'disk0').volume}.raw"
    volume.rename(volume.with_suffix(".away"))
    with pytest.raises(VolumeFailed):
        exports.open("web1/disk0")
    assert exports.connections() == ()
    assert exports.counters()["connections_total"] == 0
    volume.with_suffix(".away").rename(volume)
    control.delete_vm("web1")  # no lease is held


def test_a_deleted_disk_does_not_keep_others_from_being_told(exports: Exports, control: Control) -> None:
    control.add_disk("web1", SizeRequest(exact=MIB))
    watching, disk = exports.open("web1/disk1@size"), exports.open("web1/disk0")
    control.delete_disk("web1", "disk1")
    control.resize_disk("web1", "disk0", SizeRequest(exact=2 * MIB))
    assert exports.refresh({"web1/disk1", "web1/disk0"}).clients == 1
    assert disk.size == 2 * MIB
    exports.close(watching)
    exports.close(disk)


def test_the_end_of_the_server_ends_waits(exports: Exports) -> None:
    device = exports.open("web1/disk0@size")
    assert isinstance(device, SizeDevice)
    device.read(64, 0)
    exports.end_waits()
    assert parse_record(device.read(64, 1024)).size == MIB
    exports.close(device)
