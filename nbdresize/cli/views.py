"""VMs, disks and outcomes as the command line shows them: the shapes of the JSON, and the tables."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nbdresize.cli import output
from nbdresize.cli.output import Column

if TYPE_CHECKING:
    from nbdresize.control.model import VM, ChangeOutcome, Disk, DiskChanges, Guest, GuestDisk, ResizeOutcome, Stage
    from nbdresize.guests.following import Told

Json = dict[str, Any]

_STAGES = ("volume", "ledger", "servers")
"""The order in which stages are shown: from the bytes towards the guest."""


def disk_json(disk: "Disk") -> Json:
    """A disk of a VM; sizes in bytes."""
    return {
        "slot": disk.name,
        "size": disk.size,
        "boot": disk.boot,
        "image": disk.image,
        "pci_slot": disk.pci_slot,
        "generation": disk.generation,
        "pending_size": disk.pending_size,
        "export": disk.export_name,
    }


def space_json(vm: "VM") -> Json:
    """A VM's budget and what its disks and snapshots take of it, in bytes."""
    return {
        "total_space": vm.budget,
        "used_space": vm.used,
        "free_space": vm.free,
        "snapshot_space": vm.snapshot_space,
    }


def vm_json(vm: "VM") -> Json:
    """A VM with its disks. `allowed` is what all switches together leave to it, `client_resize` its own."""
    policy = vm.allowed.client_resize
    return {
        "name": vm.name,
        "owner": vm.owner,
        "package": vm.package,
        "image": vm.image,
        "protected": vm.protected,
        "client_resize": vm.client_resize.value if vm.client_resize else None,
        "allowed": {
            "client_resize": policy.value if policy else None,
            "snapshots": vm.allowed.snapshots,
            "flexible_disks": vm.flexible and vm.allowed.flexible_disks,
        },
        **space_json(vm),
        "snapshots": vm.snapshots,
        "snapshot_limit": vm.snapshot_limit,
        "disks": [disk_json(disk) for disk in vm.disks],
    }


def disks_json(vm: "VM") -> Json:
    """What `disk list` answers with."""
    return {"vm": vm.name, **space_json(vm), "disks": [disk_json(disk) for disk in vm.disks]}


def outcome_json(outcome: "ResizeOutcome", told: "Sequence[Told]" = ()) -> Json:
    """What a resize did, with its stages; those of the guest after the others."""
    return {
        "vm": outcome.vm,
        "disk": outcome.disk,
        "old_size": outcome.old_size,
        "size": outcome.size,
        "generation": outcome.generation,
        "cause": outcome.cause.name.lower(),
        "operation": outcome.operation,
        "stages": _stages_json(outcome.stages) + told_json(told),
    }


def changes_json(outcome: "ChangeOutcome", told: "Sequence[Told]" = ()) -> Json:
    """What a change of several disks did, with its stages; those of the guest after the others."""
    return {
        "vm": outcome.vm,
        "operation": outcome.operation,
        "added": [disk_json(disk) for disk in outcome.added],
        "resized": [outcome_json(each) for each in outcome.resized],
        "removed": list(outcome.removed),
        "stages": _stages_json(outcome.stages) + told_json(told),
    }


def told_json(told: "Sequence[Told]") -> list[Json]:
    """The stages of telling a guest, each with its disk, and what to do where it is pending."""
    return [
        {**stage, "disk": each.disk, "way_out": each.error.way_out if each.error and not stage["done"] else ""}
        for each in told
        for stage in _stages_json(each.stages)
    ]


def guest_json(guest: "Guest") -> Json:
    """A guest with what it knows of each disk: `guest_size` is null where its QEMU does not use the disk."""
    return {
        "vm": guest.vm,
        "qmp": guest.qmp,
        "agent": guest.agent,
        "attached": output.iso_moment(guest.attached),
        "pending": bool(guest.pending),
        "disks": [
            {
                "slot": disk.name,
                "size": disk.size,
                "guest_size": disk.note.size,
                "pending": disk.pending,
                "detail": pending_detail(disk),
                "told": output.iso_moment(disk.note.at),
            }
            for disk in guest.disks
        ],
    }


def pending_detail(disk: "GuestDisk") -> str:
    """What the guest was told of a disk last; why it is pending, where it is."""
    return disk.note.detail if not disk.pending or not disk.note.done else "resized since, and not told"


def disk_state(disk: "GuestDisk") -> str:
    """The same, marked where it is pending."""
    return f"pending: {pending_detail(disk)}" if disk.pending else pending_detail(disk)


def show_guests(guests: "Sequence[Guest]") -> None:
    """Print a table of guests."""
    columns = [Column("GUEST OF"), Column("QMP"), Column("AGENT"), Column("DISKS", right=True), Column("PENDING")]
    rows = [
        [
            guest.vm,
            guest.qmp,
            guest.agent or "-",
            str(len(guest.disks)),
            ", ".join(disk.name for disk in guest.pending) or "-",
        ]
        for guest in guests
    ]
    output.table(columns, rows)


def _stages_json(stages: "Sequence[Stage]") -> list[Json]:
    return [
        {"name": stage.name, "seconds": round(stage.seconds, 6), "detail": stage.detail, "done": stage.done}
        for stage in _ordered(stages)
    ]


def show_vms(vms: Sequence["VM"], *, exact: bool) -> None:
    """Print a table of VMs. What none of them has gets no column."""
    packages, snapshots = any(vm.package for vm in vms), any(vm.snapshots for vm in vms)
    columns = [
        Column("NAME"),
        Column("OWNER"),
        *([Column("PACKAGE")] if packages else []),
        Column("DISKS", right=True),
        *([Column("SNAPSHOTS", right=True)] if snapshots else []),
        Column("BUDGET", right=True),
        Column("USED", right=True),
        Column("FREE", right=True),
    ]
    rows = [
        [
            vm.name,
            vm.owner or "-",
            *([vm.package or "-"] if packages else []),
            str(len(vm.disks)),
            *([str(vm.snapshots)] if snapshots else []),
            *(output.size(number, exact=exact) for number in (vm.budget, vm.used, vm.free)),
        ]
        for vm in vms
    ]
    output.table(columns, rows)


def show_vm(vm: "VM", *, exact: bool) -> None:
    """Print what a VM is and may, as far as it is out of the ordinary, then its disks."""
    for told in _told(vm):
        output.line(told)
    show_disks(vm, exact=exact)
    if vm.snapshots:
        space = output.size(vm.snapshot_space, exact=exact)
        output.line(f"{output.counted(vm.snapshots, 'snapshot')} of at most {vm.snapshot_limit}: {space} of that")


def _told(vm: "VM") -> Iterator[str]:
    if vm.owner:
        yield f"{vm.name} belongs to {vm.owner}"
    if vm.package:
        yield f"its package: {vm.package}{'' if vm.flexible else ', which fixes its disks'}"
    if vm.image:
        yield f"its image: {vm.image}"
    if vm.protected:
        yield "protected: its disks can't be shrunk, deleted or rolled back"
    if vm.allowed.client_resize:
        yield f"its clients may resize: {vm.allowed.client_resize.value}"
    if not vm.allowed.snapshots:
        yield "snapshots: switched off"
    if not vm.allowed.flexible_disks:
        yield "flexible disks: switched off"


def show_disks(vm: "VM", *, exact: bool) -> None:
    """Print a VM's disks, then its budget."""
    columns = [
        Column("DISK"),
        Column("SIZE", right=True),
        Column("BOOT"),
        Column("PCI SLOT"),
        Column("GENERATION", right=True),
        Column("EXPORT"),
    ]
    rows = [
        [
            disk.name,
            _disk_size(disk, exact=exact),
            "boot" if disk.boot else "-",
            disk.pci_slot,
            str(disk.generation),
            disk.export_name,
        ]
        for disk in vm.disks
    ]
    if rows:
        output.table(columns, rows)
        output.line()
    output.line(budget_line(vm, exact=exact))


def budget_line(vm: "VM", *, exact: bool) -> str:
    """`web1: 50 GiB of 100 GiB used, 50 GiB free`."""
    budget, used, free = (output.size(number, exact=exact) for number in (vm.budget, vm.used, vm.free))
    return f"{vm.name}: {used} of {budget} used, {free} free"


def show_outcome(outcome: "ResizeOutcome", told: "Sequence[Told]" = (), *, exact: bool) -> None:
    """Print what a resize did, and where the new size has arrived."""
    change = _show_resized(outcome, exact=exact)
    if outcome.changed:
        details = {"volume": change, "ledger": f"generation {outcome.generation}"}
        _show_stages(outcome.stages, details, told)
    else:
        show_told(told)


def show_changes(outcome: "ChangeOutcome", changes: "DiskChanges", told: "Sequence[Told]" = (), *, exact: bool) -> None:
    """Print what became of each of several disks, and where all of it has arrived."""
    for disk in outcome.added:
        output.line(f"{disk.export_name}: {output.size(disk.size, exact=exact)}, added")
    for resized in outcome.resized:
        _show_resized(resized, exact=exact)
    named = {resized.disk for resized in outcome.resized}
    for update in changes.update:
        if update.name not in named:
            output.line(f"{outcome.vm}/{update.name}: no change")
    for name in outcome.removed:
        output.line(f"{outcome.vm}/{name}: deleted")
    if outcome.added or outcome.removed or any(resized.changed for resized in outcome.resized):
        _show_stages(outcome.stages, {}, told)
    else:
        show_told(told)


def show_told(told: "Sequence[Told]") -> None:
    """Print what a guest was told, and where to go on if something is pending."""
    if told:
        _show_stages((), {}, told)


def _show_resized(outcome: "ResizeOutcome", *, exact: bool) -> str:
    """Print the old and the new size; both of them, as shown."""
    old, new = (output.size(number, exact=exact) for number in (outcome.old_size, outcome.size))
    name = f"{outcome.vm}/{outcome.disk}"
    change = f"{old} {output.arrow()} {new}"
    cause = {"FITTED": ", as far as the budget reaches", "ROUNDED_UP": ", rounded up"}.get(outcome.cause.name, "")
    output.line(f"{name}: {change}{cause}" if outcome.changed else f"{name}: {new} already")
    return change


def _show_stages(stages: "Sequence[Stage]", details: dict[str, str], told: "Sequence[Told]") -> None:
    rows = [_stage_row(stage, stage.name, details.get(stage.name, "")) for stage in _ordered(stages)]
    for each in told:
        of = f" {each.disk}" if len(told) > 1 else ""
        rows += [_stage_row(stage, f"{stage.name}{of}") for stage in each.stages]
    output.table([Column(""), Column(""), Column("", right=True)], rows, indent=2)
    for line in dict.fromkeys(_way_on(each) for each in told if each.pending):
        output.line(line)


def _way_on(told: "Told") -> str:
    """What to do about something that is pending."""
    first = f"{told.error.way_out}; " if told.error is not None and told.error.way_out else ""
    return f"pending: {first}nbdresize guest sync {told.vm} tells the guest again"


def _stage_row(stage: "Stage", name: str, detail: str = "") -> list[str]:
    text = stage.detail or detail
    return [name, text if stage.done else f"pending: {text}", output.duration(stage.seconds)]


def _ordered(stages: "Sequence[Stage]") -> "list[Stage]":
    return sorted(stages, key=lambda stage: _STAGES.index(stage.name) if stage.name in _STAGES else len(_STAGES))


def _disk_size(disk: "Disk", *, exact: bool) -> str:
    """The size, and the other end of a resize that is under way."""
    size = output.size(disk.size, exact=exact)
    if disk.pending_size is None:
        return size
    return f"{size} {output.arrow()} {output.size(disk.pending_size, exact=exact)}"
