"""Finding the nodes of a disk in a running QEMU."""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbdresize.errors import PeerFailed, ResourceInUse, ResourceNotFound
from nbdresize.guests.model import DiskNews
from nbdresize.guests.qemu import command_line, options
from nbdresize.guests.qemu.addresses import Addresses
from nbdresize.guests.qemu.graph import OURS, Chain, Graph, Node
from nbdresize.guests.qemu.monitor import Monitor, Refused, reading

_MOST_SHOWN = 8
_MARK = 8


@dataclass(frozen=True)
class Attached:
    """A disk in QEMU: the chain of nodes that a device uses, and all options told of its `nbd` node.

    `known` is how the command line describes that one, and `started_with` all that the command line describes.
    """

    chain: Chain
    options: Mapping[str, Any]
    known: command_line.Described | None
    started_with: tuple[command_line.Described, ...]


@dataclass(frozen=True)
class Found:
    """Where a disk is attached, in which graph."""

    graph: Graph
    attached: tuple[Attached, ...]


def read_graph(monitor: Monitor) -> Graph:
    """All nodes of QEMU. Raises PeerFailed, also where what it says of them makes no sense."""
    named = monitor.execute("query-named-block-nodes", {"flat": True})
    graph = monitor.execute("x-debug-query-block-graph")
    block = monitor.execute("query-block")
    with reading("query-named-block-nodes, x-debug-query-block-graph or query-block"):
        return Graph.read(named, graph, block)


def find(monitor: Monitor, disk: DiskNews, addresses: Addresses) -> Found:
    """Where QEMU has this disk attached; what killed attempts have left in it is gone then.

    Raises ResourceNotFound, which names the nodes that there are, and ResourceInUse where a block job uses the disk,
    or where it can't be told how to connect once more.
    """
    graph = _tidied(monitor)
    of_export = _of_export(graph, disk.export)
    _check_jobs(graph, disk, of_export)
    used = [(node, told) for node, told in of_export if graph.used(node.name)]
    ours = [(node, told) for node, told in used if addresses.serve(options.server(told))]
    if not ours:
        raise _not_found(monitor, graph, disk, of_export)
    started_with = command_line.of_process(monitor.pid)
    attached: list[Attached] = []
    for node, told in ours:
        known = command_line.find_nbd(
            started_with, node.name, lambda export, server: export == disk.export and addresses.serve(server)
        )
        whole = told if options.told(node.filename) else _whole(monitor, graph, node, told, known)
        attached.append(Attached(graph.chain(node.name), whole, known, started_with))
    return Found(graph, tuple(attached))


def _of_export(graph: Graph, export: str) -> list[tuple[Node, Mapping[str, Any]]]:
    """The `nbd` nodes of exports of that name, on whichever server, with what their file names tell."""
    found: list[tuple[Node, Mapping[str, Any]]] = []
    for node in graph.nodes.values():
        if node.driver == "nbd":
            told = options.told(node.filename) or options.short(node.filename, export)
            if told is not None and options.export(told) == export:
                found.append((node, told))
    return found


def _whole(
    monitor: Monitor, graph: Graph, node: Node, told: Mapping[str, Any], known: command_line.Described | None
) -> Mapping[str, Any]:
    """All options of a node whose short name does not tell of TLS. Raises ResourceInUse where nothing else does."""
    if known is not None:
        return {**known.options, "server": options.server(known.options)}
    for above in graph.above(node.name):
        if (inner := _innermost(options.told(above.filename))) is not None:
            return inner
    objects = monitor.execute("qom-list", {"path": "/objects"})
    with reading("qom-list"):
        has_credentials = any("<tls-creds-" in each["type"] for each in objects)
    if not has_credentials:
        return told
    if monitor.execute("query-iothreads"):
        # QEMU 7.2 aborts, one time in twenty, where a node is put on one whose requests an iothread carries out.
        raise ResourceInUse(
            f"Whether the node {node.name} of QEMU uses TLS can't be told while it runs",
            "the guest sees the new size at its next start; put the node on QEMU's command line, with -blockdev",
        )
    return _looked_at(monitor, node)


def _innermost(told: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The options of the `nbd` node at the bottom of those of another one."""
    while told is not None and told.get("driver") != "nbd":
        below = told.get("file")
        told = below if isinstance(below, Mapping) else None
    return told


def _looked_at(monitor: Monitor, node: Node) -> Mapping[str, Any]:
    """All options that QEMU tells of a node, once one without a short name rests on it: a `raw` one with an offset.

    Nothing uses that one, it takes no permission, no request ever passes through it, and it is removed at once.
    """
    name = fresh_name()
    monitor.execute(
        "blockdev-add", {"driver": "raw", "node-name": name, "offset": 0, "read-only": True, "file": node.name}
    )
    try:
        found = _innermost(options.told(_file_names(monitor).get(name, "")))
    finally:
        remove(monitor, name)
    if found is None:
        raise PeerFailed(f"QEMU does not tell the options of the node {node.name}")
    return found


def _check_jobs(graph: Graph, disk: DiskNews, nodes: Sequence[tuple[Node, Mapping[str, Any]]]) -> None:
    """Raises ResourceInUse where a block job uses one of these nodes.

    Checked before a single node is added: each change of the graph waits for the requests in flight, and those of a
    job with a speed limit can hold all of QEMU 7.2 up until the limit lets them through.
    """
    for node, _ in nodes:
        if job := graph.job(node.name):
            raise ResourceInUse(
                f"The block job {job} of QEMU uses {disk.export}",
                f"wait for its end or cancel it, then run nbdresize guest sync {disk.vm}",
            )


def _tidied(monitor: Monitor) -> Graph:
    """The graph without the nodes that a killed attempt left, but for those on a node that a block job uses."""
    graph = read_graph(monitor)
    left = [name for name in graph.leftovers() if not any(graph.job(below) for below in graph.below(name))]
    for name in left:
        remove(monitor, name)
    return read_graph(monitor) if left else graph


def fresh_name(replaced: str = "") -> str:
    """A name that no node has; a node-name has at most 31 characters.

    Its end is the mark of the node whose place it takes: should whoever does that be killed, it tells what is to go,
    whatever else in QEMU looks like it.
    """
    return f"{OURS}{secrets.token_hex(6)}{mark_of(replaced) if replaced else ''}"


def mark_of(name: str) -> str:
    """How the name of a fresh node ends that takes the place of the one of this name."""
    return "-" + hashlib.sha256(name.encode(errors="replace")).hexdigest()[:_MARK]


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
    with reading("query-named-block-nodes"):
        return {str(told["node-name"]): str(told["image"].get("filename", "")) for told in nodes}


def _not_found(
    monitor: Monitor, graph: Graph, disk: DiskNews, nodes: Sequence[tuple[Node, Mapping[str, Any]]]
) -> ResourceNotFound:
    """Why none of these nodes, which have the name of the disk's export, is the disk as a device uses it."""
    problem = f"No device of the QEMU at {monitor.path} uses {disk.export}"
    for node, _ in nodes:
        if graph.used(node.name):
            ours = ", ".join(disk.servers) or "none that runs"
            return ResourceNotFound(
                f"{problem} of our servers ({ours}): its node {node.name} is connected to {node.filename}",
                "start the server that it was attached to, or attach the right QEMU with nbdresize guest attach",
            )
    for node, _ in nodes:
        return ResourceNotFound(f"{problem}, though it has the node {node.name}", "plug a device with that node in")
    there = [f"{node.name} ({node.filename or node.driver})" for node in graph.nodes.values() if node.driver == "nbd"]
    there = there or [f"{node.name} ({node.driver})" for node in graph.nodes.values()]
    more = f" and {len(there) - _MOST_SHOWN} more" if len(there) > _MOST_SHOWN else ""
    listed = f"the nodes there: {', '.join(there[:_MOST_SHOWN])}{more}" if there else "it has no block nodes at all"
    return ResourceNotFound(f"{problem}; {listed}", "attach the right QEMU with nbdresize guest attach")
