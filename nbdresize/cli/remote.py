"""`nbdresize size` and `nbdresize grow`: a disk's size asked for and changed over NBD."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nbdresize.cli import options, output
from nbdresize.cli.output import Column
from nbdresize.units import parse_size_request

if TYPE_CHECKING:
    from nbdresize.client.size_export import SizeExport
    from nbdresize.protocol.size_record import SizeRecord

_SIZE = options.explained(
    "Ask a server for a disk's size and how far it may grow, over NBD.",
    """
    nbdresize size nbd://localhost/web1/disk0
    nbdresize size 'nbd+unix:///web1/disk0?socket=/run/nbd.sock' --json
    nbdresize size nbd://localhost/web1/disk0 --watch
    """,
    "URI is the disk's own: nbd://, nbds:// (TLS), nbd+unix://, nbds+unix://, with its query parameters. --watch"
    " prints a line now and one for every change, until Ctrl-C, and then exits with 130.",
)
_GROW = options.explained(
    "Make a disk larger over NBD, as far as its budget allows.",
    """
    nbdresize grow nbd://localhost/web1/disk0 30G
    nbdresize grow nbd://localhost/web1/disk0 +10G --fit
    nbdresize grow 'nbd+unix:///web1/disk0?socket=/run/nbd.sock' remaining
    """,
    "SIZE is the new size, '+' and what to add, or 'remaining' for all that is free. The server decides whether"
    " clients may do that: see --client-resize of 'nbdresize serve'.",
)

_Uri = Annotated[str, typer.Argument(metavar="URI", help="The disk, as NBD clients attach it.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command("size", **_SIZE)(size)
    app.command("grow", **_GROW)(grow)


def size(
    uri: _Uri,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the size until Ctrl-C.")] = False,
    timeout: options.Timeout = 10.0,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON, sizes in bytes; with --watch one object a line.")
    ] = False,
    exact: options.Bytes = False,
) -> None:
    from nbdresize.client.size_export import SizeExport

    with SizeExport(uri, timeout) as export:
        record = export.record()
        if watch:
            _watch(export, record, uri, json=json, exact=exact)
        elif json:
            output.document(_record_json(uri, export, record))
        else:
            _show(record, exact=exact)


def grow(
    uri: _Uri,
    size: options.SizeText,
    fit: Annotated[
        bool, typer.Option("--fit", help="Where the budget does not reach, grow as far as it does.")
    ] = False,
    timeout: options.Timeout = 10.0,
    json: options.Json = False,
    exact: options.Bytes = False,
) -> None:
    from nbdresize.client.size_export import SizeExport

    request = parse_size_request(size)
    with SizeExport(uri, timeout) as export:
        growth = export.grow(request, fit=fit)
        disk = export.disk
        if json:
            record = _record_json(uri, export, growth.after)
            output.document({**record, "old_size": growth.before.size, "cause": growth.cause})
            return
    old, new = (output.size(record.size, exact=exact) for record in (growth.before, growth.after))
    if growth.before.size == growth.after.size:
        output.line(f"{disk or uri}: {new} already")
        return
    cause = {"fitted": ", as far as the budget reaches", "rounded_up": ", rounded up"}.get(growth.cause, "")
    output.line(f"{disk or uri}: {old} {output.arrow()} {new}{cause}")


def _watch(export: "SizeExport", record: "SizeRecord", uri: str, *, json: bool, exact: bool) -> None:
    """Print the size and each later one. Ends with an error only: Ctrl-C, a server that goes away."""
    _show_change(export, None, record, uri, json=json, exact=exact)
    while True:
        newer = export.next_record()
        if newer.generation != record.generation:
            _show_change(export, record, newer, uri, json=json, exact=exact)
            record = newer


def _show_change(
    export: "SizeExport", old: "SizeRecord | None", new: "SizeRecord", uri: str, *, json: bool, exact: bool
) -> None:
    if json:
        output.json_line(_record_json(uri, export, new))
        return
    before = f"{output.size(old.size, exact=exact)} {output.arrow()} " if old is not None else ""
    output.line(f"{export.disk or uri}: {before}{output.size(new.size, exact=exact)} (generation {new.generation})")
    output.flush()


def _record_json(uri: str, export: "SizeExport", record: "SizeRecord") -> dict[str, Any]:
    from nbdresize.protocol.size_record import FEATURE_EXTEND, FEATURE_NOTIFY, FEATURE_SHRINK, FEATURE_SIZE_REPLIES

    features = {
        "size_replies": FEATURE_SIZE_REPLIES,
        "notify": FEATURE_NOTIFY,
        "shrink": FEATURE_SHRINK,
        "extend": FEATURE_EXTEND,
    }
    return {
        "uri": uri,
        "export": export.disk,
        "size": record.size,
        "generation": record.generation,
        "minimum": record.minimum,
        "maximum": record.maximum,
        "granularity": record.granularity,
        "features": [name for name, bit in features.items() if record.features & bit],
    }


def _show(record: "SizeRecord", *, exact: bool) -> None:
    rows = [
        ["size", output.size(record.size, exact=exact)],
        ["generation", str(record.generation)],
        ["minimum", output.size(record.minimum, exact=exact)],
        ["maximum", output.size(record.maximum, exact=exact)],
        ["granularity", output.size(record.granularity, exact=exact)],
    ]
    output.table([Column(""), Column("", right=True)], rows)
