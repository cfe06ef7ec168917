"""How the command line fails: one line on standard error and an exit code, for whatever went wrong."""

import contextlib
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from nbdresize.cli import output
from nbdresize.errors import EXIT_BUG, EXIT_USAGE, InvalidArgument, NbdresizeError

DEBUG_VARIABLE = "NBDRESIZE_DEBUG"

_USAGE = "UsageError"
_NEGATIVE_NUMBER = re.compile(r"-[0-9]")


class Misuse(Exception):
    """A command that parses, but can't be meant so: reported like one that does not parse."""

    def __init__(self, problem: str, way_out: str) -> None:
        super().__init__(problem, way_out)
        self.problem = problem
        self.way_out = way_out


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether errors go out as JSON too: known before the arguments are parsed, since parsing may fail."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def failed(error: NbdresizeError, *, as_json: bool) -> int:
    """Report an error of the table; its exit code."""
    _report(error.name, error.problem, error.way_out, as_json=as_json)
    return error.exit_code


def misused(error: Misuse, *, as_json: bool) -> int:
    """Report a command that can't be meant so; the exit code."""
    _report(_USAGE, error.problem, error.way_out, as_json=as_json)
    return EXIT_USAGE


def not_parsed(error: Exception, program: str, arguments: Sequence[str], *, as_json: bool) -> int:
    """Report arguments that don't parse, as click tells it; the exit code.

    An unknown option that begins with a digit was meant as a negative size.
    """
    option = str(getattr(error, "option_name", ""))
    if _NEGATIVE_NUMBER.match(option):
        given = next((argument for argument in arguments if argument.startswith(option)), option)
        problem = f"{given[:40]!r} is negative"
        return failed(InvalidArgument(problem, "give the new size itself, such as 20G; +5G adds"), as_json=as_json)
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else program
    tell = getattr(error, "format_message", error.__str__)
    _report(_USAGE, " ".join(str(tell()).split()).rstrip("."), f"try '{command} --help'", as_json=as_json)
    return EXIT_USAGE


def crashed(error: BaseException, *, as_json: bool) -> int:
    """Report a bug of ours; the exit code. The traceback is shown only to whoever asks for it."""
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames else ""
    problem = f"This is a bug: {type(error).__name__}: {str(error)[:300]}{place}"
    way_out = f"please report it to the project with the output of the same command under {DEBUG_VARIABLE}=1"
    _report("InternalError", problem, way_out, as_json=as_json)
    return EXIT_BUG


def unwritable(error: OSError, *, as_json: bool) -> int:
    """Report that standard output can't be written; the exit code."""
    _report("OutputFailed", f"The output can't be written: {error.strerror}", "", as_json=as_json)
    return EXIT_BUG


def _report(name: str, problem: str, way_out: str, *, as_json: bool) -> None:
    """Print the one line. Where standard error is closed, or full, there is nobody to tell but by the exit code."""
    if as_json:
        text = json.dumps({"error": name, "message": problem, "way_out": way_out})
    else:
        text = output.shown(f"nbdresize: {name}: {problem}: {way_out}" if way_out else f"nbdresize: {name}: {problem}")
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)
