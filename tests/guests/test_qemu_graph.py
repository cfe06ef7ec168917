"""QEMU's block graph, read from its answers."""

from typing import Any

import pytest

from nbdresize.guests.qemu.graph import MOST_NODES, Graph

_TYPES = {"job": "block-job", "dev": "block-backend"}


def graph_of(**above: str) -> Graph:
    """Nodes by their names, each with what it rests on, as `f0="n0"`; names that begin with job or dev are such."""
    names = sorted({*above, *(child for each in above.values() for child in each.split() if child)})
    kinds = {name: _TYPES.get(name[:3], "block-driver") for name in names}
    ids = {name: number for number, name in enumerate(names)}
    named: list[dict[str, Any]] = [
        {"node-name": name, "drv": "raw", "ro": False, "image": {"virtual-size": 512, "filename": name}}
        for name in names
        if kinds[name] == "block-driver"
    ]
    told = {
        "nodes": [{"id": ids[name], "type": kinds[name], "name": name} for name in names],
        "edges": [{"parent": ids[name], "child": ids[child]} for name in above for child in above[name].split()],
    }
    block = [
        {"device": "", "qdev": name, "inserted": {"node-name": above[name], "image": {"virtual-size": 512}}}
        for name in names
        if kinds[name] == "block-backend"
    ]
    return Graph.read(named, told, [*block, {"device": "cd0", "qdev": "cd0"}])


def test_a_chain_reaches_the_device() -> None:
    graph = graph_of(dev0="t0", t0="f0", f0="n0", dev1="n1")
    chain = graph.chain("n0")
    assert [node.name for node in chain.nodes] == ["n0", "f0", "t0"]
    assert [device.path for device in chain.devices] == ["/machine/peripheral/dev0"]
    assert [node.name for node in graph.chain("n1").nodes] == ["n1"]


def test_a_chain_ends_where_it_divides() -> None:
    chain = graph_of(dev0="t0", t0="n0", aside="n0").chain("n0")
    assert [node.name for node in chain.nodes] == ["n0"]
    assert chain.devices == ()


def test_a_job_is_found_at_every_height() -> None:
    graph = graph_of(dev0="f0", f0="n0", dev1="f1", f1="n1", job0="f0")
    assert graph.job("n0") == graph.job("f0") == "job0"
    assert graph.job("n1") is None


def test_leftovers_are_ours_and_unused_the_upper_first() -> None:
    above = {"nbdresize-c": "nbdresize-n", "nbdresize-look": "n0", "dev0": "n0 nbdresize-used", "f1": "nbdresize-f1"}
    assert list(graph_of(**above).leftovers()) == ["nbdresize-c", "nbdresize-look", "nbdresize-n"]
    assert set(graph_of(**above).below("nbdresize-c")) == {"nbdresize-c", "nbdresize-n"}


def test_used_is_what_a_device_rests_on() -> None:
    graph = graph_of(dev0="f0", f0="n0", f1="n1")
    assert graph.used("n0")
    assert not graph.used("n1")


def test_a_diamond_of_many_layers_is_walked_once() -> None:
    """Two nodes on each layer, each on both of the one below: 2 ** 30 ways lead up."""
    above = {f"{side}{layer}": f"a{layer - 1} b{layer - 1}" for layer in range(1, 31) for side in "ab"}
    graph = graph_of(**above, dev0="a30", job0="b30")
    assert sorted(node.name for node in graph.above("a0")) == sorted(above)
    assert len(list(graph.below("a30"))) == 1 + 2 * 30
    assert graph.used("a0")
    assert graph.job("a0") == "job0"
    assert [node.name for node in graph.chain("a0").nodes] == ["a0"]
    assert list(graph.leftovers()) == []


def test_a_graph_that_goes_round_has_an_end() -> None:
    graph = graph_of(**{"n0": "f0", "f0": "n0", "nbdresize-a": "nbdresize-b", "nbdresize-b": "nbdresize-a"})
    assert [node.name for node in graph.above("n0")] == ["f0"]
    assert set(graph.below("n0")) == {"n0", "f0"}
    assert not graph.used("n0")
    assert graph.job("n0") is None
    assert [node.name for node in graph.chain("n0").nodes] == ["n0", "f0"]
    assert list(graph.leftovers()) == []
    assert [node.name for node in graph_of(n0="n0").chain("n0").nodes] == ["n0"]


def test_a_graph_larger_than_any_is_not_read() -> None:
    named = [{"node-name": str(number)} for number in range(MOST_NODES + 1)]
    with pytest.raises(ValueError, match="more nodes"):
        Graph.read(named, {"nodes": [], "edges": []}, [])
