"""Running servers: whether they answer, and offer their clients the sizes that the ledger has."""

import shlex
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nbdresize.control import admin_client, records
from nbdresize.control.admin_client import TIME_LIMIT, reachable
from nbdresize.control.checks.report import Findings, Repair, What
from nbdresize.control.model import Disk
from nbdresize.control.site import Site
from nbdresize.errors import ServerFailed
from nbdresize.units import format_size

PATIENCE = TIME_LIMIT + 1
"""Seconds within which a command that has just changed a size has told every server."""

_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True)
class _Offer:
    """A size as a server's clients have it."""

    server: Path
    export: str
    size: int
    generation: int


def check_servers(site: Site, findings: Findings) -> None:
    """Ask each server which size its clients have; one that lags is told, where that is wanted."""
    before = _disks(site)
    offers: list[_Offer] = []
    for path in admin_client.servers(site.state):
        if _is_dead(path):
            _found_dead(findings, path)
            continue
        try:
            offers += _offers(path)
        except ServerFailed as error:
            if path.exists() and not _is_dead(path):
                pid = path.name.partition("-")[0]
                findings.found(
                    What.SERVER_SILENT,
                    str(path),
                    f"{error.problem}: it hears of no change",
                    f"see what process {pid} does, and restart it",
                )
            continue
        findings.count("servers")
    lagging = [offer for offer in offers if _lags(offer, before)]
    for offer in _still_lagging(lagging, before):
        _found_lagging(site, findings, offer, before[offer.export])
    after = _disks(site)
    for offer in offers:
        if (
            offer.export in before
            and _same_disk(before, after, offer)
            and offer.generation > after[offer.export].generation
        ):
            _found_ahead(findings, offer, after[offer.export])


def _disks(site: Site) -> dict[str, Disk]:
    """The disks by their names as exports."""
    with site.ledger.reading() as connection:
        return {disk.export_name: disk for entry in records.read_vms(connection) for disk in entry.vm.disks}


def _offers(path: Path) -> Sequence[_Offer]:
    """What the server at `path` offers now, one for each export. Raises ServerFailed."""
    clients = admin_client.ask(path, {"command": "clients"}).get("clients")
    return list(set(_read(path, clients if isinstance(clients, list) else [])))


def _read(path: Path, clients: Sequence[Any]) -> Iterator[_Offer]:
    for client in clients:
        if isinstance(client, dict):
            export, size, generation = (client.get(key) for key in ("export", "size", "generation"))
            if isinstance(export, str) and isinstance(size, int) and isinstance(generation, int):
                yield _Offer(path, export, size, generation)


def _lags(offer: _Offer, ledger: Mapping[str, Disk]) -> bool:
    """Whether the server does not know what the ledger had before it was asked.

    Clients hold the lease of a disk, so it is still the one that it was when they came.
    """
    disk = ledger.get(offer.export)
    if disk is None:
        return False
    return offer.generation < disk.generation or (offer.generation == disk.generation and offer.size != disk.size)


def _still_lagging(lagging: Sequence[_Offer], ledger: Mapping[str, Disk]) -> Sequence[_Offer]:
    """Those that do so for longer than whoever changed the size needs to tell them."""
    deadline = time.monotonic() + PATIENCE
    while lagging and time.monotonic() < deadline:
        time.sleep(_BETWEEN_LOOKS)
        exports = {(offer.server, offer.export) for offer in lagging}
        lagging = []
        for path in {server for server, _ in exports}:
            try:
                now = _offers(path)
            except ServerFailed:  # it ends, or does not answer any more
                continue
            lagging += [offer for offer in now if (path, offer.export) in exports and _lags(offer, ledger)]
    return lagging


def _found_lagging(site: Site, findings: Findings, offer: _Offer, disk: Disk) -> None:
    findings.found(
        What.SERVER_LAGS,
        offer.export,
        f"The server at {offer.server} offers its clients {format_size(offer.size)}, but the ledger says "
        f"{format_size(disk.size)}",
        f"restart that server (process {offer.server.name.partition('-')[0]})",
        Repair("tells it again", "the server was told", partial(_tell, site, offer)),
    )


def _tell(site: Site, offer: _Offer) -> None:
    stage = admin_client.publish(site.state, [offer.export])
    if not stage.done:
        raise ServerFailed(stage.detail, "restart that server")
    if any(_lags(now, _disks(site)) for now in _offers(offer.server) if now.export == offer.export):
        raise ServerFailed("It was told, but does not change its size", "restart that server")


def _same_disk(before: Mapping[str, Disk], after: Mapping[str, Disk], offer: _Offer) -> bool:
    """Whether the disk has been there all the time."""
    then, now = before.get(offer.export), after.get(offer.export)
    return then is not None and now is not None and then.id == now.id


def _found_ahead(findings: Findings, offer: _Offer, disk: Disk) -> None:
    findings.found(
        What.SERVER_LAGS,
        offer.export,
        f"The server at {offer.server} knows generation {offer.generation} of the size, but the ledger says "
        f"{disk.generation}: the ledger was brought back from an older time",
        f"restart that server (process {offer.server.name.partition('-')[0]})",
    )


# Dead servers


def _is_dead(path: Path) -> bool:
    """Whether nobody listens on the socket. Servers listen before it gets its name, and remove it before they end."""
    try:
        with socket.socket(socket.AF_UNIX) as asking, reachable(path) as address:
            asking.settimeout(TIME_LIMIT)
            asking.connect(address)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _found_dead(findings: Findings, path: Path) -> None:
    findings.found(
        What.LEFT_BEHIND,
        str(path),
        "The socket of a server that is gone was left behind, and nobody listens on it",
        f"remove it with rm {shlex.quote(str(path))}",
        Repair("removes it", "it was removed", partial(_ask_the_dead, path)),
    )


def _ask_the_dead(path: Path) -> None:
    """Whoever asks a socket on which nobody listens removes it."""
    try:
        admin_client.ask(path, {"command": "counters"})
    except ServerFailed as error:
        if path.exists():
            raise ServerFailed(f"{path} can't be removed", "remove it by hand") from error
