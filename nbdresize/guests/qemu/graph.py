"""QEMU's block graph, from what its monitor tells: pure functions on that.

A disk is a chain of nodes: an `nbd` node at the bottom, on it perhaps a `raw` node and filters, a device on top.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OURS = "nbdresize-"
"""How the names of the nodes begin that we add."""

TRANSPARENT = frozenset({"raw", "throttle", "copy-on-read"})
"""Drivers whose node is as large as the one below, and shows the same bytes."""


@dataclass(frozen=True)
class Node:
    """A block node, as `query-named-block-nodes` tells of it. `size` is in bytes."""

    name: str
    driver: str
    size: int
    read_only: bool
    direct: bool
    no_flush: bool
    detect_zeroes: str
    filename: str

    @property
    def ours(self) -> bool:
        return self.name.startswith(OURS)

    @property
    def named(self) -> bool:
        """Whether somebody gave it its name; QEMU's own begin with what no name may, and can't be given again."""
        return not self.name.startswith("#")


@dataclass(frozen=True)
class Parent:
    """What uses a node: `kind` is `block-driver`, `block-backend` or `block-job`."""

    kind: str
    name: str


@dataclass(frozen=True)
class Device:
    """A guest's device. `backend` is the name by which the graph knows it, `qdev` its id or path among QEMU's objects.

    `size` is that of what it shows the guest, in bytes.
    """

    backend: str
    qdev: str
    node: str
    size: int

    @property
    def path(self) -> str:
        """Where it is among QEMU's objects."""
        return self.qdev if self.qdev.startswith("/") else f"/machine/peripheral/{self.qdev}"


@dataclass(frozen=True)
class Chain:
    """The nodes of one disk from the `nbd` node upwards, and the devices on the last of them."""

    nodes: tuple[Node, ...]
    devices: tuple[Device, ...]

    @property
    def bottom(self) -> Node:
        return self.nodes[0]

    @property
    def top(self) -> Node:
        return self.nodes[-1]


@dataclass(frozen=True)
class Graph:
    """All nodes by name, with what uses each."""

    nodes: Mapping[str, Node]
    parents: Mapping[str, tuple[Parent, ...]]
    devices: tuple[Device, ...]

    @classmethod
    def read(
        cls, named: Sequence[Mapping[str, Any]], graph: Mapping[str, Any], block: Sequence[Mapping[str, Any]]
    ) -> "Graph":
        """From the answers to `query-named-block-nodes` (flat), `x-debug-query-block-graph` and `query-block`."""
        nodes = {told["node-name"]: _node(told) for told in named}
        members = {member["id"]: Parent(member["type"], member["name"]) for member in graph["nodes"]}
        parents: dict[str, tuple[Parent, ...]] = dict.fromkeys(nodes, ())
        for edge in graph["edges"]:
            child = members[edge["child"]]
            if child.name in parents:
                parents[child.name] += (members[edge["parent"]],)
        return cls(nodes, parents, tuple(_devices(block)))

    def above(self, name: str) -> Iterator[Node]:
        """Every node that rests on that one, at whatever height."""
        for parent in self.parents[name]:
            if parent.kind == "block-driver" and parent.name in self.nodes:
                yield self.nodes[parent.name]
                yield from self.above(parent.name)

    def below(self, name: str) -> Iterator[str]:
        """Every node that that one rests on, at whatever depth, and itself."""
        yield name
        for node, parents in self.parents.items():
            if Parent("block-driver", name) in parents:
                yield from self.below(node)

    def devices_on(self, name: str) -> tuple[Device, ...]:
        """The guest's devices directly on that node."""
        backends = {parent.name for parent in self.parents[name] if parent.kind == "block-backend"}
        return tuple(device for device in self.devices if {device.backend, device.qdev} & backends)

    def used(self, name: str) -> bool:
        """Whether a guest's device rests on that node, at whatever height."""
        return any(self.devices_on(node) for node in (name, *(above.name for above in self.above(name))))

    def jobs(self, name: str) -> tuple[str, ...]:
        """The ids of the block jobs that use that node, or one that rests on it."""
        names = (name, *(above.name for above in self.above(name)))
        found = [parent.name for node in names for parent in self.parents[node] if parent.kind == "block-job"]
        return tuple(dict.fromkeys(found))

    def chain(self, name: str) -> Chain:
        """From that node up to the first one with a device, or to the last; where several rest on one, to that one."""
        nodes = [self.nodes[name]]
        while not (devices := self.devices_on(nodes[-1].name)):
            upwards = [parent for parent in self.parents[nodes[-1].name] if parent.kind == "block-driver"]
            if len(upwards) != 1 or upwards[0].name not in self.nodes:
                break
            nodes.append(self.nodes[upwards[0].name])
        return Chain(tuple(nodes), devices)

    def leftovers(self) -> Iterator[str]:
        """Nodes of ours that nothing uses, each before the one that it rests on: what a killed attempt left."""
        gone: set[str] = set()
        while True:
            unused = [
                node.name
                for node in self.nodes.values()
                if node.ours and node.name not in gone and all(user.name in gone for user in self.parents[node.name])
            ]
            if not unused:
                return
            gone.update(unused)
            yield from unused


def _node(told: Mapping[str, Any]) -> Node:
    cache = told.get("cache", {})
    return Node(
        told["node-name"],
        told["drv"],
        told["image"]["virtual-size"],
        told["ro"],
        cache.get("direct", False),
        cache.get("no-flush", False),
        told.get("detect_zeroes", "off"),
        told["image"].get("filename", ""),
    )


def _devices(block: Sequence[Mapping[str, Any]]) -> Iterator[Device]:
    for told in block:
        inserted = told.get("inserted")
        if inserted and told.get("qdev"):
            yield Device(
                told["device"] or told["qdev"], told["qdev"], inserted["node-name"], inserted["image"]["virtual-size"]
            )
