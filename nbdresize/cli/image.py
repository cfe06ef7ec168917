"""The commands of `nbdresize image`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nbdresize.cli import options, output, progress
from nbdresize.cli.confirm import DETAILS as DELETING
from nbdresize.cli.confirm import confirm, done_before
from nbdresize.cli.failures import Misuse
from nbdresize.cli.output import Column
from nbdresize.units import parse_size

if TYPE_CHECKING:
    from nbdresize.control.model import DiskSource, Image

HELP = options.explained(
    "Images: what the boot disks of new VMs are made from.",
    """
    nbdresize image add debian debian-12.raw
    nbdresize image add golden --disk web1/disk0
    nbdresize image list
    """,
    "nbdresize vm create NAME --image IMAGE makes a VM from one.",
)

_ADD = options.explained(
    "Add an image: a copy of a file, a block device, or a disk.",
    """
    nbdresize image add debian debian-12.raw
    nbdresize image add golden --disk web1/disk0
    nbdresize image add golden --snapshot web1/before/disk0
    """,
    "The file has to be raw; other formats are refused with the command that makes them raw. A disk that clients"
    " have attached is copied as at one instant, where the state directory's file system shares blocks between copies"
    " (xfs, btrfs). Elsewhere it has to be detached, and nobody can attach it until it is copied: take a snapshot and"
    " make the image from that. --original-size is what the image adds to the budget of a VM made from it: by default"
    " its size, but of a disk only what that disk's own image added, so that a grown disk buys nobody space.",
)
_LIST = options.explained("List the images.", "nbdresize image list\nnbdresize image list --json")
_SHOW = options.explained("Show an image.", "nbdresize image show debian\nnbdresize image show debian --json")
_DELETE = options.explained(
    "Delete an image.",
    "nbdresize image delete debian\nnbdresize image delete debian --yes",
    f"The disks made from it are copies and stay. Refused while a disk is being made from it. {DELETING}",
)

_NewName = Annotated[str, typer.Argument(metavar="NAME", help="A name for the new image.", show_default=False)]
_Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="The name of an image.", autocompletion=options.complete_image, show_default=False
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the group."""
    app.command("add", **_ADD)(add)
    app.command("list", **_LIST)(list_images)
    app.command("show", **_SHOW)(show)
    app.command("delete", **_DELETE)(delete)


def add(
    name: _NewName,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A raw image or a block device.", show_default=False)
    ] = None,
    disk: Annotated[
        str | None,
        typer.Option(
            "--disk",
            metavar="VM/DISK",
            help="A disk to copy as it is now.",
            autocompletion=options.complete_vm_disk,
            show_default=False,
        ),
    ] = None,
    snapshot: Annotated[
        str | None,
        typer.Option(
            "--snapshot", metavar="VM/SNAPSHOT/DISK", help="A disk to copy as a snapshot has it.", show_default=False
        ),
    ] = None,
    original_size: Annotated[
        str | None,
        typer.Option("--original-size", metavar="SIZE", help="What it adds to budgets; 0 is fine.", show_default=False),
    ] = None,
    operation: options.Operation = None,
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    source = _source(file, disk, snapshot)
    adds = None if original_size is None else 0 if original_size.strip() == "0" else parse_size(original_size)
    with options.control(root, create=True) as control, progress.shown(json=json) as listener:
        image = control.add_image(name, source, original_size=adds, operation=operation, listener=listener)
    _print(image, json=json)


def list_images(json: options.Json = False, exact: options.Bytes = False, root: options.Root = None) -> None:
    with options.control(root) as control:
        images = control.images()
    if json:
        output.document({"images": [_json(image) for image in images]})
    elif images:
        _show(images, exact=exact)
    else:
        output.line("No images yet: nbdresize image add NAME FILE makes one.")


def show(name: _Name, json: options.Json = False, exact: options.Bytes = False, root: options.Root = None) -> None:
    with options.control(root) as control:
        image = control.image(name)
    _print(image, json=json, exact=exact)


def delete(
    name: _Name,
    yes: options.Yes = False,
    operation: options.Operation = None,
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    with options.control(root) as control:
        if not done_before(control, operation):
            image = control.image(name)
            confirm(f"image {name} ({output.size(image.size)})", yes=yes)
        control.delete_image(name, operation=operation)
    if json:
        output.document({"image": name, "deleted": True})
    else:
        output.line(f"image {name}: deleted")


def _source(file: Path | None, disk: str | None, snapshot: str | None) -> "Path | DiskSource":
    """What is to be copied, of which just one may be given."""
    from nbdresize.control.model import DiskSource

    if sum(each is not None for each in (file, disk, snapshot)) != 1:
        raise Misuse("An image is made from one thing", "give just one of FILE, --disk and --snapshot")
    if file is not None:
        return file
    if disk is not None:
        vm, _, name = disk.partition("/")
        if not vm or not name:
            raise Misuse(f"{disk[:80]!r} is not a disk", "give --disk VM/DISK, such as web1/disk0")
        return DiskSource(vm, name)
    assert snapshot is not None
    parts = snapshot.split("/")
    if len(parts) != 3 or not all(parts):
        raise Misuse(
            f"{snapshot[:80]!r} is not a disk of a snapshot",
            "give --snapshot VM/SNAPSHOT/DISK, such as web1/before/disk0",
        )
    return DiskSource(parts[0], parts[2], parts[1])


def _print(image: "Image", *, json: bool, exact: bool = False) -> None:
    if json:
        output.document(_json(image))
    else:
        _show([image], exact=exact)


def _json(image: "Image") -> dict[str, Any]:
    return {
        "name": image.name,
        "size": image.size,
        "original_size": image.original_size,
        "space": image.space,
        "created": output.iso_moment(image.created),
    }


def _show(images: "list[Image]", *, exact: bool) -> None:
    columns = [
        Column("NAME"),
        Column("SIZE", right=True),
        Column("ADDS TO A BUDGET", right=True),
        Column("SPACE", right=True),
        Column("CREATED (UTC)"),
    ]
    rows = [
        [
            image.name,
            *(output.size(each, exact=exact) for each in (image.size, image.original_size, image.space)),
            output.moment(image.created),
        ]
        for image in images
    ]
    output.table(columns, rows)
