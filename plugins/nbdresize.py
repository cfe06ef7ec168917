"""nbdkit's Python plugin that serves the disks of nbdresize.

`nbdresize serve --front nbdkit` runs it; by hand:

    nbdkit python plugins/nbdresize.py root=DIR
    nbdkit python plugins/nbdresize.py file=DISK.img max-size=100G

root=DIR             the state directory; its disks are the exports
file=PATH            one file or block device instead, as the default export
max-size=SIZE        how far clients may grow the file
client-resize=WHO    off, grow (the default) or all: which resizes clients may ask for
run=DIR              where the admin socket is made; else DIR/run of the state directory, and none for a file
uri=URI              what the admin socket tells of where the server listens; repeatable
end-descriptor=N     a pipe: when it closes, idle clients are let go, so that nbdkit can end
requests=serial      or parallel: several requests of one connection at once

Requests of one connection are served one after the other, those of several connections side by side
(SERIALIZE_REQUESTS). Measured with fio's nbd engine at depth 16 over a unix socket, file in page cache, on two cores,
requests a second, best of three in turns:

                              serial    parallel    nbdkit's file plugin
    4 KiB random read         54,900      26,000      65,400
    4 KiB random write        26,600      18,500      33,200
    256 KiB random read        9,600       9,300       8,500
    4 KiB, 2 connections      29,400      34,000      83,600

Threads of one Python process wait for each other more than they gain; for several connections there are several
workers. A cold disk with many requests in flight is what `requests=parallel` is for.
"""

import contextlib
import functools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import nbdkit

_CHECKOUT = Path(__file__).resolve().parents[1]
_VENV = _CHECKOUT / f".venv/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
sys.path[:0] = [str(_CHECKOUT), str(_VENV)]  # before the directory of this file, which has the package's name

from nbdresize.errors import InvalidArgument, NbdresizeError  # noqa: E402
from nbdresize.export.disk_export import DiskExport  # noqa: E402
from nbdresize.export.exports import Client  # noqa: E402
from nbdresize.export.size_device import SizeDevice  # noqa: E402
from plugins.nbdkit_connection import find_socket  # noqa: E402
from plugins.nbdkit_server import Server, open_exports  # noqa: E402
from plugins.nbdkit_settings import Settings  # noqa: E402
from plugins.nbdkit_thread import KeptThread  # noqa: E402

API_VERSION = 2

_PREFERRED_BLOCK = 4096
_LARGEST_REQUEST = 32 << 20
_MOST_EXTENTS = 8192

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Connection:
    """The handle of a connection: its export, and who has it open."""

    __slots__ = ("client", "export", "hold", "thread")

    def __init__(self, export: DiskExport | SizeDevice, client: Client) -> None:
        self.export = export
        self.client = client
        self.hold = export.backing.hold
        self.thread = KeptThread()


_settings = Settings()
_server: Server | None = None


def _serving() -> Server:
    assert _server is not None
    return _server


# Errors. nbdkit prints the traceback of an exception; for errors that are no bugs one line says more.

_format_exception = traceback.format_exception


def _one_line(*exception: Any, **options: Any) -> list[str]:
    error = exception[1] if len(exception) > 1 else exception[0]
    if isinstance(error, (NbdresizeError, OSError)):
        return [str(error)]
    return _format_exception(*exception, **options)


traceback.format_exception = _one_line


def answering(callback: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A callback whose errors reach the client as the errno that belongs to them."""

    @functools.wraps(callback)
    def wrapper(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return callback(*args, **kwargs)
        except NbdresizeError as error:
            nbdkit.set_error(error.nbd_errno)
            raise
        except OSError as error:
            nbdkit.set_error(error.errno or 0)
            raise

    return wrapper


def replying(
    callback: Callable[Concatenate[Connection, Parameters], Result],
) -> Callable[Concatenate[Connection, Parameters], Result]:
    """A request, `answering`, whose reply waits while replies are held back, whatever it is."""

    @functools.wraps(callback)
    def wrapper(h: Connection, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return callback(h, *args, **kwargs)
        finally:
            if h.hold.on:
                h.hold.wait(lambda: not h.client.alive())

    return answering(wrapper)


# Starting and ending


def thread_model() -> int:
    model: int = nbdkit.THREAD_MODEL_PARALLEL if _settings.parallel else nbdkit.THREAD_MODEL_SERIALIZE_REQUESTS
    return model


def config(key: str, value: str) -> None:
    _settings.take(key, value)


def config_complete() -> None:
    _settings.check()


def get_ready() -> None:
    """What can't be served is told while whoever started nbdkit still looks."""
    with contextlib.ExitStack() as stack:
        open_exports(_settings, stack)


def after_fork() -> None:
    global _server
    _server = Server(_settings)


def cleanup() -> None:
    if _server is not None:
        _server.close()


# Choosing an export


@answering
def list_exports(readonly: bool, is_tls: bool) -> list[tuple[str, str]]:
    return _serving().exports.list()


@answering
def default_export(readonly: bool, is_tls: bool) -> str:
    return _serving().exports.default() or ""


@answering
def open(readonly: bool) -> Connection:
    """The export that the client asked for, by its name as it came: the lookup knows what to make of it."""
    try:
        name = nbdkit.export_name()
    except UnicodeDecodeError as error:
        raise InvalidArgument("That export's name is not UTF-8", "nbdinfo --list shows those that there are") from error
    found = find_socket()
    client = Client() if found is None else Client(found.peer, found.drop, found.alive)
    return Connection(_serving().exports.open(name, read_only=readonly, client=client), client)


def close(h: Connection) -> None:
    try:
        _serving().exports.close(h.export)
    finally:
        h.thread.let_go()


# What the export is


def export_description(h: Connection) -> str:
    return h.export.name


def get_size(h: Connection) -> int:
    return h.export.size


def block_size(h: Connection) -> tuple[int, int, int]:
    if isinstance(h.export, SizeDevice):
        return 1, 512, h.export.size
    return h.export.block_size, max(_PREFERRED_BLOCK, h.export.block_size), _LARGEST_REQUEST


def can_write(h: Connection) -> bool:
    return not h.export.read_only


def can_multi_conn(h: Connection) -> bool:
    return isinstance(h.export, DiskExport)


def can_flush(h: Connection) -> bool:
    return True


def can_fua(h: Connection) -> int:
    native: int = nbdkit.FUA_NATIVE
    return native


def can_trim(h: Connection) -> bool:
    return isinstance(h.export, DiskExport)


def can_zero(h: Connection) -> bool:
    return isinstance(h.export, DiskExport)


def can_fast_zero(h: Connection) -> bool:
    return isinstance(h.export, DiskExport)


def can_extents(h: Connection) -> bool:
    return isinstance(h.export, DiskExport)


def can_cache(h: Connection) -> int:
    can: int = nbdkit.CACHE_NATIVE if isinstance(h.export, DiskExport) else nbdkit.CACHE_NONE
    return can


def is_rotational(h: Connection) -> bool:
    return False


# Requests. `buf` is nbdkit's own buffer: nothing is copied on the way.


@replying
def pread(h: Connection, buf: memoryview, offset: int, flags: int) -> None:
    h.export.read_into(buf, offset)


@replying
def pwrite(h: Connection, buf: memoryview, offset: int, flags: int) -> None:
    h.export.write(buf, offset, fua=bool(flags & nbdkit.FLAG_FUA))


@replying
def flush(h: Connection, flags: int) -> None:
    h.export.flush()


@replying
def trim(h: Connection, count: int, offset: int, flags: int) -> None:
    _disk(h).trim(count, offset, fua=bool(flags & nbdkit.FLAG_FUA))


@replying
def zero(h: Connection, count: int, offset: int, flags: int) -> None:
    _disk(h).zero(
        count,
        offset,
        may_trim=bool(flags & nbdkit.FLAG_MAY_TRIM),
        fast=bool(flags & nbdkit.FLAG_FAST_ZERO),
        fua=bool(flags & nbdkit.FLAG_FUA),
    )


@replying
def cache(h: Connection, count: int, offset: int, flags: int) -> None:
    _disk(h).cache(count, offset)


@replying
def extents(h: Connection, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    found = []
    for extent in _disk(h).extents(count, offset, limit=1 if flags & nbdkit.FLAG_REQ_ONE else _MOST_EXTENTS):
        kind = (nbdkit.EXTENT_HOLE if extent.hole else 0) | (nbdkit.EXTENT_ZERO if extent.zero else 0)
        found.append((offset, extent.length, kind))
        offset += extent.length
    return found


def _disk(h: Connection) -> DiskExport:
    assert isinstance(h.export, DiskExport)  # what was announced keeps other requests away
    return h.export
