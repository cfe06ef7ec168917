"""The commands of `nbdresize guest`, and what other commands tell guests after a change."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nbdresize.cli import options, output, views
from nbdresize.cli.output import Column

if TYPE_CHECKING:
    from nbdresize.control.control import Control
    from nbdresize.control.model import ChangeOutcome, DiskChanges, Guest
    from nbdresize.guests.following import Attachment, Told

HELP = options.explained(
    "Guests: running machines that are told when their disks change size.",
    """
    nbdresize guest attach web1 --qmp /run/web1.qmp
    nbdresize guest show web1
    nbdresize guest sync web1
    """,
    "A QEMU that uses a VM's disks over NBD is attached once, by its QMP socket; from then on each resize reaches the"
    " running guest.",
)

_ATTACH = options.explained(
    "Attach the running QEMU of a VM.",
    """
    nbdresize guest attach web1 --qmp /run/web1.qmp
    nbdresize guest attach web1 --qmp /run/web1.qmp --agent /run/web1.agent
    """,
    "QEMU is asked whether it uses the VM's disks, and how large it takes them to be. The sockets are remembered until"
    " they are detached, also for a QEMU that is started again with the same ones. With the socket of a guest agent,"
    " partitions and file systems grow too.",
)
_DETACH = options.explained(
    "Forget the guest of a VM, which goes on as it is.",
    "nbdresize guest detach web1",
)
_SHOW = options.explained(
    "Show the guest of a VM, and what it was told of each disk.",
    "nbdresize guest show web1\nnbdresize guest show web1 --json",
    "GUEST HAS is what its QEMU said last. nbdresize guest sync asks it now.",
)
_LIST = options.explained(
    "List the guests that are attached.",
    "nbdresize guest list\nnbdresize guest list --json",
)
_SYNC = options.explained(
    "Tell the guest of a VM the sizes of its disks, where it does not know them.",
    """
    nbdresize guest sync web1
    nbdresize guest sync web1 disk0
    """,
    "What could not be told at once is told now, and so is what a client changed over NBD. Nothing happens to a disk"
    " whose size the guest has. If anything is still pending, it exits with the code of the error that is in the way.",
)
_BHYVE_ARGS = options.explained(
    "Print the arguments that give a VM's disks to bhyve.",
    """
    nbdresize guest bhyve-args web1
    nbdresize guest bhyve-args web1 --device-prefix /dev/web1-disk
    """,
    "Each disk keeps its PCI function for life: disk1 is always 4:1. The devices are those of an NBD client of that"
    " machine; that of disk1 is the prefix with a 1 after it.",
)

_Qmp = Annotated[
    Path, typer.Option("--qmp", metavar="PATH", help="QEMU's QMP socket, as in -qmp unix:PATH.", show_default=False)
]
_Agent = Annotated[
    Path | None,
    typer.Option("--agent", metavar="PATH", help="The socket of the guest agent.", show_default=False),
]
_GuestOf = Annotated[
    str,
    typer.Argument(metavar="VM", help="The name of a VM.", autocompletion=options.complete_guest, show_default=False),
]
_Disk = Annotated[
    str | None,
    typer.Argument(
        metavar="[DISK]", help="disk0 to disk7; else all.", autocompletion=options.complete_disk, show_default=False
    ),
]
_Prefix = Annotated[str, typer.Option("--device-prefix", metavar="PREFIX", help="How the devices' names begin.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the group."""
    app.command("attach", **_ATTACH)(attach)
    app.command("detach", **_DETACH)(detach)
    app.command("show", **_SHOW)(show)
    app.command("list", **_LIST)(list_guests)
    app.command("sync", **_SYNC)(sync)
    app.command("bhyve-args", **_BHYVE_ARGS)(bhyve_args)


def attach(
    vm: options.VMName,
    qmp: _Qmp,
    agent: _Agent = None,
    guest_timeout: options.GuestTimeout = options.GUEST_SECONDS,
    operation: options.Operation = None,
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    from nbdresize.guests import following

    with options.control(root) as control:
        attached = following.attach(control, vm, qmp, agent, timeout=guest_timeout, operation=operation)
    if json:
        document = {
            **views.guest_json(attached.guest),
            "version": attached.version,
            "warnings": list(attached.warnings),
        }
        output.document(document)
    else:
        _show_attached(attached)


def detach(
    vm: _GuestOf, operation: options.Operation = None, json: options.Json = False, root: options.Root = None
) -> None:
    with options.control(root) as control:
        control.detach_guest(vm, operation=operation)
    if json:
        output.document({"vm": vm, "detached": True})
    else:
        output.line(f"{vm}: guest detached")


def show(vm: _GuestOf, json: options.Json = False, exact: options.Bytes = False, root: options.Root = None) -> None:
    from nbdresize.control.guest_records import none_attached

    with options.control(root) as control:
        guest = control.guest(vm)
    if guest is None:
        raise none_attached(vm)
    if json:
        output.document(views.guest_json(guest))
        return
    agent = f", guest agent {guest.agent}" if guest.agent else ""
    output.line(f"{vm}: QMP {guest.qmp}{agent}, attached {output.moment(guest.attached)} UTC")
    _show_disks(guest, exact=exact)


def list_guests(json: options.Json = False, root: options.Root = None) -> None:
    with options.control(root) as control:
        guests = control.guests()
    if json:
        output.document({"guests": [views.guest_json(guest) for guest in guests]})
    elif guests:
        views.show_guests(guests)
    else:
        output.line("No guests are attached: nbdresize guest attach VM --qmp PATH attaches a running QEMU.")


def sync(
    vm: _GuestOf,
    disk: _Disk = None,
    guest_timeout: options.GuestTimeout = options.GUEST_SECONDS,
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    from nbdresize.guests import following

    with options.control(root) as control:
        told = following.sync(control, vm, disk, timeout=guest_timeout)
    if json:
        output.document({"vm": vm, "pending": any(each.pending for each in told), "stages": views.told_json(told)})
    elif not any(each.changed or each.pending for each in told):
        output.line(f"{vm}: nothing to do: {_known(told)}")
    else:
        views.show_told(told)
    for each in told:
        if each.error is not None:
            raise each.error


def bhyve_args(
    vm: options.VMName,
    device_prefix: _Prefix = "/dev/nbd",
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    from nbdresize.guests import bhyve

    with options.control(root) as control:
        arguments = bhyve.arguments(control.vm(vm), device_prefix)
    if json:
        output.document({"vm": vm, "arguments": arguments})
    else:
        output.line(shlex.join(arguments))


def tell(control: "Control", vm: str, disks: Sequence[str], *, no_guest: bool, timeout: float) -> "Sequence[Told]":
    """Tell the guest of a VM the sizes of these disks, and of those that are pending; nothing where it has none."""
    if no_guest or not disks or control.guest(vm) is None:
        return ()
    from nbdresize.guests import following

    return following.tell(control, vm, disks, timeout=timeout)


def tell_changed(
    control: "Control",
    outcome: "ChangeOutcome",
    changes: "DiskChanges | None" = None,
    *,
    no_guest: bool,
    timeout: float,
) -> "Sequence[Told]":
    """Tell the guest the sizes of all disks that a change was about; also of those that it left as they were."""
    names = {each.disk for each in outcome.resized} | {each.name for each in (changes.update if changes else ())}
    return tell(control, outcome.vm, sorted(names), no_guest=no_guest, timeout=timeout)


def _known(told: "Sequence[Told]") -> str:
    used = [each.disk for each in told if each.note.size is not None]
    return f"its guest has the size of {' and of '.join(used)}" if used else "its guest uses none of the disks"


def _show_attached(attached: "Attachment") -> None:
    guest = attached.guest
    output.line(f"{guest.vm}: QEMU {attached.version} at {guest.qmp}")
    rows = [[disk.name, views.disk_state(disk)] for disk in guest.disks]
    output.table([Column(""), Column("")], rows, indent=2)
    for warning in attached.warnings:
        output.line(f"warning: {warning}")
    if guest.pending:
        output.line(f"nbdresize guest sync {guest.vm} tells the guest again")


def _show_disks(guest: "Guest", *, exact: bool) -> None:
    columns = [
        Column("DISK"),
        Column("SIZE", right=True),
        Column("GUEST HAS", right=True),
        Column("TOLD (UTC)"),
        Column("STATE"),
    ]
    rows = [
        [
            disk.name,
            output.size(disk.size, exact=exact),
            "-" if disk.note.size is None else output.size(disk.note.size, exact=exact),
            output.moment(disk.note.at),
            views.disk_state(disk),
        ]
        for disk in guest.disks
    ]
    if rows:
        output.table(columns, rows)
    if guest.pending:
        output.line(f"nbdresize guest sync {guest.vm} tells the guest again")
