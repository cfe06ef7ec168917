"""The commands of `nbdresize snapshot`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nbdresize.cli import guest, options, output, progress, views
from nbdresize.cli.confirm import DETAILS as DELETING
from nbdresize.cli.confirm import confirm, done_before
from nbdresize.cli.output import Column

if TYPE_CHECKING:
    from nbdresize.control.model import VM, ChangeOutcome, Snapshot, SnapshotReport

HELP = options.explained(
    "Snapshots of a VM: all its disks at one instant, also while they are in use.",
    """
    nbdresize snapshot create web1 before-upgrade
    nbdresize snapshot list web1
    nbdresize snapshot rollback web1 before-upgrade
    nbdresize snapshot delete web1 before-upgrade
    """,
)

_CREATE = options.explained(
    "Make a snapshot of all disks of a VM.",
    """
    nbdresize snapshot create web1 before-upgrade
    nbdresize snapshot create web1 before-upgrade --json
    """,
    "It shows all disks as they were at one instant, as a loss of power would have left them; clients that write"
    " meanwhile wait for a second at the most. It needs room in the VM's budget for every block that no earlier one"
    " holds, so that whatever is written later, it never takes more. On xfs and btrfs it shares its blocks with"
    " the disks; elsewhere, and for preallocated disks, they are copied while they are used.",
)
_LIST = options.explained(
    "List the snapshots of a VM, and the space that each would free.",
    """
    nbdresize snapshot list web1
    nbdresize snapshot list web1 --json
    """,
    "CHARGED is what a snapshot takes of the VM's budget: the blocks that no earlier one holds. FREES is what the"
    " budget gets back by deleting it: the blocks that no other snapshot holds;"
    " what others hold too is then charged to them.",
)
_ROLLBACK = options.explained(
    "Bring all disks of a snapshot back to what they were.",
    """
    nbdresize snapshot rollback web1 before-upgrade
    nbdresize snapshot rollback web1 before-upgrade --disconnect --yes
    """,
    "Everything that was written since is lost, unless a later snapshot has it. Sizes come back too, and disks that"
    " were deleted since; those that were added stay, and so do all snapshots. Refused while a client has one of the"
    " disks attached, and on VMs that are protected. A guest should be shut down first: what it has in its memory is"
    f" of another time than its disks then. If one is attached and runs, it is told the sizes. {DELETING}",
)
_DELETE = options.explained(
    "Delete a snapshot of a VM.",
    """
    nbdresize snapshot delete web1 before-upgrade
    nbdresize snapshot delete web1 before-upgrade --yes
    """,
    f"The disks keep what they have. Allowed on VMs that are protected, whose disks lose nothing by it. {DELETING}",
)


def complete_snapshot(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the VM's snapshots for the shell."""
    vm = context.params.get("vm")
    if not isinstance(vm, str):
        return []
    return options.completed(incomplete, lambda control: [each.name for each in control.snapshots(vm)])


_NewName = Annotated[str, typer.Argument(metavar="NAME", help="A name for the new snapshot.", show_default=False)]
_Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="The name of a snapshot.", autocompletion=complete_snapshot, show_default=False
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the group."""
    app.command("create", **_CREATE)(create)
    app.command("list", **_LIST)(list_snapshots)
    app.command("rollback", **_ROLLBACK)(rollback)
    app.command("delete", **_DELETE)(delete)


def create(
    vm: options.VMName,
    name: _NewName,
    operation: options.Operation = None,
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    with options.control(root) as control, progress.shown(json=json) as listener:
        snapshot = control.create_snapshot(vm, name, operation=operation, listener=listener)
    if json:
        output.document({"vm": vm, **_json(snapshot)})
        return
    disks = output.counted(len(snapshot.disks), "disk")
    output.line(f"{vm}: snapshot {name} of {disks}, charged {output.about(snapshot.space)}{_copied(snapshot)}")


def list_snapshots(
    vm: options.VMName, json: options.Json = False, exact: options.Bytes = False, root: options.Root = None
) -> None:
    with options.control(root) as control:
        report = control.snapshot_report(vm)
    if json:
        found = [{**_json(each), "frees": report.frees[each.name]} for each in report.snapshots]
        output.document({"vm": vm, "snapshot_space": report.space, "held_space": report.held, "snapshots": found})
    elif report.snapshots:
        _show(report, exact=exact)
    else:
        output.line(f"{vm} has no snapshots: nbdresize snapshot create {vm} NAME makes one.")


def rollback(
    vm: options.VMName,
    name: _Name,
    disconnect: Annotated[
        bool, typer.Option("--disconnect", help="Drop the clients of the disks before bringing them back.")
    ] = False,
    yes: options.Yes = False,
    no_guest: options.NoGuest = False,
    guest_timeout: options.GuestTimeout = options.GUEST_SECONDS,
    operation: options.Operation = None,
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    with options.control(root) as control:
        if not done_before(control, operation):
            snapshot = _found(control.snapshots(vm), name)
            if snapshot is not None:
                confirm(_loss(control.vm(vm), snapshot), yes=yes, doing="Losing", question="Lose")
        with progress.shown(json=json) as listener:
            outcome = control.rollback(vm, name, disconnect=disconnect, operation=operation, listener=listener)
        told = guest.tell_changed(control, outcome, no_guest=no_guest, timeout=guest_timeout)
    if json:
        output.document({"snapshot": name, **views.changes_json(outcome, told)})
    else:
        _show_outcome(name, outcome)
        views.show_told(told)


def delete(
    vm: options.VMName,
    name: _Name,
    yes: options.Yes = False,
    operation: options.Operation = None,
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    with options.control(root) as control:
        if not done_before(control, operation):
            snapshot = _found(control.snapshots(vm), name)
            if snapshot is not None:
                confirm(f"snapshot {name} of {vm}, made {output.moment(snapshot.created)} UTC", yes=yes)
        control.delete_snapshot(vm, name, operation=operation)
    if json:
        output.document({"vm": vm, "snapshot": name, "deleted": True})
    else:
        output.line(f"{vm}: snapshot {name} deleted")


def _found(snapshots: "list[Snapshot]", name: str) -> "Snapshot | None":
    """The snapshot to ask about; where there is none, control says what there is."""
    return next((each for each in snapshots if each.name == name), None)


def _loss(vm: "VM", snapshot: "Snapshot") -> str:
    """What a rollback loses: `all that was written to web1/disk0 and web1/disk1 since 2026-11-21 16:00:00 UTC`."""
    ids = {disk.disk_id for disk in snapshot.disks}
    names = [disk.export_name for disk in vm.disks if disk.id in ids] or [vm.name]
    *others, last = names
    disks = f"{', '.join(others)} and {last}" if others else last
    return f"all that was written to {disks} since {output.moment(snapshot.created)} UTC"


def _copied(snapshot: "Snapshot") -> str:
    """`, copied 3.2 GiB (this file system can't share blocks)`, where it had to be."""
    copies = [disk for disk in snapshot.disks if not disk.shared]
    if not copies:
        return ""
    why = "this file system can't share blocks"
    if all(disk.preallocated for disk in copies):
        why = f"{', '.join(disk.name for disk in copies)}: preallocated disks share no blocks"
    return f", copied {output.about(snapshot.copied)} ({why})"


def _json(snapshot: "Snapshot") -> dict[str, Any]:
    return {
        "name": snapshot.name,
        "created": output.iso_moment(snapshot.created),
        "size": snapshot.size,
        "space": snapshot.space,
        "copied": snapshot.copied,
        "disks": [
            {"slot": disk.name, "size": disk.size, "space": disk.space, "shared": disk.shared}
            for disk in snapshot.disks
        ],
    }


def _show(report: "SnapshotReport", *, exact: bool) -> None:
    columns = [
        Column("NAME"),
        Column("CREATED (UTC)"),
        Column("DISKS", right=True),
        Column("SIZE", right=True),
        Column("CHARGED", right=True),
        Column("FREES", right=True),
    ]
    rows = [
        [
            each.name,
            output.moment(each.created),
            str(len(each.disks)),
            output.size(each.size, exact=exact),
            output.about(each.space, exact=exact),
            output.about(report.frees[each.name], exact=exact),
        ]
        for each in report.snapshots
    ]
    output.table(columns, rows)
    output.line()
    charged, held = (output.about(number, exact=exact) for number in (report.space, report.held))
    output.line(f"{report.vm}: {charged} charged for its snapshots; {held} in blocks that only they hold")


def _show_outcome(name: str, outcome: "ChangeOutcome") -> None:
    for disk in outcome.added:
        output.line(f"{disk.export_name}: back as in {name}, {output.size(disk.size)}, after it had been deleted")
    for each in outcome.resized:
        size = output.size(each.size)
        change = f"{output.size(each.old_size)} {output.arrow()} {size}" if each.changed else size
        output.line(f"{outcome.vm}/{each.disk}: as in {name}, {change}, generation {each.generation}")
