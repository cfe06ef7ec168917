"""The commands of `nbdresize package`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nbdresize.cli import options, output
from nbdresize.cli.confirm import DETAILS as DELETING
from nbdresize.cli.confirm import confirm, done_before
from nbdresize.cli.output import Column
from nbdresize.control.model import MAX_SNAPSHOTS
from nbdresize.units import SizeRequest, parse_size

if TYPE_CHECKING:
    from nbdresize.control.model import Package

HELP = options.explained(
    "Packages: the space that a VM gets, and which disks it begins with.",
    """
    nbdresize package create small --disk-space 100G
    nbdresize package list
    nbdresize package show small
    """,
    "nbdresize vm create NAME --package PACKAGE makes a VM with one.",
)

_CREATE = options.explained(
    "Create a package.",
    """
    nbdresize package create small --disk-space 100G
    nbdresize package create big --disk-space 1T --max-image 50G
    nbdresize package create one --disk-space 20G --default-disk remaining
    nbdresize package create fixed1 --disk-space 100G --fixed
    """,
    "A VM with it gets --disk-space for its disks and snapshots, and on top of that what its image adds."
    " --default-disk, repeatable, are the disks of a VM that asks for none: a size, 'image' (the size of its image,"
    " for the first disk only), or 'remaining' (once). Without any, such a VM gets the image's disk alone. --fixed"
    " gives its VMs the image's disk and one of --disk-space, and lets nobody change them.",
)
_LIST = options.explained("List the packages.", "nbdresize package list\nnbdresize package list --json")
_SHOW = options.explained(
    "Show a package and the VMs that have it.",
    "nbdresize package show small\nnbdresize package show small --json",
)
_DELETE = options.explained(
    "Delete a package.",
    "nbdresize package delete small\nnbdresize package delete small --yes",
    f"Refused while VMs have it. {DELETING}",
)

_NewName = Annotated[str, typer.Argument(metavar="NAME", help="A name for the new package.", show_default=False)]
_Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="The name of a package.", autocompletion=options.complete_package, show_default=False
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the group."""
    app.command("create", **_CREATE)(create)
    app.command("list", **_LIST)(list_packages)
    app.command("show", **_SHOW)(show)
    app.command("delete", **_DELETE)(delete)


def create(
    name: _NewName,
    disk_space: Annotated[
        str, typer.Option("--disk-space", metavar="SIZE", help="The space that a VM gets.", show_default=False)
    ],
    flexible: Annotated[bool, typer.Option("--flexible/--fixed", help="Whether VMs may choose their disks.")] = True,
    default_disk: Annotated[
        list[str] | None,
        typer.Option(
            "--default-disk",
            metavar="SIZE",
            help="A disk of a VM that asks for none: a size, 'image', 'remaining'; repeatable.",
            show_default=False,
        ),
    ] = None,
    max_image: Annotated[
        str | None,
        typer.Option("--max-image", metavar="SIZE", help="The largest image that it takes.", show_default=False),
    ] = None,
    snapshot_limit: Annotated[
        int, typer.Option("--snapshot-limit", metavar="N", help="How many snapshots a VM may have.")
    ] = MAX_SNAPSHOTS,
    operation: options.Operation = None,
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    space = parse_size(disk_space)
    disks = [options.new_disk(text) for text in default_disk or ()]
    largest = None if max_image is None else parse_size(max_image)
    with options.control(root, create=True) as control:
        package = control.create_package(
            name,
            space,
            flexible=flexible,
            default_disks=disks,
            max_image=largest,
            snapshot_limit=snapshot_limit,
            operation=operation,
        )
    if json:
        output.document(_json(package))
    else:
        _show([package], exact=False)


def list_packages(json: options.Json = False, exact: options.Bytes = False, root: options.Root = None) -> None:
    with options.control(root) as control:
        packages = control.packages()
    if json:
        output.document({"packages": [_json(package) for package in packages]})
    elif packages:
        _show(packages, exact=exact)
    else:
        output.line("No packages yet: nbdresize package create NAME --disk-space SIZE makes one.")


def show(name: _Name, json: options.Json = False, exact: options.Bytes = False, root: options.Root = None) -> None:
    with options.control(root) as control:
        package = control.package(name)
        vms = [vm.name for vm in control.vms() if vm.package == package.name]
    if json:
        output.document({**_json(package), "vms": vms})
        return
    _show([package], exact=exact)
    output.line()
    output.line(f"VMs: {', '.join(vms) or 'none'}")


def delete(
    name: _Name,
    yes: options.Yes = False,
    operation: options.Operation = None,
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    with options.control(root) as control:
        if not done_before(control, operation):
            control.package(name)
            confirm(f"package {name}", yes=yes)
        control.delete_package(name, operation=operation)
    if json:
        output.document({"package": name, "deleted": True})
    else:
        output.line(f"package {name}: deleted")


def _json(package: "Package") -> dict[str, Any]:
    return {
        "name": package.name,
        "disk_space": package.disk_space,
        "flexible": package.flexible,
        "default_disks": [_disk_json(request) for request in package.default_disks],
        "max_image": package.max_image,
        "snapshot_limit": package.snapshot_limit,
    }


def _disk_json(request: SizeRequest | None) -> int | str:
    """A default disk: bytes, or what `--default-disk` calls it."""
    if request is None:
        return options.IMAGE_SIZE
    return "remaining" if request.exact is None else request.exact


def _show(packages: "list[Package]", *, exact: bool) -> None:
    columns = [
        Column("NAME"),
        Column("DISK SPACE", right=True),
        Column("DISKS"),
        Column("LARGEST IMAGE", right=True),
        Column("SNAPSHOTS", right=True),
    ]
    rows = [
        [
            package.name,
            output.size(package.disk_space, exact=exact),
            _disks(package, exact=exact),
            "any" if package.max_image is None else output.size(package.max_image, exact=exact),
            str(package.snapshot_limit),
        ]
        for package in packages
    ]
    output.table(columns, rows)


def _disks(package: "Package", *, exact: bool) -> str:
    """`fixed`, `flexible`, or the default disks: `image, 20 GiB, remaining`."""
    if not package.default_disks:
        return "flexible" if package.flexible else "fixed"
    plain = [_disk_json(request) for request in package.default_disks]
    return ", ".join(each if isinstance(each, str) else output.size(each, exact=exact) for each in plain)
