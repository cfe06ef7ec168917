"""The command line's entry point: runs the app, and turns every failure into one line and an exit code.

The app is imported inside `run`, so that Ctrl-C while Python still loads modules ends as quietly as later.
"""

import sys
from collections.abc import Sequence

from nbdresize.cli import failures, output
from nbdresize.cli.loading import loading
from nbdresize.errors import EXIT_INTERRUPTED, NbdresizeError

EXIT_PIPE_CLOSED = 128 + 13
"""As a shell shows a program that SIGPIPE ended: whoever read the output has stopped reading."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command of the command line; its exit code. Raises only SystemExit, for shell completion."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = failures.wants_json(given)
    try:
        output.prepare_streams()
        code = _run(given, as_json=as_json)
        output.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except output.Unwritable as unwritable:
        output.discard()
        if isinstance(unwritable.reason, BrokenPipeError):
            return EXIT_PIPE_CLOSED
        return failures.unwritable(unwritable.reason, as_json=as_json)
    return code


def _run(arguments: list[str], *, as_json: bool) -> int:
    """`run` but for what ends it from outside: Ctrl-C, and an output that nobody takes."""
    with loading():
        import typer

        from nbdresize.cli.app import PROGRAM, build

        app = build()
    misuse = typer.BadParameter.__mro__[2]  # click's base of all errors in arguments, wherever typer keeps click
    try:
        result = app(args=arguments, prog_name=PROGRAM, standalone_mode=False)
    except NbdresizeError as error:
        return failures.failed(error, as_json=as_json)
    except failures.Misuse as error:
        return failures.misused(error, as_json=as_json)
    except typer.Abort:
        return EXIT_INTERRUPTED
    except output.Unwritable:
        raise
    except Exception as error:  # noqa: BLE001  the last resort: a bug of ours, told in one line
        if not isinstance(error, misuse):
            return failures.crashed(error, as_json=as_json)
        return failures.not_parsed(error, PROGRAM, arguments, as_json=as_json)
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(run())
