"""The commands of `nbdresize operations`."""

import shutil
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from nbdresize.cli import operation_views, options, output
from nbdresize.cli.failures import Misuse
from nbdresize.errors import ResourceInUse

if TYPE_CHECKING:
    from nbdresize.control.control import Control
    from nbdresize.control.model import Operation

HELP = options.explained(
    "Operations: what changes are under way, how far they are, and what came of the last ones.",
    """
    nbdresize operations list
    nbdresize operations show nightly-42 --watch
    nbdresize operations cancel nightly-42
    """,
    "Every change is an operation, with the id that --operation-id gave it, or one of its own.",
)

_LIST = options.explained(
    "List the operations that run, and the last that have ended.",
    """
    nbdresize operations list
    nbdresize operations list --running
    nbdresize operations list --all --vm web1 --json
    """,
    "Ended ones are known for a week; of those that were given no id, so that no retry can ask for them, only the last"
    " ten thousand. 'unfinished' are those whose process was killed: the next command on their VM completes them.",
)
_SHOW = options.explained(
    "Show an operation with its stages, or follow it to its end.",
    """
    nbdresize operations show nightly-42
    nbdresize operations show nightly-42 --watch
    """,
    "--watch follows an operation of any terminal: on a terminal as one line that is drawn again, else as a line for"
    " every change. It exits with 0 when the operation is done, and with the error's exit code where it has failed.",
)
_CANCEL = options.explained(
    "Cancel an operation that runs: it puts everything back as it was.",
    """
    nbdresize operations cancel nightly-42
    nbdresize operations cancel nightly-42 --no-wait
    """,
    "An operation looks for that while it copies or allocates, twice a second; one that does neither ends by itself.",
)

_MOST_SHOWN = 20
_LOOK_EVERY = 0.2
_LONGEST_UNDOING = 60.0

_Id = Annotated[str, typer.Argument(metavar="ID", help="The id of an operation.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands to the group."""
    app.command("list", **_LIST)(list_operations)
    app.command("show", **_SHOW)(show)
    app.command("cancel", **_CANCEL)(cancel)


def list_operations(
    everything: Annotated[
        bool, typer.Option("--all", help=f"The last thousand that have ended, not only {_MOST_SHOWN}.")
    ] = False,
    running: Annotated[bool, typer.Option("--running", help="Only those that run.")] = False,
    vm: Annotated[
        str | None,
        typer.Option(
            "--vm", metavar="VM", help="Only those of a VM.", autocompletion=options.complete_vm, show_default=False
        ),
    ] = None,
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    from nbdresize.control.operation_log import MOST_LISTED

    if everything and running:
        raise Misuse("--all and --running can't both be meant", "give one of them")
    with options.control(root) as control:
        found = control.operations(vm=vm, running=running, limit=MOST_LISTED if everything else _MOST_SHOWN)
    if json:
        output.document({"operations": [operation_views.operation_json(each) for each in found]})
    elif found:
        operation_views.show_operations(found)
    else:
        of = f" of VM {vm}" if vm is not None else ""
        output.line(f"No operation{of} runs." if running else f"No operations{of} within the last week.")


def show(
    operation: _Id,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON; with --watch one object a line.")] = False,
    root: options.Root = None,
) -> None:
    with options.control(root) as control:
        if watch:
            _watch(control, operation, json=json)
            return
        found = control.operation(operation)
    if json:
        output.document(operation_views.operation_json(found))
    else:
        operation_views.show_operation(found)


def cancel(
    operation: _Id,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help=f"Wait until it is undone, {_LONGEST_UNDOING:.0f} s at most.")
    ] = True,
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    with options.control(root) as control:
        found = control.cancel_operation(operation)
        if wait:
            *_, found = _followed(control, operation, _LONGEST_UNDOING)
            _check_undone(found)
    if json:
        output.document(operation_views.operation_json(found))
    elif found.finished is None:
        output.line(f"Operation {found.id} was asked to undo itself")
    else:
        output.line(f"Operation {found.id} {found.state.value}: everything is as it was before")


def _watch(control: "Control", operation: str, *, json: bool) -> None:
    """Show it until it has ended. Raises the error that it ended with."""
    from nbdresize.control.model import OperationState
    from nbdresize.control.operation_log import failure

    redrawn = not json and sys.stdout is not None and sys.stdout.isatty()
    found: Operation | None = None
    try:
        for found in _followed(control, operation):
            if json:
                output.json_line(operation_views.operation_json(found))
            elif redrawn:
                _redraw(operation_views.watched_line(found))
            else:
                output.line(operation_views.watched_line(found))
                output.flush()
    finally:
        if redrawn and found is not None:
            output.line()
    assert found is not None
    if found.finished is None:
        raise _abandoned(found)
    if found.state is not OperationState.DONE:
        raise failure(found)


def _followed(control: "Control", operation: str, patience: float | None = None) -> "Iterator[Operation]":
    """The operation now, and again whenever anything of it has changed, until it ends, or its process has.

    Ends also once `patience` seconds are over.
    """
    deadline = None if patience is None else time.monotonic() + patience
    told: Operation | None = None
    while True:
        abandoned = told is not None and bool(operation_views.how_to_complete(told))
        found = control.operation(operation)  # once more after its process has ended: that may have been the usual way
        if found != told:
            yield found
            told = found
        if found.finished is not None or abandoned or (deadline is not None and time.monotonic() >= deadline):
            return
        time.sleep(_LOOK_EVERY)


def _check_undone(operation: "Operation") -> None:
    if operation.finished is None and operation_views.how_to_complete(operation):
        raise _abandoned(operation)
    if operation.finished is None:
        raise ResourceInUse(
            f"Operation {operation.id} goes on after {_LONGEST_UNDOING:.0f} s, though it was asked to undo itself",
            f"nbdresize operations show {operation.id} --watch follows it",
        )
    if operation.state.value == "done":
        raise ResourceInUse(
            f"Operation {operation.id} was done before it could be cancelled", "undo it by another operation"
        )


def _abandoned(operation: "Operation") -> ResourceInUse:
    return ResourceInUse(
        f"Operation {operation.id} is unfinished: its process is gone",
        f"the next command on {operation.subject} completes it",
    )


def _redraw(text: str) -> None:
    """Write over the line that stands there, cut to the width of the terminal."""
    width = shutil.get_terminal_size().columns - 1
    output.rewrite(output.shown(text)[:width])
