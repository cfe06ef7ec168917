"""Disks with clients: what is refused, what waits, and what drops them."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control import fence
from nbdresize.control.control import Control
from nbdresize.control.leases import Lease
from nbdresize.control.model import ResizeOptions
from nbdresize.errors import ResourceInUse, ResourceNotFound
from nbdresize.units import SizeRequest
from tests.control.consistency import problems
from tests.wait import until

MIB = 1 << 20
SHRINK = ResizeOptions(shrink=True)
SMALLER = SizeRequest(exact=MIB)


class Connection:
    """A client's connection as a server has it: a lease, and a size that it learns on being told."""

    def __init__(self, control: Control, wait: float = 2.0) -> None:
        self._control = control
        disk, self.lease = control.take_lease("vm", "disk0", wait)
        self.size = disk.size

    def learn(self) -> None:
        self.size = self._control.disk("vm", "disk0").size


class Server:
    """A server with one connection and an admin socket, over a Control of its own."""

    def __init__(self, state: StateDirectory, *, comes_back: bool = False) -> None:
        self.control = Control.open(state)
        self.connection = Connection(self.control)
        self.asked: list[str] = []
        self._comes_back = comes_back
        self._returning: list[threading.Thread] = []
        self._path = state.run / "1-0123abcd.admin"
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self._path))
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            with client:
                request = json.loads(client.makefile("rb").readline())
                self.asked.append(request["command"])
                if "vm/disk0" not in request["exports"]:
                    pass
                elif request["command"] == "drop":
                    dropped = self.connection
                    if self._comes_back:
                        self._come_back_at_once()
                    dropped.lease.release()
                else:
                    self.connection.learn()
                client.sendall(b'{"ok": true, "clients": 1, "dropped": 1}\n')

    def _come_back_at_once(self) -> None:
        """The client is back before its old connection has ended, unless it has to wait."""
        try:
            self.connection = Connection(self.control, 0)
        except ResourceInUse:
            self._returning.append(threading.Thread(target=self._come_back))
            self._returning[-1].start()

    def _come_back(self) -> None:
        self.connection = Connection(self.control, 60)

    def end(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(60)
        for returning in self._returning:
            returning.join(60)
        self.connection.lease.release()
        self.control.close()
        Path(self._path).unlink()


@pytest.fixture
def vm(control: Control) -> Control:
    control.create_vm("vm", 100 * MIB, [SizeRequest(exact=2 * MIB)] * 2)
    return control


@pytest.fixture
def server(vm: Control, state: StateDirectory) -> Iterator[Server]:
    server = Server(state)
    yield server
    server.end()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits its time out for a client that is there to stay."""
    monkeypatch.setattr(fence, "GRACE", 0.05)
    monkeypatch.setattr(fence, "DISCONNECT", 0.3)


def test_a_grow_reaches_every_connection_before_it_succeeds(vm: Control, server: Server) -> None:
    outcome = vm.resize_disk("vm", "disk0", SizeRequest(exact=10 * MIB))
    assert server.connection.size == 10 * MIB
    assert [stage.detail for stage in outcome.stages if stage.name == "servers"] == ["1 server, 1 client"]
    assert [stage.name for stage in outcome.stages] == ["ledger", "volume", "servers"]


def test_an_attached_disk_is_neither_shrunk_nor_deleted(vm: Control, server: Server, state: StateDirectory) -> None:
    with pytest.raises(ResourceInUse, match="vm/disk0 has clients attached"):
        vm.resize_disk("vm", "disk0", SMALLER, SHRINK)
    with pytest.raises(ResourceInUse, match="vm/disk0 has clients attached"):
        vm.delete_vm("vm")
    assert vm.disk("vm", "disk0").size == 2 * MIB
    assert len(vm.vm("vm").disks) == 2
    assert problems(state) == []
    vm.delete_disk("vm", "disk1")


def test_a_shrink_drops_clients_where_it_may(vm: Control, server: Server, state: StateDirectory) -> None:
    outcome = vm.resize_disk("vm", "disk0", SMALLER, ResizeOptions(shrink=True, disconnect=True))
    assert outcome.size == MIB
    assert server.asked[0] == "drop"
    assert not server.connection.lease.held
    assert [stage.name for stage in outcome.stages] == ["ledger", "volume", "servers"]
    assert problems(state) == []


def test_clients_that_come_back_at_once_stay_out_until_the_shrink_is_done(vm: Control, state: StateDirectory) -> None:
    server = Server(state, comes_back=True)
    try:
        vm.resize_disk("vm", "disk0", SMALLER, ResizeOptions(shrink=True, disconnect=True))
        until(lambda: server.connection.lease.held, what="the client to come back")
    finally:
        server.end()
    assert server.connection.size == MIB
    assert problems(state) == []


def test_clients_that_stay_are_named_as_the_reason(vm: Control, state: StateDirectory) -> None:
    with Connection(vm).lease:
        with pytest.raises(ResourceInUse, match="they don't leave"):
            vm.resize_disk("vm", "disk0", SMALLER, ResizeOptions(shrink=True, disconnect=True))
        Connection(vm).lease.release()
    assert vm.disk("vm", "disk0").size == 2 * MIB
    assert problems(state) == []


def test_the_only_connection_shrinks_its_disk_and_keeps_its_lease(vm: Control, server: Server) -> None:
    lease = server.connection.lease
    outcome = server.control.resize_disk("vm", "disk0", SMALLER, SHRINK, holding=lease)
    assert (outcome.size, server.connection.size) == (MIB, MIB)
    assert lease.held
    assert not lease.exclusive
    with pytest.raises(ResourceInUse):
        vm.delete_vm("vm")


def test_one_of_two_connections_can_not_shrink(vm: Control, server: Server) -> None:
    with Connection(vm).lease, pytest.raises(ResourceInUse, match="nobody else has attached"):
        server.control.resize_disk("vm", "disk0", SMALLER, SHRINK, holding=server.connection.lease)
    assert server.connection.lease.held
    server.control.resize_disk("vm", "disk0", SMALLER, SHRINK, holding=server.connection.lease)


def test_a_disk_that_is_being_deleted_can_not_be_attached(vm: Control, state: StateDirectory) -> None:
    disk = vm.disk("vm", "disk1")
    lease = Lease.acquire_exclusive(state.leases / f"{disk.volume}.lock")
    with lease, pytest.raises(ResourceInUse, match="being shrunk or deleted"):
        vm.take_lease("vm", "disk1", wait=0)


def test_a_disk_deleted_just_before_a_client_has_its_lease_is_not_found(
    vm: Control, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the lease file that the client has made anew is gone."""
    acquire = Lease.acquire_shared
    made: list[Path] = []

    def acquire_too_late(path: Path, wait: float = 0.0) -> Lease:
        vm.delete_disk("vm", "disk1")
        lease = acquire(path, wait)
        made.append(path)
        return lease

    monkeypatch.setattr(Lease, "acquire_shared", acquire_too_late)
    with pytest.raises(ResourceNotFound, match="no disk1"):
        vm.take_lease("vm", "disk1")
    assert len(made) == 1
    assert problems(state) == []


def test_a_disk_replaced_just_before_a_client_has_its_lease_is_not_taken_for_the_old_one(
    vm: Control, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire = Lease.acquire_shared

    def acquire_too_late(path: Path, wait: float = 0.0) -> Lease:
        vm.delete_disk("vm", "disk1")
        vm.add_disk("vm", SizeRequest(exact=MIB))
        return acquire(path, wait)

    monkeypatch.setattr(Lease, "acquire_shared", acquire_too_late)
    with pytest.raises(ResourceNotFound, match="replaced"):
        vm.take_lease("vm", "disk1")
    assert problems(state) == []


def test_a_lease_that_a_dead_race_left_is_swept_at_the_next_start(vm: Control, state: StateDirectory) -> None:
    (state.leases / "vm-disk5-0123abcd.lock").touch()
    (state.locks / "never-made.lock").touch()
    Control.open(state).close()
    assert problems(state) == []
    assert vm.vm("vm").name == "vm"
