"""Images, which disks are made from: added, looked up, deleted. A disk made from one is a copy of its own."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import sqlalchemy as sql

from nbdresize.control import catalog_records, intents, names, operations, pool, records, recovery
from nbdresize.control.disks import undo_after
from nbdresize.control.image_sources import Origin, copy_origin, origin
from nbdresize.control.model import DiskSource, Image
from nbdresize.control.records import Intent, Kind
from nbdresize.control.recovery import changing_image
from nbdresize.control.site import Site
from nbdresize.control.size_requests import is_number, shown_number
from nbdresize.errors import InvalidArgument, NbdresizeError, ResourceInUse, ResourceNotFound
from nbdresize.units import format_size


def add_image(
    site: Site,
    name: str,
    source: Path | DiskSource,
    *,
    original_size: int | None = None,
    operation: str | None = None,
    listener: operations.Listener = operations.nobody,
) -> Image:
    """A new image, whole, or nothing. See Control.add_image."""
    names.check_name(name, "an image")
    if isinstance(source, Path):
        source = source.absolute()
    request = _request_to_add(name, source, original_size, operation)
    task = operations.Task(site.ledger, request, listener)
    with ExitStack() as held:
        with site.ledger.reading() as connection:
            found = _there_already(connection, request, only_whole=True)
        if found is not None:
            return found
        copied = held.enter_context(origin(site, source))
        adds = _original_size(copied, original_size)
        held.enter_context(changing_image(site, name))
        volumes, pool_terms = site.pool.names(), pool.measured(site)
        with site.ledger.deciding() as connection:
            found = _there_already(connection, request, only_whole=False)
            if found is not None:
                return found
            pool.check_room(connection, pool_terms, f"Image {name}", copied.space)
            volume = names.new_volume_name(f"image-{name}", volumes)
            image_id = catalog_records.insert_image(connection, name, copied.size, adds, copied.space, volume)
            intent = records.open_intent(connection, request, Kind.ADD_IMAGE, image_id=image_id)
        try:
            with task.stage("copy"):
                copy_origin(site, copied, volume, task.progress(f"copying {copied.name}"))
            space = site.pool.volume(volume).allocated()
            with site.ledger.deciding() as connection:
                if space > copied.space:  # its source is compressed, or lies on larger blocks
                    pool.check_room(connection, pool_terms, f"Image {name}", space - copied.space)
                catalog_records.set_image_space(connection, image_id, space)
                intents.commit(connection, intent)
                intents.close(connection, intent, task.stages())
        except BaseException as error:
            undo_after(site, None, intent, error)
            raise
        return image(site, name)


def images(site: Site) -> list[Image]:
    """All images that are whole, by name."""
    with site.ledger.reading() as connection:
        return catalog_records.read_images(connection)


def image(site: Site, name: str) -> Image:
    """Raises InvalidArgument, ResourceNotFound with the names of those there are."""
    names.check_name(name, "an image")
    found = images(site)
    one = next((each for each in found if each.name == name), None)
    if one is None:
        there = ", ".join(each.name for each in found)
        raise ResourceNotFound(
            f"There is no image {name}", f"there are {there or 'none'}; nbdresize image add makes one"
        )
    return one


@contextmanager
def used(site: Site, name: str | None) -> Iterator[Image | None]:
    """The image of that name, kept from being deleted; one that is just being made is waited for.

    Raises ResourceNotFound, ResourceInUse where it takes too long to be made.
    """
    if name is None:
        yield None
        return
    with site.ledger.reading() as connection:
        known = catalog_records.read_image(connection, names.check_name(name, "an image")) is not None
    if not known:  # so that there is no lock of an image that never was
        image(site, name)
    with changing_image(site, name, exclusive=False):
        yield image(site, name)


def delete_image(site: Site, name: str, *, operation: str | None = None) -> None:
    """Delete an image from which nothing is being made. See Control.delete_image."""
    names.check_name(name, "an image")
    arguments = records.arguments_of(Kind.DELETE_IMAGE, name=name)
    request = operations.Request(names.operation_id(operation), Kind.DELETE_IMAGE.value, name, arguments)
    with site.ledger.reading() as connection:
        if operations.outcome_of(connection, request) is not None:
            return
        known = catalog_records.read_image(connection, name)
        visible = any(each.name == name for each in catalog_records.read_images(connection))
    if known is None:
        image(site, name)
    with changing_image(site, name):
        if not visible and not any(each.name == name for each in images(site)):
            return  # an earlier deletion, or an addition, that was killed: completed just now
        with site.ledger.reading() as connection:
            if operations.outcome_of(connection, request) is not None:
                return  # by an earlier run of this operation, which has ended just now
        found = image(site, name)
        with site.ledger.deciding() as connection:
            intent = _promise_deletion(connection, request, found)
        try:
            recovery.finish(site, None, intent)
        except NbdresizeError as error:
            recovery.take_back(site, None, intent, error)
            raise


def _request_to_add(
    name: str, source: Path | DiskSource, original_size: int | None, operation: str | None
) -> operations.Request:
    arguments = records.arguments_of(
        Kind.ADD_IMAGE,
        name=name,
        source=str(source) if isinstance(source, Path) else [source.vm, source.snapshot, source.disk],
        original_size=original_size,
    )
    return operations.Request(names.operation_id(operation), Kind.ADD_IMAGE.value, name, arguments)


def _there_already(connection: sql.Connection, request: operations.Request, *, only_whole: bool) -> Image | None:
    """The image, where this very operation has made it before. Raises ResourceInUse where the name is taken.

    `only_whole`: one that is just being made, or deleted, is no reason yet.
    """
    done = operations.outcome_of(connection, request)
    found = catalog_records.read_image(connection, request.subject)
    whole = found is not None and found in catalog_records.read_images(connection)
    if done is not None:
        if found is None or not whole or found.id != done["image_id"]:
            raise ResourceNotFound(
                f"That operation made an image {request.subject} before, which has been deleted", "use a new id"
            )
        return found
    if whole or (found is not None and not only_whole):
        raise ResourceInUse(
            f"There is an image {request.subject} already", "choose another name, or delete that one first"
        )
    return None


def _original_size(copied: Origin, given: int | None) -> int:
    """What the image adds to budgets: never more than what the disks made from it take."""
    if given is None:
        return min(copied.original_size, copied.size)
    if not is_number(given) or not 0 <= given <= copied.size:
        raise InvalidArgument(
            f"An image of {format_size(copied.size)} can't add {shown_number(given)} bytes to a budget",
            f"give an original size from 0 to {format_size(copied.size)}",
        )
    return given


def _promise_deletion(connection: sql.Connection, request: operations.Request, found: Image) -> Intent:
    """Record the deletion: from here on it is finished, whatever happens."""
    intent = records.open_intent(connection, request, Kind.DELETE_IMAGE, image_id=found.id, committed=True)
    return replace(intent, committed=True)
