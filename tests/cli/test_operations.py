"""`nbdresize operations`: listed, followed from another terminal, cancelled."""

import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sql

from nbdresize.config import StateDirectory
from nbdresize.control import operations, schema
from nbdresize.control.control import Control
from nbdresize.control.model import OperationState
from nbdresize.errors import OperationCancelled, VolumeFailed
from nbdresize.units import SizeRequest
from tests.cli.command import Command, Inside
from tests.control.long_running import ID, LONG, MIB, SIZE, LongRunning, long_running
from tests.wait import until

pytestmark = pytest.mark.slow

EXACTLY = SizeRequest(exact=SIZE)


@pytest.fixture
def running(nbdresize: Command, monkeypatch: pytest.MonkeyPatch) -> Iterator[LongRunning]:
    """`nightly`, of another process than the commands, at 25 %."""
    with long_running(StateDirectory(nbdresize.root), monkeypatch) as running:
        yield running


def test_operations_are_listed_the_newest_first(inside: Inside) -> None:
    inside("vm", "create", "web1", "--disk-space", "1G", "--disk", "64M", "--operation-id", "make").ok()
    inside("vm", "create", "web2", "--disk-space", "1G").ok()
    inside("disk", "resize", "web1", "disk0", "128M", "--operation-id", "grow").ok()
    listed = inside("operations", "list", "--json").ok().json["operations"]
    assert [each["kind"] for each in listed[:3]] == ["resize_disk", "create_vm", "create_vm"]
    assert [each["id"] for each in listed[:3:2]] == ["grow", "make"]
    assert list(listed[0]) == [
        *("id", "kind", "subject", "state", "cancelling", "unfinished", "pid", "progress"),
        *("started", "finished", "seconds", "stages", "error"),
    ]
    assert listed[0]["state"] == "done"
    assert listed[0]["seconds"] >= 0
    assert {"volume", "ledger"} <= {stage["name"] for stage in listed[0]["stages"]}
    ours = inside("operations", "list", "--vm", "web1", "--json").ok().json["operations"]
    assert [each["id"] for each in ours] == ["grow", "make"]
    table = inside("operations", "list").ok().out.splitlines()
    assert table[0].split()[:5] == ["OPERATION", "KIND", "OF", "STATE", "PROGRESS"]
    assert table[1].split()[:4] == ["grow", "resize_disk", "web1", "done"]
    assert inside("operations", "list", "--running").ok().out == "No operation runs.\n"
    none = inside("operations", "list", "--vm", "web3").ok().out
    assert none == "No operations of VM web3 within the last week.\n"
    inside("operations", "list", "--running", "--all").failed(2, "UsageError")


def test_all_of_them_are_listed_on_request(inside: Inside) -> None:
    inside("vm", "create", "web1", "--disk-space", "1G").ok()
    with Control.open(StateDirectory(inside.root)) as control:
        before = len(control.operations())
        for number in range(30):
            control.update_vm("web1", (1 << 30) + 4096 * number)
    assert len(inside("operations", "list", "--json").ok().json["operations"]) == 20
    assert len(inside("operations", "list", "--all", "--json").ok().json["operations"]) == before + 30


def test_an_ended_operation_is_shown(inside: Inside) -> None:
    inside("vm", "create", "web1", "--disk-space", "1G", "--disk", "64M", "--operation-id", "make").ok()
    shown = inside("operations", "show", "make").ok().out
    assert shown.startswith("operation make\n")
    assert "create_vm" in shown
    assert "volume" in shown
    assert inside("operations", "show", "make", "--json").ok().json["state"] == "done"
    assert inside("operations", "show", "make", "--watch").ok().out.startswith("create_vm web1: done after ")
    inside("operations", "show", "other").failed(5, "ResourceNotFound")
    inside("operations", "cancel", "make").failed(6, "ResourceInUse")
    inside("operations", "cancel", "other").failed(5, "ResourceNotFound")


def test_one_that_runs_is_seen_with_its_progress(running: LongRunning, inside: Inside) -> None:
    [listed] = inside("operations", "list", "--running", "--json").ok().json["operations"]
    assert listed["progress"] == {"step": "growing web1", "done": MIB, "total": SIZE, "percent": 25}
    assert (listed["pid"], listed["unfinished"], listed["finished"]) == (os.getpid(), False, None)
    assert "25 %" in inside("operations", "list").ok().out
    assert "growing web1: 25 % (1 MiB of 4 MiB)" in inside("operations", "show", ID).ok().out
    status = inside("status", "--json").ok().json
    assert [each["id"] for each in status["operations"]] == [ID]
    assert "25 %" in inside("status").ok().out


def test_it_is_followed_from_another_terminal(running: LongRunning, nbdresize: Command) -> None:
    with nbdresize.start("operations", "show", ID, "--watch") as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == b"resize_disk web1: running, growing web1: 25 % (1 MiB of 4 MiB)\n"
        running.go_on(1)
        assert b" 50 % " in watching.stdout.readline()
        running.go_on()
        *_, last = watching.stdout.read().splitlines()
        assert last.startswith(b"resize_disk web1: done after ")
        assert watching.wait(LONG) == 0


def test_on_a_terminal_one_line_is_drawn_again(running: LongRunning, nbdresize: Command) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        watching = subprocess.Popen(
            ["env", "nbdresize", "operations", "show", ID, "--watch"],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            env=nbdresize.environment(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}"),
        )
        os.close(theirs)
        seen = b""

        def shown(text: bytes) -> bool:
            nonlocal seen
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    seen += terminal.read(4096)
                except OSError:  # its other end is closed
                    return True
            return text in seen

        until(lambda: shown(b"25 %"), LONG, "the first line")
        running.go_on(1)
        until(lambda: shown(b"50 %"), LONG, "the next one")
        running.go_on()
        until(lambda: shown(b"done after"), LONG, "its end")
        assert watching.wait(LONG) == 0
    assert seen.count(b"\r\x1b[K") >= 3
    assert b"\n" not in seen.rstrip()


def test_whoever_follows_one_that_is_cancelled_is_told(running: LongRunning, nbdresize: Command) -> None:
    with nbdresize.start("operations", "show", ID, "--watch", "--json") as watching:
        assert watching.stdout is not None and watching.stderr is not None
        assert json.loads(watching.stdout.readline())["state"] == "running"
        with nbdresize.start("operations", "cancel", ID) as cancelling:
            assert json.loads(watching.stdout.readline())["cancelling"] is True
            running.go_on()
            assert cancelling.wait(LONG) == 0
            assert cancelling.stdout is not None
            assert cancelling.stdout.read() == b"Operation nightly cancelled: everything is as it was before\n"
        assert watching.wait(LONG) == 15
        assert json.loads(watching.stdout.read().splitlines()[-1])["state"] == "cancelled"
        assert json.loads(watching.stderr.read())["error"] == "OperationCancelled"
    with pytest.raises(OperationCancelled):
        running.result.result(LONG)
    assert nbdresize("disk", "list", "web1", "--json").ok().json["disks"][0]["size"] == SIZE


def test_cancelling_need_not_wait(running: LongRunning, inside: Inside) -> None:
    assert inside("operations", "cancel", ID, "--no-wait").ok().out == "Operation nightly was asked to undo itself\n"
    assert "cancelling" in inside("operations", "list").ok().out
    running.go_on()
    with pytest.raises(OperationCancelled):
        running.result.result(LONG)


def test_cancelling_too_late_says_so(running: LongRunning, inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "_REPORT_EVERY", 1000.0)  # it does not look any more
    with ThreadPoolExecutor(1) as threads, Control.open(StateDirectory(inside.root)) as control:

        def go_on_once_asked() -> None:
            until(lambda: control.operation(ID).cancelling, LONG, "somebody to cancel it")
            running.go_on()

        asked = threads.submit(go_on_once_asked)
        inside("operations", "cancel", ID).failed(6, "ResourceInUse")
        asked.result(LONG)
        assert control.operation(ID).state is OperationState.DONE


def test_a_command_that_waits_for_the_vm_is_told_for_what(running: LongRunning, inside: Inside) -> None:
    refused = inside("disk", "resize", "web1", "disk0", "16M", "--wait", "0").failed(6, "ResourceInUse")
    assert "operation nightly (resize_disk, growing web1: 25 %)" in refused
    assert "nbdresize operations show nightly --watch" in refused


def test_a_failed_one_ends_watching_with_its_exit_code(inside: Inside) -> None:
    def fail(progress: object) -> None:
        raise VolumeFailed("The disk is on fire", "run")

    with Control.open(StateDirectory(inside.root)) as control, pytest.raises(VolumeFailed):
        control.create_vm("web2", SIZE, [EXACTLY], preallocate=True, operation="burnt", listener=fail)
    assert "The disk is on fire: run" in inside("operations", "show", "burnt").ok().out
    assert "on fire" in inside("operations", "show", "burnt", "--watch").failed(10, "VolumeFailed")


def test_one_whose_process_was_killed_is_completed_or_shown_as_unfinished(nbdresize: Command, inside: Inside) -> None:
    inside("vm", "create", "web1", "--disk-space", "1G", "--disk", "64M").ok()
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    with Control.open(StateDirectory(inside.root)) as control:
        ledger = control._site.ledger
        with ledger.deciding() as connection:
            operations.begin(connection, operations.Request("dead", "add_disk", "web1", "{}"))
            connection.execute(sql.update(schema.operations).values(pid=gone.pid))
    assert "unfinished" in inside("operations", "list").ok().out
    told = "unfinished: its process is gone; the next command on web1 completes it"
    assert told in inside("operations", "show", "dead").ok().out
    assert inside("operations", "show", "dead", "--json").ok().json["unfinished"] is True
    inside("operations", "show", "dead", "--watch").failed(6, "ResourceInUse")
    inside("operations", "cancel", "dead").failed(6, "ResourceInUse")
