"""Keeping clients away from a disk while it is shrunk or deleted. Only with the lock of its VM held."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from nbdresize.control import admin_client
from nbdresize.control.leases import Lease, closed_door
from nbdresize.control.model import Disk
from nbdresize.control.site import Site
from nbdresize.errors import ResourceInUse

GRACE = 1.0
"""Seconds for a client that has just left: its server may still be closing."""

DISCONNECT = 10.0
"""Seconds within which dropped clients must be gone."""

_BETWEEN_DROPS = 0.5


@contextmanager
def fenced(site: Site, disk: Disk, *, disconnect: bool = False, holding: Lease | None = None) -> Iterator[Lease]:
    """Hold the disk's lease against all connections.

    `disconnect` drops them first, and keeps those out that come back at once. `holding` is the caller's own
    lease on the disk, shared again afterwards. Raises ResourceInUse where others stay.
    """
    if holding is None:
        with _dropped(site, disk) if disconnect else _left(site, disk) as lease:
            yield lease
        return
    if not holding.upgrade():
        raise _attached(disk, "a client may shrink only a disk that nobody else has attached")
    try:
        yield holding
    finally:
        if holding.held:
            holding.downgrade()


def _left(site: Site, disk: Disk) -> Lease:
    try:
        return Lease.acquire_exclusive(site.lease(disk), GRACE)
    except ResourceInUse as error:
        raise _attached(
            disk, "detach them first (nbdresize status lists them; docs/guests.md says how that is safe)"
        ) from error


def _dropped(site: Site, disk: Disk) -> Lease:
    """The lease, taken with the door closed: clients that come back meanwhile don't get in, however fast they are."""
    deadline = time.monotonic() + DISCONNECT
    with closed_door(site.state.leases, disk.volume):
        while True:
            answers = admin_client.ask_all(site.state, {"command": "drop", "exports": [disk.export_name]})
            try:
                return Lease.acquire_exclusive(site.lease(disk), _BETWEEN_DROPS)
            except ResourceInUse as error:
                if time.monotonic() < deadline:
                    continue
                problems = "; ".join(answer.problem for answer in answers if answer.problem)
                raise _attached(disk, problems or "they don't leave: stop them where they run") from error


def _attached(disk: Disk, way_out: str) -> ResourceInUse:
    return ResourceInUse(f"{disk.export_name} has clients attached", way_out)
