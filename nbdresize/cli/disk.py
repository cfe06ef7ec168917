"""The commands of `nbdresize disk`."""

from typing import TYPE_CHECKING, Annotated

import typer

from nbdresize.cli import guest, options, output, progress, views
from nbdresize.cli.confirm import DETAILS as DELETING
from nbdresize.cli.confirm import confirm, done_before
from nbdresize.cli.failures import Misuse
from nbdresize.units import parse_size_request

if TYPE_CHECKING:
    from nbdresize.control.model import DiskChanges

HELP = options.explained(
    "Disks of a VM: listed, added, resized while in use, deleted.",
    """
    nbdresize disk list web1
    nbdresize disk add web1 10G
    nbdresize disk resize web1 disk0 +10G
    """,
)

_LIST = options.explained(
    "List a VM's disks and what is free in its budget.",
    """
    nbdresize disk list web1
    nbdresize disk list web1 --json
    """,
)
_ADD = options.explained(
    "Add a disk to a VM, in its first empty slot.",
    """
    nbdresize disk add web1 10G
    nbdresize disk add web1 remaining
    """,
    "SIZE is a size such as 20G, or 'remaining' for all that is free in the VM's budget.",
)
_RESIZE = options.explained(
    "Resize a disk, or several at once, also while clients are attached.",
    """
    nbdresize disk resize web1 disk0 30G
    nbdresize disk resize web1 disk0 +10G
    nbdresize disk resize web1 disk1 remaining
    nbdresize disk resize web1 disk1 5G --dangerous-allow-shrink
    nbdresize disk resize web1 --set disk0=30G --set disk1=20G
    """,
    "SIZE is the new size, '+' and what to add, or 'remaining' to add all that is free in the VM's budget. New space"
    " reads as zeroes. Success means that the volume, the ledger and every running server have the new size; the"
    " table shows each with its time. A smaller size cuts off what lies behind it and needs"
    " --dangerous-allow-shrink, and a disk that no client has attached. Of several disks, each given as --set"
    " DISK=SIZE, all are resized or none is; what one gives up, another may take."
    "\n\n"
    "A guest that was attached with nbdresize guest attach is told too, unless --no-guest is given. Where it can't be"
    " told, the resize has succeeded all the same: the table says what is pending, and nbdresize guest sync VM tells it"
    " again; so does the next resize.",
)
_DELETE = options.explained(
    "Delete a disk of a VM.",
    """
    nbdresize disk delete web1 disk1
    nbdresize disk delete web1 disk1 --yes
    """,
    f"The boot disk, disk0, goes only with its VM. Refused while a client has the disk attached. {DELETING}",
)


def register(app: typer.Typer) -> None:
    """Add the commands to the group."""
    app.command("list", **_LIST)(list_disks)
    app.command("add", **_ADD)(add)
    app.command("resize", **_RESIZE)(resize)
    app.command("delete", **_DELETE)(delete)


def list_disks(
    vm: options.VMName, json: options.Json = False, exact: options.Bytes = False, root: options.Root = None
) -> None:
    with options.control(root) as control:
        found = control.vm(vm)
    if json:
        output.document(views.disks_json(found))
    else:
        views.show_disks(found, exact=exact)


def add(
    vm: options.VMName,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="20G, 1048576, remaining.", show_default=False)],
    preallocate: options.Preallocate = False,
    operation: options.Operation = None,
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    request = parse_size_request(size)
    with options.control(root) as control, progress.shown(json=json) as listener:
        disk = control.add_disk(vm, request, preallocate=preallocate, operation=operation, listener=listener)
    if json:
        output.document({"vm": disk.vm, **views.disk_json(disk)})
    else:
        output.line(f"{disk.export_name}: {output.size(disk.size)}")


def resize(
    vm: options.VMName,
    disk: Annotated[
        str | None,
        typer.Argument(
            metavar="DISK", help="disk0 to disk7.", autocompletion=options.complete_disk, show_default=False
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Argument(metavar="SIZE", help="20G, 1048576, +5G, remaining.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="DISK=SIZE", help="One of several disks, with its size; repeatable.", show_default=False
        ),
    ] = None,
    shrink: Annotated[
        bool, typer.Option("--dangerous-allow-shrink", help="Allow a smaller size; what lies behind it is lost.")
    ] = False,
    disconnect: Annotated[
        bool, typer.Option("--disconnect", help="Drop the clients of the disk before shrinking it.")
    ] = False,
    wait: options.Wait = 10.0,
    no_guest: options.NoGuest = False,
    guest_timeout: options.GuestTimeout = options.GUEST_SECONDS,
    operation: options.Operation = None,
    json: options.Json = False,
    exact: options.Bytes = False,
    root: options.Root = None,
) -> None:
    from nbdresize.control.model import ResizeOptions

    allowed = ResizeOptions(shrink=shrink, disconnect=disconnect, wait=wait)
    if settings:
        if disk is not None:
            raise Misuse("A disk was given beside --set", f"give that one as --set too: --set {disk}=SIZE")
        changes = _changes(settings)
        with options.control(root) as control:
            with progress.shown(json=json) as listener:
                several = control.change_disks(vm, changes, allowed, operation=operation, listener=listener)
            told = guest.tell_changed(control, several, changes, no_guest=no_guest, timeout=guest_timeout)
        if json:
            output.document(views.changes_json(several, told))
        else:
            views.show_changes(several, changes, told, exact=exact)
        return
    if disk is None or size is None:
        missing = "DISK" if disk is None else "SIZE"
        raise Misuse(
            f"Missing argument '{missing}'", "give a disk and its size, or --set DISK=SIZE for each of several"
        )
    request = parse_size_request(size)
    with options.control(root) as control:
        with progress.shown(json=json) as listener:
            outcome = control.resize_disk(vm, disk, request, allowed, operation=operation, listener=listener)
        told = guest.tell(control, vm, [disk], no_guest=no_guest, timeout=guest_timeout)
    if json:
        output.document(views.outcome_json(outcome, told))
    else:
        views.show_outcome(outcome, told, exact=exact)


def _changes(settings: list[str]) -> "DiskChanges":
    """What --set says, of each disk once."""
    from nbdresize.control.model import DiskChanges, DiskUpdate
    from nbdresize.control.names import disk_slot, shown

    updates = []
    for setting in settings:
        disk, equals, size = setting.partition("=")
        if not equals:
            raise Misuse(f"--set {shown(setting)} says no size", "give a disk and its size, as in --set disk0=30G")
        updates.append(DiskUpdate(disk_slot(disk), parse_size_request(size)))
    return DiskChanges(update=tuple(updates))


def delete(
    vm: options.VMName,
    disk: options.DiskName,
    yes: options.Yes = False,
    operation: options.Operation = None,
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    loss = f"{vm}/{disk}"
    with options.control(root) as control:
        if not done_before(control, operation):
            found = control.disk(vm, disk)
            loss = f"{loss} ({output.size(found.size)})"
            confirm(loss, yes=yes)
        control.delete_disk(vm, disk, operation=operation)
    if json:
        output.document({"vm": vm, "disk": disk, "deleted": True})
    else:
        output.line(f"{loss}: deleted")
