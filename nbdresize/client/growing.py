"""A disk made larger by whichever means its server has: what `nbdresize grow` does."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nbdresize.client.connection import TIMEOUT, Connection
from nbdresize.client.handshake import Chooser, tells_sizes, where_it_can_be_resized, where_it_is_watched
from nbdresize.client.refusals import UNEXPLAINED
from nbdresize.client.size_export import SizeExport
from nbdresize.client.values import Resizable, Size
from nbdresize.errors import InsufficientSpace, InvalidArgument, NotAuthorized
from nbdresize.units import MAX_SIZE, SizeRequest, format_size


@contextmanager
def connect_resizable(uri: str, timeout: float = TIMEOUT) -> Iterator[Resizable]:
    """The disk at an NBD URI: by the RESIZE command where the server offers it, else by its `@size` export.

    A URI that names the `@size` export means that. Raises as Connection does, and PeerFailed where there is neither.
    """
    with _connected(uri, timeout, where_it_can_be_resized) as disk:
        yield disk


@contextmanager
def connect_watching(uri: str, timeout: float = TIMEOUT) -> Iterator[Resizable]:
    """The disk at an NBD URI, for its size to be followed: by its `@size` export where it has one, else by RESIZE.

    Whoever has the `@size` export does not use the disk, so that others can still shrink or delete it. Raises as
    connect_resizable.
    """
    with _connected(uri, timeout, where_it_is_watched) as disk:
        yield disk


@contextmanager
def _connected(uri: str, timeout: float, choose: Chooser) -> Iterator[Resizable]:
    with Connection(uri, timeout, choose=choose) as connection:
        yield connection if tells_sizes(connection.negotiated.export) else SizeExport(connection)


@dataclass(frozen=True)
class Growth:
    """What a grow did."""

    before: Size
    after: Size


def grow(disk: Resizable, request: SizeRequest, *, fit: bool = False) -> Growth:
    """Grow the disk; with `fit`, as far as its budget reaches where that is less than asked for.

    Raises InvalidArgument for a smaller size, InsufficientSpace, NotAuthorized where the server does not let clients
    resize, VolumeFailed, PeerFailed.
    """
    before = disk.query()
    asked = _asked(request, before, disk.disk or "the default export")
    try:
        return Growth(before, disk.resize(asked, fit=fit))
    except InsufficientSpace as refused:
        now = disk.query()
        if asked is not None and asked <= now.maximum:
            raise
        raise InsufficientSpace(
            f"{refused.problem}; the server allows {format_size(now.maximum)} at most",
            f"ask for at most {now.maximum} bytes, add --fit, or raise the budget",
        ) from None
    except NotAuthorized as refused:
        if refused.way_out != UNEXPLAINED:
            raise
        raise NotAuthorized(
            refused.problem,
            "serve with --client-resize grow, or use 'nbdresize disk resize' on the server's machine",
        ) from None


def _asked(request: SizeRequest, now: Size, disk: str) -> int | None:
    """The bytes that are asked for; None for all that remains."""
    if request.remaining:
        return None
    size = request.exact if request.exact is not None else now.size + (request.relative or 0)
    if size < now.size:
        raise InvalidArgument(
            f"{format_size(size)} is less than {disk} has, {format_size(now.size)}",
            "'nbdresize disk resize' with --dangerous-allow-shrink makes a disk smaller",
        )
    if size > MAX_SIZE:
        raise InvalidArgument(
            f"{format_size(size)} is more than the largest disk, {format_size(MAX_SIZE)}", "ask for less"
        )
    return size
