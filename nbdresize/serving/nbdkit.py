"""nbdkit with our plugin as a front: its command line."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from nbdresize.errors import InvalidArgument, ProgramMissing, ServerFailed
from nbdresize.serving.front import Front
from nbdresize.serving.options import ServeOptions, Tls

_PLUGIN = Path(__file__).parents[2] / "plugins" / "nbdresize.py"


def find_nbdkit() -> Path:
    """The program. Raises ProgramMissing, which names its package."""
    program = shutil.which("nbdkit")
    if program is None:
        raise ProgramMissing("nbdkit is not installed", "apt-get install nbdkit nbdkit-plugin-python")
    return Path(program).absolute()


def find_plugin() -> Path:
    """Our plugin. Raises ServerFailed where it does not lie beside the package."""
    if not _PLUGIN.is_file():
        raise ServerFailed(f"The plugin for nbdkit is missing: {_PLUGIN}", "run nbdresize from its checkout")
    return _PLUGIN


def command_line(options: ServeOptions, uris: Sequence[str], run_directory: Path, end_descriptor: int) -> list[str]:
    """The arguments of one worker. `end_descriptor` is a pipe in it, which closes when the worker is to end."""
    arguments = [str(find_nbdkit()), "--foreground", "--log=stderr"]
    if options.read_only:
        arguments.append("--readonly")
    arguments += _tls_arguments(options.tls)
    arguments += [argument for argument in options.front_arguments if argument.startswith("-")]
    arguments += ["python", str(find_plugin())]
    if options.file is not None:
        arguments.append(f"file={options.file.absolute()}")
        if options.max_size is not None:
            arguments.append(f"max-size={options.max_size}")
    else:
        arguments.append(f"root={options.root}")
    arguments += [
        f"client-resize={options.client_resize}",
        f"run={run_directory.absolute()}",
        f"end-descriptor={end_descriptor}",
        *(f"uri={uri}" for uri in uris),
    ]
    arguments += [argument for argument in options.front_arguments if not argument.startswith("-")]
    return arguments


def _tls_arguments(tls: Tls) -> list[str]:
    if not tls:
        return []
    arguments = ["--tls=on" if tls.optional else "--tls=require"]
    if tls.certificates is not None:
        arguments.append(f"--tls-certificates={tls.certificates.absolute()}")
        if tls.verify_peer:
            arguments.append("--tls-verify-peer")
    if tls.psk is not None:
        arguments.append(f"--tls-psk={tls.psk.absolute()}")
    return arguments


def check(options: ServeOptions) -> None:
    """Raises InvalidArgument for what nbdkit can't do, ProgramMissing where it is not installed."""
    if options.max_connections is not None:
        raise InvalidArgument(
            "nbdkit does not count its connections by itself",
            "use --front native, or --nbdkit-argument=--filter=limit --nbdkit-argument=limit=N",
        )
    find_nbdkit()


FRONT = Front("nbdkit", check, command_line)
