"""Copies of all disks of a VM at one instant: by sharing blocks where that can be, else in full (live_copy)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from nbdresize.control.admin_client import LONGEST_HOLD
from nbdresize.control.freeze import InstantLost, instant
from nbdresize.control.live_copy import Copy, live_copies
from nbdresize.control.model import Disk
from nbdresize.control.operations import Task
from nbdresize.control.site import Site
from nbdresize.errors import ResourceInUse

TRIES = 3
"""How many instants are begun before the machine is found to be too slow."""

_QUICK = 0.1
_MOST_SYNCS = 10


@dataclass(frozen=True)
class Taken:
    """When the instant was, in seconds since 1970, and the volumes that share blocks with their disks."""

    created: float
    shared: frozenset[str]


class _Unshared(Exception):
    """This copy would be one in full after all, too long for the instant."""

    def __init__(self, copy: Copy) -> None:
        super().__init__()
        self.copy = copy


def shares(site: Site, disk: Disk) -> bool:
    """Whether a copy of the disk shares its blocks: where the file system can, and none of them is reserved."""
    return site.pool.shares_copies() and not site.pool.volume(disk.volume).preallocated()


def take_copies(site: Site, copies: Sequence[Copy], task: Task) -> Taken:
    """Copy all these disks as they are at one instant, durably. Only with the locks of their VMs held.

    Raises ResourceInUse where the instant never lasts long enough, or the clients are too fast; as `instant` and
    `live_copies`; and OperationCancelled. Some copies may be there then.
    """
    full = [copy for copy in copies if not shares(site, copy.disk)]
    while True:
        try:
            return _take(site, [copy for copy in copies if copy not in full], full, task)
        except _Unshared as found:  # files that differ in some property, say one that is never copied on write
            full.append(found.copy)
            _delete(site, copies)


def _take(site: Site, sharing: Sequence[Copy], full: Sequence[Copy], task: Task) -> Taken:
    disks = [copy.disk for copy in (*sharing, *full)]
    with live_copies(site, full, task) as live:
        with task.stage("copy"):
            live.make()
        slowest, slow = 0.0, ""
        lost: InstantLost | None = None
        for _ in range(TRIES):
            with task.stage("copy"):
                _write_out(site, sharing)
                live.catch_up()
            try:
                with task.stage("instant"), instant(site, disks):
                    created = time.time()
                    live.take_rest()
                    for copy in sharing:
                        start = time.monotonic()
                        _share(site, copy)
                        slowest, slow = max((slowest, slow), (time.monotonic() - start, copy.disk.export_name))
            except InstantLost as error:
                live.lost()
                _delete(site, sharing)
                lost = error
            else:
                with task.stage("sync"):
                    live.sync()
                return Taken(created, frozenset(copy.volume for copy in sharing))
    if slowest >= LONGEST_HOLD:
        raise ResourceInUse(
            f"Sharing the blocks of {slow} takes {slowest:.1f} s, but its clients are held back for a second at most",
            "detach its clients for the moment; a volume that is less fragmented takes less time",
        ) from lost
    names = ", ".join(disk.export_name for disk in disks)
    raise ResourceInUse(
        f"The copies of {names} at one instant took too long {TRIES} times: {lost}",
        "try again when its clients write less, or detach them",
    ) from lost


def _write_out(site: Site, copies: Sequence[Copy]) -> None:
    """Let the disks' data reach its blocks now, as sharing needs it: at the instant, clients would wait for that."""
    for _ in range(_MOST_SYNCS):
        start = time.monotonic()
        for copy in copies:
            site.pool.sync(copy.disk.volume)
        if time.monotonic() - start <= _QUICK:
            return


def _share(site: Site, copy: Copy) -> None:
    def unshared(done: int, total: int) -> None:
        if done < total:
            raise _Unshared(copy)

    site.pool.copy(site.pool.volume(copy.disk.volume).path, copy.volume, progress=unshared)


def _delete(site: Site, copies: Sequence[Copy]) -> None:
    for copy in copies:
        site.pool.delete(copy.volume)
