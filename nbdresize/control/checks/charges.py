"""What snapshots and images are charged, against what they take."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

from nbdresize.control import catalog_records, snapshot_records
from nbdresize.control.checks.report import Findings, Repair, What
from nbdresize.control.model import Image, Snapshot, SnapshotDisk
from nbdresize.control.site import Site
from nbdresize.units import format_size

LEAST_DIFFERENCE = 1 << 20
"""Bytes by which a charge may be off, or a hundredth of it if that is more: file systems keep some of what they need
for themselves in a file's space (the lists of where its blocks lie), and change that without being asked."""


def check_snapshot_charges(site: Site, findings: Findings, vm: str, snapshots: Sequence[Snapshot]) -> None:
    """Of each disk's snapshots, from the oldest on, what each has that none before it has. With the VM's lock held.

    Raises VolumeFailed.
    """
    by_disk: dict[int, list[tuple[Snapshot, SnapshotDisk]]] = defaultdict(list)
    for snapshot in snapshots:
        for disk in snapshot.disks:
            by_disk[disk.disk_id].append((snapshot, disk))
    for found in by_disk.values():
        volumes = [disk.volume for _, disk in found]
        spaces = dict(zip(volumes, site.pool.spaces(volumes), strict=True))
        for snapshot, disk in found:
            if _differs(disk.space, spaces[disk.volume]):
                # All of them, since what one has too little may be what the next has too much.
                settle = partial(_settle, site, spaces)
                _found(
                    findings,
                    f"{disk.name} of snapshot {snapshot.name} of {vm}",
                    disk.space,
                    spaces[disk.volume],
                    settle,
                )


def check_image_charge(site: Site, findings: Findings, image: Image) -> None:
    """All that its volume takes. With the image's lock held. Raises VolumeFailed."""
    space = site.pool.volume(image.volume).allocated()
    if _differs(image.space, space):
        _found(findings, f"image {image.name}", image.space, space, partial(_settle_image, site, image.id, space))


def _differs(charged: int, measured: int) -> bool:
    return abs(charged - measured) > max(LEAST_DIFFERENCE, measured // 100)


def _found(findings: Findings, subject: str, charged: int, measured: int, settle: "partial[None]") -> None:
    findings.found(
        What.WRONG_CHARGE,
        subject,
        f"It is charged {format_size(charged)}, but takes {format_size(measured)}",
        repair=Repair(f"charges {format_size(measured)}", f"it is charged {format_size(measured)}", settle),
    )


def _settle(site: Site, spaces: dict[str, int]) -> None:
    with site.ledger.deciding() as connection:
        snapshot_records.set_spaces(connection, spaces)


def _settle_image(site: Site, image_id: int, space: int) -> None:
    with site.ledger.deciding() as connection:
        catalog_records.set_image_space(connection, image_id, space)
