"""Packages: what VMs are sold as. Made, looked up and deleted; what a VM gets of its package stands in `packaging`."""

from collections.abc import Sequence

import sqlalchemy as sql

from nbdresize.control import catalog_records, names, operations, records
from nbdresize.control.budget import check_budget
from nbdresize.control.changes import check_changes
from nbdresize.control.disks import plain
from nbdresize.control.model import MAX_DISKS, MAX_SNAPSHOTS, DiskChanges, Package
from nbdresize.control.records import Kind
from nbdresize.control.site import Site
from nbdresize.control.size_requests import is_number, shown_number
from nbdresize.errors import InvalidArgument, LimitExceeded, ResourceInUse, ResourceNotFound
from nbdresize.units import GRANULARITY, MAX_SIZE, SizeRequest, format_size

MOST_SNAPSHOTS = 10_000
"""The largest limit of snapshots that a package may have."""

_NAMED = 3


def create_package(
    site: Site,
    name: str,
    disk_space: int,
    *,
    flexible: bool = True,
    default_disks: Sequence[SizeRequest | None] = (),
    max_image: int | None = None,
    snapshot_limit: int = MAX_SNAPSHOTS,
    operation: str | None = None,
) -> Package:
    """A new package. See Control.create_package."""
    names.check_name(name, "a package")
    check_budget(disk_space)
    _check_limits(max_image, snapshot_limit)
    _check_default_disks(flexible, disk_space, tuple(default_disks), max_image)
    arguments = records.arguments_of(
        Kind.CREATE_PACKAGE,
        name=name,
        disk_space=disk_space,
        flexible=flexible,
        default_disks=[plain(each) for each in default_disks],
        max_image=max_image,
        snapshot_limit=snapshot_limit,
    )
    request = operations.Request(names.operation_id(operation), Kind.CREATE_PACKAGE.value, name, arguments)
    with site.ledger.deciding() as connection:
        done = operations.outcome_of(connection, request)
        found = catalog_records.read_package(connection, name)
        if done is not None:
            if found is None or found.id != done["package_id"]:
                raise ResourceNotFound(
                    f"That operation made a package {name} before, which has been deleted", "use a new id"
                )
            return found
        if found is not None:
            raise ResourceInUse(f"There is a package {name} already", "choose another name, or delete that one first")
        package_id = catalog_records.insert_package(
            connection,
            name,
            disk_space,
            flexible=flexible,
            default_disks=default_disks,
            max_image=max_image,
            snapshot_limit=snapshot_limit,
        )
        operations.remember(connection, request, {"package_id": package_id})
        return package_of(connection, name)


def delete_package(site: Site, name: str, *, operation: str | None = None) -> None:
    """Delete a package that no VM has. See Control.delete_package."""
    names.check_name(name, "a package")
    arguments = records.arguments_of(Kind.DELETE_PACKAGE, name=name)
    request = operations.Request(names.operation_id(operation), Kind.DELETE_PACKAGE.value, name, arguments)
    with site.ledger.deciding() as connection:
        if operations.outcome_of(connection, request) is not None:
            return
        package = package_of(connection, name)
        vms = catalog_records.vms_of_package(connection, package.id)
        if vms:
            more = f" and {len(vms) - _NAMED} more" if len(vms) > _NAMED else ""
            noun = "VM" if len(vms) == 1 else "VMs"
            raise ResourceInUse(
                f"Package {name} is that of {noun} {', '.join(vms[:_NAMED])}{more}",
                "give them another one with nbdresize vm update VM --package NAME, or delete them",
            )
        catalog_records.delete_package(connection, package.id)
        operations.remember(connection, request, {})


def package_of(connection: sql.Connection, name: str) -> Package:
    """The package of that name. Raises InvalidArgument, ResourceNotFound with the names of those there are."""
    names.check_name(name, "a package")
    package = catalog_records.read_package(connection, name)
    if package is None:
        there = ", ".join(each.name for each in catalog_records.read_packages(connection))
        raise ResourceNotFound(
            f"There is no package {name}", f"there are {there or 'none'}; nbdresize package create makes one"
        )
    return package


def _check_limits(max_image: int | None, snapshot_limit: int) -> None:
    if max_image is not None and (not is_number(max_image) or not 0 < max_image <= MAX_SIZE):
        raise InvalidArgument(
            f"{shown_number(max_image)} bytes can't be the largest image of a package",
            "give a size such as 20G, or leave it out to take images of any size",
        )
    if not is_number(snapshot_limit) or not 0 <= snapshot_limit <= MOST_SNAPSHOTS:
        raise InvalidArgument(
            f"{shown_number(snapshot_limit)} can't be a limit of snapshots", f"give a number from 0 to {MOST_SNAPSHOTS}"
        )


def _check_default_disks(
    flexible: bool, disk_space: int, disks: tuple[SizeRequest | None, ...], max_image: int | None
) -> None:
    """Raises InvalidArgument or LimitExceeded for default disks that no VM of the package could ever get."""
    if disks and not flexible:
        raise InvalidArgument(
            "A package with fixed disks has no default disks of its own: its VMs get the image's and one of its space",
            "leave them out, or make the package flexible",
        )
    if len(disks) > MAX_DISKS:
        raise LimitExceeded(f"{len(disks)} default disks are more than the {MAX_DISKS} of a VM", "name fewer")
    check_changes(DiskChanges(add=disks), from_image=True)
    needed = _least_needed(disks, max_image)
    if needed > disk_space:
        raise InvalidArgument(
            f"The default disks need at least {format_size(needed)} besides what an image may bring, "
            f"but the package has {format_size(disk_space)}",
            "name fewer or smaller disks, or give the package more space",
        )


def _least_needed(disks: tuple[SizeRequest | None, ...], max_image: int | None) -> int:
    """What the disks take of the package at the very least.

    An image adds at most its own size to the budget, and a boot disk that is made from it is no smaller than it is: so
    the image's disk, or what remains as the boot disk, may cost the package nothing, and one of a given size what
    the largest image can't bring.
    """
    needed = 0
    for index, request in enumerate(disks):
        if request is None or (request.remaining and index == 0):
            continue
        size = GRANULARITY if request.exact is None else request.exact
        brought = 0 if index else size if max_image is None else min(size, max_image)
        needed += size - brought
    return needed
