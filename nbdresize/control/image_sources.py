"""What an image can be made from: a raw file or block device, a disk of a VM, a disk of a snapshot."""

import errno
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nbdresize.control import names, snapshot_records
from nbdresize.control.disks import checked_volume
from nbdresize.control.freeze import Instant, InstantLost, instant
from nbdresize.control.model import VM, Disk, DiskSource
from nbdresize.control.recovery import changing, held_up
from nbdresize.control.site import Site, disk_of
from nbdresize.control.snapshots import checked_snapshot, snapshot_named
from nbdresize.errors import InvalidArgument, ResourceInUse, ResourceNotFound
from nbdresize.storage.copying import open_source
from nbdresize.storage.volume import Progress
from nbdresize.units import MAX_SIZE, format_size, round_up

_ATTEMPTS = 5

_DISK_FORMATS = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"QED\x00", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
)
"""Where a file of that format has these bytes; the format as qemu-img calls it."""

_COMPRESSED = (
    (0, b"\x1f\x8b", "gunzip --keep"),
    (0, b"\xfd7zXZ\x00", "unxz --keep"),
    (0, b"\x28\xb5\x2f\xfd", "unzstd"),
    (0, b"BZh", "bunzip2 --keep"),
)
"""Where a compressed file has these bytes; the command that unpacks it."""

_LONGEST_MAGIC = 128


@dataclass(frozen=True)
class Origin:
    """What is about to be copied. `name` is what users call it; `disk`, where it is the disk itself of a VM.

    `size` is that of the image, a whole number of blocks. `space` is the most that the copy should take.
    `original_size` is what the image adds to budgets unless the operator says otherwise.
    """

    name: str
    path: Path
    size: int
    space: int
    original_size: int
    disk: Disk | None = None


@contextmanager
def origin(site: Site, source: Path | DiskSource) -> Iterator[Origin]:
    """What is to be copied, which no operation changes meanwhile.

    Raises ResourceNotFound, InvalidArgument for what is no raw image, ResourceInUse where its VM is being changed.
    """
    if isinstance(source, Path):
        yield _of_file(source)
        return
    slot = names.disk_slot(source.disk)
    site.entry(source.vm)
    with changing(site, source.vm) as change:
        entry = site.entry(source.vm)
        if source.snapshot is not None:
            yield _of_snapshot(site, entry.vm, source.snapshot, slot)
            return
        disk = disk_of(entry, slot)
        held_up(disk, change)
        volume = checked_volume(site, disk)
        brought = entry.vm.image_space if disk.image is not None else 0
        yield Origin(disk.export_name, volume.path, disk.size, volume.allocated(), brought, disk)


def copy_origin(site: Site, found: Origin, volume: str, progress: Progress) -> None:
    """Copy it into a new volume of the pool; nothing is left of that where this raises.

    A disk is copied as it is at one instant, for which nobody gets an answer of its servers. Only blocks that are
    shared are copied within one: where that can't be, a disk that clients have attached is refused with
    ResourceInUse, and one that they don't is kept from them until it is copied.
    """
    if found.disk is None:
        site.pool.copy(found.path, volume, size=found.size, progress=progress)
        return
    for _ in range(_ATTEMPTS):
        site.pool.sync(found.disk.volume)  # so that it has little left to write within the instant
        try:
            with instant(site, [found.disk]) as now:
                site.pool.copy(found.path, volume, size=found.size, progress=_at_once(now, found.disk, progress))
        except InstantLost:
            site.pool.delete(volume)
        else:
            return
    raise ResourceInUse(
        f"{found.name} can't be copied at one instant: its servers did not hold still long enough",
        "try again when there is less to do, or detach its clients",
    )


def _at_once(now: Instant, disk: Disk, progress: Progress) -> Progress:
    """A copy that shares blocks reports nothing before its end; any other takes too long for servers to wait."""

    def report(done: int, total: int) -> None:
        if now.servers and done < total:
            raise ResourceInUse(
                f"{disk.export_name} has clients attached, and can't be copied at one instant, "
                "since copies don't share blocks with it here",
                f"make the image from a snapshot (--snapshot {disk.vm}/SNAPSHOT/{disk.name}), or detach its clients",
            )
        progress(done, total)

    return report


def _of_file(path: Path) -> Origin:
    if not _is_there(path):
        raise ResourceNotFound(f"There is no file {names.shown(str(path))}", "give the path of a raw disk image")
    with open_source(path) as handle:
        size = handle.size()
        if size == 0:
            raise InvalidArgument(f"{path} is empty", "give a raw disk image with at least one byte")
        _check_raw(path, handle.read(min(size, _LONGEST_MAGIC), 0))
        found = os.fstat(handle.fileno())
    whole = round_up(size)
    if whole > MAX_SIZE:
        raise InvalidArgument(
            f"{path} has {format_size(size)}, more than the largest disk, {format_size(MAX_SIZE)}",
            "give a smaller image",
        )
    space = found.st_blocks * 512 if stat.S_ISREG(found.st_mode) else whole
    return Origin(path.name, path, whole, space, whole)


def _is_there(path: Path) -> bool:
    """Whether there is anything; also where that can't be seen, so that opening it says what is in the way."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        return error.errno not in (errno.ENAMETOOLONG, errno.ELOOP)
    return True


def _of_snapshot(site: Site, vm: VM, snapshot: str, slot: int) -> Origin:
    names.check_name(snapshot, "a snapshot")
    with site.ledger.reading() as connection:
        whole = snapshot_records.read_whole_snapshots(connection, vm.id, vm.name)
    found = snapshot_named(whole, vm.name, snapshot)
    disk = next((each for each in found.disks if each.slot == slot), None)
    if disk is None:
        there = ", ".join(each.name for each in found.disks) or "no disks"
        raise ResourceNotFound(f"Snapshot {snapshot} of VM {vm.name} has no disk{slot}", f"it has {there}")
    volume = checked_snapshot(site, found, disk)
    brought = vm.image_space if disk.image is not None else 0
    name = f"{vm.name}/{snapshot}/{disk.name}"
    return Origin(name, volume.path, disk.size, volume.allocated(), brought)


def _check_raw(path: Path, head: bytes) -> None:
    """Raises InvalidArgument where the first bytes are those of something else than a raw image."""
    quoted = shlex.quote(str(path))
    for offset, magic, format_name in _DISK_FORMATS:
        if head.startswith(magic, offset):
            raise InvalidArgument(
                f"{path} is no raw image, but {format_name}",
                f"make it raw with: qemu-img convert -f {format_name} -O raw {quoted} {shlex.quote(f'{path}.raw')}",
            )
    for offset, magic, command in _COMPRESSED:
        if head.startswith(magic, offset):
            raise InvalidArgument(
                f"{path} is no raw image, but compressed",
                f"unpack it with: {command} {quoted}; if that is no raw image, then: qemu-img convert -O raw",
            )
