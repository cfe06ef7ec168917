"""What a front is to the supervisor: a name, a check, and the command line of its workers."""

import os
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nbdresize.serving.options import ServeOptions

CommandLine = Callable[[ServeOptions, Sequence[str], Path, int], list[str]]
"""From options, URIs, the directory for the admin socket, and a descriptor that closes when the worker is to end."""


@dataclass(frozen=True)
class Front:
    """One way to speak NBD to clients. `check` raises what stands in the way of starting it with some options."""

    name: str
    check: Callable[[ServeOptions], None]
    command_line: CommandLine


def environment() -> dict[str, str]:
    """The environment of a worker: this process's own, with our package and its libraries to be found."""
    library = sysconfig.get_paths()
    paths = [str(Path(__file__).parents[2]), library["purelib"], library["platlib"]]
    inherited = os.environ.get("PYTHONPATH")
    variables = dict(os.environ)
    variables["PYTHONPATH"] = os.pathsep.join([*dict.fromkeys(paths), *([inherited] if inherited else [])])
    variables.pop("LISTEN_FDNAMES", None)
    return variables
