"""Adding, resizing and deleting disks of a VM: any number at once, and all of it happens or nothing.

The order is the promise, and recovery relies on it:

1. decide and promise in the ledger; what shrinks or goes is fenced from here to the end
2. make new volumes, extend those that grow
3. commit: all disks have their new sizes for everybody
4. publish, where anything shrinks or goes, so that no write in flight re-extends a volume that is cut
5. cut and delete volumes, close the change
6. publish what has grown
"""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sql

from nbdresize.control import intents, names, operations, records, recovery
from nbdresize.control.catalog_records import account_of
from nbdresize.control.changes import Decided, DiskTerms, check_changes, decide_changes
from nbdresize.control.fence import fenced
from nbdresize.control.leases import Lease
from nbdresize.control.model import Cause, ChangeOutcome, Disk, DiskChanges, ResizeOptions, ResizeOutcome
from nbdresize.control.records import Action, Entry, Intent, Kind, Step
from nbdresize.control.recovery import Change, changing, held_up
from nbdresize.control.site import Site, disk_of, visible
from nbdresize.errors import (
    DeletionProtected,
    NbdresizeError,
    NotAuthorized,
    ResourceInUse,
    ResourceNotFound,
    VolumeFailed,
)
from nbdresize.storage.volume import Volume
from nbdresize.units import SizeRequest


def change_disks(
    site: Site,
    vm: str,
    changes: DiskChanges,
    options: ResizeOptions,
    *,
    kind: Kind = Kind.CHANGE_DISKS,
    preallocate: bool = False,
    operation: str | None = None,
    holding: Lease | None = None,
    listener: operations.Listener = operations.nobody,
) -> ChangeOutcome:
    """All of these changes, or none. See Control.change_disks.

    `kind` is what users call it. `holding` is the caller's own lease on the one disk that it changes.
    """
    check_changes(changes, options)
    site.entry(vm)
    request = operations.Request(
        names.operation_id(operation), kind.value, vm, _arguments(kind, vm, changes, options, preallocate)
    )
    task = operations.Task(site.ledger, request, listener)
    run = _Run(site, vm, changes, options, kind, preallocate, task)
    with changing(site, vm, options.wait, options.wanted) as change:
        outcome = run.run(change, holding, remember=operation is not None)
    names_changed = [f"{vm}/disk{update.slot}" for update in changes.update]
    if names_changed and "servers" not in task.seconds:
        # Also where nothing changed: an earlier command may have been killed before it told the servers.
        task.publish(site.state, names_changed)
    return replace(
        outcome,
        stages=task.stages(),
        resized=tuple(replace(each, stages=task.stages()) for each in outcome.resized),
    )


@dataclass(frozen=True)
class _Run:
    """One request, with the lock of its VM held."""

    site: Site
    vm: str
    changes: DiskChanges
    options: ResizeOptions
    kind: Kind
    preallocate: bool
    task: operations.Task

    def run(self, change: Change, holding: Lease | None, *, remember: bool) -> ChangeOutcome:
        with self.task.stage("ledger"), self.site.ledger.reading() as connection:
            entry = visible(records.read_vm(connection, self.vm), self.vm)
            done = operations.outcome_of(connection, self.task.request)
        if done is not None:
            return told(entry, self.task.request, done)
        change.check_retry(self.task.request.id)
        check_flexible(entry)
        for update in self.changes.update:
            held_up(disk_of(entry, update.slot), change)
        with self.task.stage("volume"):
            for update in self.changes.update:
                checked_volume(self.site, disk_of(entry, update.slot))
        with self.site.ledger.reading() as connection:
            entry, decided = self._decide(connection)
        going = _going(entry, decided)
        if not going and not decided.add and all(old == each.size for _, old, each in decided.update):
            return self._nothing_to_do(entry, decided, remember=remember)
        with ExitStack() as fences:
            for disk in going:
                mine = holding if disk.slot not in decided.remove else None
                disconnect = self.options.disconnect
                fences.enter_context(fenced(self.site, disk, disconnect=disconnect, holding=mine))
            return self._change(decided)

    def _decide(self, connection: sql.Connection) -> tuple[Entry, Decided]:
        entry = visible(records.read_vm(connection, self.vm), self.vm)
        check_flexible(entry)
        terms = {disk.slot: DiskTerms(disk.export_name, disk.size, disk.minimum) for disk in entry.vm.disks}
        taken = {disk.slot for disk in entry.disks}
        account = account_of(connection, entry)
        decided = decide_changes(account, terms, self.changes, options=self.options, taken=taken)
        going = _going(entry, decided)
        if going and entry.vm.protected:
            raise protected(self.vm, f"{', '.join(disk.name for disk in going)} can't be shrunk or deleted")
        if _grows(decided):
            _check_whole(entry, decided.remove)
        return entry, decided

    def _promise(self, connection: sql.Connection, before: Decided, taken: Sequence[str]) -> tuple[Entry, Intent, bool]:
        """Decide once more, inside the transaction that records the promise; also whether that ended earlier changes.

        Then there is no way back: the change only ever goes on.
        """
        entry, decided = self._decide(connection)
        fenced_then = {disk.slot for disk in _going(entry, before)}
        fenced_now = {disk.slot for disk in _going(entry, decided)}
        stuck = [disk for disk in entry.vm.disks if disk.pending_size is not None and disk.slot not in decided.remove]
        if fenced_then != fenced_now or any(disk.slot in _slots(decided) for disk in stuck):
            raise ResourceInUse(f"The disks of VM {self.vm} were changed by another command", "try again")
        ended = False
        for slot in decided.remove:  # a resize that could not be completed (its volume fails, or is gone) ends here
            disk = disk_of(entry, slot)
            unfinished = entry.intent_of(disk)
            if unfinished is not None:
                records.end_step(connection, unfinished, disk.id, VolumeFailed(f"{disk.export_name} was deleted"))
                ended = True
        steps = [*_steps_of_new(connection, entry, decided, taken), *_steps_of_known(entry, decided)]
        committed = not _grows(decided)
        request, vm_id = self.task.request, entry.vm.id
        intent = records.open_intent(connection, request, self.kind, vm_id=vm_id, steps=steps)
        if committed:
            intents.commit(connection, intent)
            intent = replace(intent, committed=True)
        after = reread(connection, self.vm)
        _check_promised(entry, after)
        return after, intent, ended

    def _change(self, decided: Decided) -> ChangeOutcome:
        taken = self.site.pool.names() if decided.add else []
        with self.task.stage("ledger"), self.site.ledger.deciding() as connection:
            entry, intent, ended = self._promise(connection, decided, taken)
        leaves = any(step.shrinks or step.action is Action.REMOVE for step in intent.steps)
        try:
            if not intent.committed:
                with self.task.stage("volume"):
                    self._make(entry, intent)
                with self.task.stage("ledger"), self.site.ledger.deciding() as connection:
                    intents.commit(connection, intent)
                    if not leaves:
                        intents.close(connection, intent, self.task.stages())
        except BaseException as error:
            undo_after(self.site, entry, intent, error)
            raise
        if leaves:
            self._finish(entry, replace(intent, committed=True), back=not ended)
        return self._outcome()

    def _make(self, entry: Entry, intent: Intent) -> None:
        for step in intent.steps:
            if step.action is Action.ADD:
                disk = entry.disk_by_id(step.disk_id)
                progress = self.task.progress(f"allocating {disk.export_name}")
                self.site.pool.create(disk.volume, disk.size, preallocate=self.preallocate, progress=progress)
        recovery.grow(self.site, entry, intent, self.task.progress(f"growing {self.vm}"))

    def _finish(self, entry: Entry, intent: Intent, *, back: bool) -> None:
        """`back`: it may be taken back where it fails before anything has happened."""
        disks = [disk.export_name for disk in entry.disks_of(intent)]
        self.task.publish(self.site.state, disks)
        try:
            with self.task.stage("volume"):
                recovery.finish(self.site, entry, intent, self.task.stages())
        except NbdresizeError as error:
            if back and recovery.take_back(self.site, entry, intent, error):
                self.task.publish(self.site.state, disks)
            raise
        if any(step.action is Action.REMOVE for step in intent.steps):
            self.task.publish(self.site.state, disks)

    def _nothing_to_do(self, entry: Entry, decided: Decided, *, remember: bool) -> ChangeOutcome:
        resized = []
        for slot, _, decision in decided.update:
            disk = disk_of(entry, slot)
            operation = self.task.request.id
            resized.append(
                ResizeOutcome(self.vm, disk.name, disk.size, disk.size, disk.generation, decision.cause, operation)
            )
        if remember:
            told = [
                {"slot": slot, "old_size": old, "size": old, "generation": each.generation, "cause": each.cause}
                for (slot, old, _), each in zip(decided.update, resized, strict=True)
            ]
            outcome = {"vm_id": entry.vm.id, "added": [], "resized": told, "removed": []}
            with self.task.stage("ledger"), self.site.ledger.deciding() as connection:
                operations.remember(connection, self.task.request, outcome)
        return ChangeOutcome(self.vm, self.task.request.id, resized=tuple(resized))

    def _outcome(self) -> ChangeOutcome:
        with self.site.ledger.reading() as connection:
            done = operations.outcome_of(connection, self.task.request)
            entry = visible(records.read_vm(connection, self.vm), self.vm)
        assert done is not None
        return told(entry, self.task.request, done)


def told(entry: Entry, request: operations.Request, done: dict[str, Any]) -> ChangeOutcome:
    """The outcome of a request as the ledger remembers it. Raises ResourceNotFound where a disk of it is gone again."""
    vm = entry.vm
    added = []
    for disk_id in done["added"]:
        disk = next((disk for disk in vm.disks if disk.id == disk_id), None)
        if disk is None:
            raise ResourceNotFound(
                f"That operation added a disk to {vm.name} before, which has been deleted", "use a new id"
            )
        added.append(disk)
    resized = tuple(
        ResizeOutcome(
            vm.name,
            f"disk{each['slot']}",
            each["old_size"],
            each["size"],
            each["generation"],
            Cause(each["cause"]),
            request.id,
        )
        for each in done["resized"]
    )
    return ChangeOutcome(vm.name, request.id, tuple(added), resized, tuple(done["removed"]))


def undo_after(site: Site, entry: Entry | None, intent: Intent, error: BaseException) -> None:
    """Put back what a change has done that failed, or was cancelled; where even that fails, recovery goes on later.

    A grow that ends in any other way than by an error of ours, or by Ctrl-C, is left for recovery to finish. What the
    ledger has as committed is not undone: Ctrl-C may come between that and our knowing of it.
    """
    if intent.forwards and not isinstance(error, NbdresizeError | KeyboardInterrupt):
        return
    with suppress(NbdresizeError):
        with site.ledger.reading() as connection:
            uncommitted = any(each.id == intent.id and not each.committed for each in records.read_intents(connection))
        if uncommitted:
            recovery.undo(site, entry, intent, error)


def checked_volume(site: Site, disk: Disk) -> Volume:
    """The disk's volume, as long as the ledger says. Raises VolumeFailed, naming it, where it is not, or is gone."""
    volume = site.pool.volume(disk.volume)
    size = volume.size()
    if size != disk.size:
        raise VolumeFailed(
            f"The volume of {disk.export_name}, {volume.path}, has {size} bytes, but the ledger says {disk.size}",
            f"somebody else changed it; when its content is right, set it back with truncate -s {disk.size}",
        )
    return volume


def check_flexible(entry: Entry) -> None:
    """Raises NotAuthorized where the VM's disks are fixed, by its package or by a switch."""
    vm = entry.vm
    if not vm.flexible:
        raise NotAuthorized(
            f"Package {vm.package} of VM {vm.name} has fixed disks", "change to a package with flexible disks first"
        )
    if not vm.allowed.flexible_disks:
        raise NotAuthorized(
            f"Flexible disks are switched off for VM {vm.name}",
            "nbdresize switch list shows where; an operator may set them on",
        )


def protected(vm: str, what: str) -> DeletionProtected:
    """What to raise where deletion protection forbids a change."""
    return DeletionProtected(
        f"VM {vm} is protected from losing data: {what}", f"nbdresize vm update {vm} --no-protected takes that away"
    )


def reread(connection: sql.Connection, name: str) -> Entry:
    """The VM as this transaction has made it."""
    entry = records.read_vm(connection, name)
    assert entry is not None
    return entry


def _going(entry: Entry, decided: Decided) -> list[Disk]:
    """The disks that get smaller or go."""
    slots = [*decided.remove, *(slot for slot, old, each in decided.update if each.size < old)]
    return [disk_of(entry, slot) for slot in slots]


def _grows(decided: Decided) -> bool:
    """Whether there is something to make before it can be committed."""
    return bool(decided.add) or any(each.size > old for _, old, each in decided.update)


def _check_whole(entry: Entry, slots: Sequence[int]) -> None:
    """Raises ResourceInUse where one of these disks is in an earlier change that could not be completed.

    Its deletion ends that, so it has to be one that is never undone.
    """
    for slot in slots:
        disk = disk_of(entry, slot)
        unfinished = entry.intent_of(disk)
        if unfinished is not None:
            raise ResourceInUse(
                f"An earlier {unfinished.label} of {disk.export_name} could not be completed",
                "delete it in a request that neither adds nor grows disks, then do the rest in a second one",
            )


def _slots(decided: Decided) -> set[int]:
    return {slot for slot, old, each in decided.update if each.size != old}


def _steps_of_new(connection: sql.Connection, entry: Entry, decided: Decided, taken: Sequence[str]) -> list[Step]:
    steps = []
    for slot, size in decided.add:
        volume = names.new_volume_name(f"{entry.vm.name}-disk{slot}", taken)
        disk_id = records.insert_disk(connection, entry.vm.id, slot, size, volume)
        steps.append(Step(disk_id, Action.ADD, 0, size))
    return steps


def _steps_of_known(entry: Entry, decided: Decided) -> list[Step]:
    resized = [
        Step(disk_of(entry, slot).id, Action.RESIZE, old, each.size, each.cause)
        for slot, old, each in decided.update
        if each.size != old
    ]
    released = entry.released(decided.remove)
    return [*resized, *(removal(entry, disk_of(entry, slot), released[slot]) for slot in decided.remove)]


def removal(entry: Entry, disk: Disk, charged: int) -> Step:
    """The step that deletes a disk, with what an unfinished rollback was to put in its place.

    It is `charged` until then what the VM is charged less without it.
    """
    return Step(disk.id, Action.REMOVE, charged, 0, staged=entry.staged_of(disk))


def _check_promised(before: Entry, after: Entry) -> None:
    """Raises InsufficientSpace where what was just promised takes a VM past its budget, or further past it."""
    if after.account.used > max(after.vm.budget, before.account.used):
        more = after.account.used - before.account.used
        raise before.account.refuse(f"This change of VM {before.vm.name}", more)


def _arguments(kind: Kind, vm: str, changes: DiskChanges, options: ResizeOptions, preallocate: bool) -> str:
    """What a retry must ask for too."""
    return records.arguments_of(
        kind,
        vm=vm,
        add=[plain(each) for each in changes.add],
        update=[[each.slot, plain(each.size), each.shrink or options.shrink] for each in changes.update],
        remove=list(changes.remove),
        fit=options.fit,
        round_up=options.round_up,
        preallocate=preallocate,
    )


def plain(request: SizeRequest | None) -> int | str | None:
    """A size as the arguments of an operation have it."""
    if request is None or request.exact is not None:
        return None if request is None else request.exact
    return "remaining" if request.remaining else f"+{request.relative}"
