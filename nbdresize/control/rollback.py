"""Bringing all disks of a VM back to what they were at a snapshot, with the sizes that they had.

The order is the promise, and recovery relies on it:

1. keep clients away from here to the end; decide and promise in the ledger
2. make copies of the snapshot's volumes beside the disks' own, durably
3. commit: the disks have their old sizes again for everybody, and nobody gets at them before the next step is done
4. put the copies in the place of the disks' own volumes, each by one rename; close the change
5. publish

Disks that were added since stay as they are. One that was deleted since comes back in its slot, with the id that it
had, so that its snapshots are its own again.
"""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

import sqlalchemy as sql

from nbdresize.control import intents, names, operations, pool, records, recovery, snapshot_records
from nbdresize.control.catalog_records import account_of
from nbdresize.control.disks import check_flexible, protected, reread, told, undo_after
from nbdresize.control.fence import fenced
from nbdresize.control.model import ChangeOutcome, Disk, Snapshot, SnapshotDisk
from nbdresize.control.records import Action, Entry, Intent, Kind, Step
from nbdresize.control.recovery import Change, changing, held_up
from nbdresize.control.site import Site, visible
from nbdresize.control.snapshots import check_allowed, checked_snapshot, snapshot_named
from nbdresize.errors import ResourceInUse, VolumeFailed
from nbdresize.units import format_size


def roll_back(
    site: Site,
    vm: str,
    name: str,
    *,
    disconnect: bool = False,
    operation: str | None = None,
    listener: operations.Listener = operations.nobody,
) -> ChangeOutcome:
    """All disks of the snapshot as they were. See Control.rollback."""
    names.check_name(name, "a snapshot")
    site.entry(vm)
    arguments = records.arguments_of(Kind.ROLL_BACK, vm=vm, name=name)
    request = operations.Request(names.operation_id(operation), Kind.ROLL_BACK.value, vm, arguments)
    run = _Rollback(site, name, disconnect, operations.Task(site.ledger, request, listener))
    with changing(site, vm) as change:
        outcome = run.run(change)
    return replace(outcome, stages=run.task.stages())


@dataclass(frozen=True)
class _Rollback:
    """One request, with the lock of its VM held."""

    site: Site
    name: str
    disconnect: bool
    task: operations.Task

    @property
    def vm(self) -> str:
        return self.task.request.subject

    def run(self, change: Change) -> ChangeOutcome:
        with self.task.stage("ledger"), self.site.ledger.reading() as connection:
            entry = visible(records.read_vm(connection, self.vm), self.vm)
            done = operations.outcome_of(connection, self.task.request)
        if done is not None:
            return told(entry, self.task.request, done)
        change.check_retry(self.task.request.id)
        with self.task.stage("ledger"), self.site.ledger.reading() as connection:
            entry, snapshot = self._decide(connection)
        ids = {each.disk_id for each in snapshot.disks}
        for disk in entry.disks:
            if disk.id in ids:
                held_up(disk, change)
        for each in snapshot.disks:
            checked_snapshot(self.site, snapshot, each)
        with ExitStack() as fences:
            for disk in _present(entry, snapshot):
                fences.enter_context(fenced(self.site, disk, disconnect=self.disconnect))
            entry = self._change(self._copied(snapshot))
        self.task.publish(self.site.state, [f"{self.vm}/{each.name}" for each in snapshot.disks])
        with self.site.ledger.reading() as connection:
            done = operations.outcome_of(connection, self.task.request)
            entry = visible(records.read_vm(connection, self.vm), self.vm)
        assert done is not None
        return told(entry, self.task.request, done)

    def _copied(self, snapshot: Snapshot) -> int:
        """The bytes that are there twice while the disks are brought back: copies that share no blocks."""
        copies = [each for each in snapshot.disks if not each.shared]
        return sum(
            each.size if each.preallocated else self.site.pool.volume(each.volume).allocated() for each in copies
        )

    def _decide(self, connection: sql.Connection) -> tuple[Entry, Snapshot]:
        """The VM and the snapshot, where it may be brought back."""
        entry = visible(records.read_vm(connection, self.vm), self.vm)
        found = snapshot_records.read_whole_snapshots(connection, entry.vm.id, self.vm)
        snapshot = snapshot_named(found, self.vm, self.name)
        check_allowed(entry)
        if entry.vm.protected:
            raise protected(self.vm, "its disks can't be rolled back")
        _check_slots(entry, snapshot)
        now = {disk.id: disk.size for disk in entry.vm.disks}
        if any(now.get(each.disk_id) != each.size for each in snapshot.disks):
            check_flexible(entry)
        more = snapshot.size - sum(now.get(each.disk_id, 0) for each in snapshot.disks)
        account = account_of(connection, entry)
        if more > account.free:
            raise account.refuse(f"Bringing the disks of VM {self.vm} back to {format_size(snapshot.size)}", more)
        return entry, snapshot

    def _change(self, copied: int) -> Entry:
        """`copied` bytes of the pool are needed until the disks' own volumes have been replaced."""
        taken, measured = self.site.pool.names(), pool.measured(self.site)
        with self.task.stage("ledger"), self.site.ledger.deciding() as connection:
            pool.check_room(connection, measured, f"Copying the disks of snapshot {self.name}", copied)
            entry, intent, snapshot = self._promise(connection, taken, copied)
        try:
            with self.task.stage("copy"):
                for each in snapshot.disks:
                    self._copy(entry, intent, each)
            with self.task.stage("ledger"), self.site.ledger.deciding() as connection:
                intents.commit(connection, intent)
        except BaseException as error:
            undo_after(self.site, entry, intent, error)
            raise
        with self.task.stage("volume"):
            recovery.finish(self.site, entry, replace(intent, committed=True), self.task.stages())
        return entry

    def _promise(self, connection: sql.Connection, taken: Sequence[str], copied: int) -> tuple[Entry, Intent, Snapshot]:
        """Decide once more, inside the transaction that records the promise."""
        entry, snapshot = self._decide(connection)
        steps = []
        for each in snapshot.disks:
            disk = entry.disk(each.slot)
            volume = names.new_volume_name(f"{self.vm}-{each.name}", taken)
            if disk is not None:
                steps.append(Step(disk.id, Action.ROLL_BACK, disk.size, each.size, staged=volume))
                continue
            records.insert_disk(
                connection,
                entry.vm.id,
                each.slot,
                each.size,
                volume,
                image=each.image,
                minimum=each.minimum,
                disk_id=each.disk_id,
            )
            steps.append(Step(each.disk_id, Action.ADD, 0, each.size))
        intent = records.open_intent(
            connection, self.task.request, Kind.ROLL_BACK, vm_id=entry.vm.id, steps=steps, pool_space=copied
        )
        return reread(connection, self.vm), intent, snapshot

    def _copy(self, entry: Entry, intent: Intent, each: SnapshotDisk) -> None:
        """Make the volume that the disk is to have."""
        disk = entry.disk_by_id(each.disk_id)
        step = next(step for step in intent.steps if step.disk_id == disk.id)
        preallocate = each.preallocated
        if step.staged is not None:
            with suppress(VolumeFailed):  # it may be lost, and to be replaced for that very reason
                preallocate = self.site.pool.volume(disk.volume).preallocated()
        self.site.pool.copy(
            self.site.pool.volume(each.volume).path,
            step.staged or disk.volume,
            preallocate=preallocate,
            progress=self.task.progress(f"copying {disk.export_name}"),
        )


def _present(entry: Entry, snapshot: Snapshot) -> list[Disk]:
    """The disks of the snapshot that the VM still has."""
    ids = {each.disk_id for each in snapshot.disks}
    return [disk for disk in entry.vm.disks if disk.id in ids]


def _check_slots(entry: Entry, snapshot: Snapshot) -> None:
    """Raises ResourceInUse where another disk is now in a slot of one of the snapshot's."""
    for each in snapshot.disks:
        other = next((disk for disk in entry.disks if disk.slot == each.slot and disk.id != each.disk_id), None)
        if other is not None:
            raise ResourceInUse(
                f"{other.export_name} is another disk than that of snapshot {snapshot.name}, which was deleted",
                f"delete it first (nbdresize disk delete {entry.vm.name} {other.name}), to have that one back",
            )
