"""The one implementation of each operation on VMs and disks.

The command line, the wire and the plugin all call it. No daemon is needed: the ledger's transactions order the
changes of any number of processes, and locks that end with their process tell who is at work.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from nbdresize.config import StateDirectory
from nbdresize.control import (
    catalog_records,
    disks,
    guest_records,
    images,
    names,
    operation_log,
    packages,
    pool,
    records,
    recovery,
    rollback,
    snapshots,
    switches,
    switching,
    vms,
)
from nbdresize.control.budget import largest
from nbdresize.control.leases import Lease, enter
from nbdresize.control.model import (
    MAX_SNAPSHOTS,
    VM,
    ChangeOutcome,
    ClientResize,
    Disk,
    DiskChanges,
    DiskSource,
    DiskUpdate,
    Guest,
    GuestNote,
    Image,
    Operation,
    Package,
    Pool,
    ResizeOptions,
    ResizeOutcome,
    Snapshot,
    SnapshotReport,
)
from nbdresize.control.operations import Listener, nobody
from nbdresize.control.records import Kind
from nbdresize.control.site import Site, disk_of, open_site
from nbdresize.control.switches import Switches
from nbdresize.control.vms import NewVM
from nbdresize.errors import ResourceNotFound
from nbdresize.units import SizeRequest

if TYPE_CHECKING:
    from nbdresize.control.checks.report import CheckReport

_DEFAULT_OPTIONS = ResizeOptions()


class Control:
    """The VMs and disks of one state directory; safe to call from several threads. Not to be taken through a fork.

    Besides what each method says, all of them raise InvalidArgument for names that can't be, StateUnusable where the
    state directory can't be used (not writable, full, damaged), and ResourceInUse where another process holds the
    ledger, or changes the same VM, for too long.

    An `operation` is an id that the caller makes up for a request: a retry with the same id, within a week, answers
    what the first one did and changes nothing, also where that one was killed. The same id with other arguments
    raises InvalidArgument.
    """

    def __init__(self, site: Site) -> None:
        self._site = site

    @classmethod
    def open(cls, state: StateDirectory, *, create: bool = True) -> Self:
        """The state directory, made where it is missing; what killed processes left is completed.

        With `create` False, a missing one raises StateUnusable.
        """
        site = open_site(state, create=create)
        try:
            recovery.recover_all(site)
        except BaseException:
            site.ledger.close()
            raise
        return cls(site)

    @property
    def state(self) -> StateDirectory:
        return self._site.state

    # VMs

    def create_vm(
        self,
        name: str,
        disk_space: int | None = None,
        disks: Sequence[SizeRequest | None] | None = None,
        *,
        package: str | None = None,
        image: str | None = None,
        owner: str | None = None,
        client_resize: ClientResize | None = None,
        preallocate: bool = False,
        operation: str | None = None,
        listener: Listener = nobody,
    ) -> VM:
        """A new VM with these disks, from disk0 on; all of it, or nothing.

        Its budget is `disk_space` bytes, or that of its `package`, and the original size of its `image`. disk0 is made
        from the image, with the image's size where `disks` says None. Without `disks`, it gets those of its package,
        else the image's. `remaining` is evaluated last. `client_resize`: what its clients may do to sizes; None leaves
        that to the server.

        Raises ResourceInUse where the name is taken, ResourceNotFound for a package or image that is not there,
        InsufficientSpace where the budget does not hold the disks, or the pool the budget, LimitExceeded for more than
        8 disks or an image larger than the package takes.
        """
        new = NewVM(name, disk_space, disks, package, image, owner, client_resize, preallocate)
        return vms.create_vm(self._site, new, operation=operation, listener=listener)

    def vms(self) -> list[VM]:
        """All VMs, by name, as at one moment."""
        with self._site.ledger.reading() as connection:
            return [entry.vm for entry in records.read_vms(connection) if entry.visible]

    def vm(self, name: str) -> VM:
        """Raises ResourceNotFound."""
        return self._site.entry(name).vm

    def update_vm(
        self,
        name: str,
        disk_space: int | None = None,
        *,
        package: str | None = None,
        owner: str | None = None,
        client_resize: ClientResize | Literal["default"] | None = None,
        protected: bool | None = None,
        operation: str | None = None,
    ) -> VM:
        """Change the budget of a VM, its package, its owner, its protection, or what its clients may do to sizes.

        What is None stays as it is; "default" leaves `client_resize` to the server, which heeds it from the next
        request on. Raises ResourceNotFound, InsufficientSpace where disks and snapshots don't fit the new budget, or
        the pool does not hold it, InvalidArgument for a budget where a package gives it.
        """
        return vms.update_vm(
            self._site,
            name,
            disk_space=disk_space,
            package=package,
            owner=owner,
            client_resize=client_resize,
            protected=protected,
            operation=operation,
        )

    def delete_vm(self, name: str, *, operation: str | None = None) -> None:
        """Delete a VM with all its disks and snapshots.

        Raises ResourceNotFound, DeletionProtected, ResourceInUse where a client is attached.
        """
        vms.delete_vm(self._site, name, operation=operation)

    # Disks

    def disk(self, vm: str, disk_name: str) -> Disk:
        """Raises ResourceNotFound."""
        return self._site.disk(vm, disk_name)

    def change_disks(
        self,
        vm: str,
        changes: DiskChanges,
        options: ResizeOptions = _DEFAULT_OPTIONS,
        *,
        preallocate: bool = False,
        operation: str | None = None,
        listener: Listener = nobody,
    ) -> ChangeOutcome:
        """Add, resize and delete disks: all of it happens, or nothing; decided on the state after all of it.

        So space moves from one disk to another in one step. Raises what the changes one by one would raise.
        """
        return disks.change_disks(
            self._site, vm, changes, options, preallocate=preallocate, operation=operation, listener=listener
        )

    def add_disk(
        self,
        vm: str,
        size: SizeRequest,
        *,
        preallocate: bool = False,
        operation: str | None = None,
        listener: Listener = nobody,
    ) -> Disk:
        """A new disk in the first empty slot.

        Raises ResourceNotFound, InsufficientSpace, LimitExceeded, NotAuthorized where the VM's disks are fixed.
        """
        outcome = disks.change_disks(
            self._site,
            vm,
            DiskChanges(add=(size,)),
            _DEFAULT_OPTIONS,
            kind=Kind.ADD_DISK,
            preallocate=preallocate,
            operation=operation,
            listener=listener,
        )
        return outcome.added[0]

    def delete_disk(self, vm: str, disk_name: str, *, operation: str | None = None) -> None:
        """Delete a disk, not the boot disk; snapshots keep what they hold of it.

        Raises ResourceNotFound, DeletionProtected, ResourceInUse where a client is attached, NotAuthorized where the
        VM's disks are fixed.
        """
        changes = DiskChanges(remove=(names.disk_slot(disk_name),))
        disks.change_disks(self._site, vm, changes, _DEFAULT_OPTIONS, kind=Kind.DELETE_DISK, operation=operation)

    def resize_disk(
        self,
        vm: str,
        disk_name: str,
        size: SizeRequest,
        options: ResizeOptions = _DEFAULT_OPTIONS,
        *,
        operation: str | None = None,
        holding: Lease | None = None,
        listener: Listener = nobody,
    ) -> ResizeOutcome:
        """Resize a disk, in use or not; when this returns, every server that answers uses the new size.

        `holding` is the caller's own lease on the disk, for a client that shrinks as the only one; it is shared
        again afterwards. Raises ResourceNotFound, InsufficientSpace, NotAuthorized for a smaller size without
        `shrink` and where the VM's disks are fixed, DeletionProtected, ResourceInUse where a disk to be shrunk is
        attached, VolumeFailed.
        """
        outcome = disks.change_disks(
            self._site,
            vm,
            DiskChanges(update=(DiskUpdate(names.disk_slot(disk_name), size),)),
            options,
            kind=Kind.RESIZE_DISK,
            operation=operation,
            holding=holding,
            listener=listener,
        )
        return outcome.resized[0]

    def maximum(self, vm: str, disk_name: str) -> int:
        """The largest size in bytes that the disk may get now, by budget and leave; never less than it has."""
        entry = self._site.entry(vm)
        disk = disk_of(entry, names.disk_slot(disk_name))
        may_grow = entry.vm.flexible and entry.vm.allowed.flexible_disks
        return largest(entry.account, disk.size) if may_grow else disk.size

    def take_lease(self, vm: str, disk_name: str, wait: float = 2.0) -> tuple[Disk, Lease]:
        """A shared lease for one more connection, and the disk as it is now that it can't be shrunk or deleted.

        Raises ResourceNotFound, ResourceInUse where it is being shrunk or deleted, or its door is closed, for longer
        than `wait` seconds.
        """
        disk = self._whole_disk(vm, disk_name, wait)
        path = self._site.lease(disk)
        lease = enter(self._site.state.leases, disk.volume, wait)
        try:
            now = self._whole_disk(vm, disk_name, wait)
            if now.volume != disk.volume:
                raise ResourceNotFound(f"{disk.export_name} was just replaced by another disk", "try again")
        except ResourceNotFound:
            lease.release()
            with suppress(OSError):  # deleted since the look at the ledger: ours is the file's last use
                path.unlink(missing_ok=True)
            raise
        except BaseException:
            lease.release()
            raise
        return now, lease

    def _whole_disk(self, vm: str, disk_name: str, wait: float) -> Disk:
        """The disk as it is now; a rollback whose process was killed is finished first."""
        slot = names.disk_slot(disk_name)
        entry = self._site.entry(vm)
        intent = entry.intent_of(disk_of(entry, slot))
        if intent is not None and intent.kind is Kind.ROLL_BACK and intent.committed:
            with recovery.changing(self._site, vm, wait) as change:
                recovery.held_up(disk_of(entry, slot), change)
            entry = self._site.entry(vm)
        return disk_of(entry, slot)

    # Snapshots

    def create_snapshot(
        self, vm: str, name: str, *, operation: str | None = None, listener: Listener = nobody
    ) -> Snapshot:
        """All disks of the VM as they are at one instant, also while clients write to them.

        Where the pool's file system can share blocks, that takes a moment; else, and for disks whose space is
        reserved, they are copied while they are used. Clients get no answer for the instant itself, a second at most.
        What a client was told was written before, is in it.

        Raises ResourceNotFound, also for a VM without disks, NotAuthorized where snapshots are switched off,
        LimitExceeded, InsufficientSpace where the budget or the pool has no room, ResourceInUse where the name is
        taken, or clients write faster than can be copied, ServerFailed where clients are attached to a server that
        does not answer, OperationCancelled, VolumeFailed.
        """
        return snapshots.create_snapshot(self._site, vm, name, operation=operation, listener=listener)

    def snapshots(self, vm: str) -> list[Snapshot]:
        """The snapshots of a VM, the oldest first, without a look at their volumes. Raises ResourceNotFound."""
        return snapshots.snapshots(self._site, vm)

    def snapshot_report(self, vm: str) -> SnapshotReport:
        """The snapshots of a VM, and what they hold and would free as it is now, which takes a look at all of them.

        Raises ResourceNotFound, VolumeFailed.
        """
        return snapshots.report(self._site, vm)

    def delete_snapshot(self, vm: str, name: str, *, operation: str | None = None) -> None:
        """Delete a snapshot, and charge what is left anew; of protected VMs too, since no disk loses anything.

        Raises ResourceNotFound, VolumeFailed.
        """
        snapshots.delete_snapshot(self._site, vm, name, operation=operation)

    def rollback(
        self,
        vm: str,
        name: str,
        *,
        disconnect: bool = False,
        operation: str | None = None,
        listener: Listener = nobody,
    ) -> ChangeOutcome:
        """Give all disks of a snapshot the content and the size that they had; what was written since is lost.

        Disks that were deleted since come back, those that were added stay; so do all snapshots. `disconnect` drops
        clients first.

        Raises ResourceNotFound, NotAuthorized where snapshots are switched off, or sizes would change that are fixed,
        DeletionProtected, ResourceInUse where a disk is attached, or its slot taken by another disk, InsufficientSpace,
        OperationCancelled, VolumeFailed.
        """
        return rollback.roll_back(self._site, vm, name, disconnect=disconnect, operation=operation, listener=listener)

    # Guests

    def attach_guest(
        self,
        vm: str,
        qmp: Path,
        agent: Path | None = None,
        notes: Mapping[str, GuestNote] | None = None,
        *,
        operation: str | None = None,
    ) -> Guest:
        """Remember where the QEMU that runs this VM's guest is reached, in place of an earlier one.

        `qmp` is the path of its QMP socket, `agent` that of its guest agent, both absolute; nobody is asked whether
        anything listens there. `notes` is what it knows of each disk, by name. Raises ResourceNotFound.
        """
        return guest_records.attach_guest(self._site, vm, qmp, agent, notes or {}, operation=operation)

    def detach_guest(self, vm: str, *, operation: str | None = None) -> None:
        """Forget the guest of a VM, which goes on as it is. Raises ResourceNotFound, also where there is none."""
        guest_records.detach_guest(self._site, vm, operation=operation)

    def guest(self, vm: str) -> Guest | None:
        """The guest of a VM; None where none is attached. Raises ResourceNotFound for a VM that is not there."""
        return guest_records.guest(self._site, vm)

    def guests(self) -> list[Guest]:
        """All guests, by the names of their VMs."""
        return guest_records.guests(self._site)

    def note_guest(self, vm: str, notes: Mapping[str, GuestNote], of: Guest | None = None) -> None:
        """Keep what the guest of a VM was told of these disks, by name; nothing where it has gone meanwhile.

        Nor where another has taken the place of `of`, nor of a disk whose newest size another command has told it.
        """
        guest_records.note_guest(self._site, vm, notes, of)

    # Switches

    def switches(self) -> Switches:
        """Everything that is switched."""
        with self._site.ledger.reading() as connection:
            return switches.read_named(connection)

    def set_switch(
        self,
        feature: str,
        value: str,
        *,
        vm: str | None = None,
        owner: str | None = None,
        operation: str | None = None,
    ) -> Switches:
        """Set client_resize (off, grow, all), snapshots or flexible_disks (off, on) for a VM, an owner, or the site.

        The strictest that is set for a VM holds, from the next request on, for clients that are attached too. Raises
        InvalidArgument, ResourceNotFound.
        """
        return switching.set_switch(self._site, feature, value, vm=vm, owner=owner, operation=operation)

    def unset_switch(
        self, feature: str, *, vm: str | None = None, owner: str | None = None, operation: str | None = None
    ) -> Switches:
        """Take a switch away again. Raises InvalidArgument, ResourceNotFound where there is none."""
        return switching.set_switch(self._site, feature, None, vm=vm, owner=owner, operation=operation)

    def allow(self, feature: str, *owners: str, operation: str | None = None) -> Switches:
        """Put owners on the feature's list: it is off for the VMs of all others, and for VMs without an owner.

        Raises InvalidArgument.
        """
        return switching.set_allowed(self._site, feature, owners, allowed=True, operation=operation)

    def disallow(self, feature: str, *owners: str, operation: str | None = None) -> Switches:
        """Take owners off the feature's list; with the last of them, the list is gone, and all may use it again.

        Raises InvalidArgument, ResourceNotFound.
        """
        return switching.set_allowed(self._site, feature, owners, allowed=False, operation=operation)

    # Packages and images

    def create_package(
        self,
        name: str,
        disk_space: int,
        *,
        flexible: bool = True,
        default_disks: Sequence[SizeRequest | None] = (),
        max_image: int | None = None,
        snapshot_limit: int = MAX_SNAPSHOTS,
        operation: str | None = None,
    ) -> Package:
        """A new package: VMs that have it get `disk_space` bytes, besides what their image adds.

        `default_disks` are those of a VM that asks for none; None among them is the image's size. Without `flexible`,
        VMs get the image's disk and one of `disk_space`, for good. `max_image` is the largest image that it takes.
        Raises ResourceInUse where the name is taken, InvalidArgument also for default disks that no VM could get.
        """
        return packages.create_package(
            self._site,
            name,
            disk_space,
            flexible=flexible,
            default_disks=default_disks,
            max_image=max_image,
            snapshot_limit=snapshot_limit,
            operation=operation,
        )

    def packages(self) -> list[Package]:
        """All packages, by name."""
        with self._site.ledger.reading() as connection:
            return catalog_records.read_packages(connection)

    def package(self, name: str) -> Package:
        """Raises ResourceNotFound."""
        with self._site.ledger.reading() as connection:
            return packages.package_of(connection, name)

    def delete_package(self, name: str, *, operation: str | None = None) -> None:
        """Raises ResourceNotFound, ResourceInUse while VMs have it."""
        packages.delete_package(self._site, name, operation=operation)

    def add_image(
        self,
        name: str,
        source: Path | DiskSource,
        *,
        original_size: int | None = None,
        operation: str | None = None,
        listener: Listener = nobody,
    ) -> Image:
        """A new image: a copy of a raw file or block device, of a disk of a VM, or of a disk of a snapshot.

        A size that is no multiple of 4096 is rounded up, with zeroes. `original_size` is what the image adds to the
        budget of a VM made from it: by default its size, and of a disk, what the image added that the disk came
        from. What it takes is promised of the pool. A disk that clients have attached is copied as at one instant
        where copies share blocks; elsewhere clients are kept from the disk until it is copied.

        Raises ResourceNotFound, ResourceInUse where the name is taken, or clients are attached to a disk that can't be
        copied at one instant; InvalidArgument for an empty file, or one that is not raw; InsufficientSpace.
        """
        return images.add_image(
            self._site, name, source, original_size=original_size, operation=operation, listener=listener
        )

    def images(self) -> list[Image]:
        """All images, by name."""
        return images.images(self._site)

    def image(self, name: str) -> Image:
        """Raises ResourceNotFound."""
        return images.image(self._site, name)

    def delete_image(self, name: str, *, operation: str | None = None) -> None:
        """Delete an image; the disks made from it stay as they are.

        Raises ResourceNotFound, ResourceInUse while a disk is being made from it.
        """
        images.delete_image(self._site, name, operation=operation)

    # The pool

    def pool(self) -> Pool:
        """What the pool holds, and how much of it is promised. Raises VolumeFailed where it can't be seen."""
        return pool.read_pool(self._site)

    def update_pool(
        self, *, capacity: int | None = None, overcommit: str | None = None, operation: str | None = None
    ) -> Pool:
        """Change what the pool may promise; None leaves it as it is.

        `capacity` in bytes, 0 for that of its file system; `overcommit` how many times it may be promised: a number,
        or "unlimited". What is promised already stays so. Raises InvalidArgument.
        """
        return pool.update_pool(self._site, capacity=capacity, overcommit=overcommit, operation=operation)

    # Operations

    def operations(
        self, *, vm: str | None = None, running: bool = False, limit: int = operation_log.MOST_LISTED
    ) -> list[Operation]:
        """Those that run, and the last `limit` of those of the last week, the newest first; all, or those of a `vm`.

        With `running`, only those that run.
        """
        with self._site.ledger.reading() as connection:
            return operation_log.read_all(connection, vm=vm, running=running, limit=limit)

    def operation(self, operation: str) -> Operation:
        """Raises ResourceNotFound."""
        with self._site.ledger.reading() as connection:
            return operation_log.read(connection, names.operation_id(operation))

    def cancel_operation(self, operation: str) -> Operation:
        """Have a running operation undo itself, which its next look at its progress does.

        Raises ResourceNotFound, ResourceInUse where it has ended.
        """
        with self._site.ledger.deciding() as connection:
            return operation_log.ask_to_cancel(connection, names.operation_id(operation))

    # All of it

    def check(self, *, repair: bool = False, listener: Listener = nobody) -> "CheckReport":
        """Whether ledger, volumes, other files and running servers agree; everything that is wrong, and the way out.

        Servers and other commands may go on: what they are just changing is skipped, and named. With `repair`, what
        can be put right without losing anything is. Raises StateUnusable where the ledger can't be read at all.
        """
        from nbdresize.control.check import check  # imported here: no other command needs all of that

        return check(self._site, repair=repair, listener=listener)

    def close(self) -> None:
        self._site.ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
