"""One worker of the native front, as `nbdresize serve` starts it: `python -m nbdresize.server OPTIONS`.

It is given its listening sockets as descriptors 3, 4, … by LISTEN_FDS, as systemd gives them, or with --stdio one
client on standard input and output.
"""

import argparse
import gc
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.model import ClientResize
from nbdresize.errors import EXIT_USAGE, NbdresizeError
from nbdresize.export.admin import AdminSocket
from nbdresize.export.admin_commands import ServerInfo
from nbdresize.export.exports import Exports
from nbdresize.protocol.server_events import HandshakeSettings, Tls
from nbdresize.server.connection import Connection, peer_name
from nbdresize.server.handshaking import Access
from nbdresize.server.log import Log
from nbdresize.server.server import MOST_CONNECTIONS, Server
from nbdresize.server.stream import PipeStream, Stream
from nbdresize.server.tls import server_context

_FIRST_DESCRIPTOR = 3
_ENDING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM, or until the one client of --stdio has left; the exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # before any thread, so that only sigwait() takes them
    options = _parser().parse_args(arguments)
    _allow_descriptors()
    try:
        with ExitStack() as stack:
            access = _access(options, stack)
            if options.run is not None:
                info = ServerInfo("native", tuple(options.uri))
                stack.enter_context(AdminSocket(options.run, access.exports, info))
            # Looking for garbage holds up all threads. What is loaded by now stays; to look through it took 80 ms.
            gc.freeze()
            if options.stdio:
                return _serve_stdio(access)
            _serve(access, options.max_connections, shared=options.shared)
    except NbdresizeError as error:
        print(f"nbdresize: {error.name}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _allow_descriptors() -> None:
    """As many descriptors as the system lets us have: a connection takes three to five, the usual limit is 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _serve(access: Access, most_connections: int, *, shared: bool) -> None:
    """Accept connections until a signal. Further ones change nothing: who is in a hurry kills the process."""
    count = int(os.environ.get("LISTEN_FDS", "0"))
    listening = [socket.socket(fileno=_FIRST_DESCRIPTOR + number) for number in range(count)]
    server = Server(listening, access, Log(), most_connections, shared=shared)
    server.start()
    signal.sigwait(_ENDING)
    server.end()


def _serve_stdio(access: Access) -> int:
    """Serve one client on standard input and output; a signal lets the requests in flight finish."""
    stream = _stdio_stream()
    peer = peer_name(stream.sock) if not isinstance(stream, PipeStream) else "stdio"
    connection = Connection(stream, peer, access, Log())

    def end() -> None:
        signal.sigwait(_ENDING)
        connection.finish()
        signal.sigwait(_ENDING)
        os._exit(0)

    threading.Thread(target=end, name="signals", daemon=True).start()
    connection.run()
    return 0


def _stdio_stream() -> Stream:
    """Standard input and output as a stream of their own; what is printed by mistake goes to standard error."""
    source, destination = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), 0)
    try:
        sock = socket.socket(fileno=source)
    except OSError:
        return PipeStream(source, destination)
    os.close(destination)
    return Stream(sock)


def _access(options: argparse.Namespace, stack: ExitStack) -> Access:
    policy = ClientResize(options.client_resize)
    if options.file is not None:
        exports = Exports.of_file(options.file, policy, options.max_size)
    else:
        control = stack.enter_context(Control.open(StateDirectory(options.root)))
        exports = Exports.of_ledger(control, policy)
    if options.tls is None:
        return Access(exports, HandshakeSettings(), options.read_only)
    context = server_context(options.tls, verify_peer=not options.no_tls_verify_peer)
    return Access(exports, HandshakeSettings(tls=Tls(options.tls_mode)), options.read_only, context)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nbdresize.server", allow_abbrev=False)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--root", type=Path, help="the state directory whose disks are served")
    source.add_argument("--file", type=Path, help="one file or device to serve")
    parser.add_argument("--max-size", type=int, help="how far clients may grow the file, in bytes")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--client-resize", choices=[policy.value for policy in ClientResize], default="grow")
    parser.add_argument("--tls", type=Path, help="a directory of certificates")
    parser.add_argument("--tls-mode", choices=[Tls.REQUIRED.value, Tls.OPTIONAL.value], default=Tls.REQUIRED.value)
    parser.add_argument("--no-tls-verify-peer", action="store_true")
    parser.add_argument("--run", type=Path, help="where the admin socket is made")
    parser.add_argument("--uri", action="append", default=[], help="what the admin socket tells of where it listens")
    parser.add_argument("--max-connections", type=int, default=MOST_CONNECTIONS)
    parser.add_argument("--shared", action="store_true", help="other workers accept from the same sockets")
    parser.add_argument("--stdio", action="store_true", help="one client, on standard input and output")
    return parser


if __name__ == "__main__":
    try:
        code = main()
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else EXIT_USAGE
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of connections that did not end in time must not hold up the end of the process
