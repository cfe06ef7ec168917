"""The commands of `nbdresize vm`."""

import enum
from typing import Annotated, Literal

import typer

from nbdresize.cli import options, output, views
from nbdresize.cli.confirm import DETAILS as DELETING
from nbdresize.cli.confirm import confirm
from nbdresize.cli.failures import Misuse
from nbdresize.control.model import ClientResize
from nbdresize.units import parse_size, parse_size_request


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
    """,
    "--disk may be given up to eight times: a size, or 'remaining' (once) for all that the others leave. The first is"
    " disk0, which boots. Either the VM comes to be with all its disks, or nothing is made."
    " The state directory is made where it is not there.",
)
_LIST = options.explained("List the VMs.", "nbdresize vm list\nnbdresize vm list --json")
_SHOW = options.explained("Show a VM and its disks.", "nbdresize vm show web1\nnbdresize vm show web1 --json")
_UPDATE = options.explained(
    "Change a VM's budget, or what its clients may do to sizes.",
    "nbdresize vm update web1 --disk-space 200G\nnbdresize vm update web1 --client-resize off",
    "The budget may be raised, and lowered as far as the disks leave room. Clients may do what both their VM and the"
    " server allow: off nothing, grow make disks larger, all make them smaller too. Servers heed a change at once.",
)
_DELETE = options.explained(
    "Delete a VM with all its disks.",
    "nbdresize vm delete web1\nnbdresize vm delete web1 --yes",
    f"Refused while a client has a disk attached. {DELETING}",
)

_NewName = Annotated[str, typer.Argument(metavar="NAME", help="A name for the new VM.", show_default=False)]
_Space = Annotated[
    str,
    typer.Option("--disk-space", metavar="SIZE", help="The most that its disks may take together.", show_default=False),
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
    disk_space: _Space,
    disk: Annotated[
        list[str] | None,
        typer.Option("--disk", metavar="SIZE", help="A disk's size, or 'remaining'; repeatable.", show_default=False),
    ] = None,
    owner: Annotated[str | None, typer.Option("--owner", help="Whose it is.", show_default=False)] = None,
    client_resize: Annotated[
        Policy, typer.Option("--client-resize", help="What its clients may do to sizes, if the server allows it.")
    ] = Policy.DEFAULT,
    preallocate: options.Preallocate = False,
    operation: options.Operation = None,
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    budget = parse_size(disk_space)
    requests = [parse_size_request(text) for text in disk or ()]
    with options.control(root, create=True) as control:
        vm = control.create_vm(
            name,
            budget,
            requests,
            owner=owner,
            client_resize=client_resize.known(),
            preallocate=preallocate,
            operation=operation,
        )
    if json:
        output.document(views.vm_json(vm))
        return
    views.show_disks(vm, exact=False)


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
    if vm.owner:
        output.line(f"{vm.name} belongs to {vm.owner}")
    if vm.client_resize:
        output.line(f"its clients may resize: {vm.client_resize.value}")
    views.show_disks(vm, exact=exact)


def update(
    name: options.VMName,
    disk_space: Annotated[
        str | None,
        typer.Option("--disk-space", metavar="SIZE", help="Its new budget for all disks.", show_default=False),
    ] = None,
    client_resize: Annotated[
        Policy | None,
        typer.Option(
            "--client-resize",
            help="What its clients may do to sizes from now on; default leaves it to the server.",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    if disk_space is None and client_resize is None:
        raise Misuse("Nothing to change was given", "give --disk-space, --client-resize, or both")
    budget = None if disk_space is None else parse_size(disk_space)
    policy: ClientResize | Literal["default"] | None = None
    if client_resize is not None:
        policy = client_resize.known() or "default"
    with options.control(root) as control:
        vm = control.update_vm(name, budget, client_resize=policy)
    if json:
        output.document(views.vm_json(vm))
    else:
        output.line(views.budget_line(vm, exact=False))


def delete(
    name: options.VMName, yes: options.Yes = False, json: options.Json = False, root: options.Root = None
) -> None:
    with options.control(root) as control:
        vm = control.vm(name)
        disks = f" and its {output.counted(len(vm.disks), 'disk')} ({output.size(vm.used)})" if vm.disks else ""
        confirm(f"{vm.name}{disks}", yes=yes)
        control.delete_vm(name)
    if json:
        output.document({"vm": vm.name, "deleted": True})
    else:
        output.line(f"{vm.name}{disks}: deleted")
