"""Growing a disk in a running QEMU, with no request lost.

QEMU asks an NBD server for the size of an export when it connects, and never again. So the disk gets a fresh `nbd`
node, whose connection knows the new size, with the options of the old one, and the node above is reopened on it. Where
that can't be (the device sits directly on the old node; QEMU made up the name of the node above; it is a driver that
can't be reopened), that node gets a fresh copy too, and so on upwards: at the top, the device's `drive` is set to the
copy. QEMU waits for the requests in flight each time, and the old connection stands until the end. Then
`block_resize` makes QEMU tell the guest.

Killed at any point, the disk works on; the next attempt removes what is left of this one.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nbdresize.errors import NbdresizeError, PeerFailed, ResourceInUse
from nbdresize.guests.model import DiskNews
from nbdresize.guests.qemu import command_line, options
from nbdresize.guests.qemu.addresses import Addresses
from nbdresize.guests.qemu.attached import Attached, find, fresh_name, mark_of, read_graph, remove
from nbdresize.guests.qemu.graph import TRANSPARENT, Chain, Graph, Node
from nbdresize.guests.qemu.monitor import Monitor, Refused, reading
from nbdresize.units import format_size

RECONNECT_DELAY = 30
"""Seconds for which a fresh node waits for its server before requests fail, where nobody knows what the old one did.

A node that was plugged in while QEMU ran stands on no command line.
"""

_SECTOR = 512
_REOPENED = frozenset({"raw", "throttle"})
_NEEDED = ("blockdev-reopen", "x-debug-query-block-graph")
_OLDEST = "6.1"
_SHARED = "unshared by "
"""How QEMU refuses to resize a node, of which something needs that its size stays."""
_RIGID = "unshared by block device"
"""How QEMU refuses to resize the node of a device that can't learn a new size, which is nvme."""


@dataclass(frozen=True)
class Grown:
    """A guest's device that shows `size` bytes now, asked of QEMU itself.

    `node` is the `nbd` node that it uses now; `way` is how it came there, in words.
    """

    node: str
    device: str
    size: int
    seconds: float
    way: str


def grow_disk(monitor: Monitor, disk: DiskNews) -> Grown:
    """Have the guest see the size of `disk`. Done as well where it is seen already: the guest is told once more.

    Raises ResourceNotFound where QEMU has no such disk, ResourceInUse where something stands in the way that goes
    away, such as a block job, or that the operator has to change; PeerFailed where QEMU or the server does not do
    what it should. In every case the disk works on as it was.
    """
    start = time.monotonic()
    _check_version(monitor)
    found = find(monitor, disk, Addresses(disk.servers, monitor.pid, monitor.left()))
    for each in found.attached:
        _check(each.chain, disk)
    changes = [_Growing(monitor, disk, found.graph, each).grow() for each in found.attached]
    graph = read_graph(monitor)
    chains = [graph.chain(change.bottom) for change in changes if change.bottom in graph.nodes]
    size = _confirmed(chains, disk)
    try:
        devices = ", ".join(_shown(monitor, device.path) for chain in chains for device in chain.devices)
    except Refused:
        raise _gone(disk) from None
    with suppress(NbdresizeError):  # the guest has its size, whatever else uses what it has no use for any more
        for change in changes:
            _remove_old(monitor, graph, change.replaced)
        for each in found.attached:
            _remove_old(monitor, graph, _left_by_a_killed_attempt(graph, each.chain))
    return Grown(changes[0].bottom, devices, size, time.monotonic() - start, changes[0].way)


def _check_version(monitor: Monitor) -> None:
    """Raises PeerFailed where this QEMU lacks what growing needs."""
    commands = monitor.execute("query-commands")
    with reading("query-commands"):
        there = {command["name"] for command in commands}
    missing = [command for command in _NEEDED if command not in there]
    if missing:
        raise PeerFailed(
            f"QEMU {monitor.version} has no {missing[0]}",
            f"use QEMU {_OLDEST} or later; until then, the guest sees the new size at its next start",
        )


def _check(chain: Chain, disk: DiskNews) -> None:
    """Raises ResourceInUse for whatever stands in the way, before anything is touched."""
    for node in chain.nodes[1:]:
        window = options.told(node.filename) or {}
        if node.driver not in TRANSPARENT or (node.driver == "raw" and ("size" in window or window.get("offset"))):
            what = "shows only a part of" if node.driver == "raw" else f"is a {node.driver} node on"
            raise ResourceInUse(
                f"The node {node.name} of QEMU {what} {disk.export}, so its size is not that of the disk",
                "grow it in QEMU, or put the device on a raw node over the nbd node",
            )
    if chain.top.read_only:
        raise ResourceInUse(
            f"The node {chain.top.name} of QEMU is read-only, and QEMU resizes no such node",
            "the guest sees the new size at its next start",
        )
    if not chain.devices:
        raise ResourceInUse(
            f"Several nodes of QEMU use the node {chain.top.name} of {disk.export}", "leave one, with the device on it"
        )
    if chain.bottom.size > _rounded(disk.size):
        raise ResourceInUse(
            f"{disk.export} has {format_size(disk.size)}, and the running guest still has it with"
            f" {format_size(chain.bottom.size)}: a disk in use does not shrink",
            "make the file system and the partitions smaller in the guest, shut it down or unplug the disk there,"
            " shrink, and attach it again",
        )


@dataclass(frozen=True)
class _Change:
    """The name of the `nbd` node that a device uses now, and how it came to that.

    `replaced` are the nodes that it used before, each before the one that it rests on.
    """

    bottom: str
    way: str
    replaced: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Growing:
    """One chain of nodes of one disk."""

    monitor: Monitor
    disk: DiskNews
    graph: Graph
    attached: Attached

    def grow(self) -> _Change:
        """Have the devices of this chain show the disk's size."""
        chain = self.attached.chain
        change = _Change(chain.bottom.name, "as it was")
        if chain.bottom.size < _rounded(self.disk.size):
            change = self._switch(chain)
            graph = read_graph(self.monitor)
            if change.bottom not in graph.nodes:
                raise _gone(self.disk)
            chain = graph.chain(change.bottom)
            if chain.bottom.size < _rounded(self.disk.size):
                raise PeerFailed(
                    f"QEMU connected anew to {self.disk.export} and was told {format_size(chain.bottom.size)}",
                    f"the server has not heard of {format_size(self.disk.size)}: see nbdresize status",
                )
        # Also where the sizes agree already: whoever was killed after the switch has not told the guest.
        self._resize(chain)
        return change

    def _resize(self, chain: Chain) -> None:
        """Have QEMU tell the guest. Raises ResourceInUse where the device can't learn it while it runs."""
        try:
            self.monitor.execute("block_resize", {"node-name": chain.top.name, "size": chain.bottom.size})
        except Refused as refusal:
            if _SHARED not in refusal.problem or not chain.devices:
                raise
            if _RIGID not in refusal.problem:
                raise ResourceInUse(
                    f"Something besides the device keeps QEMU from resizing the node {chain.top.name}",
                    "such as an export of it by QEMU's own NBD server: end that (block-export-del), then run"
                    f" nbdresize guest sync {self.disk.vm}",
                ) from None
            raise ResourceInUse(
                f"The device {_shown(self.monitor, chain.devices[0].path)} takes no new size while it runs",
                "the guest sees it at its next start; virtio-blk and virtio-scsi devices take it at once",
            ) from None

    def _switch(self, chain: Chain) -> _Change:
        """Put a fresh connection under the device. Where that fails, what was added is removed again."""
        below = self.attached.known
        added = [self._add(_fresh_nbd(chain.bottom, self.attached.options, below), chain.bottom)]
        replaced = [chain.bottom.name]
        try:
            for node, lower in zip(chain.nodes[1:], chain.nodes, strict=False):
                self._check_alone(lower)
                known = command_line.find_above(self.attached.started_with, node.name, node.driver, below)
                upper = _above(node, known, added[-1])
                if node.named and node.driver in _REOPENED:
                    self.monitor.execute("blockdev-reopen", {"options": [{**upper, "node-name": node.name}]})
                    return _Change(added[0], f"a fresh connection under {node.name}", tuple(reversed(replaced)))
                added.append(self._add(upper, node))
                replaced.append(node.name)
                below = known
            self._check_alone(chain.top)
            self._plug(chain, added[-1])
        except NbdresizeError:
            with suppress(NbdresizeError):  # what can't be removed now is by the next attempt
                for name in reversed(added):
                    remove(self.monitor, name)
            raise
        return _Change(added[0], "a fresh connection under the device", tuple(reversed(replaced)))

    def _add(self, node: Mapping[str, Any], old: Node) -> str:
        name = fresh_name(old.name)
        self.monitor.execute("blockdev-add", {**node, "node-name": name})
        return name

    def _check_alone(self, node: Node) -> None:
        """Raises ResourceInUse where more than the one above, or than the devices, uses a node that is to go."""
        if len(self.graph.parents[node.name]) > max(1, len(self.graph.devices_on(node.name))):
            raise ResourceInUse(
                f"Something else in QEMU uses the node {node.name} of {self.disk.export} too",
                f"end that, then run nbdresize guest sync {self.disk.vm}",
            )

    def _plug(self, chain: Chain, name: str) -> None:
        for device in chain.devices:
            drive = {"path": device.path, "property": "drive", "value": name}
            # QEMU 7.2 aborts where a device is given the node that it has; this name is a fresh one always.
            try:
                self.monitor.execute("qom-set", drive)
            except Refused:
                self._plug_in_thread(name, drive)

    def _plug_in_thread(self, name: str, drive: Mapping[str, Any]) -> None:
        """As above for a device whose requests an iothread carries out: the node has to live there beforehand."""
        refused: Refused | None = None
        told = self.monitor.execute("query-iothreads")
        with reading("query-iothreads"):
            threads = [str(thread["id"]) for thread in told]
        for thread in threads:
            try:
                self.monitor.execute("x-blockdev-set-iothread", {"node-name": name, "iothread": thread})
                self.monitor.execute("qom-set", drive)
                return
            except Refused as error:
                refused = error
        raise ResourceInUse(
            f"The device {drive['path']} takes no other node while it runs{f' ({refused.problem})' if refused else ''}",
            "start QEMU with a raw node between the device and the nbd node, as in"
            " -blockdev raw,node-name=f0,file=NBD-NODE -device virtio-blk-pci,drive=f0",
        )


def _fresh_nbd(old: Node, told: Mapping[str, Any], known: command_line.Described | None) -> dict[str, Any]:
    """The options of a fresh `nbd` node like `old`.

    Without `open-timeout`: QEMU does nothing else while it tries, and the server is there.
    """
    carried = {key: told[key] for key in ("export", "tls-creds", "tls-hostname") if key in told}
    untold = {"reconnect-delay": RECONNECT_DELAY} if known is None else known.carried("reconnect-delay")
    return {"driver": "nbd", "server": options.server(told), **carried, **untold, **_common(old, known)}


def _above(node: Node, known: command_line.Described | None, below: str) -> dict[str, Any]:
    """The options of `node`, on the node `below`. Reopening takes all of them: what it isn't given, it resets."""
    told = options.told(node.filename) or {}
    group = {"throttle-group": told["throttle-group"]} if "throttle-group" in told else {}
    return {"driver": node.driver, "file": below, **group, **_common(node, known)}


def _common(node: Node, known: command_line.Described | None) -> dict[str, Any]:
    """The options that nodes of every driver have. Where nobody knows about discards, they are let through."""
    return {
        "read-only": node.read_only,
        "cache": {"direct": node.direct, "no-flush": node.no_flush},
        "detect-zeroes": node.detect_zeroes,
        "discard": "unmap" if known is None else known.discard,
    }


def _remove_old(monitor: Monitor, graph: Graph, names: Sequence[str]) -> None:
    """Remove what fresh nodes have replaced. What is not there any more, or in use after all, stays as it is."""
    for name in names:
        if name in graph.nodes:
            with suppress(Refused):
                remove(monitor, name)


def _left_by_a_killed_attempt(graph: Graph, chain: Chain) -> Sequence[str]:
    """What the nodes of this chain, which a device used already, replaced without removing it; the upper ones first."""
    fresh = [node for node in reversed(chain.nodes) if node.ours]
    unused = {mark_of(name): node for name, node in graph.nodes.items() if not graph.used(name)}
    found = [(node, unused[mark]) for node in fresh if (mark := "-" + node.name.rpartition("-")[2]) in unused]
    # Somebody may have given the name again since, to a node for something else.
    return [old.name for node, old in found if (old.driver, old.filename) == (node.driver, node.filename)]


def _gone(disk: DiskNews) -> PeerFailed:
    return PeerFailed(f"The device of {disk.export} is gone", "it was unplugged meanwhile, it seems")


def _confirmed(chains: Sequence[Chain], disk: DiskNews) -> int:
    """The size that QEMU's devices show now. Raises PeerFailed where it is not that of the disk, or of a later grow."""
    sizes = [device.size for chain in chains for device in chain.devices]
    if not sizes:
        raise _gone(disk)
    if min(sizes) < _rounded(disk.size):
        raise PeerFailed(
            f"QEMU was told of {format_size(disk.size)}, and {disk.export} still has {format_size(min(sizes))} there",
            f"run nbdresize guest sync {disk.vm}",
        )
    return min(sizes)


def _shown(monitor: Monitor, path: str) -> str:
    """What a device is, such as `virtio-blk d0`."""
    parent = path.removesuffix("/virtio-backend")
    driver = str(monitor.execute("qom-get", {"path": parent, "property": "type"}))
    name = parent.rpartition("/")[2] if parent.startswith("/machine/peripheral/") else ""
    return f"{driver.removesuffix('-pci')} {name}".rstrip()


def _rounded(size: int) -> int:
    """As QEMU counts: in whole sectors."""
    return -(-size // _SECTOR) * _SECTOR
