"""Packages and images in the ledger. Every function works inside the caller's transaction. Sizes in bytes."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sql

from nbdresize.control import schema
from nbdresize.control.budget import Account
from nbdresize.control.model import Image, Package
from nbdresize.control.records import Entry
from nbdresize.units import REMAINING, SizeRequest


def account_of(connection: sql.Connection, entry: Entry, *, packages: bool = False) -> Account:
    """The account of a VM for a decision; of one with a package, with the budgets that other packages would give.

    `packages`: also of one without, since it is to get one. A package that does not take its image gives it none.
    """
    account = entry.account
    if entry.vm.package is None and not packages:
        return account
    return replace(account, packages=budgets_with(connection, image_size_of(entry), entry.vm.image_space))


def budgets_with(connection: sql.Connection, image_size: int, image_space: int) -> dict[str, int]:
    """The budget that each package that takes such an image gives, by name; `image_space` is what the image adds."""
    return {
        each.name: each.disk_space + image_space
        for each in read_packages(connection)
        if each.max_image is None or image_size <= each.max_image
    }


def image_size_of(entry: Entry) -> int:
    """The size of the image that a VM was made from, which may be gone; 0 where it was made from none."""
    return max((disk.minimum for disk in entry.disks), default=entry.vm.image_space)


def read_packages(connection: sql.Connection) -> list[Package]:
    """All packages, by name."""
    rows = connection.execute(sql.select(schema.packages).order_by(schema.packages.c.name)).mappings()
    return [_package(row) for row in rows]


def read_package(connection: sql.Connection, name: str) -> Package | None:
    row = connection.execute(sql.select(schema.packages).where(schema.packages.c.name == name)).mappings().first()
    return None if row is None else _package(row)


def insert_package(
    connection: sql.Connection,
    name: str,
    disk_space: int,
    *,
    flexible: bool,
    default_disks: Sequence[SizeRequest | None],
    max_image: int | None,
    snapshot_limit: int,
) -> int:
    values = {
        "name": name,
        "disk_space": disk_space,
        "flexible": flexible,
        "default_disks": json.dumps([_plain(each) for each in default_disks]),
        "max_image": max_image,
        "snapshot_limit": snapshot_limit,
    }
    added = sql.insert(schema.packages).values(values).returning(schema.packages.c.id)
    return int(connection.execute(added).scalar_one())


def delete_package(connection: sql.Connection, package_id: int) -> None:
    connection.execute(sql.delete(schema.packages).where(schema.packages.c.id == package_id))


def vms_of_package(connection: sql.Connection, package_id: int) -> list[str]:
    """The names of the VMs that have it."""
    wanted = sql.select(schema.vms.c.name).where(schema.vms.c.package_id == package_id).order_by(schema.vms.c.name)
    return list(connection.scalars(wanted))


def read_images(connection: sql.Connection) -> list[Image]:
    """All images that are whole, by name."""
    table = schema.images
    making = sql.select(schema.intents.c.image_id).where(schema.intents.c.image_id.is_not(None))
    rows = connection.execute(sql.select(table).where(table.c.id.not_in(making)).order_by(table.c.name)).mappings()
    return [_image(row) for row in rows]


def read_image(connection: sql.Connection, name: str) -> Image | None:
    """The image of that name, if there is one; also one that is being made or deleted."""
    row = connection.execute(sql.select(schema.images).where(schema.images.c.name == name)).mappings().first()
    return None if row is None else _image(row)


def read_image_by_id(connection: sql.Connection, image_id: int | None) -> Image | None:
    row = connection.execute(sql.select(schema.images).where(schema.images.c.id == image_id)).mappings().first()
    return None if row is None else _image(row)


def insert_image(connection: sql.Connection, name: str, size: int, original_size: int, space: int, volume: str) -> int:
    values = {
        "name": name,
        "size": size,
        "original_size": original_size,
        "space": space,
        "volume": volume,
        "created": int(time.time()),
    }
    return int(connection.execute(sql.insert(schema.images).values(values).returning(schema.images.c.id)).scalar_one())


def set_image_space(connection: sql.Connection, image_id: int, space: int) -> None:
    connection.execute(sql.update(schema.images).where(schema.images.c.id == image_id).values(space=space))


def delete_image(connection: sql.Connection, image_id: int) -> None:
    connection.execute(sql.delete(schema.images).where(schema.images.c.id == image_id))


def _package(row: Mapping[Any, Any]) -> Package:
    return Package(
        row["id"],
        row["name"],
        row["disk_space"],
        row["flexible"],
        tuple(_request(each) for each in json.loads(row["default_disks"])),
        row["max_image"],
        row["snapshot_limit"],
    )


def _image(row: Mapping[Any, Any]) -> Image:
    return Image(row["id"], row["name"], row["size"], row["original_size"], row["space"], row["volume"], row["created"])


def _plain(request: SizeRequest | None) -> int | str | None:
    """A default disk as JSON: bytes, "remaining", or null for the image's size."""
    if request is None or request.exact is not None:
        return None if request is None else request.exact
    return "remaining"


def _request(plain: int | str | None) -> SizeRequest | None:
    if plain is None:
        return None
    return SizeRequest(exact=plain) if isinstance(plain, int) else REMAINING
