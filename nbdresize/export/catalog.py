"""Which exports a server has: the disks of a ledger, or one file. Names are looked up here, and never become paths."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nbdresize.control.control import Control
from nbdresize.control.model import ClientResize, Disk
from nbdresize.errors import InvalidArgument, ResourceNotFound
from nbdresize.export.backing import Backing
from nbdresize.export.file_backing import FileBacking
from nbdresize.export.ledger_backing import LedgerBacking, describe

_LONGEST_SHOWN = 100


@dataclass(frozen=True)
class Found:
    """A disk that is there. `key` tells it from every other, also from a later one of the same name."""

    key: str
    backing: Callable[[], Backing]


class Catalog(ABC):
    """What there is to serve. Any thread may ask."""

    @abstractmethod
    def names(self) -> list[tuple[str, str]]:
        """Name and description of each export, in order."""

    @abstractmethod
    def default(self) -> str | None:
        """The name of the export that a client gets who names none."""

    @abstractmethod
    def find(self, name: str) -> Found:
        """The disk of that name, whoever made it up. Raises ResourceNotFound."""


class LedgerCatalog(Catalog):
    """Every disk of every VM, as `VM/diskN`; by default the only one, if there is only one."""

    def __init__(self, control: Control, policy: ClientResize) -> None:
        self._control = control
        self._policy = policy

    def names(self) -> list[tuple[str, str]]:
        return [(disk.export_name, describe(disk, disk.size)) for disk in self._disks()]

    def default(self) -> str | None:
        disks = self._disks()
        return disks[0].export_name if len(disks) == 1 else None

    def find(self, name: str) -> Found:
        if not name and not (name := self.default() or ""):
            raise ResourceNotFound("There is no default export, which takes a single disk", "name one as VM/disk0")
        vm, slash, disk_name = name.partition("/")
        if not slash:
            raise not_found(name)
        try:
            disk = self._control.disk(vm, disk_name)
        except (InvalidArgument, ResourceNotFound) as error:
            raise not_found(name) from error
        return Found(disk.volume, lambda: LedgerBacking(self._control, disk, self._policy))

    def _disks(self) -> list[Disk]:
        return [disk for vm in self._control.vms() for disk in vm.disks]


class FileCatalog(Catalog):
    """One file or device, as the default export; it may be asked for by its file's name too."""

    def __init__(self, path: Path, policy: ClientResize, max_size: int | None) -> None:
        """Raises VolumeFailed where it can't be served."""
        self._path = path.absolute()  # servers change their directory
        self._backing = FileBacking(self._path, policy, max_size)

    def names(self) -> list[tuple[str, str]]:
        return [("", self._backing.description)]

    def default(self) -> str:
        return ""

    def find(self, name: str) -> Found:
        if name not in ("", self._path.name):
            raise not_found(name)
        return Found("", lambda: self._backing)


def not_found(name: str) -> ResourceNotFound:
    shown = ascii(name if len(name) <= _LONGEST_SHOWN else name[:_LONGEST_SHOWN] + "…")
    return ResourceNotFound(f"There is no export {shown}", "nbdinfo --list shows those that there are")
