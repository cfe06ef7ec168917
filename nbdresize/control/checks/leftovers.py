"""Files that belong to nothing: volumes that no row names, and locks, doors, maps and sockets of those who are gone.

Whoever makes a volume records it first, and removes it before its record. So one that was there before the ledger was
read, is not in it, and is there afterwards, is nobody's. Locks come before the record, so of these it takes longer.
"""

import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nbdresize.control import catalog_records, locks, records
from nbdresize.control.checks.report import Findings, Repair, What
from nbdresize.control.checks.volumes import holds_data
from nbdresize.control.leases import DOOR_SUFFIX, Lease, lease_path
from nbdresize.control.site import Site
from nbdresize.errors import NbdresizeError, ResourceInUse, StateUnusable, VolumeFailed
from nbdresize.units import format_size

_LOOKS = 5
_BETWEEN_LOOKS = 0.1
"""Seconds. A lock file is nobody's where nobody holds it at any of so many looks."""

_MAP = re.compile(r"(.+)\.written(?:\.new)?")
_SOCKET_BEING_MADE = re.compile(r"\..+\.admin\.new")
_OWN_LOCK = "."
"""Begins the names of locks that are no VM's."""


@dataclass(frozen=True)
class Known:
    """What the ledger knows of at one moment."""

    volumes: frozenset[str]
    vms: frozenset[str]
    images: frozenset[str]

    @classmethod
    def read(cls, site: Site) -> "Known":
        with site.ledger.reading() as connection:
            images = {each.name for each in catalog_records.read_images(connection)}
            being_made = set(records.unfinished(connection).images)
            return cls(
                frozenset(records.volume_names(connection)),
                frozenset(records.vm_names(connection)),
                frozenset(images | being_made),
            )


@dataclass(frozen=True)
class Suspect:
    """A file that may be nobody's. `belongs` tells whether the ledger has what it is for."""

    path: Path
    kind: str
    inode: int
    belongs: Callable[[Known], bool]
    is_lock: bool = True

    def is_left(self, known: Known) -> bool:
        """Whether it is still there, nobody holds it, and it is for nothing."""
        return (
            _inode(self.path) == self.inode and not self.belongs(known) and not (self.is_lock and _is_held(self.path))
        )


# Volumes


def check_volumes(site: Site, findings: Findings) -> None:
    """Volumes that no row names. What holds no data is removed where that is wanted; nothing else ever is."""
    listed = set(site.pool.names())
    unknown = listed - Known.read(site).volumes
    for name in sorted(unknown & set(site.pool.names()) if unknown else ()):
        _found_orphan(site, findings, name)


def _found_orphan(site: Site, findings: Findings, name: str) -> None:
    volume = site.pool.volume(name)
    path = shlex.quote(str(volume.path))
    remove = f"rm {path}"
    try:
        size, allocated, data = volume.size(), volume.allocated(), holds_data(volume)
    except NbdresizeError as error:
        detail = f"No disk, snapshot or image has this volume, and it can't be looked at: {error.problem}"
        findings.found(What.ORPHAN_VOLUME, name, detail, f"see what it is with ls -ld {path}")
        return
    if data:
        detail = (
            "No disk, snapshot or image has this volume, but it holds data: "
            f"{format_size(size)}, {format_size(allocated)} of them allocated"
        )
        look = f"look at it with fdisk -l {path} or mount -o loop,ro {path} DIR"
        findings.found(What.ORPHAN_VOLUME, name, detail, f"{look}; delete it with {remove}")
        return
    detail = "No disk, snapshot or image has this volume, and it holds no data"
    repair = Repair("removes it", "it was removed", partial(_remove_orphan, site, name))
    findings.found(What.ORPHAN_VOLUME, name, detail, remove, repair)


def _remove_orphan(site: Site, name: str) -> None:
    """With its lease, so that nobody has it attached who knew it before the ledger was brought back, say."""
    path = lease_path(site.state.leases, name)
    with Lease.acquire_exclusive(path) as lease:
        if name in Known.read(site).volumes or holds_data(site.pool.volume(name)):
            raise VolumeFailed(f"Volume {name} came into use just now", "check again")
        site.pool.delete(name)
        lease.remove_file()


# Other files


def suspects(site: Site) -> list[Suspect]:
    """Every file whose owner is to be looked for: all there are, listed before the ledger is read."""
    state = site.state
    found: list[Suspect] = []
    for path, inode in _listed(state.leases):
        if path.name.endswith(DOOR_SUFFIX):
            found.append(Suspect(path, "door", inode, lambda known: False))
        elif path.name.endswith(locks.SUFFIX):
            found.append(Suspect(path, "lease", inode, partial(_volume_is_known, path.name.removesuffix(locks.SUFFIX))))
    for path, inode in _listed(state.locks):
        name = path.name.removesuffix(locks.SUFFIX)
        if name == path.name:
            continue
        for image in locks.images_of([name]):
            found.append(Suspect(path, "lock of an image", inode, partial(_image_is_known, image)))
        if not name.startswith(_OWN_LOCK):
            found.append(Suspect(path, "lock of a VM", inode, partial(_vm_is_known, name)))
    for path, inode in _listed(state.run):
        if match := _MAP.fullmatch(path.name):
            found.append(Suspect(path, "write map", inode, partial(_volume_is_known, match[1]), is_lock=False))
        elif _SOCKET_BEING_MADE.fullmatch(path.name):
            found.append(Suspect(path, "unfinished socket", inode, lambda known: False, is_lock=False))
    return found


def check_left(site: Site, findings: Findings, listed: list[Suspect]) -> None:
    """Tell those of the files that are nobody's, and stay so; remove them where that is wanted."""
    for look in range(_LOOKS):
        known = Known.read(site)
        listed = [suspect for suspect in listed if suspect.is_left(known)]
        if not listed:
            return
        if look + 1 < _LOOKS:
            time.sleep(_BETWEEN_LOOKS)
    for suspect in listed:
        findings.found(
            What.LEFT_BEHIND,
            str(suspect.path),
            f"A {suspect.kind} was left behind that is for nothing, and holds nobody up",
            f"remove it with rm {shlex.quote(str(suspect.path))}",
            Repair("removes it", "it was removed", partial(_remove, site, suspect)),
        )


def _volume_is_known(name: str, known: Known) -> bool:
    return name in known.volumes


def _vm_is_known(name: str, known: Known) -> bool:
    return name in known.vms


def _image_is_known(name: str, known: Known) -> bool:
    return name in known.images


def _listed(directory: Path) -> Iterator[tuple[Path, int]]:
    try:
        with os.scandir(directory) as entries:
            yield from [(directory / entry.name, entry.inode()) for entry in entries]
    except OSError as error:
        raise StateUnusable(f"{directory} can't be listed: {error.strerror}", "see its permissions") from error


def _inode(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except OSError:
        return None


def _is_held(path: Path) -> bool:
    """Whether somebody holds the lock file at `path`, which is not made for that."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not locks.lock_descriptor(path, descriptor, exclusive=True)
    finally:
        os.close(descriptor)


def _remove(site: Site, suspect: Suspect) -> None:
    """Remove the file; a lock file only while it is held here, so that nobody is just about to use it."""
    if not suspect.is_lock:
        _unlink(suspect)
        return
    descriptor = locks.try_lock(suspect.path, exclusive=True)
    if descriptor is None:
        raise ResourceInUse(f"{suspect.path} is in use", "check again")
    try:
        if suspect.belongs(Known.read(site)):
            raise ResourceInUse(f"{suspect.path} is in use", "check again")
        _unlink(suspect)
    finally:
        os.close(descriptor)


def _unlink(suspect: Suspect) -> None:
    try:
        suspect.path.unlink(missing_ok=True)
    except OSError as error:
        raise StateUnusable(f"{suspect.path} can't be removed: {error.strerror}", "remove it by hand") from error
