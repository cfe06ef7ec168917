"""Operations: what was asked, how far it is, and what came of it, so that it can be watched, cancelled and retried.

Every change has a row from the moment it is promised. The functions that take a connection work inside the caller's
transaction; `Task` is what a running operation reports to. `operation_log` looks at them.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sql

from nbdresize.config import StateDirectory
from nbdresize.control import admin_client, names, schema
from nbdresize.control.ledger import Ledger
from nbdresize.control.model import OperationState, Progress, Stage
from nbdresize.errors import InvalidArgument, NbdresizeError, OperationCancelled, ResourceInUse

REMEMBERED_SECONDS = 7 * 24 * 3600
"""How long a finished operation is known, so that its retry changes nothing."""

MOST_UNNAMED = 10_000
"""Operations that nobody gave an id, and so nobody can retry, are forgotten earlier where there are more since then:
clients may resize as often as they like, which must not fill the ledger."""

_REPORT_EVERY = 0.5
_LONGEST_ERROR = 1000

Listener = Callable[[Progress], None]
"""Called with the progress of a long step, now and then. What it raises ends the operation."""


def nobody(progress: Progress) -> None:
    """A listener that does not care."""


@dataclass(frozen=True)
class Request:
    """An operation as it was asked for: its id, its kind, the VM or image that it is about, and all its arguments."""

    id: str
    kind: str
    subject: str
    arguments: str


@dataclass
class Task:
    """A running operation: the seconds that each stage has taken, and how far the long ones are.

    Nothing is written before a stage has gone on for half a second, and then twice a second at most.
    """

    ledger: Ledger
    request: Request
    listener: Listener = nobody
    seconds: dict[str, float] = field(default_factory=dict)
    servers: Stage | None = None
    _reported: float = field(default_factory=time.monotonic)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Whatever goes on inside counts for the stage of that name."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start

    def publish(self, state: StateDirectory, exports: Sequence[str]) -> None:
        """Tell every server about these exports; that is a stage of its own."""
        self.seconds.setdefault("servers", 0.0)
        self.servers = admin_client.publish(state, exports)

    def stages(self) -> tuple[Stage, ...]:
        """All stages so far, in the order in which they began."""
        return tuple(
            self.servers if name == "servers" and self.servers else Stage(name, seconds)
            for name, seconds in self.seconds.items()
        )

    def progress(self, step: str) -> Callable[[int, int], None]:
        """What a long step is to call with the bytes that are done, and with all there are.

        It raises OperationCancelled once somebody has asked for that.
        """

        def report(done: int, total: int) -> None:
            now = time.monotonic()
            if now - self._reported < _REPORT_EVERY and done < total:
                return
            if now - self._reported >= _REPORT_EVERY:
                self._reported = now
                self._record(Progress(step, done, total))
            self.listener(Progress(step, done, total))

        return report

    def _record(self, progress: Progress) -> None:
        """A ledger that can't be written for the moment costs a report, not the operation."""
        cancelling = False
        with suppress(NbdresizeError), self.ledger.deciding() as connection:
            cancelling = _advance(connection, self.request.id, progress, self.stages())
        if cancelling:
            raise OperationCancelled(
                f"{self.request.kind} {self.request.subject} was cancelled",
                "ask for it again, with the same id or another",
            )


def outcome_of(connection: sql.Connection, request: Request) -> dict[str, Any] | None:
    """What the operation of that id did, if it is done.

    Raises InvalidArgument where that id belongs to an operation with other arguments, whatever became of it.
    """
    table = schema.operations
    row = connection.execute(sql.select(table).where(table.c.operation == request.id)).mappings().first()
    if row is None:
        return None
    if row["arguments"] != request.arguments:
        raise InvalidArgument(
            f"Operation {request.id} was another request", "give every request an id of its own, its retries the same"
        )
    return dict(json.loads(row["outcome"])) if row["state"] == OperationState.DONE.value else None


def begin(connection: sql.Connection, request: Request) -> None:
    """An operation runs from now on, in this process; also one that has failed before. Forgets those of long ago.

    Raises InvalidArgument where its id has come with other arguments since it was last looked at, and ResourceInUse
    where the same one has been done meanwhile, or is still to be undone.
    """
    table, now = schema.operations, time.time()
    _forget_old(connection, now)
    if outcome_of(connection, request) is not None:
        raise ResourceInUse(f"Operation {request.id} was done just now by another command", "ask again for its outcome")
    if connection.scalar(sql.select(schema.intents.c.id).where(schema.intents.c.operation == request.id)) is not None:
        raise ResourceInUse(
            f"Operation {request.id} was begun before, and is still to be undone",
            "try again when that is done; nbdresize check says what is in the way",
        )
    connection.execute(sql.delete(table).where(table.c.operation == request.id))
    values = {
        "operation": request.id,
        "kind": request.kind,
        "subject": request.subject,
        "arguments": request.arguments,
        "state": OperationState.RUNNING.value,
        "started": now,
        "cancelling": False,
        "pid": os.getpid(),
    }
    connection.execute(sql.insert(table).values(values))


def done(
    connection: sql.Connection, operation: str, outcome: Mapping[str, object], stages: Sequence[Stage] = ()
) -> None:
    """The operation is done; a retry is told `outcome`. `stages` are for whoever looks at it."""
    _end(connection, operation, OperationState.DONE, outcome=json.dumps(outcome), stages=_kept(stages))


def remember(connection: sql.Connection, request: Request, outcome: Mapping[str, object]) -> None:
    """An operation that took no time: begun and done."""
    begin(connection, request)
    done(connection, request.id, outcome)


def failed(connection: sql.Connection, operation: str, why: BaseException | None) -> None:
    """The operation has been undone, because of an error, or because its process was killed (None)."""
    cancelled = isinstance(why, OperationCancelled | KeyboardInterrupt)
    error = "its process was killed" if why is None else f"{type(why).__name__}: {why}".removesuffix(": ")
    state = OperationState.CANCELLED if cancelled else OperationState.FAILED
    _end(connection, operation, state, error=error[:_LONGEST_ERROR])


def _forget_old(connection: sql.Connection, now: float) -> None:
    table = schema.operations
    connection.execute(sql.delete(table).where(table.c.finished < now - REMEMBERED_SECONDS))
    newest = sql.select(table.c.started).order_by(table.c.started.desc())
    last = connection.scalar(newest.offset(MOST_UNNAMED).limit(1))
    if last is not None:
        unnamed = table.c.operation.startswith(names.UNNAMED, autoescape=True)
        old = (table.c.started <= last) & table.c.finished.is_not(None)
        connection.execute(sql.delete(table).where(old, unnamed))


def _kept(stages: Sequence[Stage]) -> str:
    return json.dumps([[stage.name, round(stage.seconds, 6), stage.detail, stage.done] for stage in stages])


def _advance(connection: sql.Connection, operation: str, progress: Progress, stages: Sequence[Stage]) -> bool:
    """Record how far an operation is; whether somebody asks to cancel it."""
    table = schema.operations
    values = {"step": progress.step, "done": progress.done, "total": progress.total, "stages": _kept(stages)}
    change = sql.update(table).where(table.c.operation == operation).values(values).returning(table.c.cancelling)
    return bool(connection.execute(change).scalar())


def _end(connection: sql.Connection, operation: str, state: OperationState, **values: str) -> None:
    table = schema.operations
    ended = {"state": state.value, "finished": time.time(), "pid": None, "cancelling": False, **values}
    connection.execute(sql.update(table).where(table.c.operation == operation).values(ended))
