"""Servers that don't know the size of a disk, or don't answer, and what `check` makes of them."""

import os
import socket
from collections.abc import Iterator

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control import admin_client
from nbdresize.control.checks import servers
from nbdresize.control.checks.report import What
from nbdresize.control.control import Control
from nbdresize.export.admin import AdminSocket
from nbdresize.export.admin_commands import ServerInfo
from nbdresize.export.disk_export import DiskExport
from nbdresize.export.exports import Exports
from nbdresize.units import SizeRequest
from tests.control.planting import MIB, assert_repaired, assert_stays, assert_well, only, plant, volume_of


@pytest.fixture
def vm(control: Control) -> Control:
    control.create_vm("vm", 100 * MIB, [SizeRequest(exact=2 * MIB)])
    return control


@pytest.fixture
def attached(vm: Control, state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> Iterator[DiskExport]:
    """A client of a server, whose command is given less time to tell it of a new size."""
    monkeypatch.setattr(servers, "PATIENCE", 0.3)
    exports = Exports.of_ledger(vm)
    with AdminSocket.start(state, exports, ServerInfo("native")):
        export = exports.open("vm/disk0")
        assert isinstance(export, DiskExport)
        yield export
        exports.close(export)


def grow_silently(vm: Control, state: StateDirectory) -> None:
    """As by a command that was killed before it told the servers."""
    os.truncate(volume_of(vm), 4 * MIB)
    plant(state, f"UPDATE disks SET size = {4 * MIB}, generation = generation + 1")


def test_a_server_that_knows_the_size_is_fine(vm: Control, attached: DiskExport) -> None:
    vm.resize_disk("vm", "disk0", SizeRequest(exact=4 * MIB))
    report = vm.check()
    assert report.problems == ()
    assert report.checked["servers"] == 1


def test_a_server_that_lags_is_told(vm: Control, state: StateDirectory, attached: DiskExport) -> None:
    grow_silently(vm, state)
    assert assert_repaired(vm, What.SERVER_LAGS).subject == "vm/disk0"
    assert attached.backing.live.state == (4 * MIB, 2)


def test_a_server_with_another_size_of_the_same_generation_is_for_people(
    vm: Control, state: StateDirectory, attached: DiskExport
) -> None:
    os.truncate(volume_of(vm), 4 * MIB)
    plant(state, f"UPDATE disks SET size = {4 * MIB}")
    found = only(vm.check(repair=True), What.SERVER_LAGS)
    assert not found.repaired
    assert "restart that server" in found.way_out


def test_a_server_is_given_time_to_be_told(
    vm: Control, state: StateDirectory, attached: DiskExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow_silently(vm, state)
    asked = servers._offers

    def told_late(path: os.PathLike[str]) -> object:
        offers = asked(path)  # type: ignore[arg-type]
        admin_client.publish(state, ["vm/disk0"])
        return offers

    monkeypatch.setattr(servers, "_offers", told_late)
    assert_well(vm)


def test_a_server_that_is_ahead_of_a_ledger_from_a_backup_is_to_be_restarted(
    vm: Control, state: StateDirectory, attached: DiskExport
) -> None:
    vm.resize_disk("vm", "disk0", SizeRequest(exact=4 * MIB))
    plant(state, "UPDATE disks SET generation = 1")
    assert "restart" in assert_stays(vm, What.SERVER_LAGS).way_out


def test_a_server_that_does_not_answer_is_for_people(
    vm: Control, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_client.ask, "__defaults__", (0.2,))
    path = state.run / "77-00000000.admin"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        found = assert_stays(vm, What.SERVER_SILENT)
        assert "process 77" in found.way_out
        assert vm.check().checked["servers"] == 0
    path.unlink()


def test_a_server_that_answers_nonsense_does_no_harm(
    vm: Control, state: StateDirectory, attached: DiskExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    for clients in ("x", [None, 7, {}, {"export": "vm/disk0"}, {"export": [], "size": 1, "generation": 1}]):
        monkeypatch.setattr(admin_client, "ask", lambda *_, clients=clients: {"ok": True, "clients": clients})
        assert_well(vm)
