"""How cost grows: with busy connections, with idle ones, and with the size of the disk.

Nothing is pinned here: a server may use every core, and so may the load, which runs on the same machine.
"""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench import busy, idle, sizes
from bench.model import Section
from bench.mounts import described
from bench.options import Options

_PARTS = (busy, idle, sizes)


def run(options: Options, tell: Callable[[str], None]) -> Section:
    """Raises ProgramMissing and ServerFailed; what was measured until then is in the section that was kept."""
    section = Section("scale", "Scale: connections and size")
    options.keep(section)
    section.remarks.append(f"What is told of connections is of a file on {described(options.directory)}.")
    with many_descriptors():
        for part in _PARTS:
            part.run(options, section, tell)
    return section


def names(options: Options) -> list[str]:
    """The rows of such a run."""
    return [name for part in _PARTS for name in part.names(options)]


@contextmanager
def many_descriptors() -> Iterator[None]:
    """As many as the system lets us have, here and in every server that is started meanwhile."""
    usual, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (usual, most))
