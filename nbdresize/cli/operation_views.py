"""Operations as the command line shows them: the shape of the JSON, the table, and one line for whoever watches."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from nbdresize.cli import output
from nbdresize.cli.output import Column

if TYPE_CHECKING:
    from nbdresize.control.model import Operation, Progress

Json = dict[str, Any]


def operation_json(operation: "Operation") -> Json:
    """An operation; times in UTC, `seconds` that it took, or has taken so far."""
    from nbdresize.control.operation_log import is_abandoned

    return {
        "id": operation.id,
        "kind": operation.kind,
        "subject": operation.subject,
        "state": operation.state.value,
        "cancelling": operation.cancelling,
        "unfinished": is_abandoned(operation),
        "pid": operation.pid,
        "progress": _progress_json(operation.progress),
        "started": _utc(operation.started),
        "finished": None if operation.finished is None else _utc(operation.finished),
        "seconds": round(_seconds(operation), 3),
        "stages": [
            {"name": stage.name, "seconds": round(stage.seconds, 6), "detail": stage.detail, "done": stage.done}
            for stage in operation.stages
        ],
        "error": operation.error,
    }


def show_operations(operations: "Sequence[Operation]") -> None:
    """Print a table of operations."""
    columns = [
        Column("OPERATION"),
        Column("KIND"),
        Column("OF"),
        Column("STATE"),
        Column("PROGRESS", right=True),
        Column("STARTED (UTC)"),
        Column("TOOK", right=True),
        Column("ERROR"),
    ]
    rows = [
        [
            each.id,
            each.kind,
            each.subject,
            state(each),
            f"{_percent(each.progress)} %" if _is_running(each) and each.progress else "-",
            _utc(each.started)[:19].replace("T", " "),
            output.duration(_seconds(each)),
            each.error or "-",
        ]
        for each in operations
    ]
    output.table(columns, rows)


def show_operation(operation: "Operation") -> None:
    """Print one operation with its stages."""
    rows = [["kind", operation.kind], ["of", operation.subject], ["state", state(operation)]]
    if operation.progress is not None and not _is_done(operation):
        rows.append(["progress", _progress(operation.progress)])
    rows += [
        ["started", f"{_utc(operation.started)[:19].replace('T', ' ')} UTC"],
        ["took", output.duration(_seconds(operation))],
    ]
    if operation.error:
        rows.append(["error", operation.error])
    output.line(f"operation {operation.id}")
    output.table([Column(""), Column("")], rows, indent=2)
    if operation.stages:
        output.line("stages")
        stages = [
            [each.name, each.detail if each.done else f"pending: {each.detail}", output.duration(each.seconds)]
            for each in operation.stages
        ]
        output.table([Column(""), Column(""), Column("", right=True)], stages, indent=2)
    if abandoned := how_to_complete(operation):
        output.line(f"unfinished: {abandoned}")


def watched_line(operation: "Operation") -> str:
    """`resize_disk web1: running, growing web1: 42 % (1 GiB of 2.5 GiB)`."""
    what = f"{operation.kind} {operation.subject}: {state(operation)}"
    if _is_running(operation):
        return what if operation.progress is None else f"{what}, {_progress(operation.progress)}"
    return f"{what} after {output.duration(_seconds(operation))}"


def state(operation: "Operation") -> str:
    """Its state for people, which also says whether it is being cancelled, or nobody works on it any more."""
    if how_to_complete(operation):
        return "unfinished"
    return "cancelling" if _is_running(operation) and operation.cancelling else operation.state.value


def how_to_complete(operation: "Operation") -> str:
    """Of an operation whose process is gone, what completes it; else nothing."""
    from nbdresize.control.operation_log import is_abandoned

    if not is_abandoned(operation):
        return ""
    return f"its process is gone; the next command on {operation.subject} completes it"


def _is_running(operation: "Operation") -> bool:
    return operation.finished is None


def _is_done(operation: "Operation") -> bool:
    return operation.state.value == "done"


def _seconds(operation: "Operation") -> float:
    end = time.time() if operation.finished is None else operation.finished
    return max(0.0, end - operation.started)


def _progress(progress: "Progress") -> str:
    done, total = (output.about(number) for number in (progress.done, progress.total))
    return f"{progress.step}: {_percent(progress)} % ({done} of {total})"


def _progress_json(progress: "Progress | None") -> Json | None:
    if progress is None:
        return None
    return {
        "step": progress.step,
        "done": progress.done,
        "total": progress.total,
        "percent": _percent(progress),
    }


def _percent(progress: "Progress") -> int:
    from nbdresize.control.operation_log import percent

    return percent(progress)


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
