"""Making, updating and deleting VMs."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal

import sqlalchemy as sql

from nbdresize.control import (
    admin_client,
    intents,
    names,
    operations,
    pool,
    records,
    recovery,
    switches,
)
from nbdresize.control.budget import Account, check_budget
from nbdresize.control.catalog_records import account_of, budgets_with, image_size_of
from nbdresize.control.changes import check_changes, decide_changes
from nbdresize.control.disks import plain, protected, removal, reread, undo_after
from nbdresize.control.fence import fenced
from nbdresize.control.images import used
from nbdresize.control.model import VM, ClientResize, Disk, DiskChanges, Image, Package
from nbdresize.control.packages import package_of
from nbdresize.control.packaging import default_disks, package_budget
from nbdresize.control.records import Action, Entry, Intent, Kind, Step
from nbdresize.control.recovery import changing, name_taken
from nbdresize.control.site import Site, no_such_vm, visible
from nbdresize.control.switches import Feature, Scope
from nbdresize.errors import InvalidArgument, LimitExceeded, NbdresizeError, ResourceNotFound
from nbdresize.units import SizeRequest, format_size


@dataclass(frozen=True)
class NewVM:
    """A VM as it is asked for. See Control.create_vm."""

    name: str
    disk_space: int | None = None
    disks: Sequence[SizeRequest | None] | None = None
    package: str | None = None
    image: str | None = None
    owner: str | None = None
    client_resize: ClientResize | None = None
    preallocate: bool = False

    @property
    def arguments(self) -> str:
        return records.arguments_of(
            Kind.CREATE_VM,
            vm=self.name,
            disk_space=self.disk_space,
            disks=None if self.disks is None else [plain(each) for each in self.disks],
            package=self.package,
            image=self.image,
            owner=self.owner,
            client_resize=self.client_resize.value if self.client_resize else None,
            preallocate=self.preallocate,
        )


def create_vm(
    site: Site, new: NewVM, *, operation: str | None = None, listener: operations.Listener = operations.nobody
) -> VM:
    """A new VM with all of these disks, or none of it. See Control.create_vm."""
    _check_form(new)
    request = operations.Request(names.operation_id(operation), Kind.CREATE_VM.value, new.name, new.arguments)
    task = operations.Task(site.ledger, request, listener)
    with changing(site, new.name) as change, ExitStack() as held:
        with site.ledger.reading() as connection:  # a retry is told what it did, also where its image is gone since
            done = operations.outcome_of(connection, request)
            entry = records.read_vm(connection, new.name)
        if done is not None:
            return _made_before(entry, new.name, done["vm_id"])
        change.check_retry(request.id)
        if entry is not None:
            raise name_taken(new.name, change)
        image = held.enter_context(used(site, new.image))
        volumes, pool_terms = site.pool.names(), pool.measured(site)
        with site.ledger.deciding() as connection:
            operations.outcome_of(connection, request)  # the same id may have come with another VM since
            package = None if new.package is None else package_of(connection, new.package)
            budget = _budget(new, package, image)
            pool.check_room(connection, pool_terms, f"VM {new.name} with {format_size(budget)}", budget)
            entry, intent = _promise(connection, new, request, budget, package, image, volumes)
        try:
            for disk in entry.disks:
                _make_volume(site, disk, image, new, task)
            with site.ledger.deciding() as connection:
                intents.commit(connection, intent)
                intents.close(connection, intent, task.stages())
        except BaseException as error:
            undo_after(site, entry, intent, error)
            raise
        return site.entry(new.name).vm


def update_vm(
    site: Site,
    name: str,
    *,
    disk_space: int | None = None,
    package: str | None = None,
    owner: str | None = None,
    client_resize: ClientResize | Literal["default"] | None = None,
    protected: bool | None = None,
    operation: str | None = None,
) -> VM:
    """Change what a VM may. See Control.update_vm."""
    if disk_space is not None:
        check_budget(disk_space)
        if package is not None:
            raise InvalidArgument("A package brings a budget of its own", "give either a package or a budget")
    names.check_owner(owner)
    site.entry(name)
    policy = client_resize.value if isinstance(client_resize, ClientResize) else client_resize
    arguments = records.arguments_of(
        Kind.UPDATE_VM,
        vm=name,
        disk_space=disk_space,
        package=package,
        owner=owner,
        client_resize=policy,
        protected=protected,
    )
    request = operations.Request(names.operation_id(operation), Kind.UPDATE_VM.value, name, arguments)
    with changing(site, name):
        measured = pool.measured(site)
        with site.ledger.deciding() as connection:
            done = operations.outcome_of(connection, request)
            entry = visible(records.read_vm(connection, name), name)
            if done is None:
                _update_budget(connection, measured, entry, disk_space, package)
                if owner is not None:
                    records.update_vm(connection, entry.vm.id, owner=owner)
                if protected is not None:
                    records.update_vm(connection, entry.vm.id, protected=protected)
                if policy is not None:
                    value = None if policy == "default" else policy
                    switches.put(connection, Feature.CLIENT_RESIZE, Scope.VM, str(entry.vm.id), value)
                operations.remember(connection, request, {"vm_id": entry.vm.id})
        return site.entry(name).vm


def delete_vm(site: Site, name: str, *, operation: str | None = None) -> None:
    """Delete a VM with all its disks and snapshots, no disk attached. See Control.delete_vm."""
    names.check_vm_name(name)
    arguments = records.arguments_of(Kind.DELETE_VM, vm=name)
    request = operations.Request(names.operation_id(operation), Kind.DELETE_VM.value, name, arguments)
    with site.ledger.reading() as connection:
        if operations.outcome_of(connection, request) is not None:
            return
        known = records.read_vm(connection, name)
    if known is None:
        raise no_such_vm(name)
    with changing(site, name) as change, ExitStack() as fences:
        with site.ledger.reading() as connection:
            if operations.outcome_of(connection, request) is not None:
                return  # by an earlier run of this operation, which has ended just now
            found = records.read_vm(connection, name)
        if found is None and not known.visible:
            return  # an earlier deletion, or a creation, that was killed: completed just now
        if change.of_the_vm is not None:
            raise change.of_the_vm
        entry = visible(found, name)
        _check_deletable(entry)
        for disk in entry.disks:
            fences.enter_context(fenced(site, disk))
        with site.ledger.deciding() as connection:
            entry, intent, ended = _promise_deletion(connection, request, name)
        try:
            recovery.finish(site, entry, intent)
        except NbdresizeError as error:
            if not ended:
                recovery.take_back(site, entry, intent, error)
            raise
    if entry.disks:
        admin_client.publish(site.state, [disk.export_name for disk in entry.disks])


def _check_form(new: NewVM) -> None:
    names.check_vm_name(new.name)
    names.check_owner(new.owner)
    if (new.disk_space is None) is (new.package is None):
        raise InvalidArgument(
            "A VM gets its budget either as disk space or from a package",
            "give exactly one of --disk-space and --package",
        )
    if new.disk_space is not None:
        check_budget(new.disk_space)
    check_changes(DiskChanges(add=tuple(new.disks or ())), from_image=new.image is not None)


def _budget(new: NewVM, package: Package | None, image: Image | None) -> int:
    """What the VM may take. Raises LimitExceeded for an image larger than the package takes."""
    if image is not None and package is not None:
        _check_image(package, image.name, image.size)
    space = package.disk_space if package is not None else new.disk_space
    assert space is not None
    return check_budget(package_budget(space, image.original_size if image is not None else 0))


def _check_image(package: Package, image: str, size: int) -> None:
    """Raises LimitExceeded for an image of more bytes than the package takes."""
    if package.max_image is not None and size > package.max_image:
        raise LimitExceeded(
            f"Image {image} has {format_size(size)}, but package {package.name} takes images "
            f"of at most {format_size(package.max_image)}",
            "choose a smaller image or another package",
        )


def _promise(
    connection: sql.Connection,
    new: NewVM,
    request: operations.Request,
    budget: int,
    package: Package | None,
    image: Image | None,
    volumes: Sequence[str],
) -> tuple[Entry, Intent]:
    wanted = _disks_of(new, package, image)
    image_size = image.size if image is not None else None
    image_space = package_budget(0, image.original_size) if image is not None else 0
    packages = budgets_with(connection, image_size or 0, image_space) if package is not None else None
    account = Account(new.name, budget, 0, packages=packages, new=True)
    decided = decide_changes(account, {}, DiskChanges(add=wanted), image_size=image_size)
    vm_id = records.insert_vm(
        connection,
        new.name,
        budget,
        new.owner,
        package=package,
        image=image.name if image is not None else None,
        image_space=image_space,
    )
    if new.client_resize is not None:
        switches.put(connection, Feature.CLIENT_RESIZE, Scope.VM, str(vm_id), new.client_resize.value)
    steps = []
    for slot, size in decided.add:
        volume = names.new_volume_name(f"{new.name}-disk{slot}", volumes)
        of_image = image if slot == 0 else None
        disk_id = records.insert_disk(
            connection,
            vm_id,
            slot,
            size,
            volume,
            image=of_image.name if of_image else None,
            minimum=of_image.size if of_image else 0,
        )
        steps.append(Step(disk_id, Action.ADD, 0, size))
    intent = records.open_intent(connection, request, Kind.CREATE_VM, vm_id=vm_id, steps=steps)
    return reread(connection, new.name), intent


def _disks_of(new: NewVM, package: Package | None, image: Image | None) -> tuple[SizeRequest | None, ...]:
    """The disks that were asked for, else those of the package, else the image's alone."""
    if package is not None and not package.flexible and new.disks:
        raise _fixed(package)
    if package is not None and (new.disks is None or not package.flexible):
        wanted = default_disks(
            package.flexible, package.default_disks, package.disk_space, from_image=image is not None
        )
    elif new.disks is None:
        wanted = (None,) if image is not None else ()
    else:
        wanted = tuple(new.disks)
    if image is not None and not wanted:  # else its budget would have the space of an image that it does not hold
        raise InvalidArgument(
            f"VM {new.name} has no disk to make from image {image.name}", "name its disks, or leave the image out"
        )
    if image is None and None in wanted:
        assert package is not None  # what was asked for has been looked at before
        raise InvalidArgument(
            f"Package {package.name} makes the boot disk from an image, and none was named",
            "name one with --image, or give the disks with --disk",
        )
    return wanted


def _fixed(package: Package) -> NbdresizeError:
    return InvalidArgument(
        f"Package {package.name} fixes the disks of its VMs",
        "leave the disks out, or choose a package with flexible disks",
    )


def _make_volume(site: Site, disk: Disk, image: Image | None, new: NewVM, task: operations.Task) -> None:
    if image is not None and disk.image is not None:
        source = site.pool.volume(image.volume).path
        progress = task.progress(f"copying image {image.name}")
        with task.stage("image"):
            site.pool.copy(source, disk.volume, size=disk.size, preallocate=new.preallocate, progress=progress)
        return
    with task.stage("volume"):
        progress = task.progress(f"allocating {disk.export_name}")
        site.pool.create(disk.volume, disk.size, preallocate=new.preallocate, progress=progress)


def _made_before(entry: Entry | None, name: str, vm_id: int) -> VM:
    if entry is None or not entry.visible or entry.vm.id != vm_id:
        raise ResourceNotFound(f"That operation made a VM {name} before, which has been deleted", "use a new id")
    return entry.vm


def _update_budget(
    connection: sql.Connection, measured: pool.Measured, entry: Entry, disk_space: int | None, package: str | None
) -> None:
    """A new budget, or the package that brings one: disks and snapshots have to fit, and the pool to hold it."""
    if disk_space is None and package is None:
        return
    values: dict[str, object] = {}
    if package is not None:
        found = package_of(connection, package)
        if entry.vm.image is not None:
            _check_image(found, entry.vm.image, image_size_of(entry))
        disk_space = check_budget(package_budget(found.disk_space) + entry.vm.image_space)
        values["package_id"] = found.id
    elif entry.vm.package is not None:
        raise InvalidArgument(
            f"The budget of VM {entry.vm.name} comes from its package {entry.vm.package}",
            f"change to another one with nbdresize vm update {entry.vm.name} --package NAME",
        )
    assert disk_space is not None
    account_of(connection, entry, packages=package is not None).check_new_budget(disk_space)
    more = disk_space - entry.vm.budget
    if more > 0:
        what = f"Raising the budget of VM {entry.vm.name} to {format_size(disk_space)}"
        pool.check_room(connection, measured, what, more)
    records.update_vm(connection, entry.vm.id, budget=disk_space, **values)


def _check_deletable(entry: Entry) -> None:
    if entry.vm.protected:
        raise protected(entry.vm.name, "it can't be deleted")


def _promise_deletion(connection: sql.Connection, request: operations.Request, name: str) -> tuple[Entry, Intent, bool]:
    """Record the deletion: from here on it is finished, whatever happens; also whether that ended earlier changes.

    What those have left half done goes with the VM, so there is no way back then.
    """
    entry = visible(records.read_vm(connection, name), name)
    _check_deletable(entry)
    for stuck in entry.intents:
        records.drop_intent(connection, stuck, ResourceNotFound(f"VM {name} was deleted"))
    steps = [removal(entry, disk, disk.size) for disk in entry.disks]
    vm_id = entry.vm.id
    intent = records.open_intent(connection, request, Kind.DELETE_VM, vm_id=vm_id, steps=steps, committed=True)
    return reread(connection, name), replace(intent, committed=True), bool(entry.intents)
