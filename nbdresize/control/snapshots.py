"""Snapshots of VMs: made, listed, measured, deleted. `rollback` brings one back.

What a snapshot is charged are the blocks that no earlier snapshot of the same disk holds. So all of them together are
charged for just the blocks that they hold, and whatever is written to the disks later, that does not grow.

The order is the promise, and recovery relies on it:

1. measure, decide, and promise in the ledger that much room
2. copy all disks as at one instant, durably
3. measure what the copies hold, and close the change with that
"""

from collections.abc import Sequence
from dataclasses import replace

import sqlalchemy as sql

from nbdresize.control import catalog_records, intents, names, operations, records, recovery, snapshot_records
from nbdresize.control.catalog_records import account_of
from nbdresize.control.disks import checked_volume, reread, undo_after
from nbdresize.control.live_copy import Copy, shares
from nbdresize.control.model import Disk, Snapshot, SnapshotDisk, SnapshotReport
from nbdresize.control.records import Entry, Intent, Kind
from nbdresize.control.recovery import Change, changing, held_up
from nbdresize.control.site import Site, visible
from nbdresize.control.snapshot_copies import Taken, take_copies
from nbdresize.control.snapshot_room import check_snapshot, check_snapshot_count
from nbdresize.errors import NotAuthorized, ResourceInUse, ResourceNotFound, VolumeFailed
from nbdresize.storage.volume import Volume

_MEASURINGS = 3
_EXTENTS_AT_ONCE = 256


def create_snapshot(
    site: Site,
    vm: str,
    name: str,
    *,
    operation: str | None = None,
    listener: operations.Listener = operations.nobody,
) -> Snapshot:
    """All disks of the VM as they are at one instant. See Control.create_snapshot."""
    names.check_name(name, "a snapshot")
    site.entry(vm)
    arguments = records.arguments_of(Kind.CREATE_SNAPSHOT, vm=vm, name=name)
    request = operations.Request(names.operation_id(operation), Kind.CREATE_SNAPSHOT.value, vm, arguments)
    task = operations.Task(site.ledger, request, listener)
    with changing(site, vm) as change:
        with task.stage("ledger"), site.ledger.reading() as connection:
            entry = visible(records.read_vm(connection, vm), vm)
            done = operations.outcome_of(connection, request)
            earlier = snapshot_records.read_snapshots(connection, entry.vm.id, vm)
            whole = snapshot_records.read_whole_snapshots(connection, entry.vm.id, vm)
        if done is not None:
            return _made_before(earlier, done["snapshot_id"])
        change.check_retry(request.id)
        _check(entry, earlier, name, change)
        with task.stage("measure"):
            wanted = _wanted(site, entry, whole)
            frees = _frees(site, whole) if _sum(wanted) > entry.account.free else {}
        with task.stage("ledger"), site.ledger.deciding() as connection:
            entry = visible(records.read_vm(connection, vm), vm)
            _check(entry, earlier, name, change)
            check_snapshot(account_of(connection, entry), _sum(wanted), frees)
            snapshot_id = snapshot_records.insert_snapshot(connection, entry.vm.id, name, wanted)
            intent = records.open_intent(
                connection, request, Kind.CREATE_SNAPSHOT, vm_id=entry.vm.id, snapshot_id=snapshot_id
            )
        try:
            copies = [Copy(entry.disk_by_id(each.disk_id), each.volume) for each in wanted]
            taken = take_copies(site, copies, task)
            with task.stage("measure"):
                held = [replace(each, space=_space(site, whole, each.disk_id, each.volume)) for each in wanted]
                frees = _frees(site, whole) if _sum(held) > _sum(wanted) else {}
            with task.stage("ledger"), site.ledger.deciding() as connection:
                _settle(connection, vm, _sum(wanted), held, frees)
                _close(connection, intent, taken, held, task)
        except BaseException as error:
            undo_after(site, entry, intent, error)
            raise
        return next(each for each in snapshots(site, vm) if each.id == snapshot_id)


def delete_snapshot(site: Site, vm: str, name: str, *, operation: str | None = None) -> None:
    """Delete a snapshot; what it alone held is free again. See Control.delete_snapshot."""
    names.check_name(name, "a snapshot")
    site.entry(vm)
    arguments = records.arguments_of(Kind.DELETE_SNAPSHOT, vm=vm, name=name)
    request = operations.Request(names.operation_id(operation), Kind.DELETE_SNAPSHOT.value, vm, arguments)
    with changing(site, vm) as change:
        with site.ledger.deciding() as connection:
            if operations.outcome_of(connection, request) is not None:
                return
            entry = visible(records.read_vm(connection, vm), vm)
            found = snapshot_records.read_snapshots(connection, entry.vm.id, vm)
            snapshot = snapshot_named(found, vm, name)
            _check_unstuck(snapshot, change)
            intent = records.open_intent(
                connection,
                request,
                Kind.DELETE_SNAPSHOT,
                vm_id=entry.vm.id,
                snapshot_id=snapshot.id,
                committed=True,
            )
            entry = reread(connection, vm)
        recovery.finish(site, entry, intent)


def snapshots(site: Site, vm: str) -> list[Snapshot]:
    """The snapshots of the VM, the oldest first, as the ledger has them."""
    names.check_vm_name(vm)
    with site.ledger.reading() as connection:
        entry = visible(records.read_vm(connection, vm), vm)
        return snapshot_records.read_whole_snapshots(connection, entry.vm.id, vm)


def report(site: Site, vm: str) -> SnapshotReport:
    """The snapshots of the VM, and their space as it is now."""
    for _ in range(_MEASURINGS):
        before = snapshots(site, vm)
        try:
            return SnapshotReport(vm, tuple(before), _frees(site, before), _held(site, vm, before))
        except VolumeFailed:
            if snapshots(site, vm) == before:
                raise  # else one was deleted while it was measured
    raise ResourceInUse(f"The snapshots of VM {vm} are being changed all the time", "try again")


def snapshot_named(found: Sequence[Snapshot], vm: str, name: str) -> Snapshot:
    """The snapshot of that name. Raises ResourceNotFound with the names of those there are."""
    snapshot = next((each for each in found if each.name == name), None)
    if snapshot is None:
        there = ", ".join(each.name for each in found[-5:])
        more = "the last ones are " if len(found) > 5 else "it has "
        raise ResourceNotFound(f"VM {vm} has no snapshot {name}", f"{more}{there}" if found else "it has none")
    return snapshot


def checked_snapshot(site: Site, snapshot: Snapshot, disk: SnapshotDisk) -> Volume:
    """The volume of one of its disks. Raises VolumeFailed where it is not as long as the ledger says, or is gone."""
    volume = site.pool.volume(disk.volume)
    size = volume.size()
    if size != disk.size:
        raise VolumeFailed(
            f"{disk.name} of snapshot {snapshot.name}, {volume.path}, has {size} bytes instead of {disk.size}",
            "somebody else changed it; delete the snapshot",
        )
    return volume


def check_allowed(entry: Entry) -> None:
    """Raises NotAuthorized where snapshots are switched off for the VM."""
    if not entry.vm.allowed.snapshots:
        raise NotAuthorized(
            f"Snapshots are switched off for VM {entry.vm.name}",
            "nbdresize switch list shows where; an operator may set them on",
        )


def _check(entry: Entry, earlier: Sequence[Snapshot], name: str, change: Change) -> None:
    vm = entry.vm
    check_allowed(entry)
    if not vm.disks:
        raise ResourceNotFound(
            f"VM {vm.name} has no disks to make a snapshot of", f"nbdresize disk add {vm.name} SIZE adds one"
        )
    for snapshot in earlier:
        if snapshot.name == name:
            _check_unstuck(snapshot, change)
            raise ResourceInUse(
                f"VM {vm.name} has a snapshot {name} already", "choose another name, or delete that one first"
            )
    check_snapshot_count(vm.name, len(earlier), vm.snapshot_limit)
    for disk in vm.disks:
        held_up(disk, change)


def _check_unstuck(snapshot: Snapshot, change: Change) -> None:
    """Raises what keeps an earlier creation or deletion of the snapshot from being completed, if there is one."""
    for intent, failure in change.unfinished.items():
        if intent.snapshot_id == snapshot.id:
            doing = "deletion" if intent.committed else "creation"
            raise type(failure)(
                f"An earlier {doing} of snapshot {snapshot.name} could not be completed: {failure.problem}",
                failure.way_out,
            )


def _wanted(site: Site, entry: Entry, earlier: Sequence[Snapshot]) -> list[SnapshotDisk]:
    """What is to be made: each disk with the room that a copy of it as it is now would need."""
    taken = site.pool.names()
    wanted = []
    for disk in entry.vm.disks:
        preallocated = checked_volume(site, disk).preallocated()
        volume = names.new_volume_name(f"{entry.vm.name}-{disk.name}", taken)
        shared = shares(site, disk)
        space = _space(site, earlier, disk.id, disk.volume) if shared else _data(site, disk)
        wanted.append(
            SnapshotDisk(disk.id, disk.slot, disk.size, space, volume, disk.image, disk.minimum, shared, preallocated)
        )
    return wanted


def _space(site: Site, earlier: Sequence[Snapshot], disk_id: int, volume: str) -> int:
    """What the volume has that no earlier snapshot of its disk has."""
    return site.pool.held([volume], _volumes(earlier, disk_id))


def _data(site: Site, disk: Disk) -> int:
    """What a copy of the disk in full would take: what reads as zeroes is left out of it, reserved or not.

    It may be told as more, where a client has read zeroes that were reserved; never as more than what is reserved.
    """
    found = offset = 0
    with site.pool.volume(disk.volume).open(read_only=True) as handle:
        while offset < disk.size:
            for extent in handle.extents(offset, disk.size - offset, limit=_EXTENTS_AT_ONCE):
                found += 0 if extent.zero else extent.length
                offset += extent.length
    return found


def _settle(
    connection: sql.Connection, vm: str, reserved: int, held: Sequence[SnapshotDisk], frees: dict[str, int]
) -> None:
    """Charge what the copies hold. Raises InsufficientSpace where too much for that was written meanwhile."""
    account = account_of(connection, reread(connection, vm))
    if _sum(held) > reserved:
        check_snapshot(replace(account, snapshots=account.snapshots - reserved), _sum(held), frees)
    snapshot_records.set_spaces(connection, {each.volume: each.space for each in held})


def _close(
    connection: sql.Connection, intent: Intent, taken: Taken, held: Sequence[SnapshotDisk], task: operations.Task
) -> None:
    assert intent.snapshot_id is not None
    snapshot_records.set_created(connection, intent.snapshot_id, taken.created)
    for each in held:
        snapshot_records.set_shared(connection, each.volume, shared=each.volume in taken.shared)
    intents.close(connection, intent, task.stages())


def _frees(site: Site, found: Sequence[Snapshot]) -> dict[str, int]:
    """What the deletion of each would give back: the blocks that no other snapshot of the same disk has."""
    frees = dict.fromkeys((each.name for each in found), 0)
    for disk_id in {disk.disk_id for snapshot in found for disk in snapshot.disks}:
        having = [snapshot.name for snapshot in found for disk in snapshot.disks if disk.disk_id == disk_id]
        for name, space in zip(having, site.pool.alone(_volumes(found, disk_id)), strict=True):
            frees[name] += space
    return frees


def _held(site: Site, vm: str, found: Sequence[Snapshot]) -> int:
    """What only the snapshots have: not the disks, nor the images that they were made from."""
    with site.ledger.reading() as connection:
        entry = visible(records.read_vm(connection, vm), vm)
        images = catalog_records.read_images(connection)
    made_from = {disk.image for snapshot in found for disk in snapshot.disks}
    others = [disk.volume for disk in entry.vm.disks]
    others += [image.volume for image in images if image.name in made_from]
    return site.pool.held([disk.volume for snapshot in found for disk in snapshot.disks], others)


def _volumes(found: Sequence[Snapshot], disk_id: int) -> list[str]:
    """The volumes of that disk's snapshots, the oldest first."""
    return [disk.volume for snapshot in found for disk in snapshot.disks if disk.disk_id == disk_id]


def _sum(disks: Sequence[SnapshotDisk]) -> int:
    return sum(disk.space for disk in disks)


def _made_before(found: Sequence[Snapshot], snapshot_id: int) -> Snapshot:
    snapshot = next((each for each in found if each.id == snapshot_id), None)
    if snapshot is None:
        raise ResourceNotFound("That operation made a snapshot before, which has been deleted", "use a new id")
    return snapshot
