"""Doing and undoing changes of volumes; so also unfinished changes of killed processes, with nobody repairing by hand.

A change that makes something new is undone; one that only grows disks, and one that is committed, is finished. A grow
that can't be finished (the pool is full), or not soon, is undone. Whatever fails here stays open, its reservation
stands, and the next operation on the VM tries again; so does a resize whose volume is gone, since its file system may
be mounted again. Deleting the disk ends it.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sql

from nbdresize.control import (
    admin_client,
    catalog_records,
    intents,
    locks,
    names,
    operation_log,
    records,
    snapshot_records,
)
from nbdresize.control.leases import lease_path, remove_left_doors
from nbdresize.control.locks import SUFFIX
from nbdresize.control.model import Disk, Stage
from nbdresize.control.records import WHOLE_VM, Action, Entry, Intent, Kind, Step
from nbdresize.control.site import Site
from nbdresize.errors import NbdresizeError, ResourceInUse, VolumeFailed
from nbdresize.storage.write_map import discard

DELETIONS = frozenset({Kind.DELETE_SNAPSHOT, Kind.DELETE_VM, Kind.DELETE_IMAGE})
"""Kinds that delete more volumes than those of the disks in their steps."""

WAIT = 10.0
"""Seconds to wait for another change of the same VM to end."""

PATIENCE = 2.0
"""Seconds for which a grow whose process was killed is finished; one that takes longer is undone."""

_OF_IMAGES = frozenset({Kind.ADD_IMAGE, Kind.DELETE_IMAGE})
_OF_VMS = frozenset(Kind) - _OF_IMAGES


@dataclass(frozen=True)
class Change:
    """The right to change a VM. `unfinished` are earlier changes that could not be completed, and why."""

    lock: locks.FileLock
    unfinished: Mapping[Intent, NbdresizeError]

    @property
    def of_the_vm(self) -> NbdresizeError | None:
        """Why an earlier creation or deletion of the VM itself could not be completed."""
        return next((error for intent, error in self.unfinished.items() if intent.kind in WHOLE_VM), None)

    def check_retry(self, operation: str) -> None:
        """Raises why an earlier run of that operation could be neither finished nor undone, where there is one."""
        for intent, failure in self.unfinished.items():
            if intent.operation == operation:
                raise type(failure)(
                    f"Operation {operation} was begun before, and could not be completed: {failure.problem}",
                    failure.way_out,
                )


@contextmanager
def changing(site: Site, vm: str, wait: float = WAIT, wanted: Callable[[], bool] = lambda: True) -> Iterator[Change]:
    """Hold the lock of `vm`, with its unfinished changes completed.

    Raises ResourceInUse after `wait` seconds, or once it is not `wanted` any more; it names the operation that goes on.
    """
    with _named(site, f"VM {vm}", vm, _OF_VMS):
        held = locks.lock_vm(site.state.locks, vm, wait, wanted)
    with held as lock:
        try:
            yield Change(lock, recover_vm(site, vm))
        finally:
            _forget_lock(site, vm, lock)


@contextmanager
def changing_image(site: Site, image: str, wait: float = WAIT, *, exclusive: bool = True) -> Iterator[None]:
    """Hold the lock of an image; shared while a disk is made from it. Unfinished changes of it are completed.

    Raises ResourceInUse after `wait` seconds.
    """
    with locks.lock_image(site.state.locks, image, wait, exclusive=exclusive) as lock:
        if exclusive:
            with site.ledger.reading() as connection:
                found = catalog_records.read_image(connection, image)
                unfinished = records.read_intents(connection)
            for intent in unfinished:
                if found is not None and intent.image_id == found.id:
                    complete(site, None, intent)
        try:
            yield
        finally:
            if exclusive:
                _forget_image_lock(site, image, lock)


@contextmanager
def _named(site: Site, what: str, subject: str, kinds: frozenset[Kind]) -> Iterator[None]:
    """A lock that can't be had is explained by the operation that holds it, where the ledger knows one."""
    try:
        yield
    except ResourceInUse as busy:
        running = None
        with suppress(NbdresizeError), site.ledger.reading() as connection:
            running = operation_log.running_on(connection, subject, frozenset(kind.value for kind in kinds))
        if running is None:
            raise
        raise operation_log.busy(what, running) from busy


def recover_all(site: Site) -> None:
    """Complete what killed processes have left, except on VMs and images that somebody is changing now.

    What can't be completed is no reason to refuse other work: the next operation on that VM says so.
    """
    files = _lock_files(site.state.locks), _lock_files(site.state.leases)
    maps = site.state.marked_volumes()
    with site.ledger.reading() as connection:
        unfinished = records.unfinished(connection)
        # Files are made after their record and listed here before it is read: one without a record has outlived it.
        unknown_vms = files[0] - records.vm_names(connection, files[0])
        unknown_images = locks.images_of(files[0]) - {each.name for each in catalog_records.read_images(connection)}
        unknown_volumes = files[1] - records.volume_names(connection, files[1])
        marked = records.vms_of_volumes(connection, maps)
    for vm in {*unfinished.vms, *filter(names.is_vm_name, unknown_vms)}:
        with suppress(NbdresizeError), changing(site, vm, wait=0):
            pass
    for image in {*unfinished.images, *unknown_images}:
        with suppress(NbdresizeError), changing_image(site, image, wait=0):
            pass
    for vm in marked:  # no copy is being made where the lock is free, so nobody takes what is marked
        with suppress(NbdresizeError), changing(site, vm, wait=0):
            stop_marking(site, site.entry(vm).disks)
    for volume in unknown_volumes:
        with suppress(OSError):
            lease_path(site.state.leases, volume).unlink(missing_ok=True)
    remove_left_doors(site.state.leases)


def _lock_files(directory: Path) -> set[str]:
    with suppress(OSError), os.scandir(directory) as found:
        return {entry.name.removesuffix(SUFFIX) for entry in found if entry.name.endswith(SUFFIX)}
    return set()


def recover_vm(site: Site, vm: str) -> dict[Intent, NbdresizeError]:
    """Complete the unfinished changes of `vm`, whose lock the caller holds; those that fail, and why."""
    with site.ledger.reading() as connection:
        entry = records.read_vm(connection, vm)
    failures: dict[Intent, NbdresizeError] = {}
    completed: list[str] = []
    for intent in entry.intents if entry else ():
        assert entry is not None
        try:
            complete(site, entry, intent)
            completed += [disk.export_name for disk in entry.disks_of(intent)]
        except NbdresizeError as error:
            failures[intent] = error
    if completed:
        admin_client.publish(site.state, completed)
    return failures


def complete(site: Site, entry: Entry | None, intent: Intent) -> None:
    """Finish or undo a change whose process was killed, or which failed.

    A grow is finished as long as that is a matter of seconds: whoever comes next has asked for something else, shows no
    progress of this, and can't cancel it. Where space is reserved by writing zeroes, it may take hours, and is undone.
    """
    if intent.committed:
        finish(site, entry, intent)
    elif intent.forwards:
        try:
            grow(site, entry, intent, _within(PATIENCE))
        except _TooLong:
            undo(site, entry, intent, None)
        except NbdresizeError as error:
            undo(site, entry, intent, error)
        else:
            with site.ledger.deciding() as connection:
                intents.commit(connection, intent)
                intents.close(connection, intent)
    else:
        undo(site, entry, intent, None)


class _TooLong(Exception):
    """What is left to do takes too long for somebody who does not know of it."""


def _within(seconds: float) -> Callable[[int, int], None]:
    """Progress that ends what takes longer."""
    deadline = time.monotonic() + seconds

    def report(done: int, total: int) -> None:
        if done < total and time.monotonic() >= deadline:
            raise _TooLong

    return report


def grow(
    site: Site, entry: Entry | None, intent: Intent, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Make the volumes longer that a change grows. Nobody may use the new range before it is committed."""
    for disk, step in _changed(entry, intent):
        if step.action is Action.RESIZE and step.grows:
            site.pool.volume(disk.volume).grow(step.new_size, progress)


def finish(site: Site, entry: Entry | None, intent: Intent, stages: tuple[Stage, ...] = ()) -> None:
    """Do what is left of a committed change: cut, replace and delete volumes; then close it.

    `stages` are those of the change; where there are none, what happens here is its only one.
    """
    begun = time.monotonic()
    for disk, step in _changed(entry, intent):
        if step.action is Action.RESIZE and step.shrinks:
            site.pool.volume(disk.volume).shrink(step.new_size)
        elif step.action is Action.ROLL_BACK and step.staged is not None:
            site.pool.replace(disk.volume, step.staged)
        elif step.action is Action.REMOVE:
            _remove(site, disk)
            if step.staged is not None:
                site.pool.delete(step.staged)
    if intent.kind in DELETIONS:
        for volume in _stored(site, entry, intent):
            site.pool.delete(volume)
    spaces = _settled(site, entry, intent) if intent.kind is Kind.DELETE_SNAPSHOT else {}
    with site.ledger.deciding() as connection:
        before = records.read_vm(connection, entry.vm.name) if entry is not None and spaces else None
        intents.close(connection, intent, stages or (Stage("volume", time.monotonic() - begun),))
        if before is not None:
            _charge(connection, before, spaces)


def undo(site: Site, entry: Entry | None, intent: Intent, why: BaseException | None) -> None:
    """Put everything back that an uncommitted change has done, the volumes before the records of them.

    Raises VolumeFailed where a volume is not known to be as it was; the change then stays open, with its reservation.
    """
    for disk, step in _changed(entry, intent):
        if step.action is Action.ADD:
            _remove(site, disk)
        elif step.action is Action.ROLL_BACK and step.staged is not None:
            site.pool.delete(step.staged)
        elif step.action is Action.RESIZE and step.grows:
            _cut_back(site, disk, step.old_size)
    if intent.kind in (Kind.CREATE_SNAPSHOT, Kind.ADD_IMAGE):
        for volume in _stored(site, entry, intent):
            site.pool.delete(volume)
    if intent.kind is Kind.CREATE_SNAPSHOT and entry is not None:
        stop_marking(site, entry.disks)
    with site.ledger.deciding() as connection:
        intents.undo(connection, intent, why)


def take_back(site: Site, entry: Entry | None, intent: Intent, why: BaseException) -> bool:
    """Take a committed change back none of whose volumes has been cut or deleted; whether that could be done.

    Not where anything has become larger, since somebody may use that already. A volume that is not known to be at its
    old size leaves the change open.
    """
    changed = list(_changed(entry, intent))
    if any(step.staged is not None or step.grows for _, step in changed):
        return False
    with suppress(NbdresizeError):
        cut = [(disk, step) for disk, step in changed if step.action is Action.RESIZE]
        gone = {disk.volume for disk, step in changed if step.action is Action.REMOVE}
        if intent.kind in DELETIONS:
            gone.update(_stored(site, entry, intent))
        whole = all(site.pool.volume(disk.volume).size() == step.old_size for disk, step in cut)
        if whole and gone <= set(site.pool.names()):
            with site.ledger.deciding() as connection:
                # Closed where only the answer to the commit was lost: then it has been done.
                still_open = any(each.id == intent.id for each in records.read_intents(connection))
                if still_open:
                    intents.take_back(connection, intent, why)
            return still_open
    return False


def stop_marking(site: Site, disks: tuple[Disk, ...]) -> None:
    """Remove the write maps of a snapshot that is not being made any more, and tell the servers."""
    maps = [site.state.write_map(disk.volume) for disk in disks]
    seen = any(path.exists() for path in maps)
    for path in maps:
        with suppress(NbdresizeError):
            discard(path)
    if seen:
        admin_client.publish(site.state, [disk.export_name for disk in disks])


def _changed(entry: Entry | None, intent: Intent) -> Iterator[tuple[Disk, Step]]:
    for step in intent.steps:
        assert entry is not None  # steps are about disks, and those about a VM
        yield entry.disk_by_id(step.disk_id), step


def _remove(site: Site, disk: Disk) -> None:
    """Remove the volume of a disk, its lease file and its write map, as far as they are there."""
    site.pool.delete(disk.volume)
    for path in (site.lease(disk), site.state.write_map(disk.volume)):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _cut_back(site: Site, disk: Disk, old_size: int) -> None:
    volume = site.pool.volume(disk.volume)
    if volume.size() != old_size:
        volume.shrink(old_size)
    if volume.size() != old_size:
        raise VolumeFailed(f"{volume.path} did not go back to {old_size} bytes", "the next resize tries again")


def _stored(site: Site, entry: Entry | None, intent: Intent) -> list[str]:
    """The volumes of the snapshots, or of the image, that a change is about."""
    with site.ledger.reading() as connection:
        if intent.image_id is not None:
            image = catalog_records.read_image_by_id(connection, intent.image_id)
            return [image.volume] if image else []
        if entry is None:
            return []
        found = snapshot_records.read_snapshots(connection, entry.vm.id, entry.vm.name)
    ours = [each for each in found if intent.kind is Kind.DELETE_VM or each.id == intent.snapshot_id]
    return [disk.volume for snapshot in ours for disk in snapshot.disks]


def _settled(site: Site, entry: Entry | None, intent: Intent) -> dict[str, int]:
    """What the snapshots that are left are charged, by volume: some now hold blocks that the deleted one held too.

    Only whole ones, since of those that are half made or half deleted volumes may be missing. Where one of a disk can't
    be measured, the others of that disk stay charged as they are until it is deleted too: it must not keep this one.
    """
    assert entry is not None
    with site.ledger.reading() as connection:
        found = snapshot_records.read_snapshots(connection, entry.vm.id, entry.vm.name)
        whole = snapshot_records.read_whole_snapshots(connection, entry.vm.id, entry.vm.name)
    deleted = {disk.disk_id for snapshot in found if snapshot.id == intent.snapshot_id for disk in snapshot.disks}
    spaces: dict[str, int] = {}
    for disk_id in deleted:
        volumes = [disk.volume for snapshot in whole for disk in snapshot.disks if disk.disk_id == disk_id]
        with suppress(VolumeFailed):
            spaces |= zip(volumes, site.pool.spaces(volumes), strict=True)
    return spaces


def _charge(connection: sql.Connection, before: Entry, spaces: Mapping[str, int]) -> None:
    """Charge what is left after a deletion, but no more than the budget has, and the deleted one gave back.

    What is beyond that (the file system counts otherwise by now, or another deletion is half done) is for `check`.
    """
    after = records.read_vm(connection, before.vm.name)
    assert after is not None
    whole = snapshot_records.read_whole_snapshots(connection, after.vm.id, after.vm.name)
    charged = {disk.volume: disk.space for snapshot in whole for disk in snapshot.disks if disk.volume in spaces}
    room = max(after.vm.budget, before.account.used) - after.account.used
    excess = sum(spaces[volume] - charged[volume] for volume in charged) - room
    settled = {}
    for volume in reversed(charged):  # the newest is charged less
        less = min(max(0, excess), max(0, spaces[volume] - charged[volume]))
        settled[volume] = spaces[volume] - less
        excess -= less
    snapshot_records.set_spaces(connection, settled)


def _forget_lock(site: Site, vm: str, lock: locks.FileLock) -> None:
    """Remove the lock file where its VM is gone, or never came to be."""
    with suppress(NbdresizeError, OSError):
        with site.ledger.reading() as connection:
            gone = records.read_vm(connection, vm) is None
        if gone:
            lock.remove_file()


def _forget_image_lock(site: Site, image: str, lock: locks.FileLock) -> None:
    with suppress(NbdresizeError, OSError):
        with site.ledger.reading() as connection:
            gone = catalog_records.read_image(connection, image) is None
        if gone:
            lock.remove_file()


def held_up(disk: Disk, change: Change) -> None:
    """Raises what keeps an earlier change of the disk from being completed, if there is one."""
    for intent, failure in change.unfinished.items():
        if any(step.disk_id == disk.id for step in intent.steps):
            raise type(failure)(
                f"An earlier {intent.label} of {disk.export_name} could not be completed: {failure.problem}",
                failure.way_out,
            )


def name_taken(vm: str, change: Change) -> ResourceInUse:
    """What to raise where a VM of that name exists, seen or not."""
    failure = change.of_the_vm
    if failure is not None:
        return ResourceInUse(f"The remains of an earlier VM {vm} can't be removed: {failure.problem}", failure.way_out)
    return ResourceInUse(f"There is a VM {vm} already", "choose another name, or delete that one first")
