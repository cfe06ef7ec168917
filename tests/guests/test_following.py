"""Telling guests what became of their disks: what is asked, what is noted, and what happens when nobody answers."""

import base64
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nbdresize.client.deadline import Deadline
from nbdresize.control.control import Control
from nbdresize.control.model import Guest, ResizeOptions
from nbdresize.errors import InvalidArgument, PeerFailed, ResourceInUse, ResourceNotFound
from nbdresize.guests import following
from nbdresize.guests.qemu.monitor import Monitor
from nbdresize.guests.session import NoSession, Session
from nbdresize.units import SizeRequest
from tests.guests.machine import Machine
from tests.guests.site import SIZE, Site, nbd, raw, serving, virtio_blk
from tests.wait import until

SECONDS = 60.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serving(tmp_path_factory.mktemp("site"), "native") as site:
        yield site


@pytest.fixture
def control(site: Site) -> Iterator[Control]:
    with Control.open(site.state) as control:
        yield control


@pytest.fixture
def vm(site: Site) -> str:
    return site.make_vm()


@contextmanager
def machine_of(site: Site, vm: str, directory: Path, *, running: bool = False) -> Iterator[Machine]:
    """A QEMU with disk0 of that VM, on the device d0."""
    disk = [*nbd(site.unix, f"{vm}/disk0", more="reconnect-delay=30"), *raw(), *virtio_blk("f0")]
    machine = Machine(*disk, directory=directory, running=running)
    machine.start()
    try:
        yield machine
    finally:
        machine.kill()


def attached(control: Control, vm: str, qmp: Path) -> Guest:
    return following.attach(control, vm, qmp, None, timeout=SECONDS).guest


def resize(control: Control, vm: str, size: int, disk: str = "disk0", *, shrink: bool = False) -> None:
    control.resize_disk(vm, disk, SizeRequest(exact=size), ResizeOptions(shrink=shrink, disconnect=shrink))


def guest_of(control: Control, vm: str) -> Guest:
    guest = control.guest(vm)
    assert guest is not None
    return guest


def seconds_given(error: PeerFailed) -> float:
    """How long it waited for what did not answer, as it says: a clock would count what a slow machine takes too."""
    given = re.search(r"within ([\d.e-]+) s$", error.problem)
    assert given, error.problem
    return float(given[1])


def test_a_vm_without_a_guest_is_told_nothing(control: Control, vm: str) -> None:
    assert following.tell(control, vm, ["disk0"], timeout=SECONDS) == ()
    assert following.tell(control, "nobody", ["disk0"], timeout=SECONDS) == ()
    with pytest.raises(ResourceNotFound, match="No guest is attached"):
        following.sync(control, vm, None, timeout=SECONDS)


def test_a_grow_is_told_confirmed_and_noted(site: Site, control: Control, vm: str, tmp_path: Path) -> None:
    with machine_of(site, vm, tmp_path) as machine:
        attached(control, vm, machine.qmp)
        resize(control, vm, 2 * SIZE)
        (told,) = following.tell(control, vm, ["disk0"], timeout=SECONDS)
        assert (told.disk, told.pending, told.changed, told.note.size) == ("disk0", False, True, 2 * SIZE)
        (stage,) = told.stages
        assert (stage.name, stage.done, stage.detail) == ("QEMU", True, "virtio-blk d0, 32 MiB confirmed")
        assert machine.size("d0") == 2 * SIZE
        assert guest_of(control, vm).disks[0].note == told.note
        assert following.tell(control, vm, ["disk0"], timeout=SECONDS) == (), "there is nothing to tell"


def test_attaching_tells_what_the_guest_does_not_know_yet(
    site: Site, control: Control, vm: str, tmp_path: Path
) -> None:
    with machine_of(site, vm, tmp_path) as machine:
        resize(control, vm, 2 * SIZE)
        guest = attached(control, vm, machine.qmp)
        assert machine.size("d0") == 2 * SIZE
        assert guest.pending == ()


def test_a_paused_guest_is_told_all_the_same(site: Site, control: Control, vm: str, tmp_path: Path) -> None:
    with machine_of(site, vm, tmp_path, running=True) as machine:
        attached(control, vm, machine.qmp)
        machine.execute("stop")
        resize(control, vm, 2 * SIZE)
        (told,) = following.tell(control, vm, ["disk0"], timeout=SECONDS)
        assert not told.pending
        assert machine.size("d0") == 2 * SIZE


def test_the_size_that_is_told_is_that_of_the_moment_when_qemu_listens(
    site: Site, control: Control, vm: str, tmp_path: Path
) -> None:
    """Two resizes, of which the first comes last to QEMU, leave it with the size of the second."""
    with machine_of(site, vm, tmp_path) as machine:
        attached(control, vm, machine.qmp)
        resize(control, vm, 2 * SIZE)
        told: list[following.Told] = []
        with machine.monitor():  # QEMU serves nobody else meanwhile
            thread = threading.Thread(
                target=lambda: told.extend(following.tell(control, vm, ["disk0"], timeout=SECONDS))
            )
            thread.start()
            resize(control, vm, 3 * SIZE)
        thread.join(2 * SECONDS)
        assert [each.note.size for each in told] == [3 * SIZE]
        assert machine.size("d0") == 3 * SIZE
        assert guest_of(control, vm).pending == ()


def test_a_monitor_that_another_client_keeps_leaves_the_disk_pending(
    site: Site, control: Control, vm: str, tmp_path: Path
) -> None:
    with machine_of(site, vm, tmp_path) as machine:
        attached(control, vm, machine.qmp)
        resize(control, vm, 2 * SIZE)
        with machine.monitor():
            (told,) = following.tell(control, vm, ["disk0"], timeout=0.3)
        assert isinstance(told.error, PeerFailed)
        assert "another client" in told.error.way_out
        (disk,) = guest_of(control, vm).pending
        assert (disk.note.size, disk.note.done, disk.note.detail) == (SIZE, False, told.error.problem)
        (told,) = following.sync(control, vm, None, timeout=SECONDS)
        assert not told.pending
        assert guest_of(control, vm).pending == ()


def test_a_disk_that_another_command_told_meanwhile_is_not_pending(
    site: Site, control: Control, vm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine_of(site, vm, tmp_path) as machine:
        attached(control, vm, machine.qmp)
        resize(control, vm, 2 * SIZE)

        def busy(*_: object) -> object:
            monkeypatch.undo()
            following.sync(control, vm, None, timeout=SECONDS)
            raise NoSession(PeerFailed("busy"))

        monkeypatch.setattr(following, "Session", busy)
        assert following.tell(control, vm, ["disk0"], timeout=SECONDS) == ()
        assert guest_of(control, vm).pending == ()


def test_a_hung_qemu_costs_no_more_than_the_time_it_is_given(
    site: Site, control: Control, vm: str, tmp_path: Path
) -> None:
    with machine_of(site, vm, tmp_path) as machine:
        attached(control, vm, machine.qmp)
        resize(control, vm, 2 * SIZE)
        os.kill(machine.pid, signal.SIGSTOP)
        (told,) = following.tell(control, vm, ["disk0"], timeout=1)
        assert isinstance(told.error, PeerFailed)
        assert seconds_given(told.error) <= 1
        assert f"kill -CONT {machine.pid}" in told.error.way_out
        os.kill(machine.pid, signal.SIGCONT)
        (told,) = following.tell(control, vm, [], timeout=SECONDS)
        assert not told.pending
        assert machine.size("d0") == 2 * SIZE


def test_a_block_job_is_waited_for_by_sync(site: Site, control: Control, vm: str, tmp_path: Path) -> None:
    with machine_of(site, vm, tmp_path) as machine:
        attached(control, vm, machine.qmp)
        target = tmp_path / "target.raw"
        target.touch()
        os.truncate(target, SIZE)
        machine.execute("blockdev-add", {"driver": "file", "node-name": "t0", "filename": str(target)})
        machine.execute(
            "blockdev-mirror", {"job-id": "job0", "device": "f0", "target": "t0", "sync": "full", "speed": 1}
        )
        resize(control, vm, 2 * SIZE)
        (told,) = following.tell(control, vm, ["disk0"], timeout=SECONDS)
        assert isinstance(told.error, ResourceInUse)
        assert "job0" in told.error.problem
        assert machine.size("d0") == SIZE
        machine.execute("block-job-cancel", {"device": "job0", "force": True})
        until(lambda: not machine.execute("query-block-jobs"), what="the job's end")
        (told,) = following.sync(control, vm, "disk0", timeout=SECONDS)
        assert not told.pending
        assert machine.size("d0") == 2 * SIZE


def test_a_shrink_under_a_running_guest_is_pending_and_says_why(
    site: Site, control: Control, vm: str, tmp_path: Path
) -> None:
    with machine_of(site, vm, tmp_path) as machine:
        attached(control, vm, machine.qmp)
        resize(control, vm, SIZE // 2, shrink=True)
        (told,) = following.tell(control, vm, ["disk0"], timeout=SECONDS)
        assert isinstance(told.error, ResourceInUse)
        assert "does not shrink" in told.error.problem


def test_a_disk_that_the_guest_does_not_use_is_never_pending(site: Site, control: Control, tmp_path: Path) -> None:
    vm = site.make_vm(2)
    with machine_of(site, vm, tmp_path) as machine:
        guest = attached(control, vm, machine.qmp)
        assert [(disk.name, disk.note.size, disk.pending) for disk in guest.disks] == [
            ("disk0", SIZE, False),
            ("disk1", None, False),
        ]
        machine.kill()
        resize(control, vm, 2 * SIZE, "disk1")
        (told,) = following.tell(control, vm, ["disk1"], timeout=SECONDS)
        assert told.pending, "nobody could be asked"
        assert guest_of(control, vm).pending == ()


def test_a_disk_that_is_plugged_in_later_is_told(site: Site, control: Control, tmp_path: Path) -> None:
    vm = site.make_vm(2)
    with machine_of(site, vm, tmp_path) as machine:
        attached(control, vm, machine.qmp)
        server = {"type": "unix", "path": str(site.server.socket)}
        machine.execute("blockdev-add", {"driver": "nbd", "node-name": "n1", "server": server, "export": f"{vm}/disk1"})
        machine.execute("blockdev-add", {"driver": "raw", "node-name": "f1", "file": "n1"})
        machine.execute("device_add", {"driver": "virtio-blk-pci", "drive": "f1", "id": "d1"})
        resize(control, vm, 2 * SIZE, "disk1")
        (told,) = following.tell(control, vm, ["disk1"], timeout=SECONDS)
        assert (told.pending, told.note.size) == (False, 2 * SIZE)
        assert machine.size("d1") == 2 * SIZE


def test_a_guest_that_was_detached_meanwhile_is_not_noted(
    site: Site, control: Control, vm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine_of(site, vm, tmp_path) as machine:
        attached(control, vm, machine.qmp)
        resize(control, vm, 2 * SIZE)
        before = guest_of(control, vm)
        control.detach_guest(vm)
        monkeypatch.setattr(control, "guest", lambda name: before)
        (told,) = following.tell(control, vm, ["disk0"], timeout=SECONDS)
        assert not told.pending
        monkeypatch.undo()
        assert control.guest(vm) is None


def test_a_guest_that_was_attached_anew_is_not_noted(
    site: Site, control: Control, vm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine_of(site, vm, tmp_path) as machine:
        attached(control, vm, machine.qmp)
        resize(control, vm, 2 * SIZE)
        before = guest_of(control, vm)
        control.attach_guest(vm, tmp_path / "another")
        monkeypatch.setattr(control, "guest", lambda name: before)
        (told,) = following.tell(control, vm, ["disk0"], timeout=SECONDS)
        assert not told.pending
        monkeypatch.undo()
        assert guest_of(control, vm).disks == ()


def test_an_attachment_that_has_ended_is_not_repeated(site: Site, control: Control, vm: str, tmp_path: Path) -> None:
    with machine_of(site, vm, tmp_path) as machine:
        for _ in range(2):
            following.attach(control, vm, machine.qmp, None, timeout=SECONDS, operation="a1")
        with pytest.raises(InvalidArgument, match="was another request"):
            following.attach(control, vm, machine.qmp, tmp_path / "agent", timeout=SECONDS, operation="a1")
        control.detach_guest(vm)
    with pytest.raises(
        ResourceNotFound, match=r"Operation a1 has attached the guest of VM .* already, and it was detached"
    ):
        following.attach(control, vm, machine.qmp, None, timeout=SECONDS, operation="a1")


def test_two_commands_through_two_sockets_do_not_meet_in_one_qemu(
    site: Site, control: Control, vm: str, tmp_path: Path
) -> None:
    other = tmp_path / "other.qmp"
    with Machine(
        *nbd(site.unix, f"{vm}/disk0"),
        *raw(),
        *virtio_blk("f0"),
        "-qmp",
        f"unix:{other},server=on,wait=off",
        directory=tmp_path,
    ) as machine:
        attached(control, vm, machine.qmp)
        resize(control, vm, 2 * SIZE)
        with Session(control, vm, other, Deadline(SECONDS)):
            (told,) = following.tell(control, vm, ["disk0"], timeout=0.3)
            assert isinstance(told.error, PeerFailed)
            assert f"Another command was telling QEMU (process {machine.pid})" in told.error.problem
            assert len(machine.nodes()) == 2
        (told,) = following.sync(control, vm, None, timeout=SECONDS)
        assert not told.pending


def test_a_vm_that_was_deleted_meanwhile_is_told_nothing(
    site: Site, control: Control, vm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine_of(site, vm, tmp_path) as machine:
        attached(control, vm, machine.qmp)
        resize(control, vm, 2 * SIZE)
        before = guest_of(control, vm)
    control.delete_vm(vm)
    monkeypatch.setattr(control, "guest", lambda name: before)
    assert following.tell(control, vm, ["disk0"], timeout=SECONDS) == ()


# Monitors that are none, or lie


GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}


@contextmanager
def listening(path: Path, serve: Callable[[socket.socket], object]) -> Iterator[None]:
    """A unix socket whose clients are served one after the other."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=_serve_all, args=(listener, serve))
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(SECONDS)


def _serve_all(listener: socket.socket, serve: Callable[[socket.socket], object]) -> None:
    while True:
        try:
            client = listener.accept()[0]
        except OSError:
            return
        with client, suppress(OSError):
            serve(client)


@contextmanager
def fake(path: Path, answer: Callable[[str], object], greeting: object = GREETING) -> Iterator[None]:
    """A monitor that answers each command with what `answer` returns for it; None is no answer at all."""

    def serve(client: socket.socket) -> None:
        _say(client, greeting)
        for message in _messages(client):
            said = {} if message["execute"] == "qmp_capabilities" else answer(message["execute"])
            if said is not None:
                _say(client, {"return": said, **({"id": message["id"]} if "id" in message else {})})

    with listening(path, serve):
        yield


def _messages(client: socket.socket) -> Iterator[dict[str, str]]:
    """JSON objects, with nothing between them."""
    rest, decoder = "", json.JSONDecoder()
    while data := client.recv(65536):
        rest += data.decode()
        with suppress(ValueError):
            while rest:
                message, end = decoder.raw_decode(rest)
                rest = rest[end:].lstrip()
                yield message


def _say(client: socket.socket, message: object) -> None:
    client.sendall(json.dumps(message).encode() + b"\r\n")


def test_a_qemu_that_answers_no_command_leaves_the_disk_pending(control: Control, vm: str, tmp_path: Path) -> None:
    control.attach_guest(vm, tmp_path / "qmp")
    with fake(tmp_path / "qmp", lambda command: None):
        (told,) = following.tell(control, vm, ["disk0"], timeout=0.3)
    assert isinstance(told.error, PeerFailed)
    assert seconds_given(told.error) <= 0.3
    assert [disk.name for disk in guest_of(control, vm).pending] == ["disk0"]


def test_a_qemu_that_is_too_old_is_refused_when_it_is_attached(control: Control, vm: str, tmp_path: Path) -> None:
    commands = [{"name": "block_resize"}, {"name": "query-block"}]
    with (
        fake(tmp_path / "qmp", lambda command: commands if command == "query-commands" else []),
        pytest.raises(PeerFailed, match=r"has no blockdev-reopen.*use QEMU 6\.1 or later"),
    ):
        attached(control, vm, tmp_path / "qmp")
    assert control.guest(vm) is None


COMMANDS = [{"name": "blockdev-reopen"}, {"name": "x-debug-query-block-graph"}]
NODE = {"node-name": "n0", "drv": "nbd", "ro": False, "image": {"virtual-size": SIZE, "filename": "nbd://h/e"}}


NONSENSE: dict[str, Sequence[object]] = {
    "query-commands": (5, [5], [{}], [{"name": []}], "text"),
    "query-named-block-nodes": (
        *(5, [5], [{}], [{**NODE, "image": 5}], [{**NODE, "node-name": []}], [{**NODE, "ro": 1}], [NODE] * 5000),
        *([{**NODE, "image": {"virtual-size": size}}] for size in ("1", True, 1.5, None)),
        [{**NODE, "image": {"virtual-size": 1, "filename": 5}}],
    ),
    "x-debug-query-block-graph": (
        *(5, {}, {"nodes": [], "edges": [{}]}, {"nodes": [5]}),
        {"nodes": [{"id": [], "type": "x", "name": "x"}], "edges": []},
    ),
    "query-block": (5, [5], [{"inserted": {"a": 1}, "qdev": 5}], [{"inserted": 5, "qdev": "x"}]),
}


@pytest.mark.parametrize("command", NONSENSE)
def test_answers_that_make_no_sense_leave_the_disk_pending(
    control: Control, vm: str, tmp_path: Path, command: str
) -> None:
    answers: dict[str, object] = {
        "query-commands": COMMANDS,
        "query-named-block-nodes": [NODE],
        "x-debug-query-block-graph": {"nodes": [], "edges": []},
        "query-block": [],
    }
    control.attach_guest(vm, tmp_path / "qmp")
    with fake(tmp_path / "qmp", lambda command: answers.get(command, [])):
        (told,) = following.tell(control, vm, ["disk0"], timeout=SECONDS)
        assert isinstance(told.error, ResourceNotFound), "all of these make sense"
        for nonsense in NONSENSE[command]:
            answers[command] = nonsense
            (told,) = following.tell(control, vm, ["disk0"], timeout=SECONDS)
            assert isinstance(told.error, PeerFailed), nonsense
            assert command in told.error.problem
            assert "with what is no answer" in told.error.problem


@pytest.mark.parametrize("shape", ["diamonds", "ring"])
def test_a_graph_of_any_shape_is_read_to_its_end(control: Control, vm: str, tmp_path: Path, shape: str) -> None:
    layers = [(f"a{layer}", f"b{layer}") for layer in range(31)]
    edges = [(up, low) for upper, lower in zip(layers[1:], layers, strict=False) for up in upper for low in lower]
    if shape == "ring":
        edges.append(("a0", "a30"))
    names = [name for layer in layers for name in layer]
    nodes = [
        {**NODE, "node-name": name, "image": {"virtual-size": SIZE, "filename": f"nbd://h/{vm}/disk0"}}
        for name in names
    ]
    answers = {
        "query-commands": COMMANDS,
        "query-named-block-nodes": nodes,
        "x-debug-query-block-graph": {
            "nodes": [{"id": name, "type": "block-driver", "name": name} for name in names],
            "edges": [{"parent": up, "child": low} for up, low in edges],
        },
    }
    control.attach_guest(vm, tmp_path / "qmp")
    with fake(tmp_path / "qmp", lambda command: answers.get(command, [])):
        (told,) = following.tell(control, vm, ["disk0"], timeout=SECONDS)
    assert isinstance(told.error, ResourceNotFound)
    assert "plug a device" in told.error.way_out


def test_a_place_that_makes_no_sense_leaves_the_file_system_pending(
    site: Site, control: Control, vm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = FakeAgent("")
    execute = Monitor.execute
    with machine_of(site, vm, tmp_path) as machine, agent.listening(tmp_path / "agent"):
        following.attach(control, vm, machine.qmp, tmp_path / "agent", timeout=SECONDS)
        for answer in (5, [{"devices": [{"qdev_id": "d0"}]}], [{"devices": 5}], [{"devices": [{"pci_bridge": 5}]}]):

            def lying(monitor: Monitor, command: str, *given: Any, answer: object = answer) -> Any:
                return answer if command == "query-pci" else execute(monitor, command, *given)

            monkeypatch.setattr(Monitor, "execute", lying)
            (told,) = following.sync(control, vm, None, timeout=SECONDS)
            assert isinstance(told.error, PeerFailed)
            assert "answered query-pci with what is no answer" in told.error.problem
    assert agent.sizes == []


@pytest.mark.parametrize("greeting", [{}, {"QMP": {}}, [], "QMP", {"error": "no"}])
def test_what_does_not_greet_as_a_monitor_is_refused(
    greeting: object, control: Control, vm: str, tmp_path: Path
) -> None:
    with fake(tmp_path / "qmp", lambda command: [], greeting), pytest.raises((InvalidArgument, PeerFailed)):
        following.attach(control, vm, tmp_path / "qmp", None, timeout=SECONDS)
    assert control.guest(vm) is None


# The guest agent


@dataclass
class FakeAgent:
    """A guest agent whose script prints `output`; `sizes` are those it was run with. Unless `allowed`, it runs none."""

    output: str
    code: int = 0
    allowed: bool = True
    sizes: list[str] = field(default_factory=list)

    def answer(self, message: dict[str, Any]) -> object:
        command, arguments = message["execute"], message.get("arguments", {})
        if command == "guest-sync-delimited":
            return {"return": arguments["id"]}
        if not self.allowed or command not in ("guest-exec", "guest-exec-status"):
            return {"error": {"class": "CommandNotFound", "desc": f"Command {command} has been disabled"}}
        if command == "guest-exec":
            words = arguments["arg"]
            self.sizes.append(words[words.index("--size") + 1])
            return {"return": {"pid": 1}}
        data = base64.b64encode(self.output.encode()).decode()
        return {"return": {"exited": True, "exitcode": self.code, "out-data": data}}

    @contextmanager
    def listening(self, path: Path) -> Iterator["FakeAgent"]:
        with listening(path, self._serve):
            yield self

    def _serve(self, client: socket.socket) -> None:
        with client.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line.lstrip(b"\xff"))
                client.sendall(b"\xff" + json.dumps(self.answer(message)).encode() + b"\n")


def test_file_systems_grow_after_the_device(site: Site, control: Control, vm: str, tmp_path: Path) -> None:
    agent = FakeAgent(f"disk /dev/vda {2 * SIZE}\ngrown /dev/vda ext4 {SIZE} {2 * SIZE}\n")
    with machine_of(site, vm, tmp_path) as machine, agent.listening(tmp_path / "agent"):
        found = following.attach(control, vm, machine.qmp, tmp_path / "agent", timeout=SECONDS)
        assert found.warnings == ()
        assert agent.sizes == [], "attaching grows no file system"
        resize(control, vm, 2 * SIZE)
        (told,) = following.tell(control, vm, ["disk0"], timeout=SECONDS)
        assert not told.pending
        assert agent.sizes == [str(2 * SIZE)]
        assert [(stage.name, stage.done) for stage in told.stages] == [("QEMU", True), ("file system", True)]
        assert told.stages[1].detail == "/dev/vda ext4 32 MiB"
        (disk,) = guest_of(control, vm).disks
        assert disk.note.detail == "virtio-blk d0, 32 MiB confirmed; /dev/vda ext4 32 MiB"
        agent.output = f"disk /dev/vda {2 * SIZE}\nfull /dev/vda ext4 {2 * SIZE}\n"
        (told,) = following.sync(control, vm, None, timeout=SECONDS)
        assert (told.changed, told.pending) == (False, False)


def test_file_systems_that_can_not_grow_are_pending_and_tried_again(
    site: Site, control: Control, vm: str, tmp_path: Path
) -> None:
    agent = FakeAgent("", allowed=False)
    with machine_of(site, vm, tmp_path) as machine, agent.listening(tmp_path / "agent"):
        following.attach(control, vm, machine.qmp, tmp_path / "agent", timeout=SECONDS)
        resize(control, vm, 2 * SIZE)
        (told,) = following.tell(control, vm, ["disk0"], timeout=SECONDS)
        assert isinstance(told.error, PeerFailed)
        assert type(told.error) is PeerFailed, "one of the classes that users know"
        assert "run " in told.error.way_out
        assert [(stage.name, stage.done) for stage in told.stages] == [("QEMU", True), ("file system", False)]
        assert machine.size("d0") == 2 * SIZE
        (disk,) = guest_of(control, vm).pending
        assert disk.note.size == 2 * SIZE
        agent.allowed, agent.output = True, f"disk /dev/vda {2 * SIZE}\ngrown /dev/vda ext4 {SIZE} {2 * SIZE}\n"
        (told,) = following.tell(control, vm, [], timeout=SECONDS)
        assert not told.pending
        assert guest_of(control, vm).pending == ()


def test_an_agent_that_says_nothing_costs_no_more_than_the_time_that_is_left(
    site: Site, control: Control, vm: str, tmp_path: Path
) -> None:
    with machine_of(site, vm, tmp_path) as machine:
        attached(control, vm, machine.qmp)
        with listening(tmp_path / "agent", lambda client: until(lambda: not client.recv(4096), what="the end")):
            found = following.attach(control, vm, machine.qmp, tmp_path / "agent", timeout=SECONDS)
            assert len(found.warnings) == 1
            resize(control, vm, 2 * SIZE)
            for _ in range(5):  # QEMU itself may take all of the time, on a slow machine
                (told,) = following.tell(control, vm, ["disk0"], timeout=2)
                if told.stages[0].done:
                    break
        assert isinstance(told.error, PeerFailed)
        assert [stage.done for stage in told.stages] == [True, False]
        assert seconds_given(told.error) <= 2
        assert machine.size("d0") == 2 * SIZE


def test_an_agent_that_is_not_there_yet_is_a_warning(site: Site, control: Control, vm: str, tmp_path: Path) -> None:
    with machine_of(site, vm, tmp_path) as machine:
        found = following.attach(control, vm, machine.qmp, tmp_path / "agent", timeout=SECONDS)
    assert found.guest.agent == str(tmp_path / "agent")
    assert len(found.warnings) == 1


def test_a_device_that_takes_no_new_size_is_attached_with_the_others(
    site: Site, control: Control, tmp_path: Path
) -> None:
    vm = site.make_vm(2)
    disks = [*nbd(site.unix, f"{vm}/disk0"), *raw(), *virtio_blk("f0")]
    disks += [*nbd(site.unix, f"{vm}/disk1", "n1"), *raw("f1", "n1"), "-device", "nvme,drive=f1,id=d1,serial=d1"]
    with Machine(*disks, directory=tmp_path) as machine:
        guest = attached(control, vm, machine.qmp)
        assert [disk.pending for disk in guest.disks] == [False, True]
        resize(control, vm, 2 * SIZE, "disk1")
        (told,) = following.tell(control, vm, ["disk1"], timeout=SECONDS)
        assert isinstance(told.error, ResourceInUse)
        assert told.error.problem == "The device nvme d1 takes no new size while it runs"
