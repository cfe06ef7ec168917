"""`guest` and what a resize tells guests: the whole way from the command to the device of a real QEMU."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.units import SizeRequest
from tests.cli.command import Command, Inside
from tests.guests.machine import Machine
from tests.guests.site import nbd, raw, virtio_blk, virtio_scsi
from tests.peers import Serve

pytestmark = pytest.mark.slow

GIB = 2**30
GUEST_KEYS = ["vm", "qmp", "agent", "attached", "pending", "disks"]
DISK_KEYS = ["slot", "size", "guest_size", "pending", "detail", "told"]
STAGE_KEYS = ["name", "seconds", "detail", "done", "disk", "way_out"]


@dataclass(frozen=True)
class Running:
    """web1's disk0 in a QEMU, served by `serve`; `run` runs commands."""

    run: Inside
    serve: Serve
    machine: Machine

    def attach(self) -> None:
        self.run("guest", "attach", "web1", "--qmp", str(self.machine.qmp)).ok()


@contextmanager
def booted(run: Inside, directory: Path, front: str = "native") -> Iterator[Running]:
    with Serve(directory=directory, root=run.root, front=front) as serve:
        address = f"server.type=unix,server.path={serve.socket}"
        disk = [*nbd(address, "web1/disk0", more="reconnect-delay=30"), *raw(), *virtio_blk("f0")]
        machine = Machine(*disk, directory=directory)
        machine.start()
        try:
            yield Running(run, serve, machine)
        finally:
            machine.kill()


@pytest.fixture
def running(web1: Command, inside: Inside, tmp_path: Path) -> Iterator[Running]:
    with booted(inside, tmp_path) as found:
        yield found


@pytest.mark.parametrize("front", ["native", "nbdkit"])
def test_a_resize_reaches_the_running_guest(front: str, web1: Command, inside: Inside, tmp_path: Path) -> None:
    with booted(inside, tmp_path, front) as running:
        attached = inside("guest", "attach", "web1", "--qmp", str(running.machine.qmp)).ok().out
        assert attached.startswith("web1: QEMU 7.")
        assert "disk0  virtio-blk d0, 20 GiB confirmed" in attached
        assert "disk1  not in use there" in attached

        first, *stages = inside("disk", "resize", "web1", "disk0", "+20G").ok().out.splitlines()
        assert first == "web1/disk0: 20 GiB → 40 GiB"
        assert [line.split()[0] for line in stages] == ["volume", "ledger", "servers", "QEMU"]
        assert "virtio-blk d0, 40 GiB confirmed" in stages[3]
        assert running.machine.size("d0") == 40 * GIB

        answer = inside("disk", "resize", "web1", "disk0", "+1G", "--json").ok().json
        stage = answer["stages"][3]
        assert list(stage) == STAGE_KEYS
        assert (stage["name"], stage["disk"], stage["done"], stage["way_out"]) == ("QEMU", "disk0", True, "")
        assert running.machine.size("d0") == 41 * GIB


def test_what_is_attached_is_shown_and_forgotten(running: Running) -> None:
    run = running.run
    qmp = str(running.machine.qmp)
    assert "nbdresize guest attach" in run("guest", "list").ok().out
    answer = run("guest", "attach", "web1", "--qmp", qmp, "--json").ok().json
    assert list(answer) == [*GUEST_KEYS, "version", "warnings"]
    assert (answer["vm"], answer["qmp"], answer["agent"], answer["warnings"]) == ("web1", qmp, None, [])
    shown = run("guest", "show", "web1", "--json").ok().json
    assert shown == {key: answer[key] for key in GUEST_KEYS}
    assert [list(disk) for disk in shown["disks"]] == [DISK_KEYS, DISK_KEYS]
    assert [(disk["slot"], disk["guest_size"], disk["pending"]) for disk in shown["disks"]] == [
        ("disk0", 20 * GIB, False),
        ("disk1", None, False),
    ]
    assert run("guest", "list", "--json").ok().json == {"guests": [shown]}
    assert run("status", "--json").ok().json["guests"] == [shown]
    for words in (("guest", "list"), ("status",), ("guest", "show", "web1")):
        assert qmp in run(*words).ok().out
    assert run("guest", "detach", "web1").ok().out == "web1: guest detached\n"
    assert run("guest", "list", "--json").ok().json == {"guests": []}
    for command in ("show", "detach", "sync"):
        run("guest", command, "web1").failed(5, "ResourceNotFound")
    assert len(run("disk", "resize", "web1", "disk0", "+1G", "--json").ok().json["stages"]) == 3
    assert running.machine.size("d0") == 20 * GIB


def test_a_relative_path_is_remembered_as_an_absolute_one(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(running.machine.qmp.parent)
    answer = running.run("guest", "attach", "web1", "--qmp", running.machine.qmp.name, "--json").ok().json
    assert answer["qmp"] == str(running.machine.qmp)


def test_sync_tells_what_nobody_told_and_then_has_nothing_to_do(running: Running) -> None:
    running.attach()
    run = running.run
    assert len(run("disk", "resize", "web1", "disk0", "30G", "--no-guest", "--json").ok().json["stages"]) == 3
    assert running.machine.size("d0") == 20 * GIB
    assert "pending: resized since, and not told" in run("guest", "show", "web1").ok().out
    assert run("guest", "list").ok().out.splitlines()[1].split()[-1] == "disk0"
    assert run("status", "--json").ok().json["guests"][0]["pending"] is True
    answer = run("guest", "sync", "web1", "--json").ok().json
    assert (answer["vm"], answer["pending"]) == ("web1", False)
    assert [(stage["disk"], stage["done"]) for stage in answer["stages"]] == [("disk0", True), ("disk1", True)]
    assert running.machine.size("d0") == 30 * GIB
    assert run("guest", "sync", "web1").ok().out == "web1: nothing to do: its guest has the size of disk0\n"
    assert run("guest", "sync", "web1", "disk1").ok().out == "web1: nothing to do: its guest uses none of the disks\n"
    run("guest", "sync", "web1", "disk7").failed(5, "ResourceNotFound")
    run("guest", "sync", "web1", "disk9").failed(3, "InvalidArgument")


def test_a_size_changed_over_nbd_is_told_by_the_next_resize(running: Running) -> None:
    running.attach()
    with Control.open(StateDirectory(running.run.root)) as control:  # as a client on the wire does it
        control.resize_disk("web1", "disk0", SizeRequest(exact=25 * GIB))
    out = running.run("disk", "resize", "web1", "disk1", "+1G").ok().out
    assert "QEMU disk0  virtio-blk d0, 25 GiB confirmed" in out
    assert "QEMU disk1  not in use there" in out
    assert running.machine.size("d0") == 25 * GIB


def test_a_hung_qemu_leaves_something_pending_and_no_error(running: Running) -> None:
    running.attach()
    run = running.run
    os.kill(running.machine.pid, signal.SIGSTOP)
    try:
        out = run("disk", "resize", "web1", "disk0", "+1G", "--guest-timeout", "0.5").ok().out
        assert "web1/disk0: 20 GiB → 21 GiB" in out
        assert "pending: QEMU" in out
        assert "stopped by a signal" in out
        last = out.splitlines()[-1]
        assert last.startswith(f"pending: continue it with kill -CONT {running.machine.pid}")
        assert last.endswith("nbdresize guest sync web1 tells the guest again")
        answer = run("disk", "resize", "web1", "disk0", "+1G", "--guest-timeout", "0.5", "--json").ok().json
        stage = answer["stages"][3]
        assert (stage["done"], "kill -CONT" in stage["way_out"]) == (False, True)
        failed = run("guest", "sync", "web1", "--guest-timeout", "0.5")
        assert failed.err.startswith("nbdresize: PeerFailed: ")
        assert failed.code == 14
        assert "pending: " in failed.out
        assert "pending: " in run("guest", "show", "web1").ok().out
    finally:
        os.kill(running.machine.pid, signal.SIGCONT)
    run("guest", "sync", "web1").ok()
    assert running.machine.size("d0") == 22 * GIB


def test_a_guest_that_was_shut_down_is_pending_until_it_runs_again(running: Running) -> None:
    running.attach()
    run = running.run
    running.machine.kill()
    out = run("disk", "resize", "web1", "disk0", "+1G").ok().out
    assert "pending: " in out
    answer = run("guest", "sync", "web1", "--json")
    assert answer.json["pending"] is True
    assert answer.code in (5, 14)
    assert [disk["pending"] for disk in run("guest", "show", "web1", "--json").ok().json["disks"]] == [True, False]
    running.machine.qmp.unlink(missing_ok=True)
    running.machine.start()
    assert "21 GiB confirmed" in run("guest", "sync", "web1").ok().out
    assert run("guest", "show", "web1", "--json").ok().json["pending"] is False


def test_several_disks_and_documents_tell_the_guest_too(web1: Command, inside: Inside, tmp_path: Path) -> None:
    with Serve(directory=tmp_path, root=inside.root) as serve:
        address = f"server.type=unix,server.path={serve.socket}"
        disks = [*nbd(address, "web1/disk0", "n0"), *raw("f0", "n0"), *virtio_blk("f0", "d0")]
        disks += [*nbd(address, "web1/disk1", "n1"), *raw("f1", "n1"), *virtio_scsi("f1", "d1")]
        with Machine(*disks, directory=tmp_path) as machine:
            inside("guest", "attach", "web1", "--qmp", str(machine.qmp)).ok()
            out = inside("disk", "resize", "web1", "--set", "disk0=30G", "--set", "disk1=10G").ok().out
            assert "QEMU disk0  virtio-blk d0, 30 GiB confirmed" in out
            assert "QEMU disk1  scsi-hd d1, 10 GiB confirmed" in out
            assert (machine.size("d0"), machine.size("d1")) == (30 * GIB, 10 * GIB)

            document = tmp_path / "changes.json"
            document.write_text('{"update_disks": [{"slot": "disk1", "size": 12288}], "add_disks": [{"size": 1024}]}')
            answer = inside("vm", "update", "web1", "--from-json", str(document), "--json").ok().json
            assert [stage["disk"] for stage in answer["stages"] if stage["name"] == "QEMU"] == ["disk1"]
            assert machine.size("d1") == 12 * GIB
            document.write_text('{"update_disks": [{"slot": "disk1", "size": 13312}]}')
            inside("vm", "update", "web1", "--from-json", str(document), "--no-guest").ok()
            assert machine.size("d1") == 12 * GIB
    inside("vm", "update", "web1", "--no-guest", "--owner", "ann").failed(2, "UsageError")


def test_a_rollback_of_a_guest_that_is_off_is_told_when_it_runs(running: Running) -> None:
    run = running.run
    running.attach()
    run("snapshot", "create", "web1", "before").ok()
    run("disk", "resize", "web1", "disk0", "30G").ok()
    run("snapshot", "rollback", "web1", "before", "--yes").failed(6, "ResourceInUse")
    running.machine.kill()
    out = run("snapshot", "rollback", "web1", "before", "--yes").ok().out
    assert "web1/disk0: as in before, 30 GiB → 20 GiB" in out
    assert "pending: " in out
    running.machine.qmp.unlink(missing_ok=True)
    running.machine.start()
    run("guest", "sync", "web1").ok()
    assert run("guest", "show", "web1", "--json").ok().json["pending"] is False
    assert running.machine.size("d0") == 20 * GIB


def test_a_shrink_of_an_attached_disk_is_refused_and_says_where_the_steps_are(running: Running) -> None:
    running.attach()
    error = running.run("disk", "resize", "web1", "disk0", "10G", "--dangerous-allow-shrink")
    assert "docs/guests.md" in error.failed(6, "ResourceInUse")
    assert running.machine.size("d0") == 20 * GIB


def test_a_budget_that_does_not_reach_is_told_and_the_guest_notices_nothing(running: Running) -> None:
    running.attach()
    before = running.run("guest", "show", "web1", "--json").ok().json
    running.run("disk", "resize", "web1", "disk0", "+100G").failed(4, "InsufficientSpace")
    assert running.run("guest", "show", "web1", "--json").ok().json == before
    assert running.machine.size("d0") == 20 * GIB


def test_a_path_that_is_no_monitor_is_refused(running: Running, tmp_path: Path) -> None:
    run = running.run
    plain = tmp_path / "plain"
    plain.touch()
    assert "is not a socket" in run("guest", "attach", "web1", "--qmp", str(plain)).failed(3, "InvalidArgument")
    run("guest", "attach", "web1", "--qmp", str(tmp_path / "none")).failed(5, "ResourceNotFound")
    run("guest", "attach", "web1", "--qmp", str(running.serve.socket)).failed(3, "InvalidArgument")
    agent = ("--agent", str(plain))
    line = run("guest", "attach", "web1", "--qmp", str(running.machine.qmp), *agent).failed(3, "InvalidArgument")
    assert "is not a socket" in line
    run("guest", "attach", "web2", "--qmp", str(running.machine.qmp)).failed(5, "ResourceNotFound")
    run("guest", "attach", "web1").failed(2, "UsageError")
    assert run("guest", "list", "--json").ok().json == {"guests": []}


def test_the_qemu_of_another_vm_is_refused_and_its_nodes_are_named(running: Running) -> None:
    run = running.run
    run("vm", "create", "web2", "--disk-space", "1G", "--disk", "1G").ok()
    line = run("guest", "attach", "web2", "--qmp", str(running.machine.qmp)).failed(5, "ResourceNotFound")
    assert "That is not the QEMU of VM web2" in line
    assert "n0 (nbd+unix:///web1/disk0" in line
    run("vm", "create", "empty", "--disk-space", "1G").ok()
    line = run("guest", "attach", "empty", "--qmp", str(running.machine.qmp)).failed(5, "ResourceNotFound")
    assert "no disks" in line


def test_a_socket_that_never_greets_is_given_up(web1: Command, inside: Inside, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
        silent.listen()
        words = ("guest", "attach", "web1", "--qmp", str(tmp_path / "silent"), "--guest-timeout", "0.3")
        assert "did not answer" in inside(*words).failed(14, "PeerFailed")


def test_a_deleted_vm_forgets_its_guest(running: Running) -> None:
    running.attach()
    running.machine.kill()
    running.run("vm", "delete", "web1", "--yes").ok()
    assert running.run("guest", "list", "--json").ok().json == {"guests": []}
    assert running.run("check").ok()


def test_the_arguments_for_bhyve(web1: Command, inside: Inside) -> None:
    expected = "-s 4:0,virtio-blk,/dev/nbd0 -s 4:1,virtio-blk,/dev/nbd1"
    assert inside("guest", "bhyve-args", "web1").ok().out == f"{expected}\n"
    assert inside("guest", "bhyve-args", "web1", "--json").ok().json == {"vm": "web1", "arguments": expected.split()}
    inside("disk", "add", "web1", "1G").ok()
    inside("disk", "delete", "web1", "disk1", "--yes").ok()
    out = inside("guest", "bhyve-args", "web1", "--device-prefix", "/dev/ggate").ok().out
    assert out == "-s 4:0,virtio-blk,/dev/ggate0 -s 4:2,virtio-blk,/dev/ggate2\n"
    inside("guest", "bhyve-args", "web7").failed(5, "ResourceNotFound")


def test_no_command_pays_for_guests_that_it_does_not_have(web1: Command) -> None:
    """What talks to QEMU takes long to load."""
    answer = web1("disk", "resize", "web1", "disk0", "+1G", PYTHONPROFILEIMPORTTIME="1")
    imported = {line.rpartition("|")[2].strip() for line in answer.err.splitlines()}
    assert "nbdresize.cli.guest" in imported
    assert not imported & {"qemu.qmp", "nbdresize.guests.following"}


def test_shell_completion_knows_guests(running: Running, web1: Command) -> None:
    running.attach()
    line = "nbdresize guest sync "
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split())), "_TYPER_COMPLETE_ARGS": line}
    assert "web1" in web1(_NBDRESIZE_COMPLETE="complete_bash", **words).ok().out
