"""The native front: a Python process per worker, which speaks NBD itself."""

import sys
from collections.abc import Sequence
from pathlib import Path

from nbdresize.errors import InvalidArgument
from nbdresize.serving.front import Front
from nbdresize.serving.options import ServeOptions


def command_line(
    options: ServeOptions, uris: Sequence[str], run_directory: Path | None, end_descriptor: int | None = None
) -> list[str]:
    """The arguments of one worker. It ends by SIGTERM alone, so it has no use for `end_descriptor`."""
    arguments = [sys.executable, "-m", "nbdresize.server", f"--client-resize={options.client_resize}"]
    arguments.append(f"--root={options.root}" if options.file is None else f"--file={options.file.absolute()}")
    if options.max_size is not None:
        arguments.append(f"--max-size={options.max_size}")
    if options.workers > 1:
        arguments.append("--shared")
    if options.read_only:
        arguments.append("--read-only")
    if options.max_connections is not None:
        arguments.append(f"--max-connections={options.max_connections}")
    if options.tls.certificates is not None:
        arguments += [f"--tls={options.tls.certificates.absolute()}"]
        arguments += [f"--tls-mode={'optional' if options.tls.optional else 'require'}"]
        arguments += [] if options.tls.verify_peer else ["--no-tls-verify-peer"]
    if run_directory is not None:
        arguments.append(f"--run={run_directory.absolute()}")
    return arguments + [f"--uri={uri}" for uri in uris]


def check(options: ServeOptions) -> None:
    """Raises InvalidArgument for what only nbdkit can do."""
    if options.tls.psk is not None:
        raise InvalidArgument("The native front has no pre-shared keys", "use --tls DIR, or --front nbdkit")
    if options.front_arguments:
        raise InvalidArgument("The native front takes no arguments of nbdkit", "use --front nbdkit")
    if options.max_connections is not None and options.max_connections < 1:
        raise InvalidArgument(f"{options.max_connections} connections", "allow at least one")


FRONT = Front("native", check, command_line)
