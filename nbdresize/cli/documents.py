"""JSON documents that commands read, from a file or from standard input."""

import sys
from typing import Annotated

import typer

from nbdresize.cli.failures import Misuse

STDIN = "-"

FromJson = Annotated[
    str | None,
    typer.Option(
        "--from-json",
        metavar="FILE",
        help="Read what to do from a JSON document, sizes in MiB; - for standard input.",
        show_default=False,
    ),
]


def read(source: str, most: int) -> bytes:
    """The bytes of the file `source`, or of standard input: all of them, or the first `most` + 1.

    Raises Misuse where they can't be read.
    """
    try:
        if source == STDIN:
            if sys.stdin is None:
                raise Misuse("There is no standard input to read --from-json - from", "name a file")
            return sys.stdin.buffer.read(most + 1)
        with open(source, "rb") as file:  # noqa: PTH123  a pipe of the shell, /dev/fd/63, is fine too
            return file.read(most + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Misuse(
            f"--from-json {source!r} can't be read: {reason}", "name a file, or - for standard input"
        ) from error
