"""What a run is asked to do, as every suite gets it.

A suite is a module of this folder with

- `run(options, tell) -> Section`. It makes its `Section` first, hands it to `options.keep`, and appends to its lists
  row by row, so that a run that is interrupted still writes what it has. `tell` takes one line per row, once known.
- `names(options) -> list[str]`: the rows that such a run would have, for `--list` and for telling the time left.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.model import Section

MIB = 1 << 20
ROUNDS = 5
SECONDS = 0.5
SIZE = 512 * MIB


def _forget(section: Section) -> None:
    pass


@dataclass(frozen=True)
class Options:
    """Of one run. `directory` is where the served files lie; temporary directories are made in it, and removed."""

    directory: Path
    full: bool = False
    rounds: int = ROUNDS
    seconds: float = SECONDS
    """Of each sample."""
    only: str = ""
    """Rows whose name holds this; all if empty."""
    size: int = SIZE
    """Bytes of the file that is served."""
    keep: Callable[[Section], None] = field(default=_forget, compare=False, repr=False)
    """Takes the section that a suite is about to fill."""

    def wants(self, name: str, *, quick: bool = True) -> bool:
        """Whether this run has the row `name`; `quick` is whether the run of five minutes has it too."""
        return (self.full or quick) and self.only.casefold() in name.casefold()
