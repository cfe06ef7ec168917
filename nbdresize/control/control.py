"""The one implementation of each operation on VMs and disks.

The command line, the wire and the plugin all call it. No daemon is needed: the ledger's transactions order the
changes of any number of processes, and locks that end with their process tell who is at work.
"""

from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self

from nbdresize.config import StateDirectory
from nbdresize.control import create, delete, names, records, recovery, resize
from nbdresize.control.budget import check_budget, largest
from nbdresize.control.leases import Lease, enter
from nbdresize.control.model import VM, ClientResize, Disk, ResizeOptions, ResizeOutcome
from nbdresize.control.site import Site, disk_of, open_site, visible
from nbdresize.errors import ResourceNotFound
from nbdresize.units import SizeRequest

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

    def create_vm(
        self,
        name: str,
        disk_space: int,
        disks: Sequence[SizeRequest] = (),
        *,
        owner: str | None = None,
        client_resize: ClientResize | None = None,
        preallocate: bool = False,
        operation: str | None = None,
    ) -> VM:
        """A new VM with a budget of `disk_space` bytes and these disks, from disk0 on; all of it, or nothing.

        `client_resize`: what its clients may do to sizes; None leaves that to the server.

        `remaining` is evaluated last. Raises ResourceInUse where the name is taken, InsufficientSpace where the
        budget (or the pool, with `preallocate`) does not hold the disks, LimitExceeded for more than 8.
        """
        return create.create_vm(
            self._site,
            name,
            disk_space,
            disks,
            owner=owner,
            client_resize=client_resize,
            preallocate=preallocate,
            operation=operation,
        )

    def vms(self) -> list[VM]:
        """All VMs, by name, as at one moment."""
        with self._site.ledger.reading() as connection:
            return [entry.vm for entry in records.read_vms(connection) if entry.visible]

    def vm(self, name: str) -> VM:
        """Raises ResourceNotFound."""
        return self._site.entry(name).vm

    def disk(self, vm: str, disk_name: str) -> Disk:
        """Raises ResourceNotFound."""
        return self._site.disk(vm, disk_name)

    def update_vm(
        self,
        name: str,
        disk_space: int | None = None,
        *,
        client_resize: ClientResize | Literal["default"] | None = None,
    ) -> VM:
        """Change the budget of a VM, to no less than its disks take, or what its clients may do to sizes.

        What is None stays as it is; "default" leaves it to the server. Servers heed it from the next request on.
        Raises ResourceNotFound, InsufficientSpace.
        """
        if disk_space is not None:
            check_budget(disk_space)
        self._site.entry(name)
        with recovery.changing(self._site, name):
            with self._site.ledger.deciding() as connection:
                entry = visible(records.read_vm(connection, name), name)
                if disk_space is not None:
                    entry.account.check_new_budget(disk_space)
                    records.set_budget(connection, entry.vm.id, disk_space)
                if client_resize is not None:
                    policy = None if client_resize == "default" else client_resize
                    records.set_client_resize(connection, entry.vm.id, policy)
            return self.vm(name)

    def delete_vm(self, name: str) -> None:
        """Delete a VM with all its disks. Raises ResourceNotFound, ResourceInUse where a client is attached."""
        delete.delete_vm(self._site, name)

    def add_disk(self, vm: str, size: SizeRequest, *, preallocate: bool = False, operation: str | None = None) -> Disk:
        """A new disk in the first empty slot. Raises ResourceNotFound, InsufficientSpace, LimitExceeded."""
        return create.add_disk(self._site, vm, size, preallocate=preallocate, operation=operation)

    def delete_disk(self, vm: str, disk_name: str) -> None:
        """Delete a disk, not the boot disk. Raises ResourceNotFound, ResourceInUse where a client is attached."""
        delete.delete_disk(self._site, vm, disk_name)

    def resize_disk(
        self,
        vm: str,
        disk_name: str,
        size: SizeRequest,
        options: ResizeOptions = _DEFAULT_OPTIONS,
        *,
        operation: str | None = None,
        holding: Lease | None = None,
    ) -> ResizeOutcome:
        """Resize a disk, in use or not; when this returns, every server that answers uses the new size.

        `holding` is the caller's own lease on the disk, for a client that shrinks as the only one; it is shared
        again afterwards. Raises ResourceNotFound, InsufficientSpace, NotAuthorized for a smaller size without
        `shrink`, ResourceInUse where a disk to be shrunk is attached, VolumeFailed.
        """
        return resize.resize_disk(self._site, vm, disk_name, size, options, operation=operation, holding=holding)

    def maximum(self, vm: str, disk_name: str) -> int:
        """The largest size in bytes that the budget allows the disk now; never less than it has."""
        entry = self._site.entry(vm)
        disk = disk_of(entry, names.disk_slot(disk_name))
        return largest(entry.account, disk.size)

    def take_lease(self, vm: str, disk_name: str, wait: float = 2.0) -> tuple[Disk, Lease]:
        """A shared lease for one more connection, and the disk as it is now that it can't be shrunk or deleted.

        Raises ResourceNotFound, ResourceInUse where it is being shrunk or deleted, or its door is closed, for longer
        than `wait` seconds.
        """
        disk = self.disk(vm, disk_name)
        path = self._site.lease(disk)
        lease = enter(self._site.state.leases, disk.volume, wait)
        try:
            now = self.disk(vm, disk_name)
            if now.id != disk.id:
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

    def close(self) -> None:
        self._site.ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
