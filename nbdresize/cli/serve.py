"""The command `nbdresize serve`."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from nbdresize.cli import options, output
from nbdresize.units import parse_size


class Front(enum.StrEnum):
    """What can speak NBD to clients."""

    NATIVE = "native"
    NBDKIT = "nbdkit"


class TlsMode(enum.StrEnum):
    """Who may do without TLS."""

    REQUIRE = "require"
    OPTIONAL = "optional"


class Resizes(enum.StrEnum):
    """Which resizes clients may ask for; the export layer's own enumeration takes longer to import than help takes."""

    OFF = "off"
    GROW = "grow"
    ALL = "all"


_SERVE = options.explained(
    "Serve the disks of all VMs, or one file, over NBD.",
    """
    nbdresize serve
    nbdresize serve --socket /tmp/nbd.sock --tcp localhost:10809
    nbdresize serve --file disk.img --max-size 100G
    nbdresize serve --file disk.img --run 'nbdinfo $uri'
    nbdresize serve --file disk.img --stdio
    """,
    "Prints one URI per line once clients can connect. Each disk is an export named VM/diskN. Clients resize it by the"
    " RESIZE command of NBD, or through the export VM/diskN@size. SIGTERM and Ctrl-C end it after the requests in"
    " flight, within ten seconds; a second one ends it at once.",
)


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("serve", **_SERVE)(serve)


def serve(
    socket: Annotated[
        Path | None,
        typer.Option(
            "--socket", metavar="PATH", help="Listen on a unix socket.", show_default="run/nbd.sock in --root"
        ),
    ] = None,
    tcp: Annotated[
        list[str] | None,
        typer.Option(
            "--tcp",
            metavar="HOST:PORT",
            help="Listen there; port 0 takes a free one, no host means all addresses. Repeatable.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="DISK", help="Serve this file or block device alone.", show_default=False),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option("--max-size", metavar="SIZE", help="How far clients may grow the file.", show_default=False),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", "-r", help="Let clients only read.")] = False,
    client_resize: Annotated[
        Resizes, typer.Option("--client-resize", help="Which resizes clients may ask for; a VM may allow less.")
    ] = Resizes.GROW,
    front: Annotated[
        Front, typer.Option("--front", help="What speaks NBD to clients: nbdresize itself, or nbdkit.")
    ] = Front.NATIVE,
    workers: Annotated[int, typer.Option("--workers", metavar="N", help="How many processes share the work.")] = 1,
    tls: Annotated[
        Path | None,
        typer.Option(
            "--tls",
            metavar="DIR",
            help="Require TLS, with the certificates in DIR: ca-cert.pem, server-cert.pem, server-key.pem.",
            show_default=False,
        ),
    ] = None,
    tls_psk: Annotated[
        Path | None,
        typer.Option(
            "--tls-psk",
            metavar="FILE",
            help="With --front nbdkit: require TLS, with the pre-shared keys in FILE.",
            show_default=False,
        ),
    ] = None,
    tls_mode: Annotated[
        TlsMode, typer.Option("--tls-mode", help="Whether clients may do without TLS.")
    ] = TlsMode.REQUIRE,
    no_tls_verify_peer: Annotated[
        bool, typer.Option("--no-tls-verify-peer", help="Let clients in that have no certificate.")
    ] = False,
    stdio: Annotated[bool, typer.Option("--stdio", help="Serve one client, on standard input and output.")] = False,
    max_connections: Annotated[
        int | None,
        typer.Option(
            "--max-connections", metavar="N", help="The most connections of each worker.", show_default="2048"
        ),
    ] = None,
    pid_file: Annotated[
        Path | None,
        typer.Option("--pid-file", metavar="PATH", help="Write the process id here when ready.", show_default=False),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="CMD",
            help="Run CMD by the shell, with $uri set ($socket too), and end with it and its exit code.",
            show_default=False,
        ),
    ] = None,
    nbdkit_argument: Annotated[
        list[str] | None,
        typer.Option(
            "--nbdkit-argument",
            metavar="ARG",
            help="With --front nbdkit: hand ARG to nbdkit, such as --nbdkit-argument=--filter=stats. Repeatable.",
            show_default=False,
        ),
    ] = None,
    root: options.Root = None,
) -> int:
    from nbdresize.config import state_directory
    from nbdresize.serving.options import ServeOptions, Tls
    from nbdresize.serving.server import FRONTS, Place, serve_on_stdio
    from nbdresize.serving.server import serve as serve_until_told

    if max_size is not None and file is None:
        raise typer.BadParameter("is for a single file; the disks of VMs have their budgets", param_hint="--max-size")
    most = None if max_size is None else parse_size(max_size)
    state = state_directory(root)
    if file is None:
        with options.control(root, create=True):
            pass  # what is wrong with the state directory is told before anything starts
    else:
        _check_file(file)
        if file.is_block_device() and workers > 1:
            raise typer.BadParameter(
                "a block device takes one: it has to know how far the device was in use",
                param_hint="--workers",
            )
    served = ServeOptions(
        root=state.root if file is None else None,
        file=file,
        max_size=most,
        read_only=read_only,
        client_resize=client_resize.value,
        max_connections=max_connections,
        workers=workers,
        tls=Tls(tls, tls_psk, optional=tls_mode is TlsMode.OPTIONAL, verify_peer=not no_tls_verify_peer),
        front_arguments=tuple(nbdkit_argument or ()),
    )
    if tls is None and (tls_mode is TlsMode.OPTIONAL or no_tls_verify_peer):
        raise typer.BadParameter("is for --tls DIR", param_hint="--tls-mode and --no-tls-verify-peer")
    if stdio:
        if front is not Front.NATIVE or socket or tcp or run or pid_file or workers != 1:
            raise typer.BadParameter(
                "serves one client by the native front: it goes with none of --front nbdkit, --socket, --tcp, --run,"
                " --pid-file, --workers",
                param_hint="--stdio",
            )
        serve_on_stdio(served, state.run if file is None else None)
    place = Place(
        socket=socket,
        tcp=tuple(tcp or ()),
        pid_file=pid_file,
        command=run,
        run_directory=state.run if file is None else None,
    )
    return serve_until_told(FRONTS[front.value], served, place, _announce)


def _announce(uri: str) -> None:
    output.line(uri)
    output.flush()


def _check_file(file: Path) -> None:
    """Tell what is wrong with the file before anything starts."""
    from nbdresize.control.model import ClientResize
    from nbdresize.export.file_backing import FileBacking

    FileBacking(file.absolute(), ClientResize.OFF)
