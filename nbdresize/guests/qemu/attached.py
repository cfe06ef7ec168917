"""Finding the nodes of a disk in a running QEMU."""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nbdresize.errors import ResourceInUse, ResourceNotFound
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
    """Where a disk is attached, in which graph."""

    graph: Graph
    attached: tuple[Attached, ...]


def read_graph(monitor: Monitor) -> Graph:
    return Graph.read(
        monitor.execute("query-named-block-nodes", {"flat": True}),
        monitor.execute("x-debug-query-block-graph"),
        monitor.execute("query-block"),
    )


def find(monitor: Monitor, disk: DiskNews, addresses: Addresses) -> Found:
    """Where QEMU has this disk attached; what killed attempts have left in it is gone then.

    Raises ResourceNotFound, which names the nodes that there are, and ResourceInUse where a block job uses the disk.
    """
    graph = _tidied(monitor)
    _check_jobs(graph, disk)
    attached: list[Attached] = []
    elsewhere: list[Node] = []
    for node, told in _exactly(monitor, graph, disk.export):
        if options.export(told) != disk.export:
            continue
        if addresses.serve(options.server(told)):
            attached.append(Attached(graph.chain(node.name), told))
        else:
            elsewhere.append(node)
    if not attached:
        raise _not_found(monitor, graph, disk, elsewhere)
    return Found(graph, tuple(attached))


def _check_jobs(graph: Graph, disk: DiskNews) -> None:
    """Raises ResourceInUse where a block job uses what may be this disk.

    Checked before a single node is added: each change of the graph waits for the requests in flight, and those of a
    job with a speed limit can hold all of QEMU 7.2 up until the limit lets them through.
    """
    for node in _likely(graph, disk.export):
        if jobs := graph.jobs(node.name):
            raise ResourceInUse(
                f"The block job {jobs[0]} of QEMU uses {disk.export}",
                f"wait for its end or cancel it, then run nbdresize guest sync {disk.vm}",
            )


def _tidied(monitor: Monitor) -> Graph:
    """The graph without the nodes that a killed attempt left, but for those on a node that a block job uses."""
    graph = read_graph(monitor)
    left = [name for name in graph.leftovers() if not any(graph.jobs(below) for below in graph.below(name))]
    for name in left:
        remove(monitor, name)
    return read_graph(monitor) if left else graph


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
        if name in _file_names(monitor):
            raise


def _file_names(monitor: Monitor) -> dict[str, str]:
    """Those of all nodes, by the nodes' names."""
    nodes = monitor.execute("query-named-block-nodes", {"flat": True})
    return {told["node-name"]: told["image"].get("filename", "") for told in nodes}


def _exactly(monitor: Monitor, graph: Graph, export: str) -> Iterator[tuple[Node, Mapping[str, Any]]]:
    """The `nbd` nodes under a device that may be of that export, each with all its options that QEMU tells."""
    likely = [node for node in _likely(graph, export) if graph.used(node.name)]
    with _looking_at(monitor, [node for node in likely if _short(node)]) as looking:
        told = _file_names(monitor) if looking else {}
    for node in likely:
        found = options.told(told[looking[node.name]]) if node.name in looking else None
        own = found.get("file") if found else options.told(node.filename)
        if isinstance(own, Mapping):
            yield node, own


def _likely(graph: Graph, export: str) -> list[Node]:
    """The `nbd` nodes whose file name does not rule out that they are of that export."""
    return [
        node for node in graph.nodes.values() if node.driver == "nbd" and (export in node.filename or not _short(node))
    ]


def _short(node: Node) -> bool:
    return options.told(node.filename) is None


@contextmanager
def _looking_at(monitor: Monitor, nodes: list[Node]) -> Iterator[dict[str, str]]:
    """Names of nodes put on those, by their names, for as long as the block runs.

    A `raw` node with an explicit offset has no short name: QEMU tells all options of what is below it. Nothing uses
    it, it takes no permission, and no request ever passes through it. Only for nodes that a device uses: QEMU 7.2
    aborts where one is put on an unused node that belongs to an iothread.
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


def _not_found(monitor: Monitor, graph: Graph, disk: DiskNews, elsewhere: list[Node]) -> ResourceNotFound:
    problem = f"No device of the QEMU at {monitor.path} uses {disk.export}"
    unused = [node.name for node in _likely(graph, disk.export) if not graph.used(node.name)]
    if elsewhere:
        node = elsewhere[0]
        ours = ", ".join(disk.servers) or "none that runs"
        return ResourceNotFound(
            f"{problem} of our servers ({ours}): its node {node.name} is connected to {node.filename}",
            "start the server that it was attached to, or attach the right QEMU with nbdresize guest attach",
        )
    if unused:
        return ResourceNotFound(f"{problem}, though it has the node {unused[0]}", "plug a device with that node in")
    there = [f"{node.name} ({node.filename or node.driver})" for node in graph.nodes.values() if node.driver == "nbd"]
    there = there or [f"{node.name} ({node.driver})" for node in graph.nodes.values()]
    more = f" and {len(there) - _MOST_SHOWN} more" if len(there) > _MOST_SHOWN else ""
    listed = f"the nodes there: {', '.join(there[:_MOST_SHOWN])}{more}" if there else "it has no block nodes at all"
    return ResourceNotFound(f"{problem}; {listed}", "attach the right QEMU with nbdresize guest attach")
