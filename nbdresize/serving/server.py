"""`nbdresize serve`: a front on its listening sockets, supervised, until it is told to end."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

from nbdresize.errors import InvalidArgument, ServerFailed, StateUnusable
from nbdresize.serving import native, nbdkit
from nbdresize.serving.activation import InheritedListener, inherited_listeners
from nbdresize.serving.front import Front, environment
from nbdresize.serving.listening import Listener, UnixListener, listen_tcp
from nbdresize.serving.options import ServeOptions, Tls
from nbdresize.serving.process import Process
from nbdresize.serving.signals import EndSignals
from nbdresize.serving.supervisor import Supervisor

MOST_WORKERS = 64
_MOST_SOCKETS = 16  # what nbdkit takes by socket activation

FRONTS: dict[str, Front] = {front.name: front for front in (native.FRONT, nbdkit.FRONT)}
"""What can speak NBD to clients, by the name that --front takes; the first is the default."""
_SHELL = "/bin/sh"


@dataclass(frozen=True)
class Place:
    """Where a server listens (both are possible), and what it does once it accepts connections.

    `command` is run by the shell with `$uri` set, and `$socket` if there is a unix socket; the server ends with it.
    `run_directory` is for admin sockets; without one the server has a temporary one of its own.
    """

    socket: Path | None = None
    tcp: tuple[str, ...] = ()
    pid_file: Path | None = None
    command: str | None = None
    run_directory: Path | None = None


def serve(front: Front, options: ServeOptions, place: Place, announce: Callable[[str], None]) -> int:
    """Serve until a signal, or until the command ends; the exit code. `announce` gets each URI once all is ready.

    Raises InvalidArgument, ResourceInUse and StateUnusable for what is wrong with the place, ProgramMissing without
    nbdkit, ServerFailed where it does not start.
    """
    options.tls.check()
    if not 1 <= options.workers <= MOST_WORKERS:
        raise InvalidArgument(f"{options.workers} workers", f"give between 1 and {MOST_WORKERS}")
    front.check(options)
    with EndSignals() as signals, ExitStack() as stack:  # first the signals, so that none finds anything half made
        run_directory = place.run_directory or stack.enter_context(_temporary_directory())
        listeners = _listen(place, run_directory, stack)
        uris = [uri(listener, options.tls) for listener in listeners]
        supervisor = Supervisor(
            lambda end_descriptor: front.command_line(options, uris, run_directory, end_descriptor),
            environment(),
            listeners,
            options.workers,
            run_directory,
            front.name,
            signals,
        )

        def on_ready() -> Process | None:
            if place.pid_file is not None:
                stack.enter_context(_pid_file(place.pid_file))
            for listener, each in zip(listeners, uris, strict=True):
                if not isinstance(listener, InheritedListener):  # whoever opened that knows it, and owns our output
                    announce(each)
            return None if place.command is None else _run(place.command, uris, listeners)

        return supervisor.run(on_ready)


def serve_on_stdio(options: ServeOptions, run_directory: Path | None) -> NoReturn:
    """Become a server for the one client on standard input and output. Raises InvalidArgument, ServerFailed."""
    options.tls.check()
    native.FRONT.check(options)
    arguments = [*native.command_line(options, [], run_directory), "--stdio"]
    try:
        os.execve(arguments[0], arguments, environment())
    except OSError as error:
        raise ServerFailed(f"{arguments[0]} can't be run: {error.strerror}", "see that it is installed") from error


def uri(listener: Listener, tls: Tls) -> str:
    """The URI of the default export there, as libnbd and its tools take it; for TLS, with where the keys are."""
    scheme = f"{listener.scheme}".replace("nbd", "nbds", 1) if tls else listener.scheme
    user, query = "", [listener.query] if listener.query else []
    if tls.certificates is not None:
        query.append(f"tls-certificates={quote(str(tls.certificates.absolute()))}")
    if tls.psk is not None:
        name = tls.psk_user()
        user = f"{quote(name, safe='')}@" if name else ""
        query.append(f"tls-psk-file={quote(str(tls.psk.absolute()))}")
    return f"{scheme}://{user}{listener.authority}/" + (f"?{'&'.join(query)}" if query else "")


def _listen(place: Place, run_directory: Path, stack: ExitStack) -> list[Listener]:
    """Listen on what the parent opened and everywhere that `place` says; else on a socket in the run directory."""
    listeners = [stack.enter_context(_closing(listener)) for listener in inherited_listeners()]
    path = place.socket or (None if place.tcp or listeners else run_directory / "nbd.sock")
    if path is not None:
        listeners.append(stack.enter_context(_closing(UnixListener(path))))
    for text in place.tcp:
        listeners.append(stack.enter_context(_closing(listen_tcp(text))))
    if sum(len(listener.sockets) for listener in listeners) > _MOST_SOCKETS:
        raise InvalidArgument("That is too many addresses to listen on", f"give at most {_MOST_SOCKETS} with --tcp")
    return listeners


@contextmanager
def _closing(listener: Listener) -> Iterator[Listener]:
    try:
        yield listener
    finally:
        listener.close()


@contextmanager
def _temporary_directory() -> Iterator[Path]:
    """A directory of this server's own, which only its user may enter."""
    directory = Path(tempfile.mkdtemp(prefix="nbdresize-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _pid_file(path: Path) -> Iterator[None]:
    """Our process id in `path`, whole from the first moment; removed at the end. Raises StateUnusable."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    content = f"{os.getpid()}\n"
    try:
        temporary.write_text(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StateUnusable(f"The pid file {path} can't be written: {error.strerror}", "give another path") from error
    try:
        yield
    finally:
        try:
            if path.read_text() == content:
                path.unlink()
        except OSError as error:
            print(f"nbdresize: the pid file {path} can't be removed: {error.strerror}", file=sys.stderr)


def _run(command: str, uris: Sequence[str], listeners: Sequence[Listener]) -> Process:
    """Start the command."""
    variables = dict(os.environ)
    variables.pop("socket", None)
    variables["uri"] = uris[0]
    path = next((listener.path for listener in listeners if listener.path is not None), None)
    if path is not None:
        variables["socket"] = str(path)
    return Process([_SHELL, "-c", command], variables)
