"""Where the state directory lies, and what lies where inside it."""

import os
from dataclasses import dataclass
from pathlib import Path

from nbdresize.errors import StateUnusable

ROOT_VARIABLE = "NBDRESIZE_ROOT"

_MAP_SUFFIX = ".written"


@dataclass(frozen=True)
class StateDirectory:
    """The paths of everything that is kept under one root.

    ledger.sqlite   VMs, disks, budgets, unfinished changes
    volumes/        the pool: one file per disk
    leases/         one lock file per disk: who uses it
    locks/          one lock file per VM: who changes it
    run/            one admin socket per running server; the default listening socket
    """

    root: Path

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.sqlite"

    @property
    def volumes(self) -> Path:
        return self.root / "volumes"

    @property
    def leases(self) -> Path:
        return self.root / "leases"

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    @property
    def run(self) -> Path:
        return self.root / "run"

    def write_map(self, volume: str) -> Path:
        """Where servers mark what is written to the volume of that name, while it is copied."""
        return self.run / f"{volume}{_MAP_SUFFIX}"

    def marked_volumes(self) -> set[str]:
        """The names of the volumes that have such a map."""
        return {path.name.removesuffix(_MAP_SUFFIX) for path in self.run.glob(f"*{_MAP_SUFFIX}")}

    @property
    def socket(self) -> Path:
        """Where `serve` listens when told nothing else."""
        return self.run / "nbd.sock"


def state_directory(root: Path | None = None) -> StateDirectory:
    """The state directory at `root`, else where NBDRESIZE_ROOT says, else the user's default.

    The default is the system's for root, `/var/lib/nbdresize`, and `$XDG_DATA_HOME/nbdresize` for others. Raises
    StateUnusable where it can't be told: no home directory, `~` of nobody, a current directory that is gone.
    """
    try:
        if root is None:
            named = os.environ.get(ROOT_VARIABLE)
            root = Path(named) if named else _default_root()
        return StateDirectory(root.expanduser().absolute())
    except (RuntimeError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise StateUnusable(
            f"Where the state directory {'' if root is None else repr(str(root)) + ' '}lies can't be told ({reason})",
            f"give a whole path with --root or {ROOT_VARIABLE}",
        ) from None


def _default_root() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/nbdresize")
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "nbdresize"
