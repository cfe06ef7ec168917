"""`nbdresize size` and `nbdresize grow`: a disk's size asked for and changed over NBD."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nbdresize.cli import options, output
from nbdresize.cli.output import Column
from nbdresize.errors import PeerFailed
from nbdresize.units import parse_size_request

if TYPE_CHECKING:
    from nbdresize.client import Resizable, Size

_SIZE = options.explained(
    "Ask a server for a disk's size and how far it may grow, over NBD.",
    """
    nbdresize size nbd://localhost/web1/disk0
    nbdresize size 'nbd+unix:///web1/disk0?socket=/run/nbd.sock' --json
    nbdresize size nbd://localhost/web1/disk0 --watch
    """,
    "URI is the disk's own: nbd://, nbds:// (TLS), nbd+unix://, nbds+unix://, with its query parameters. --watch"
    " prints a line now and one for every change, until Ctrl-C, and then exits with 130. Watching is using the disk,"
    " as any client does, so nobody can shrink or delete it meanwhile; its size export, such as web1/disk0@size, is"
    " watched without using it.",
)
_GROW = options.explained(
    "Make a disk larger over NBD, as far as its budget allows.",
    """
    nbdresize grow nbd://localhost/web1/disk0 30G
    nbdresize grow nbd://localhost/web1/disk0 +10G --fit
    nbdresize grow 'nbd+unix:///web1/disk0?socket=/run/nbd.sock' remaining
    """,
    "SIZE is the new size, '+' and what to add, or 'remaining' for all that is free. The server decides whether"
    " clients may do that: see --client-resize of 'nbdresize serve'. It is asked by the RESIZE command, or where it"
    " does not offer that, through the disk's size export.",
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
    from nbdresize.client import connect_resizable

    with connect_resizable(uri, timeout) as disk:
        if watch:
            _watch(disk, uri, json=json, exact=exact)
            return
        now = disk.query()
    if json:
        output.document(_size_json(uri, disk.disk, now))
    else:
        _show(now, exact=exact)


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
    from nbdresize.client import Cause, connect_resizable
    from nbdresize.client.growing import grow

    request = parse_size_request(size)
    with connect_resizable(uri, timeout) as disk:
        growth = grow(disk, request, fit=fit)
    before, after = growth.before, growth.after
    if json:
        answer = _size_json(uri, disk.disk, after)
        output.document({**answer, "old_size": before.size, "cause": after.cause.name.lower()})
        return
    name = disk.disk or uri
    old, new = (output.size(told.size, exact=exact) for told in (before, after))
    if before.size == after.size:
        output.line(f"{name}: {new} already")
        return
    cause = {Cause.FITTED: ", as far as the budget reaches", Cause.ROUNDED_UP: ", rounded up"}.get(after.cause, "")
    output.line(f"{name}: {old} {output.arrow()} {new}{cause}")


def _watch(disk: "Resizable", uri: str, *, json: bool, exact: bool) -> None:
    """Print the size and each later one. Ends with an error only: Ctrl-C, a server that goes away."""
    old: Size | None = None
    for new in disk.watch():
        if json:
            output.json_line(_size_json(uri, disk.disk, new))
        else:
            before = f"{output.size(old.size, exact=exact)} {output.arrow()} " if old is not None else ""
            output.line(
                f"{disk.disk or uri}: {before}{output.size(new.size, exact=exact)} (generation {new.generation})"
            )
            output.flush()
        old = new
    raise PeerFailed(f"The server of {disk.disk or uri} has stopped telling of changes", "watch again once it is back")


def _size_json(uri: str, disk: str, told: "Size") -> dict[str, Any]:
    from nbdresize.protocol.size_record import FEATURE_EXTEND, FEATURE_NOTIFY, FEATURE_SHRINK, FEATURE_SIZE_REPLIES

    features = {
        "size_replies": FEATURE_SIZE_REPLIES,
        "notify": FEATURE_NOTIFY,
        "shrink": FEATURE_SHRINK,
        "extend": FEATURE_EXTEND,
    }
    return {
        "uri": uri,
        "export": disk,
        "size": told.size,
        "generation": told.generation,
        "minimum": told.minimum,
        "maximum": told.maximum,
        "granularity": told.granularity,
        "features": [name for name, bit in features.items() if told.features & bit],
    }


def _show(told: "Size", *, exact: bool) -> None:
    rows = [
        ["size", output.size(told.size, exact=exact)],
        ["generation", str(told.generation)],
        ["minimum", output.size(told.minimum, exact=exact)],
        ["maximum", output.size(told.maximum, exact=exact)],
        ["granularity", output.size(told.granularity, exact=exact)],
    ]
    output.table([Column(""), Column("", right=True)], rows)
