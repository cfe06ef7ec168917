"""The commands of `nbdresize vm`."""

import enum
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nbdresize.cli import documents, guest, options, output, progress, views
from nbdresize.cli.confirm import DETAILS as DELETING
from nbdresize.cli.confirm import confirm, done_before
from nbdresize.cli.failures import Misuse
from nbdresize.control.model import ClientResize, ResizeOptions
from nbdresize.units import SizeRequest, parse_size

if TYPE_CHECKING:
    from nbdresize.control.model import VM, DiskChanges
    from nbdresize.control.payloads import Creation


class Policy(enum.StrEnum):
    """What clients of a VM may do to sizes, as the command line names it."""

    OFF = "off"
    GROW = "grow"
    ALL = "all"
    DEFAULT = "default"

    def known(self) -> ClientResize | None:
        """The policy; None where it is left to the server."""
        return None if self is Policy.DEFAULT else ClientResize(self.value)


HELP = options.explained(
    "VMs: each owns up to eight disks within one budget.",
    """
    nbdresize vm create web1 --disk-space 100G --disk 20G --disk remaining
    nbdresize vm list
    nbdresize vm update web1 --disk-space 200G
    """,
)

_CREATE = options.explained(
    "Create a VM with its budget, and its disks.",
    """
    nbdresize vm create web1 --disk-space 100G --disk 20G --disk remaining
    nbdresize vm create db1 --disk-space 1T --disk 50G --owner alice
    nbdresize vm create app1 --package small --image debian
    nbdresize vm create app2 --package big --image deb --disk image --disk 20G
    nbdresize vm create app3 --from-json app3.json
    """,
    "Its budget is --disk-space, or that of its --package; an --image adds what it was added with. --disk may be given"
    " up to eight times: a size, or 'remaining' (once) for all that the others leave. The first is disk0, which boots;"
    " it is made from the image, if any, and may be larger ('image' is the image's size). Without --disk, the package"
    " says which disks there are, else there is just the image's. Either the VM comes to be with all its disks, or"
    " nothing is made. The state directory is made where it is not there."
    "\n\n"
    "--from-json takes package, image and disks in one JSON object, sizes in MiB, as in"
    ' {"package": "small", "image": "debian", "disks": [{}, {"size": 20480}, {"size": "remaining"}]}; {} is a boot disk'
    " as large as its image. What is not in it may be given as options.",
)
_LIST = options.explained("List the VMs.", "nbdresize vm list\nnbdresize vm list --json")
_SHOW = options.explained(
    "Show a VM, its disks, and what it may.", "nbdresize vm show web1\nnbdresize vm show web1 --json"
)
_UPDATE = options.explained(
    "Change a VM's budget or package, what it may, or several of its disks.",
    """
    nbdresize vm update web1 --disk-space 200G
    nbdresize vm update web1 --package large --owner ann
    nbdresize vm update web1 --client-resize off
    nbdresize vm update web1 --protected
    nbdresize vm update web1 --from-json changes.json
    """,
    "The budget may be raised, and lowered as far as disks and snapshots leave room; so it is with the package that"
    " brings one. Clients may do what their VM, its owner and the server allow: off nothing, grow make disks larger,"
    " all make them smaller too. Servers heed a change at once. No disk of a protected VM can be shrunk, deleted or"
    " rolled back."
    "\n\n"
    "--from-json takes add_disks, update_disks and remove_disks in one JSON object, sizes in MiB, as in"
    ' {"update_disks": [{"slot": "disk0", "size": 102400}], "add_disks": [{"size": "remaining"}],'
    ' "remove_disks": ["disk1"]}. An update_disks may name its disk by path instead, and a smaller size needs'
    ' "dangerous_allow_shrink": true. All of it happens, or nothing.',
)
_DELETE = options.explained(
    "Delete a VM with all its disks and snapshots.",
    "nbdresize vm delete web1\nnbdresize vm delete web1 --yes",
    f"Refused while a client has a disk attached. {DELETING}",
)

_NewName = Annotated[str, typer.Argument(metavar="NAME", help="A name for the new VM.", show_default=False)]
_Space = Annotated[
    str | None,
    typer.Option(
        "--disk-space",
        metavar="SIZE",
        help="The most that its disks and snapshots may take together.",
        show_default=False,
    ),
]
_Package = Annotated[
    str | None,
    typer.Option(
        "--package",
        metavar="NAME",
        help="The package that gives it its space.",
        autocompletion=options.complete_package,
        show_default=False,
    ),
]
_Image = Annotated[
    str | None,
    typer.Option(
        "--image",
        metavar="NAME",
        help="What disk0 is made from.",
        autocompletion=options.complete_image,
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the group."""
    app.command("create", **_CREATE)(create)
    app.command("list", **_LIST)(list_vms)
    app.command("show", **_SHOW)(show)
    app.command("update", **_UPDATE)(update)
    app.command("delete", **_DELETE)(delete)


def create(
    name: _NewName,
    disk_space: _Space = None,
    package: _Package = None,
    image: _Image = None,
    disk: Annotated[
        list[str] | None,
        typer.Option(
            "--disk", metavar="SIZE", help="A disk's size, 'image', or 'remaining'; repeatable.", show_default=False
        ),
    ] = None,
    owner: Annotated[str | None, typer.Option("--owner", help="Whose it is.", show_default=False)] = None,
    client_resize: Annotated[
        Policy, typer.Option("--client-resize", help="What its clients may do to sizes, if the server allows it.")
    ] = Policy.DEFAULT,
    document: documents.FromJson = None,
    preallocate: options.Preallocate = False,
    operation: options.Operation = None,
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    budget = None if disk_space is None else parse_size(disk_space)
    requests: Sequence[SizeRequest | None] | None = [options.new_disk(text) for text in disk] if disk else None
    if document is not None:
        told = _creation(document, disks=requests is not None, package=package is not None, image=image is not None)
        requests, package, image = requests or told.disks, package or told.package, image or told.image
    with options.control(root, create=True) as control, progress.shown(json=json) as listener:
        vm = control.create_vm(
            name,
            budget,
            requests,
            package=package,
            image=image,
            owner=owner,
            client_resize=client_resize.known(),
            preallocate=preallocate,
            operation=operation,
            listener=listener,
        )
    if json:
        output.document(views.vm_json(vm))
        return
    views.show_disks(vm, exact=False)


def _creation(document: str, **given: bool) -> "Creation":
    """What the document says of a new VM; `given` tells what options say already, which it may not say too."""
    from nbdresize.control.payloads import MOST_BYTES, read_creation

    told = read_creation(documents.read(document, MOST_BYTES))
    for name, by_option in given.items():
        if by_option and getattr(told, name) is not None:
            option = "--disk" if name == "disks" else f"--{name}"
            raise Misuse(f"{option} was given, and --from-json says {name} too", "say it in one place")
    return told


def list_vms(json: options.Json = False, exact: options.Bytes = False, root: options.Root = None) -> None:
    with options.control(root) as control:
        vms = control.vms()
    if json:
        output.document({"vms": [views.vm_json(vm) for vm in vms]})
    elif vms:
        views.show_vms(vms, exact=exact)
    else:
        output.line("No VMs yet: nbdresize vm create NAME --disk-space SIZE makes one.")


def show(
    name: options.VMName, json: options.Json = False, exact: options.Bytes = False, root: options.Root = None
) -> None:
    with options.control(root) as control:
        vm = control.vm(name)
    if json:
        output.document(views.vm_json(vm))
        return
    views.show_vm(vm, exact=exact)


def update(
    name: options.VMName,
    disk_space: Annotated[
        str | None,
        typer.Option(
            "--disk-space",
            metavar="SIZE",
            help="Its new budget for all disks and snapshots.",
            show_default=False,
        ),
    ] = None,
    package: Annotated[
        str | None, typer.Option("--package", metavar="NAME", help="Its new package.", show_default=False)
    ] = None,
    owner: Annotated[str | None, typer.Option("--owner", help="Whose it is from now on.", show_default=False)] = None,
    client_resize: Annotated[
        Policy | None,
        typer.Option(
            "--client-resize",
            help="What its clients may do to sizes from now on; default leaves it to the server.",
            show_default=False,
        ),
    ] = None,
    protected: Annotated[
        bool | None,
        typer.Option("--protected/--no-protected", help="Keep it from losing data, or not.", show_default=False),
    ] = None,
    document: documents.FromJson = None,
    preallocate: options.Preallocate = False,
    disconnect: Annotated[
        bool, typer.Option("--disconnect", help="Drop the clients of disks before shrinking or deleting them.")
    ] = False,
    no_guest: options.NoGuest = False,
    guest_timeout: options.GuestTimeout = options.GUEST_SECONDS,
    operation: options.Operation = None,
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    settings = (disk_space, package, owner, client_resize, protected)
    if document is not None:
        if any(setting is not None for setting in settings):
            raise Misuse("--from-json changes disks, and nothing else", "give the other options in a second command")
        changes = _changes(document, name)
        with options.control(root) as control:
            allowed = ResizeOptions(disconnect=disconnect)
            with progress.shown(json=json) as listener:
                outcome = control.change_disks(
                    name, changes, allowed, preallocate=preallocate, operation=operation, listener=listener
                )
            told = guest.tell_changed(control, outcome, changes, no_guest=no_guest, timeout=guest_timeout)
        if json:
            output.document(views.changes_json(outcome, told))
        else:
            views.show_changes(outcome, changes, told, exact=False)
        return
    if preallocate or disconnect or no_guest:
        raise Misuse("--preallocate, --disconnect and --no-guest are for the disks of --from-json", "leave them out")
    if all(setting is None for setting in settings):
        raise Misuse(
            "Nothing to change was given",
            "give --disk-space or --package, --owner, --client-resize, --protected, or --from-json",
        )
    budget = None if disk_space is None else parse_size(disk_space)
    policy: ClientResize | Literal["default"] | None = None
    if client_resize is not None:
        policy = client_resize.known() or "default"
    with options.control(root) as control:
        vm = control.update_vm(
            name,
            budget,
            package=package,
            owner=owner,
            client_resize=policy,
            protected=protected,
            operation=operation,
        )
    if json:
        output.document(views.vm_json(vm))
    else:
        output.line(views.budget_line(vm, exact=False))


def _changes(document: str, name: str) -> "DiskChanges":
    from nbdresize.control.payloads import MOST_BYTES, read_update

    return read_update(documents.read(document, MOST_BYTES), name)


def delete(
    name: options.VMName,
    yes: options.Yes = False,
    operation: options.Operation = None,
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    loss = name
    with options.control(root) as control:
        if not done_before(control, operation):
            loss = _loss(control.vm(name))
            confirm(loss, yes=yes)
        control.delete_vm(name, operation=operation)
    if json:
        output.document({"vm": name, "deleted": True})
    else:
        output.line(f"{loss}: deleted")


def _loss(vm: "VM") -> str:
    """`web1 and its 2 disks and 1 snapshot (30 GiB)`."""
    counts = ((len(vm.disks), "disk"), (vm.snapshots, "snapshot"))
    parts = " and ".join(output.counted(number, noun) for number, noun in counts if number)
    return f"{vm.name} and its {parts} ({output.size(vm.used)})" if parts else vm.name
