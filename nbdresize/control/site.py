"""What every operation works on: the state directory, its ledger and its pool; and how they are opened."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nbdresize.config import StateDirectory
from nbdresize.control import names, records
from nbdresize.control.leases import lease_path
from nbdresize.control.ledger import Ledger
from nbdresize.control.model import VM, Disk
from nbdresize.errors import ResourceNotFound, StateUnusable
from nbdresize.storage.file import FilePool
from nbdresize.storage.volume import Pool

_OTHER_ROOT = "choose another one with --root or NBDRESIZE_ROOT"


@dataclass(frozen=True)
class Site:
    """One state directory with all that is in it."""

    state: StateDirectory
    ledger: Ledger
    pool: Pool

    def lease(self, disk: Disk) -> Path:
        return lease_path(self.state.leases, disk.volume)

    def entry(self, name: str) -> records.Entry:
        """The VM as it is now. Raises InvalidArgument, or ResourceNotFound where users see none."""
        names.check_vm_name(name)
        with self.ledger.reading() as connection:
            return visible(records.read_vm(connection, name), name)

    def disk(self, vm: str, disk_name: str) -> Disk:
        """The disk as it is now. Raises InvalidArgument, or ResourceNotFound where users see none."""
        return disk_of(self.entry(vm), names.disk_slot(disk_name))


def visible(entry: records.Entry | None, name: str) -> records.Entry:
    """`entry`, where there is one that users see. Raises ResourceNotFound."""
    if entry is None or not entry.visible:
        raise no_such_vm(name)
    return entry


def no_such_vm(name: str) -> ResourceNotFound:
    return ResourceNotFound(f"There is no VM {name}", "nbdresize vm list shows those there are")


def disk_of(entry: records.Entry, slot: int) -> Disk:
    """The disk in that slot. Raises ResourceNotFound."""
    disk = entry.disk(slot)
    if disk is None:
        raise ResourceNotFound(f"VM {entry.vm.name} has no disk{slot}", f"it has {_listed(entry.vm)}")
    return disk


def open_site(state: StateDirectory, *, create: bool) -> Site:
    """The state directory, made where it is missing and `create` allows; its ledger brought to this version.

    What is made here survives a loss of power: else there could be disks in the pool that no ledger knows. Raises
    StateUnusable where the directory can't be used, or is missing.
    """
    new = not _exists(state.ledger)
    if new and not create:
        raise StateUnusable(
            f"There is no state directory at {names.shown(str(state.root))}",
            f"make a VM first (nbdresize vm create), or {_OTHER_ROOT}",
        )
    for directory in (state.root, state.volumes, state.leases, state.locks, state.run):
        _make_directory(directory)
    ledger = Ledger(state.ledger)
    try:
        ledger.migrate(state.locks)
        if new:
            with _usable(state.root):
                _sync(state.root)
        return Site(state, ledger, FilePool(state.volumes))
    except BaseException:
        ledger.close()
        raise


def _make_directory(directory: Path) -> None:
    with _usable(directory):
        if not directory.is_dir():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync(directory.parent)


def _sync(directory: Path) -> None:
    """Write to disk what is in the directory, by name."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exists(path: Path) -> bool:
    with _usable(path):
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if isinstance(error, FileExistsError | NotADirectoryError):
            reason = "a file is in the way"
        raise StateUnusable(
            f"The state directory can't be used, at {names.shown(str(path))}: {reason}",
            "free some space on its file system" if full else _OTHER_ROOT,
        ) from error


def _listed(vm: VM) -> str:
    return ", ".join(disk.name for disk in vm.disks) or "no disks"
