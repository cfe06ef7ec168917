"""nbdcopy as a load: all of a disk read once, or written once."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nbdresize.errors import InsufficientSpace
from nbdresize.loads import programs
from nbdresize.loads.batch import PATIENCE
from nbdresize.loads.model import Load, Measured, Operation
from nbdresize.units import format_size

_MIB = 1 << 20
_SPARSE_EVERY = 16 * _MIB
_SLOWEST = 4 * _MIB
"""A copy that is slower than these many bytes a second is given up."""
LONGEST = 20 * 24 * 3600.0
"""The longest that a copy may take, in seconds; poll(2) can't wait for 25 days."""


def run(load: Load, uri: str, size: int, *, core: int | None = None, patience: float = PATIENCE) -> Measured:
    """Copy a disk of `size` bytes. Raises InsufficientSpace where what is to be written has no room here,
    ProgramMissing, PeerFailed."""
    if load.operation is Operation.READ:
        return copy(load, uri, "null:", size, core=core, patience=patience)
    with source(size, sparse=load.sparse) as path:
        return copy(load, str(path), uri, size, core=core, patience=patience)


def copy(
    load: Load, origin: str, destination: str, size: int, *, core: int | None = None, patience: float = PATIENCE
) -> Measured:
    """Copy from one to the other; see nbdcopy(1) for what they can be. Raises what `run` raises."""
    words = [
        *("nbdcopy", f"--connections={load.connections}", f"--requests={load.depth}"),
        f"--request-size={load.block}",
        *([] if load.sparse else ["--no-extents", "--sparse=0"]),
        *("--", origin, destination),
    ]
    finished = programs.run(words, "libnbd-bin", longest(size, patience), core)
    return Measured(-(-size // load.block), size, finished.seconds, None)


def longest(size: int, patience: float) -> float:
    """Seconds that copying so many bytes may take, from a server that may be silent for `patience` seconds."""
    return min(programs.STARTING_SECONDS + patience + size / _SLOWEST, LONGEST)


@contextmanager
def room_for(size: int) -> Iterator[Path]:
    """A directory for a file of that size, and gone afterwards. Raises InsufficientSpace."""
    with tempfile.TemporaryDirectory(prefix="nbdresize-load-") as directory:
        free, place = shutil.disk_usage(directory).free, Path(directory).parent
        if size > free:
            raise InsufficientSpace(
                f"Copying takes a file of {format_size(size)}, and {place} has {format_size(free)} free",
                "set TMPDIR to a directory with more room, or use a smaller disk",
            )
        yield Path(directory)


@contextmanager
def source(size: int, *, sparse: bool) -> Iterator[Path]:
    """A file to write to the disk: random bytes all over, or few among holes."""
    with room_for(size // (_SPARSE_EVERY // _MIB) if sparse else size) as directory:
        path = directory / "source"
        content = os.urandom(_MIB)
        with path.open("wb") as file:
            file.truncate(size)
            for offset in range(0, size, _SPARSE_EVERY if sparse else _MIB):
                # No piece like another: each begins elsewhere in the same random bytes.
                turned = offset // _MIB % _MIB
                file.seek(offset)
                file.write((content[turned:] + content[:turned])[: size - offset])
        yield path
