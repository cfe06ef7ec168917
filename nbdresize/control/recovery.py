"""Unfinished changes of killed processes: finished forwards or undone, with nobody repairing anything by hand.

A creation is undone; a deletion, a grow and a shrink are finished. A grow that can't be finished (the pool is full)
is undone. Whatever fails here stays open, its reservation stands, and the next operation on the VM tries again; so
does a resize whose volume is gone, since its file system may be mounted again. Deleting the disk ends it.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sql

from nbdresize.control import admin_client, locks, names, records
from nbdresize.control.leases import lease_path
from nbdresize.control.locks import SUFFIX
from nbdresize.control.model import Disk
from nbdresize.control.records import Entry, Intent, Kind
from nbdresize.control.site import Site
from nbdresize.errors import NbdresizeError, ResourceInUse, VolumeFailed
from nbdresize.storage.volume import Volume

WAIT = 10.0
"""Seconds to wait for another change of the same VM to end."""


@dataclass(frozen=True)
class Change:
    """The right to change a VM. `unfinished` are earlier changes that could not be completed, by disk, and why."""

    lock: locks.FileLock
    unfinished: Mapping[int | None, NbdresizeError]


@contextmanager
def changing(site: Site, vm: str, wait: float = WAIT, wanted: Callable[[], bool] = lambda: True) -> Iterator[Change]:
    """Hold the lock of `vm`, with its unfinished changes completed.

    Raises ResourceInUse after `wait` seconds, or once it is not `wanted` any more.
    """
    with locks.lock_vm(site.state.locks, vm, wait, wanted) as lock:
        try:
            yield Change(lock, recover_vm(site, vm))
        finally:
            _forget_lock(site, vm, lock)


def recover_all(site: Site) -> None:
    """Complete what killed processes have left, except on VMs that somebody is changing now.

    What can't be completed is no reason to refuse other work: the next operation on that VM says so.
    """
    files = _lock_files(site.state.locks), _lock_files(site.state.leases)
    with site.ledger.reading() as connection:
        unfinished = records.unfinished_vms(connection)
        # Files are made after their record and listed here before it is read: one without a record has outlived it.
        unknown_vms = files[0] - records.vm_names(connection)
        unknown_volumes = files[1] - records.volume_names(connection)
    for vm in {*unfinished, *filter(names.is_vm_name, unknown_vms)}:
        with suppress(NbdresizeError), changing(site, vm, wait=0):
            pass
    for volume in unknown_volumes:
        with suppress(OSError):
            lease_path(site.state.leases, volume).unlink(missing_ok=True)


def _lock_files(directory: Path) -> set[str]:
    with suppress(OSError), os.scandir(directory) as found:
        return {entry.name.removesuffix(SUFFIX) for entry in found if entry.name.endswith(SUFFIX)}
    return set()


def recover_vm(site: Site, vm: str) -> dict[int | None, NbdresizeError]:
    """Complete the unfinished changes of `vm`, whose lock the caller holds; those that fail, and why."""
    with site.ledger.reading() as connection:
        entry = records.read_vm(connection, vm)
    failures: dict[int | None, NbdresizeError] = {}
    completed = []
    for intent in entry.intents if entry else ():
        assert entry is not None
        try:
            _complete(site, entry, intent)
            completed += [disk.export_name for disk in disks_of(entry, intent)]
        except NbdresizeError as error:
            failures[intent.disk_id] = error
    if completed:
        admin_client.publish(site.state, completed)
    return failures


def _complete(site: Site, entry: Entry, intent: Intent) -> None:
    if intent.kind in (Kind.CREATE_VM, Kind.ADD_DISK):
        undo_creation(site, entry, intent)
    elif intent.kind in (Kind.DELETE_VM, Kind.DELETE_DISK):
        finish_deletion(site, entry, intent)
    else:
        _complete_resize(site, entry, intent)


def undo_creation(site: Site, entry: Entry, intent: Intent) -> None:
    """Remove what was made of new disks, the volumes before the records of them."""
    remove_disks(site, entry, intent)
    with site.ledger.deciding() as connection:
        records.drop_intent(connection, intent.id)
        _forget(connection, entry, intent)


def finish_deletion(site: Site, entry: Entry, intent: Intent) -> None:
    """Remove the disks that a deletion names, the volumes before the records of them."""
    remove_disks(site, entry, intent)
    with site.ledger.deciding() as connection:
        records.finish(connection, intent.id, {})
        _forget(connection, entry, intent)


def remove_disks(site: Site, entry: Entry, intent: Intent) -> None:
    """Remove the volumes and lease files of the disks of a creation or deletion, as far as there are any."""
    for disk in disks_of(entry, intent):
        site.pool.delete(disk.volume)
        with suppress(OSError):
            site.lease(disk).unlink(missing_ok=True)


def finish_resize(site: Site, disk: Disk, intent: Intent) -> int:
    """Record that the volume has its new size, and that clients may use it; the disk's generation."""
    sizes = intent.resize
    with site.ledger.deciding() as connection:
        if sizes.grows:
            generation = records.set_size(connection, disk, sizes.new_size)
        else:  # set before the volume was cut
            generation = records.generation_of(connection, disk)
        outcome = {
            "old_size": sizes.old_size,
            "size": sizes.new_size,
            "generation": generation,
            "cause": sizes.cause,
        }
        records.finish(connection, intent.id, outcome)
    return generation


def undo_grow(site: Site, intent: Intent, volume: Volume) -> None:
    """Give back what a failed grow reserved, once the volume is known to be at its old size.

    Raises VolumeFailed where it is not; the intent then stays open.
    """
    old_size = intent.resize.old_size
    if volume.size() != old_size:
        volume.shrink(old_size)
    if volume.size() != old_size:
        raise VolumeFailed(f"{volume.path} did not go back to {old_size} bytes", "the next resize tries again")
    with site.ledger.deciding() as connection:
        records.drop_intent(connection, intent.id)


def undo_shrink(site: Site, disk: Disk, intent: Intent, volume: Volume) -> None:
    """Give the disk its old size back after a truncation that did not happen.

    Raises VolumeFailed where the volume is not known to be at its old size; the intent then stays open.
    """
    old_size = intent.resize.old_size
    if volume.size() != old_size:
        raise VolumeFailed(f"{volume.path} is neither shrunk nor whole", "the next resize tries again")
    with site.ledger.deciding() as connection:
        records.set_size(connection, disk, old_size)
        records.drop_intent(connection, intent.id)


def _complete_resize(site: Site, entry: Entry, intent: Intent) -> None:
    disk = entry.disk_by_id(intent.disk_id)
    volume = site.pool.volume(disk.volume)
    if intent.resize.grows:
        try:
            volume.grow(intent.resize.new_size)
        except NbdresizeError:
            undo_grow(site, intent, volume)
            return
    else:
        volume.shrink(intent.resize.new_size)
    finish_resize(site, disk, intent)


def disks_of(entry: Entry, intent: Intent) -> tuple[Disk, ...]:
    """The disks that an intent is about: one, or all of the VM's."""
    return entry.disks if intent.disk_id is None else (entry.disk_by_id(intent.disk_id),)


def _forget(connection: sql.Connection, entry: Entry, intent: Intent) -> None:
    """Remove the records of the disks that an intent is about, and of the VM where it is about that."""
    records.delete_disks(connection, [disk.id for disk in disks_of(entry, intent)])
    if intent.disk_id is None:
        records.delete_vm(connection, entry.vm.id)


def _forget_lock(site: Site, vm: str, lock: locks.FileLock) -> None:
    """Remove the lock file where its VM is gone, or never came to be."""
    with suppress(NbdresizeError, OSError):
        with site.ledger.reading() as connection:
            gone = records.read_vm(connection, vm) is None
        if gone:
            lock.remove_file()


def held_up(disk: Disk, change: Change) -> None:
    """Raises what keeps an earlier change of the disk from being completed, if there is one."""
    failure = change.unfinished.get(disk.id)
    if failure is not None:
        raise type(failure)(
            f"An earlier resize of {disk.export_name} could not be completed: {failure.problem}", failure.way_out
        )


def name_taken(vm: str, change: Change) -> ResourceInUse:
    """What to raise where a VM of that name exists, seen or not."""
    failure = change.unfinished.get(None)
    if failure is not None:
        return ResourceInUse(f"The remains of an earlier VM {vm} can't be removed: {failure.problem}", failure.way_out)
    return ResourceInUse(f"There is a VM {vm} already", "choose another name, or delete that one first")
