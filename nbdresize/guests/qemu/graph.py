"""QEMU's block graph, from what its monitor tells: pure functions on that.

A disk is a chain of nodes: an `nbd` node at the bottom, on it perhaps a `raw` node and filters, a device on top.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

OURS = "nbdresize-"
"""How the names of the nodes begin that we add."""

TRANSPARENT = frozenset({"raw", "throttle", "copy-on-read"})
"""Drivers whose node is as large as the one below, and shows the same bytes."""

MOST_NODES = 4096
MOST_EDGES = 4 * MOST_NODES
"""How much of a graph is read: no QEMU has a hundredth of it."""

_Kind = TypeVar("_Kind")


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
        """From the answers to `query-named-block-nodes` (flat), `x-debug-query-block-graph` and `query-block`.

        What is not as QEMU tells it raises KeyError, TypeError, ValueError or AttributeError.
        """
        if len(named) > MOST_NODES or len(graph["edges"]) > MOST_EDGES:
            raise ValueError("more nodes than a QEMU has")
        nodes = {node.name: node for node in map(_node, named)}
        members = {
            member["id"]: Parent(_is(str, member["type"]), _is(str, member["name"])) for member in graph["nodes"]
        }
        parents: dict[str, list[Parent]] = {name: [] for name in nodes}
        for edge in graph["edges"]:
            child = members[edge["child"]]
            if child.name in parents:
                parents[child.name].append(members[edge["parent"]])
        return cls(nodes, {name: tuple(each) for name, each in parents.items()}, tuple(_devices(block)))

    @cached_property
    def _children(self) -> Mapping[str, tuple[str, ...]]:
        """The nodes right below each."""
        found: dict[str, tuple[str, ...]] = dict.fromkeys(self.nodes, ())
        for name in self.nodes:
            for parent in self._nodes_on(name):
                found[parent] += (name,)
        return found

    @cached_property
    def _used(self) -> frozenset[str]:
        return frozenset(self._reached([name for name in self.nodes if self.devices_on(name)], self._children))

    @cached_property
    def _busy(self) -> Mapping[str, str]:
        """A block job that uses that node, or one that rests on it."""
        found: dict[str, str] = {}
        for name in self.nodes:
            job = next((parent.name for parent in self.parents[name] if parent.kind == "block-job"), None)
            if job is not None:
                found.update((node, job) for node in self._reached([name], self._children, found))
        return found

    @cached_property
    def _on(self) -> Mapping[str, tuple[str, ...]]:
        return {name: self._nodes_on(name) for name in self.nodes}

    def _nodes_on(self, name: str) -> tuple[str, ...]:
        on = [parent.name for parent in self.parents[name] if parent.kind == "block-driver"]
        return tuple(node for node in on if node in self.nodes)

    @staticmethod
    def _reached(
        names: Sequence[str], next_to: Mapping[str, tuple[str, ...]], without: Mapping[str, object] | None = None
    ) -> Sequence[str]:
        """These nodes and all that are reached from them, each once, however they hang together."""
        found: dict[str, None] = {}
        left = list(reversed(names))
        while left:
            name = left.pop()
            if name not in found and (without is None or name not in without):
                found[name] = None
                left.extend(reversed(next_to[name]))
        return tuple(found)

    def above(self, name: str) -> Iterator[Node]:
        """Every node that rests on that one, at whatever height, each once."""
        return (self.nodes[each] for each in self._reached([name], self._on)[1:])

    def below(self, name: str) -> Iterator[str]:
        """Itself, and every node that that one rests on, at whatever depth, each once."""
        return iter(self._reached([name], self._children))

    def devices_on(self, name: str) -> tuple[Device, ...]:
        """The guest's devices directly on that node."""
        backends = {parent.name for parent in self.parents[name] if parent.kind == "block-backend"}
        return tuple(device for device in self.devices if {device.backend, device.qdev} & backends)

    def used(self, name: str) -> bool:
        """Whether a guest's device rests on that node, at whatever height."""
        return name in self._used

    def job(self, name: str) -> str | None:
        """The id of a block job that uses that node, or one that rests on it; None where none does."""
        return self._busy.get(name)

    def chain(self, name: str) -> Chain:
        """From that node up to the first one with a device, or to the last; where several rest on one, to that one."""
        nodes = {name: self.nodes[name]}
        while not (devices := self.devices_on(name)):
            upwards = [parent.name for parent in self.parents[name] if parent.kind == "block-driver"]
            if len(upwards) != 1 or upwards[0] not in self.nodes or upwards[0] in nodes:
                break
            [name] = upwards
            nodes[name] = self.nodes[name]
        return Chain(tuple(nodes.values()), devices)

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


def _is(kind: type[_Kind], value: object) -> _Kind:
    """Raises TypeError for what is of another kind; a truth is no number here."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{value!r:.100} is no {kind.__name__}")
    return value


def _node(told: Mapping[str, Any]) -> Node:
    cache = told.get("cache", {})
    return Node(
        _is(str, told["node-name"]),
        _is(str, told["drv"]),
        _is(int, told["image"]["virtual-size"]),
        _is(bool, told["ro"]),
        _is(bool, cache.get("direct", False)),
        _is(bool, cache.get("no-flush", False)),
        _is(str, told.get("detect_zeroes", "off")),
        _is(str, told["image"].get("filename", "")),
    )


def _devices(block: Sequence[Mapping[str, Any]]) -> Iterator[Device]:
    for told in block:
        inserted = told.get("inserted")
        if inserted and told.get("qdev"):
            yield Device(
                _is(str, told["device"]) or _is(str, told["qdev"]),
                _is(str, told["qdev"]),
                _is(str, inserted["node-name"]),
                _is(int, inserted["image"]["virtual-size"]),
            )
