"""Copies of all disks of a VM at one instant: by sharing blocks where that can be, else in full (live_copy)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from nbdresize.control.freeze import InstantLost, instant
from nbdresize.control.live_copy import Copy, live_copies, shares
from nbdresize.control.operations import Task
from nbdresize.control.site import Site
from nbdresize.errors import ResourceInUse

TRIES = 3
"""How many instants are begun before the machine is found to be too slow."""

_SLOW = 0.25
"""Seconds for sharing blocks at an instant that was lost, from which on that is taken for the reason."""

_QUICK = 0.1


@dataclass(frozen=True)
class Taken:
    """When the instant was, in seconds since 1970, and the volumes that share blocks with their disks."""

    created: float
    shared: frozenset[str]


class _TooLong(Exception):
    """These copies take too long for the instant, and have to be begun before it."""

    def __init__(self, copies: Sequence[Copy]) -> None:
        super().__init__()
        self.copies = copies


def take_copies(site: Site, copies: Sequence[Copy], task: Task) -> Taken:
    """Copy all these disks as they are at one instant, durably. Only with the locks of their VMs held.

    Those that share blocks are copied at the instant, unless one of them has so many extents that it does not fit;
    the others begin before. Raises ResourceInUse where the instant never lasts long enough, or the clients are too
    fast; as `instant` and `live_copies`; and OperationCancelled. Some copies may be there then.
    """
    before = [copy for copy in copies if not shares(site, copy.disk)]
    while True:
        try:
            return _take(site, [copy for copy in copies if copy not in before], before, task)
        except _TooLong as found:
            before += found.copies
            _delete(site, copies)


def _take(site: Site, sharing: Sequence[Copy], before: Sequence[Copy], task: Task) -> Taken:
    disks = [copy.disk for copy in (*sharing, *before)]
    lost: InstantLost | None = None
    with live_copies(site, before, task) as live:
        with task.stage("copy"):
            _write_out(site, [copy for copy in before if shares(site, copy.disk)])
            live.make()
        for _ in range(TRIES):
            with task.stage("copy"):
                _write_out(site, sharing)
                live.catch_up()
            took = 0.0
            try:
                with task.stage("instant"), instant(site, disks):
                    created = time.time()
                    live.take_rest()
                    start = time.monotonic()
                    for copy in sharing:
                        _share(site, copy)
                        took = time.monotonic() - start
            except InstantLost as error:
                lost = error
                live.lost()
                _delete(site, sharing)
                if took >= _SLOW:
                    raise _TooLong(sharing) from error
            else:
                with task.stage("sync"):
                    live.sync()
                return Taken(created, live.shared.union(copy.volume for copy in sharing))
    names = ", ".join(disk.export_name for disk in disks)
    raise ResourceInUse(
        f"The copies of {names} at one instant took too long {TRIES} times: {lost}",
        "try again when its clients write less, or detach them",
    ) from lost


def _write_out(site: Site, copies: Sequence[Copy]) -> None:
    """Let the disks' data reach its blocks now, as sharing needs it: at the instant, clients would wait for that.

    What is written while it goes on is left for another time, as long as each takes much less than the one before.
    """
    before = float("inf")
    while True:
        start = time.monotonic()
        for copy in copies:
            site.pool.sync(copy.disk.volume)
        took = time.monotonic() - start
        if took <= _QUICK or took > before / 2:
            return
        before = took


def _share(site: Site, copy: Copy) -> None:
    def unshared(done: int, total: int) -> None:
        if done < total:
            raise _TooLong([copy])  # in full after all: files that differ in some property share nothing

    site.pool.copy(site.pool.volume(copy.disk.volume).path, copy.volume, progress=unshared)


def _delete(site: Site, copies: Sequence[Copy]) -> None:
    for copy in copies:
        site.pool.delete(copy.volume)
