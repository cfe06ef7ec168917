"""Looking at operations: those that run, those of the last week, and what to tell about them.

The functions that take a connection work inside the caller's transaction.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sql

from nbdresize.control import names, schema
from nbdresize.control.ledger import known
from nbdresize.control.model import Operation, OperationState, Progress, Stage
from nbdresize.errors import ERRORS, NbdresizeError, OperationCancelled, ResourceInUse, ResourceNotFound

MOST_LISTED = 1000
"""Of the finished operations, the last ones."""


def read(connection: sql.Connection, operation: str) -> Operation:
    """One operation. Raises ResourceNotFound."""
    table = schema.operations
    row = connection.execute(sql.select(table).where(table.c.operation == operation)).mappings().first()
    if row is None:
        raise ResourceNotFound(
            f"There is no operation {operation}", "nbdresize operations list shows those of the last week"
        )
    return _operation(row)


def read_all(
    connection: sql.Connection, *, vm: str | None = None, running: bool = False, limit: int = MOST_LISTED
) -> list[Operation]:
    """Those that run, then the last `limit` that have ended, the newest first; of one VM, or only those that run.

    Raises InvalidArgument for a name that no VM can have.
    """
    if vm is not None:
        names.check_vm_name(vm)
    table = schema.operations
    of_vm = sql.true() if vm is None else table.c.subject == vm
    newest = sql.select(table).where(of_vm).order_by(table.c.started.desc())
    rows = [*connection.execute(newest.where(table.c.finished.is_(None))).mappings()]
    if not running:
        rows += connection.execute(newest.where(table.c.finished.is_not(None)).limit(limit)).mappings()
    return [_operation(row) for row in rows]


def running_on(connection: sql.Connection, subject: str, kinds: frozenset[str]) -> Operation | None:
    """The newest operation of these kinds on a VM or an image whose process is at work."""
    running = read_all(connection, vm=subject, running=True)
    return next((each for each in running if each.kind in kinds and not is_abandoned(each)), None)


def ask_to_cancel(connection: sql.Connection, operation: str) -> Operation:
    """Mark a running operation, which will see that and undo itself.

    Raises ResourceNotFound, and ResourceInUse where it has ended, or its process has.
    """
    found = read(connection, operation)
    if found.state is not OperationState.RUNNING:
        raise ResourceInUse(f"Operation {operation} has ended ({found.state.value})", "there is nothing left to cancel")
    if is_abandoned(found):
        raise ResourceInUse(
            f"Nobody works on operation {operation}: its process is gone",
            f"the next command on {found.subject} completes it, or says what keeps it from that",
        )
    table = schema.operations
    connection.execute(sql.update(table).where(table.c.operation == operation).values(cancelling=True))
    return read(connection, operation)


def is_abandoned(operation: Operation) -> bool:
    """Whether an operation is unfinished whose process is gone. The next command on its VM completes it."""
    if operation.state is not OperationState.RUNNING or operation.pid is None:
        return False
    try:
        os.kill(operation.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # somebody else's process
        return False
    return False


def percent(progress: Progress) -> int:
    """How far that is; 100 only at the very end."""
    return 100 * progress.done // progress.total if progress.total else 100


def busy(what: str, operation: Operation) -> ResourceInUse:
    """What to raise where an operation on `what` keeps another one waiting for too long."""
    progress = operation.progress
    how_far = f", {progress.step}: {percent(progress)} %" if progress is not None else ""
    return ResourceInUse(
        f"{what} is being changed by operation {operation.id} ({operation.kind}{how_far})",
        f"try again when that has ended; nbdresize operations show {operation.id} --watch follows it",
    )


def failure(operation: Operation) -> NbdresizeError:
    """The error with which an operation has failed, or was cancelled."""
    what = f"Operation {operation.id} ({operation.kind} {operation.subject})".replace(" )", ")")
    name, _, text = (operation.error or "").partition(": ")
    kind = next((each for each in ERRORS if each.__name__ == name), None)
    if operation.state is OperationState.CANCELLED or kind is None:
        reason = f": {operation.error}" if operation.state is OperationState.FAILED else ""
        verb = "failed" if reason else "was cancelled"
        return OperationCancelled(f"{what} {verb}{reason}", "everything is as it was before")
    return kind(f"{what} failed: {text}")


def _operation(row: Mapping[Any, Any]) -> Operation:
    progress = None if row["step"] is None else Progress(row["step"], row["done"], row["total"])
    stages = tuple(Stage(*each) for each in json.loads(row["stages"] or "[]"))
    return Operation(
        row["operation"],
        row["kind"],
        row["subject"],
        known(OperationState, row["state"]),
        row["started"],
        row["finished"],
        progress,
        stages,
        row["error"],
        row["cancelling"],
        row["pid"],
    )
