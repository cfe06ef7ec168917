"""Volumes against what the ledger says of them. The lock of their VM, or image, is held by the caller."""

import shlex
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from nbdresize.control.checks.report import Findings, Repair, What
from nbdresize.control.fence import fenced
from nbdresize.control.model import Disk
from nbdresize.control.site import Site
from nbdresize.errors import NbdresizeError, VolumeFailed
from nbdresize.storage.volume import Volume
from nbdresize.units import format_size

_PIECE = 1 << 20


@dataclass
class Files:
    """The files of all volumes that were looked at, to find two that are one. Names by device and inode."""

    seen: dict[tuple[int, int], list[tuple[str, Path]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, subject: str, path: Path) -> None:
        identity = _identity(path)
        if identity is not None:
            self.seen[identity].append((subject, path))

    def check(self, findings: Findings) -> None:
        """Two volumes may have had the same inode one after the other; so both are looked at once more, together."""
        for several in self.seen.values():
            first, path = several[0]
            for other, other_path in several[1:]:
                if path != other_path and _are_one(path, other_path):
                    copy = f"{other_path}.copy"
                    findings.found(
                        What.VOLUMES_ARE_ONE_FILE,
                        other,
                        f"Its volume {other_path} is the same file as that of {first}, {path}: what is written to one "
                        "changes the other",
                        f"detach the clients of both, then give it a file of its own: {_command('cp', path, copy)} && "
                        f"{_command('mv', copy, other_path)}",
                    )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _are_one(path: Path, other: Path) -> bool:
    """Whether both are there at one time, as the same file; names of volumes are never used again."""
    before, then, after = _identity(path), _identity(other), _identity(path)
    return before is not None and before == then == after


def check_disk_volume(site: Site, findings: Findings, disk: Disk) -> None:
    """There, of the right kind, and as long as the disk; one with nothing but zeroes behind can be cut."""
    way_out = f"put it back from a copy, or delete the disk with nbdresize disk delete {disk.vm} {disk.name}"
    if disk.boot:
        way_out = f"put it back from a copy, or delete the VM with nbdresize vm delete {disk.vm}"
    found = _size(site, findings, disk.export_name, disk.volume, way_out)
    if found is None:
        return
    volume, size = found
    if size > disk.size:
        _check_rest(site, findings, disk, volume, size)
    elif size < disk.size:
        _too_short(findings, disk.export_name, volume, size, disk.size)


def check_stored_volume(site: Site, findings: Findings, subject: str, volume: str, size: int, delete: str) -> bool:
    """The same for the volume of a snapshot or an image, which nobody writes to; whether all is well with it.

    `delete` is the command that gives it up.
    """
    found = _size(site, findings, subject, volume, f"put it back from a copy, or delete it with {delete}")
    if found is None:
        return False
    there, now = found
    if now > size:
        findings.found(
            What.VOLUME_TOO_LONG,
            subject,
            f"Its volume {there.path} has {now} bytes, but the ledger says {size}: somebody has changed it",
            f"look at what is behind, then cut it with {_command('truncate', '-s', size, there.path)}, "
            f"or delete it with {delete}",
        )
    elif now < size:
        _too_short(findings, subject, there, now, size)
    return now == size


def holds_data(volume: Volume, start: int = 0) -> bool:
    """Whether there is anything but zeroes from `start` on; holes are not read. Raises VolumeFailed."""
    with volume.open(read_only=True) as handle:
        offset, end = start, handle.size()
        while offset < end:
            (extent,) = handle.extents(offset, end - offset, limit=1)
            until = offset + extent.length
            while not extent.zero and offset < until:
                piece = handle.read(min(_PIECE, until - offset), offset)
                if piece.count(0) != len(piece):
                    return True
                offset += len(piece)
            offset = until
    return False


def _size(site: Site, findings: Findings, subject: str, name: str, way_out: str) -> tuple[Volume, int] | None:
    """The volume and its size; None, and told, where that can't be had."""
    try:
        volume = site.pool.volume(name)
        return volume, volume.size()
    except NbdresizeError as error:
        findings.found(What.VOLUME_UNUSABLE, subject, error.problem, way_out)
        return None


def _too_short(findings: Findings, subject: str, volume: Volume, size: int, wanted: int) -> None:
    findings.found(
        What.VOLUME_TOO_SHORT,
        subject,
        f"Its volume {volume.path} has {size} bytes, but the ledger says {wanted}: the last {wanted - size} are lost",
        f"put it back from a copy; or, to go on with zeroes there, {_command('truncate', '-s', wanted, volume.path)}",
    )


def _check_rest(site: Site, findings: Findings, disk: Disk, volume: Volume, size: int) -> None:
    detail = f"Its volume {volume.path} has {size} bytes, but the ledger says {disk.size}"
    cut = _command("truncate", "-s", disk.size, volume.path)
    try:
        data = holds_data(volume, disk.size)
    except NbdresizeError as error:
        findings.found(What.VOLUME_UNUSABLE, disk.export_name, error.problem, error.way_out)
        return
    if data:
        skip = f"skip={disk.size} iflag=skip_bytes"
        findings.found(
            What.VOLUME_TOO_LONG,
            disk.export_name,
            f"{detail}, and there is data behind",
            f"look at it with dd if={shlex.quote(str(volume.path))} {skip} | hexdump -C; then cut it with {cut}",
        )
        return
    does = f"cuts it to {format_size(disk.size)}"
    done = f"it was cut to {format_size(disk.size)}"
    repair = Repair(does, done, partial(_cut, site, disk, volume))
    findings.found(What.VOLUME_TOO_LONG, disk.export_name, f"{detail}, with only zeroes behind", cut, repair)


def _cut(site: Site, disk: Disk, volume: Volume) -> None:
    """Cut what is behind, with nobody attached."""
    with fenced(site, disk):
        if holds_data(volume, disk.size):
            raise VolumeFailed(f"{volume.path} was written behind {disk.size} just now", "look who writes there")
        volume.shrink(disk.size)


def _command(*words: object) -> str:
    return shlex.join(str(word) for word in words)
