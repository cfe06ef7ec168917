"""All exports of one server: opening them by name, and the registry of its open connections."""

import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nbdresize.control.control import Control
from nbdresize.control.model import ClientResize
from nbdresize.errors import VolumeFailed
from nbdresize.export.backing import Backing
from nbdresize.export.catalog import Catalog, FileCatalog, Found, LedgerCatalog, not_found
from nbdresize.export.disk_export import DiskExport
from nbdresize.export.hold import Freeze, Holds
from nbdresize.export.size_device import SizeDevice
from nbdresize.protocol.constants import NBD_MAX_STRING
from nbdresize.protocol.size_record import SIZE_SUFFIX

Export = DiskExport | SizeDevice


@dataclass(frozen=True)
class Client:
    """The other end of a connection, as its front knows it.

    `drop` ends the connection abruptly. Any thread may call it, more than once, and after the connection's end.
    `alive` tells whether the connection still stands, for what waits on its behalf; it is asked ten times a second.
    """

    peer: str = ""
    drop: Callable[[], None] = lambda: None
    alive: Callable[[], bool] = lambda: True


@dataclass(frozen=True)
class Connection:
    """One open export, and who has it open."""

    key: str
    export: Export
    client: Client
    since: datetime

    def describe(self) -> dict[str, Any]:
        """What the admin socket tells of it: the time in ISO 8601, counts of requests and bytes.

        `size` is what the connection may use now, in bytes, and `generation` belongs to it.
        """
        size, generation = self.export.backing.live.state
        return {
            "export": self.export.name,
            "size": size,
            "generation": generation,
            "peer": self.client.peer,
            "since": self.since.isoformat(),
            "read_only": self.export.read_only,
            "requests": self.export.requests,
            "bytes_read": self.export.bytes_read,
            "bytes_written": self.export.bytes_written,
        }


@dataclass
class _Shared:
    """A backing, and how many connections use it."""

    backing: Backing
    users: int = 0


@dataclass(frozen=True)
class Refreshed:
    """How many connections use the sizes that were looked at; and which of those exports are marked in a write map."""

    clients: int
    marking: tuple[str, ...] = ()
    unmarked: tuple[str, ...] = ()


class Exports:
    """What a front serves. Every method may be called from any thread."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._holds = Holds()
        self._lock = threading.Lock()
        self._shared: dict[str, _Shared] = {}
        self._open: dict[Export, Connection] = {}
        self._opened = 0
        self._closed_requests = 0
        self._closed_read = 0
        self._closed_written = 0

    @classmethod
    def of_ledger(cls, control: Control, policy: ClientResize = ClientResize.GROW) -> "Exports":
        """The disks of all VMs. `control` stays the caller's to close."""
        return cls(LedgerCatalog(control, policy))

    @classmethod
    def of_file(cls, path: Path, policy: ClientResize = ClientResize.GROW, max_size: int | None = None) -> "Exports":
        """One file or device; clients may grow a file up to `max_size` bytes. Raises VolumeFailed."""
        return cls(FileCatalog(path, policy, max_size))

    def list(self) -> list[tuple[str, str]]:
        """Name and description of each disk. Control exports go without saying: they would double the list."""
        return self._catalog.names()

    def default(self) -> str | None:
        """The name of the export that a client gets who names none; None where there are several disks, or none."""
        return self._catalog.default()

    def open(self, name: str, *, read_only: bool = False, client: Client | None = None) -> Export:
        """The export of that name, which may be anything, for one connection; `close` it when that ends.

        A name that ends in `@size` gives the disk's control export. Raises ResourceNotFound, ResourceInUse where the
        disk is being shrunk or deleted, VolumeFailed and StateUnusable.
        """
        if len(name) > NBD_MAX_STRING:
            raise not_found(name)
        client = client or Client()
        found = self._catalog.find(name.removesuffix(SIZE_SUFFIX))
        backing = self._use(found)
        try:
            export: Export
            if name.endswith(SIZE_SUFFIX):
                export = SizeDevice(backing, read_only=read_only, alive=client.alive)
            else:
                export = DiskExport(backing, read_only=read_only, alive=client.alive)
        except BaseException:
            self._leave(found.key)
            raise
        with self._lock:
            self._opened += 1
            self._open[export] = Connection(found.key, export, client, datetime.now(UTC))
        return export

    def close(self, export: Export) -> None:
        """The connection of this export has ended; nothing happens the second time."""
        with self._lock:
            connection = self._open.pop(export, None)
            if connection is None:
                return
            self._closed_requests += export.requests
            self._closed_read += export.bytes_read
            self._closed_written += export.bytes_written
        try:
            export.close()
        finally:
            self._leave(connection.key)

    def end_waits(self) -> None:
        """Every read that waits for news ends now, as do all holds; later ones don't begin: the server is to end."""
        self._holds.end()
        for connection in self.connections():
            if isinstance(connection.export, SizeDevice):
                connection.export.close()

    # What the admin socket asks for

    def connections(self) -> tuple[Connection, ...]:
        """Those that are open, the oldest first."""
        with self._lock:
            return tuple(self._open.values())

    def refresh(self, names: Collection[str]) -> Refreshed:
        """Look at these disks, as far as they are open here, their sizes and their write maps. Raises StateUnusable."""
        with self._lock:
            affected = [shared for shared in self._shared.values() if shared.backing.name in names]
        users = 0
        for shared in affected:
            with suppress(VolumeFailed):  # deleted, or broken: its connections will hear when they ask
                shared.backing.refresh()
                users += shared.users
        marking = {shared.backing.name for shared in affected if shared.backing.write_map is not None}
        unmarked = {shared.backing.name for shared in affected if shared.backing.write_map is None}
        return Refreshed(users, tuple(sorted(marking - unmarked)), tuple(sorted(unmarked)))

    def drop(self, names: Collection[str]) -> int:
        """End the connections to these exports abruptly; how many there were.

        A disk's control export is named apart, since its connections stand in nobody's way.
        """
        dropped = [connection for connection in self.connections() if connection.export.name in names]
        for connection in dropped:
            with suppress(OSError):
                connection.client.drop()
            connection.export.backing.hold.wake()
        return len(dropped)

    def freeze(self, names: Collection[str], seconds: float) -> Freeze:
        """Hold back every reply to clients of these exports, now and later ones, for so long or until the end of it."""
        return self._holds.freeze(names, seconds)

    def opened(self, names: Collection[str]) -> tuple[str, ...]:
        """Those of these exports that are open here, or just being opened."""
        with self._lock:
            return tuple(sorted({shared.backing.name for shared in self._shared.values()}.intersection(names)))

    def counters(self) -> dict[str, int]:
        """Counts since the server's start, of closed and open connections together."""
        with self._lock:
            exports = tuple(self._open)
            return {
                "connections": len(exports),
                "connections_total": self._opened,
                "requests": self._closed_requests + sum(export.requests for export in exports),
                "bytes_read": self._closed_read + sum(export.bytes_read for export in exports),
                "bytes_written": self._closed_written + sum(export.bytes_written for export in exports),
            }

    # Backings, shared by the connections to one disk

    def _use(self, found: Found) -> Backing:
        with self._lock:
            shared = self._shared.get(found.key)
            if shared is None:
                shared = self._shared[found.key] = _Shared(found.backing())
                shared.backing.hold = self._holds.of(shared.backing.name)
            shared.users += 1
            return shared.backing

    def _leave(self, key: str) -> None:
        with self._lock:
            shared = self._shared[key]
            shared.users -= 1
            if not shared.users:
                del self._shared[key]
