"""Asking before something is lost for good."""

import sys
from typing import TYPE_CHECKING

import typer

from nbdresize.cli import output
from nbdresize.cli.failures import Misuse
from nbdresize.errors import ResourceNotFound

if TYPE_CHECKING:
    from nbdresize.control.control import Control

DETAILS = (
    "On a terminal it asks first; without one it refuses (exit code 2), unless --yes is given."
    " Answering no changes nothing and exits with 130."
)
"""What the help of a deleting command says about it."""


def confirm(loss: str, *, yes: bool, doing: str = "Deleting", question: str = "Delete") -> None:
    """Go on only if `yes`, or if whoever sits at the terminal says so; `loss` names what will be gone.

    `doing` and `question` are what messages say about it.

    Raises Misuse where nobody can be asked, typer.Abort where the answer is no.
    """
    if not yes:
        check_terminal(f"{doing} {loss}")
        typer.confirm(f"{question} {output.shown(loss)} for good?", abort=True, err=True)


def check_terminal(doing: str) -> None:
    """Raises Misuse where nobody sits at a terminal who can be asked whether that may be done."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise Misuse(f"{doing} needs --yes where there is no terminal to ask at", "add it, or use a terminal")


def done_before(control: "Control", operation: str | None) -> bool:
    """Whether that operation is done, so that its retry loses nothing and needs no leave."""
    from nbdresize.control.model import OperationState

    try:
        return operation is not None and control.operation(operation).state is OperationState.DONE
    except ResourceNotFound:
        return False
