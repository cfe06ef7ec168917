"""Resizing a disk, step by step (the order is the promise; recovery relies on it).

Growing: reserve in the ledger → extend the volume → set the size → publish. Shrinking: fence → set the size →
publish → truncate → close the intent; so a write in flight never re-extends a truncated volume.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import sqlalchemy as sql

from nbdresize.control import admin_client, names, records, recovery
from nbdresize.control.changes import Decision, decide_resize
from nbdresize.control.fence import fenced
from nbdresize.control.leases import Lease
from nbdresize.control.model import Cause, Disk, ResizeOptions, ResizeOutcome, Stage
from nbdresize.control.records import Intent, Kind, ResizeIntent
from nbdresize.control.recovery import Change, changing, finish_resize, held_up
from nbdresize.control.site import Site, disk_of, visible
from nbdresize.control.size_requests import check_request
from nbdresize.errors import NbdresizeError, ResourceInUse, VolumeFailed
from nbdresize.storage.volume import Volume
from nbdresize.units import SizeRequest


@dataclass
class _Clock:
    """The seconds that each stage has taken so far, in the order in which they began."""

    seconds: dict[str, float] = field(default_factory=dict)
    servers: Stage | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start

    def publish(self, site: Site, disk: Disk) -> None:
        self.seconds.setdefault("servers", 0.0)
        self.servers = admin_client.publish(site.state, [disk.export_name])

    def stages(self) -> tuple[Stage, ...]:
        return tuple(
            self.servers if name == "servers" and self.servers else Stage(name, seconds)
            for name, seconds in self.seconds.items()
        )


@dataclass(frozen=True)
class Resize:
    """One request to resize one disk."""

    site: Site
    vm: str
    slot: int
    request: SizeRequest
    options: ResizeOptions
    operation: str
    clock: _Clock = field(default_factory=_Clock)

    @property
    def arguments(self) -> str:
        return records.arguments_of(
            Kind.RESIZE_DISK,
            vm=self.vm,
            slot=self.slot,
            exact=self.request.exact,
            relative=self.request.relative,
            remaining=self.request.remaining,
            shrink=self.options.shrink,
            fit=self.options.fit,
            round_up=self.options.round_up,
        )

    def run(self, change: Change, holding: Lease | None, *, remember: bool) -> ResizeOutcome:
        """Resize, with the lock of the VM held."""
        with self.clock.stage("ledger"), self.site.ledger.reading() as connection:
            disk = self._disk(connection)
            done = records.outcome_of(connection, self.operation, self.arguments)
        if done is not None:
            return self._outcome(disk, done["old_size"], done["size"], done["generation"], Cause(done["cause"]))
        held_up(disk, change)
        with self.clock.stage("volume"):
            volume = checked_volume(self.site, disk)
        with self.site.ledger.reading() as connection:
            disk, decision = self._decide(connection)
        if decision.size > disk.size:
            return self._grow(volume)
        if decision.size < disk.size:
            with fenced(self.site, disk, disconnect=self.options.disconnect, holding=holding):
                return self._shrink(volume)
        outcome = self._outcome(disk, disk.size, disk.size, disk.generation, decision.cause)
        if remember:
            with self.clock.stage("ledger"), self.site.ledger.deciding() as connection:
                records.remember(connection, self.operation, self.arguments, _kept(outcome))
        return outcome

    def _disk(self, connection: sql.Connection) -> Disk:
        return disk_of(visible(records.read_vm(connection, self.vm), self.vm), self.slot)

    def _decide(self, connection: sql.Connection) -> tuple[Disk, Decision]:
        entry = visible(records.read_vm(connection, self.vm), self.vm)
        disk = disk_of(entry, self.slot)
        return disk, decide_resize(entry.account, disk.export_name, disk.size, self.request, self.options)

    def _intend(self, connection: sql.Connection, *, growing: bool) -> tuple[Disk, Intent]:
        """Decide once more, inside the transaction that records the promise."""
        entry = visible(records.read_vm(connection, self.vm), self.vm)
        disk, decision = self._decide(connection)
        if disk.pending_size is not None or decision.size == disk.size or (decision.size > disk.size) is not growing:
            raise ResourceInUse(f"{disk.export_name} was changed by another command", "try again")
        return disk, records.open_intent(
            connection,
            self.operation,
            Kind.RESIZE_DISK,
            self.arguments,
            entry.vm.id,
            disk.id,
            resize=ResizeIntent(disk.size, decision.size, decision.cause),
        )

    def _grow(self, volume: Volume) -> ResizeOutcome:
        with self.clock.stage("ledger"), self.site.ledger.deciding() as connection:
            disk, intent = self._intend(connection, growing=True)
        try:
            with self.clock.stage("volume"):
                volume.grow(intent.resize.new_size)
        except NbdresizeError:
            recovery.undo_grow(self.site, intent, volume)
            raise
        with self.clock.stage("ledger"):
            generation = finish_resize(self.site, disk, intent)
        return self._outcome(disk, disk.size, intent.resize.new_size, generation, intent.resize.cause)

    def _shrink(self, volume: Volume) -> ResizeOutcome:
        with self.clock.stage("ledger"), self.site.ledger.deciding() as connection:
            disk, intent = self._intend(connection, growing=False)
            records.set_size(connection, disk, intent.resize.new_size)
        self.clock.publish(self.site, disk)
        try:
            with self.clock.stage("volume"):
                volume.shrink(intent.resize.new_size)
        except NbdresizeError:
            recovery.undo_shrink(self.site, disk, intent, volume)
            self.clock.publish(self.site, disk)
            raise
        with self.clock.stage("ledger"):
            generation = finish_resize(self.site, disk, intent)
        return self._outcome(disk, disk.size, intent.resize.new_size, generation, intent.resize.cause)

    def _outcome(self, disk: Disk, old_size: int, size: int, generation: int, cause: Cause) -> ResizeOutcome:
        stages = self.clock.stages()
        return ResizeOutcome(self.vm, disk.name, old_size, size, generation, cause, self.operation, stages)


def resize_disk(
    site: Site,
    vm: str,
    disk_name: str,
    request: SizeRequest,
    options: ResizeOptions,
    *,
    operation: str | None,
    holding: Lease | None,
) -> ResizeOutcome:
    """Resize a disk. See Control.resize_disk."""
    check_request(request, fit=options.fit)
    disk = site.disk(vm, disk_name)
    resize = Resize(site, vm, disk.slot, request, options, names.operation_id(operation))
    with changing(site, vm, options.wait, options.wanted) as change:
        outcome = resize.run(change, holding, remember=operation is not None)
    if "servers" not in resize.clock.seconds:
        # Also where nothing changed: an earlier command may have been killed before it told the servers.
        resize.clock.publish(site, disk)
    return replace(outcome, stages=resize.clock.stages())


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


def _kept(outcome: ResizeOutcome) -> dict[str, int]:
    """What a retry is told; `recovery.finish_resize` keeps the same."""
    return {
        "old_size": outcome.old_size,
        "size": outcome.size,
        "generation": outcome.generation,
        "cause": outcome.cause,
    }
