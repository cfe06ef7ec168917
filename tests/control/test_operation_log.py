"""What is known of operations: while they run, when they have ended, and how long."""

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sql

from nbdresize.config import StateDirectory
from nbdresize.control import operation_log, operations, records
from nbdresize.control.control import Control
from nbdresize.control.ledger import Ledger
from nbdresize.control.locks import lock_vm
from nbdresize.control.model import Operation, OperationState, Progress, Stage
from nbdresize.control.operations import Request
from nbdresize.control.records import Kind
from nbdresize.errors import (
    ERRORS,
    InsufficientSpace,
    InvalidArgument,
    OperationCancelled,
    ResourceInUse,
    ResourceNotFound,
    VolumeFailed,
)
from nbdresize.units import SizeRequest
from tests.control.consistency import problems
from tests.control.long_running import BIGGER, ID, LONG, MIB, SIZE, LongRunning, grow, long_running

NOW = 1_000_000_000.0


@pytest.fixture
def ledger(control: Control, state: StateDirectory) -> Iterator[Ledger]:
    ledger = Ledger(state.ledger)
    yield ledger
    ledger.close()


@pytest.fixture
def running(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> Iterator[LongRunning]:
    with long_running(state, monkeypatch) as running:
        yield running


# While it runs


def test_others_see_how_far_it_is(running: LongRunning, control: Control) -> None:
    [operation] = control.operations(running=True)
    assert operation == control.operation(ID)
    assert (operation.kind, operation.subject, operation.pid) == ("resize_disk", "web1", os.getpid())
    assert operation.state is OperationState.RUNNING
    assert operation.finished is None
    assert operation.progress == Progress("growing web1", MIB, BIGGER - SIZE)
    assert operation_log.percent(operation.progress) == 25
    assert "ledger" in {stage.name for stage in operation.stages}
    running.go_on(2)
    later = running.wait_for(control, 3 * MIB)
    assert later.progress is not None
    assert later.progress.done == 3 * MIB
    running.go_on()
    running.result.result(LONG)
    ended = control.operation(ID)
    assert ended.state is OperationState.DONE
    assert ended.finished is not None
    assert ended.finished >= ended.started
    assert {stage.name for stage in ended.stages} >= {"ledger", "volume"}
    assert control.operations(running=True) == []


def test_whoever_waits_for_the_vm_is_told_for_what(running: LongRunning, control: Control) -> None:
    with pytest.raises(ResourceInUse) as retry:
        grow(control)
    assert retry.value.problem == ("VM web1 is being changed by operation nightly (resize_disk, growing web1: 25 %)")
    assert "nbdresize operations show nightly --watch" in retry.value.way_out
    running.go_on()
    first = running.result.result(LONG)
    again = grow(control)
    assert (again.size, again.generation) == (first.size, first.generation)


def test_a_cancelled_operation_puts_everything_back(
    running: LongRunning, control: Control, state: StateDirectory
) -> None:
    assert control.cancel_operation(ID).cancelling
    assert control.operation(ID).state is OperationState.RUNNING
    running.go_on()
    with pytest.raises(OperationCancelled, match="resize_disk web1 was cancelled"):
        running.result.result(LONG)
    cancelled = control.operation(ID)
    assert (cancelled.state, cancelled.cancelling) == (OperationState.CANCELLED, False)
    assert isinstance(operation_log.failure(cancelled), OperationCancelled)
    assert control.disk("web1", "disk0").size == SIZE
    assert problems(state) == []
    with pytest.raises(ResourceInUse, match=r"has ended \(cancelled\)"):
        control.cancel_operation(ID)
    assert grow(control).size == BIGGER


def test_what_is_not_there_can_not_be_cancelled(control: Control) -> None:
    for ask in (control.operation, control.cancel_operation):
        with pytest.raises(ResourceNotFound, match="no operation other"):
            ask("other")


# Once its process is gone


def begin(ledger: Ledger, request: Request) -> None:
    with ledger.deciding() as connection:
        operations.begin(connection, request)


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has the number of one that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    monkeypatch.setattr(os, "getpid", lambda: process.pid)


@pytest.mark.usefixtures("dead")
def test_an_operation_whose_process_is_gone_is_told_apart(
    ledger: Ledger, control: Control, state: StateDirectory
) -> None:
    control.create_vm("web1", SIZE)
    begin(ledger, Request("dead", "resize_disk", "web1", "{}"))
    operation = control.operation("dead")
    assert operation.state is OperationState.RUNNING
    assert operation_log.is_abandoned(operation)
    with pytest.raises(ResourceInUse, match="its process is gone: the next command on web1 completes it"):
        control.cancel_operation("dead")
    with lock_vm(state.locks, "web1", 0), pytest.raises(ResourceInUse, match="by another command"):
        grow(control)


def test_a_process_of_somebody_else_is_at_work(control: Control, ledger: Ledger) -> None:
    begin(ledger, Request("mine", "resize_disk", "web1", "{}"))
    assert not operation_log.is_abandoned(control.operation("mine"))
    begin(ledger, Request("init", "resize_disk", "web1", "{}"))
    with ledger.deciding() as connection:
        connection.execute(sql.text("UPDATE operations SET pid = 1 WHERE operation = 'init'"))
    assert not operation_log.is_abandoned(control.operation("init"))


# Ended


def test_a_failed_operation_keeps_its_error(control: Control, state: StateDirectory) -> None:
    control.create_vm("web1", SIZE, [SizeRequest(exact=SIZE)])
    volume = state.volumes / f"{control.disk('web1', 'disk0').volume}.raw"

    def fail(progress: Progress) -> None:
        raise VolumeFailed("The disk is on fire", "run")

    with pytest.raises(VolumeFailed):
        control.create_vm("web2", SIZE, [SizeRequest(exact=SIZE)], preallocate=True, operation="burnt", listener=fail)
    failed = control.operation("burnt")
    assert (failed.state, failed.error) == (OperationState.FAILED, "VolumeFailed: The disk is on fire: run")
    told = operation_log.failure(failed)
    assert isinstance(told, VolumeFailed)
    assert "Operation burnt (create_vm web2) failed: The disk is on fire: run" in str(told)
    assert volume.exists()
    assert problems(state) == []


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_is_the_same_for_whoever_looks_later(error: type[InsufficientSpace], ledger: Ledger) -> None:
    told = operation_log.failure(ended(ledger, error("Too much of it", "take less")))
    assert type(told) is error
    assert told.exit_code == error.exit_code


@pytest.mark.parametrize("why", [None, KeyboardInterrupt(), OSError(5, "input/output error"), ValueError()])
def test_what_ended_otherwise_was_undone(why: BaseException | None, ledger: Ledger) -> None:
    operation = ended(ledger, why)
    assert isinstance(operation_log.failure(operation), OperationCancelled)
    assert operation.error is not None
    assert type(why).__name__ in operation.error or why is None
    assert (operation.state is OperationState.CANCELLED) is isinstance(why, KeyboardInterrupt)


def ended(ledger: Ledger, why: BaseException | None) -> Operation:
    begin(ledger, Request("one", "add_disk", "web1", "{}"))
    with ledger.deciding() as connection:
        operations.failed(connection, "one", why)
        return operation_log.read(connection, "one")


def test_stages_are_kept_as_they_were(ledger: Ledger) -> None:
    stages = (Stage("volume", 0.25), Stage("servers", 1.5, "1 server; a.admin: it refused", done=False))
    begin(ledger, Request("one", "add_disk", "web1", "{}"))
    with ledger.deciding() as connection:
        operations.done(connection, "one", {}, stages)
        assert operation_log.read(connection, "one").stages == stages


def test_stages_of_earlier_versions_are_read(ledger: Ledger) -> None:
    begin(ledger, Request("one", "add_disk", "web1", "{}"))
    with ledger.deciding() as connection:
        connection.execute(
            sql.text("UPDATE operations SET stages = :stages"), {"stages": json.dumps([["ledger", 1.0]])}
        )
        assert operation_log.read(connection, "one").stages == (Stage("ledger", 1.0),)


def test_every_change_is_an_operation(control: Control) -> None:
    control.create_vm("web1", 64 * MIB, [SizeRequest(exact=SIZE)])
    control.add_disk("web1", SizeRequest(exact=SIZE))
    control.resize_disk("web1", "disk0", SizeRequest(exact=BIGGER))
    control.delete_disk("web1", "disk1")
    control.update_vm("web1", 32 * MIB)
    control.set_switch("snapshots", "off", vm="web1")
    control.update_pool(overcommit="2")
    control.delete_vm("web1")
    kinds = [operation.kind for operation in control.operations()]
    assert kinds[:8] == [
        "delete_vm",
        "update_pool",
        "set_switch",
        "update_vm",
        "delete_disk",
        "resize_disk",
        "add_disk",
        "create_vm",
    ]
    quick = {"update_pool", "set_switch", "update_vm"}
    assert all(operation.stages or operation.kind in quick for operation in control.operations())
    assert {operation.subject for operation in control.operations()} == {"web1", "the pool"}
    assert [operation.kind for operation in control.operations(vm="web1")] == [k for k in kinds if k != "update_pool"]
    assert [operation.kind for operation in control.operations(limit=2)] == kinds[:2]


# For how long


def at(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr("nbdresize.control.operations.time.time", lambda: seconds)


def remember(ledger: Ledger, operation: str) -> None:
    with ledger.deciding() as connection:
        operations.remember(connection, Request(operation, "update_vm", "web1", "{}"), {})


def known(control: Control) -> list[str]:
    return [operation.id for operation in control.operations() if operation.kind != "update_pool"]


def test_ended_operations_are_known_for_a_week(
    ledger: Ledger, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, NOW)
    remember(ledger, "ended")
    begin(ledger, Request("running", "resize_disk", "web1", "{}"))
    at(monkeypatch, NOW + operations.REMEMBERED_SECONDS - 1)
    remember(ledger, "later")
    assert known(control) == ["running", "later", "ended"]
    at(monkeypatch, NOW + operations.REMEMBERED_SECONDS + 1)
    remember(ledger, "much-later")
    assert known(control) == ["running", "much-later", "later"]


def test_of_those_that_nobody_can_retry_only_the_last_are_kept(
    ledger: Ledger, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "MOST_UNNAMED", 5)
    remember(ledger, "named")
    begin(ledger, Request("auto-running", "resize_disk", "web1", "{}"))
    control.create_vm("web1", MIB)
    for number in range(20):
        control.update_vm("web1", MIB + 4096 * number)
    found = known(control)
    assert {"named", "auto-running"} <= set(found)
    assert len(found) == 2 + 6
    assert control.update_vm("web1", MIB).budget == MIB


def test_operations_of_what_can_be_no_vm_are_refused(control: Control) -> None:
    with pytest.raises(InvalidArgument, match="can't be the name of a VM"):
        control.operations(vm="\udcff")


def test_what_is_done_or_still_to_be_undone_is_not_begun_anew(ledger: Ledger) -> None:
    done, stuck = (Request(name, "add_disk", "web1", "{}") for name in ("done", "stuck"))
    with ledger.deciding() as connection:
        operations.remember(connection, done, {})
        records.open_intent(connection, stuck, Kind.ADD_DISK)
    for request, why in ((done, "was done just now"), (stuck, "still to be undone")):
        with pytest.raises(ResourceInUse, match=why), ledger.deciding() as connection:
            operations.begin(connection, request)


def test_no_statement_looks_at_all_operations(ledger: Ledger) -> None:
    """Clients resize thousands of times: what that costs must not grow with it."""
    statements: list[tuple[str, Any]] = []

    def keep(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        statements.append((statement, parameters))

    engine = ledger._engine
    sql.event.listen(engine, "before_cursor_execute", keep)
    request = Request("auto-1", "resize_disk", "web1", "{}")
    with ledger.deciding() as connection:
        operations.outcome_of(connection, request)
        operations.begin(connection, request)
        operations._advance(connection, request.id, Progress("growing", 1, 2), ())
        operations.done(connection, request.id, {})
        operation_log.read_all(connection, running=True)
        operation_log.running_on(connection, "web1", frozenset({"resize_disk"}))
    sql.event.remove(engine, "before_cursor_execute", keep)
    plans: list[Any] = []
    with ledger.reading() as connection:
        for statement, parameters in statements:
            if statement.startswith(("SELECT", "DELETE", "UPDATE")):
                plans += connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    details = [plan[3] for plan in plans]
    assert any("SEARCH operations USING" in detail for detail in details)
    scans = [detail for detail in details if detail.startswith("SCAN")]
    # Only that of the index in order, which ends after MOST_UNNAMED entries.
    assert scans == ["SCAN operations USING COVERING INDEX operations_started"]
