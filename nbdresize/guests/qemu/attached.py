"""Finding the nodes of a disk in a running QEMU."""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nbdresize.errors import ResourceNotFound
from nbdresize.guests.model import DiskNews
from nbdresize.guests.qemu import options
from nbdresize.guests.qemu.addresses import Addresses
from nbdresize.guests.qemu.graph import OURS, Chain, Graph, Node
from nbdresize.guests.qemu.monitor import Monitor, Refused

_MOST_SHOWN = 8


@dataclass(frozen=True)
class Attached:
    """A disk in QEMU: the chain of nodes that a device uses, and all options told of its `nbd` node."""

    chain: Chain
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """What there is of one disk: where it is attached, and its `nbd` nodes that no device uses."""

    graph: Graph
    attached: tuple[Attached, ...]
    unused: tuple[str, ...]


def read_graph(monitor: Monitor) -> Graph:
    return Graph.read(
        monitor.execute("query-named-block-nodes", {"flat": True}),
        monitor.execute("x-debug-query-block-graph"),
        monitor.execute("query-block"),
    )


def find(monitor: Monitor, disk: DiskNews, addresses: Addresses) -> Found:
    """Where QEMU has this disk attached. Raises ResourceNotFound, which names the nodes that there are."""
    graph = read_graph(monitor)
    matching: dict[str, Mapping[str, Any]] = {}
    elsewhere: list[str] = []
    for node, told in _exactly(monitor, graph, disk.export):
        if options.export(told) != disk.export:
            continue
        if addresses.serve(options.server(told)):
            matching[node.name] = told
        else:
            elsewhere.append(node.name)
    used = [name for name in matching if graph.used(name)]
    if not used:
        raise _not_found(monitor, graph, disk, tuple(matching), tuple(elsewhere))
    return Found(
        graph,
        tuple(Attached(graph.chain(name), matching[name]) for name in used),
        tuple(name for name in matching if name not in used),
    )


def fresh_name() -> str:
    """A name that no node has; a node-name has at most 31 characters."""
    return OURS + secrets.token_hex(6)


def remove(monitor: Monitor, name: str) -> None:
    """Remove a node, where it is there. Raises Refused where something uses it.

    A node that the monitor doesn't own goes with the last thing that uses it, so it is gone already.
    """
    try:
        monitor.execute("blockdev-del", {"node-name": name})
    except Refused:
        if any(told["node-name"] == name for told in monitor.execute("query-named-block-nodes", {"flat": True})):
            raise


def _exactly(monitor: Monitor, graph: Graph, export: str) -> Iterator[tuple[Node, Mapping[str, Any]]]:
    """The `nbd` nodes that may be of that export, each with all its options that QEMU tells."""
    likely = [
        node for node in graph.nodes.values() if node.driver == "nbd" and (export in node.filename or not _short(node))
    ]
    with _looking_at(monitor, [node for node in likely if _short(node)]) as names:
        told = {node["node-name"]: node["image"].get("filename", "") for node in _nodes(monitor)} if names else {}
    for node in likely:
        found = options.told(told.get(names[node.name], "")) if node.name in names else None
        own = found.get("file") if found else options.told(node.filename)
        if isinstance(own, Mapping):
            yield node, own


def _short(node: Node) -> bool:
    return options.told(node.filename) is None


@contextmanager
def _looking_at(monitor: Monitor, nodes: list[Node]) -> Iterator[dict[str, str]]:
    """Names of nodes put on those, by their names, for as long as the block runs.

    A `raw` node with an explicit offset has no short name: QEMU tells all options of what is below it. Nothing uses
    it, it takes no permission, and no request ever passes through it.
    """
    names: dict[str, str] = {}
    try:
        for node in nodes:
            name = fresh_name()
            look = {"driver": "raw", "node-name": name, "offset": 0, "read-only": True, "file": node.name}
            monitor.execute("blockdev-add", look)
            names[node.name] = name
        yield names
    finally:
        for name in names.values():
            remove(monitor, name)


def _nodes(monitor: Monitor) -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = monitor.execute("query-named-block-nodes", {"flat": True})
    return nodes


def _not_found(
    monitor: Monitor, graph: Graph, disk: DiskNews, unused: tuple[str, ...], elsewhere: tuple[str, ...]
) -> ResourceNotFound:
    problem = f"No device of the QEMU at {monitor.path} uses {disk.export}"
    if unused:
        return ResourceNotFound(f"{problem}, though it has the node {unused[0]}", "plug a device with that node in")
    if elsewhere:
        node = graph.nodes[elsewhere[0]]
        ours = ", ".join(disk.servers) or "none that runs"
        return ResourceNotFound(
            f"{problem} of our servers ({ours}): its node {node.name} is connected to {node.filename}",
            "start the server that it was attached to, or attach the right QEMU with nbdresize guest attach",
        )
    there = [f"{node.name} ({node.filename or node.driver})" for node in graph.nodes.values() if node.driver == "nbd"]
    there = there or [f"{node.name} ({node.driver})" for node in graph.nodes.values()]
    more = f" and {len(there) - _MOST_SHOWN} more" if len(there) > _MOST_SHOWN else ""
    listed = f"the nodes there: {', '.join(there[:_MOST_SHOWN])}{more}" if there else "it has no block nodes at all"
    return ResourceNotFound(f"{problem}; {listed}", "attach the right QEMU with nbdresize guest attach")
