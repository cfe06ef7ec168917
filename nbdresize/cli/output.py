"""What the command line prints: JSON, tables, sizes, and text from outside made safe to show."""

import io
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from nbdresize.units import format_size

_GAP = "  "


class Unwritable(Exception):
    """Standard output can't be written: its reader has gone, its disk is full. `reason` is the system's error.

    No OSError, so that nobody on the way takes it for one of their own.
    """

    def __init__(self, reason: OSError) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Column:
    """A column of a table; numbers go to the right, so that their digits stand below each other."""

    title: str
    right: bool = False


def prepare_streams() -> None:
    """Make printing fail on no character: what the terminal's encoding lacks comes out escaped."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def flush() -> None:
    """Hand over what was printed, so that a full disk or a closed pipe is noticed while it can be reported."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        raise Unwritable(error) from error


def discard() -> None:
    """Let everything still buffered for standard output go nowhere: its reader has gone, or its disk is full."""
    if sys.stdout is None:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def line(value: str = "") -> None:
    """Print one line on standard output, control characters escaped."""
    text(shown(value))


def text(value: str) -> None:
    """Print text of our own, of any number of lines. Raises Unwritable, as everything that prints."""
    try:
        print(value)
    except OSError as error:
        raise Unwritable(error) from error


def rewrite(value: str) -> None:
    """Put `value` in the place of the line that the cursor stands on, at once; for a terminal only."""
    try:
        print(f"\r\x1b[K{value}", end="", flush=True)
    except OSError as error:
        raise Unwritable(error) from error


def document(value: object) -> None:
    """Print a JSON document."""
    text(json.dumps(value, indent=2))


def json_line(value: object) -> None:
    """Print a JSON object on one line, at once."""
    text(json.dumps(value))
    flush()


def shown(text: str) -> str:
    """`text` on one line and harmless to a terminal: every character that does not print is escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size(value: int, *, exact: bool = False) -> str:
    """`value` bytes as the tables show it: for people, or `exact` as a plain number."""
    return str(value) if exact else format_size(value)


def about(value: int, *, exact: bool = False) -> str:
    """As `size`, of what is only measured: two decimals are enough."""
    return str(value) if exact else format_size(value).partition(" (")[0]


def moment(seconds: float) -> str:
    """A moment, of seconds since 1970, to the second: `2026-11-21 16:00:00`, in UTC."""
    return iso_moment(seconds).replace("T", " ").removesuffix("Z")


def iso_moment(seconds: float) -> str:
    """A moment as JSON has it, ISO 8601: `2026-11-21T16:00:00Z`."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def duration(seconds: float) -> str:
    """A measured time: `0.2 ms`, `3 ms`, `0.4 s`."""
    if seconds >= 0.1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.001 else f"{seconds * 1000:.1f} ms"


def arrow() -> str:
    """`→`, or `->` where standard output can't show it."""
    return "→" if can_show("→") else "->"


def counted(number: int, noun: str) -> str:
    """`1 disk`, `2 disks`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, indent: int = 0) -> None:
    """Print a table. Cells are plain text, never markup; only a terminal narrower than the table folds them.

    The header is left out where no column has a title.
    """
    cells = [[shown(cell) for cell in row] for row in rows]
    titled = any(column.title for column in columns)
    widths = [
        max(_width(text) for text in (column.title, *(row[index] for row in cells)))
        for index, column in enumerate(columns)
    ]
    terminal = sys.stdout is not None and sys.stdout.isatty()
    if terminal and indent + sum(widths) + len(_GAP) * (len(widths) - 1) > shutil.get_terminal_size().columns:
        _folded_table(columns, cells, indent=indent, titled=titled)
        return
    if titled:
        header = _row([column.title for column in columns], columns, widths, indent)
        text(f"\x1b[1m{header}\x1b[0m" if terminal else header)
    for row in cells:
        text(_row(row, columns, widths, indent))


def _row(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int], indent: int) -> str:
    padded = (
        blank + cell if column.right else cell + blank
        for cell, column, width in zip(cells, columns, widths, strict=True)
        for blank in [" " * (width - _width(cell))]
    )
    return (" " * indent + _GAP.join(padded)).rstrip()


def _width(cell: str) -> int:
    """The columns that it takes on a terminal."""
    if cell.isascii():
        return len(cell)
    from rich.cells import cell_len

    return cell_len(cell)


def _folded_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, indent: int, titled: bool) -> None:
    """The same for a terminal that is narrower than the table; this takes much longer."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, show_header=titled, header_style="bold", padding=(0, len(_GAP), 0, 0))
    for column in columns:
        grid.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    rendered = io.StringIO()
    console = Console(
        file=rendered,
        width=shutil.get_terminal_size().columns,
        force_terminal=True,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    console.print(Padding(grid, (0, 0, 0, indent), expand=False))
    for row_text in rendered.getvalue().splitlines():
        text(row_text.rstrip())


def can_show(text: str) -> bool:
    """Whether standard output's encoding has all of its characters."""
    stream = sys.stdout
    try:
        text.encode((stream.encoding if stream is not None else None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True
