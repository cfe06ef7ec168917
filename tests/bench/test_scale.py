"""The benchmark of scale on real servers, with few connections, small disks and short loads."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import busy, idle, scale, sizes
from bench.model import Section
from bench.options import Options
from bench.peers import Peer
from nbdresize.errors import ServerFailed
from nbdresize.loads.running import run as put_load

MIB = 1 << 20


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part in its smallest form."""
    for part, points in ((busy, (2,)), (idle, (1, 10))):
        monkeypatch.setattr(part, "CONNECTIONS", points)
        monkeypatch.setattr(part, "QUICK", points)
    monkeypatch.setattr(busy, "_SHORTEST", 0.05)
    monkeypatch.setattr(idle, "_QUICK_IDLE_SECONDS", 0.05)
    monkeypatch.setattr(idle, "_CLIENTS", 2)
    monkeypatch.setattr(sizes, "_QUICK_TIMES", 2)
    monkeypatch.setattr(sizes, "QUICK", ("1 GiB", "8 EiB − 1"))


def measured(directory: Path, only: str) -> tuple[Section, list[str]]:
    told: list[str] = []
    section = scale.run(Options(directory, only=only, size=16 * MIB), told.append)
    assert list(directory.iterdir()) == []
    return section, told


@pytest.mark.usefixtures("few")
def test_busy_connections_have_a_point_for_each_server(tmp_path: Path) -> None:
    section, told = measured(tmp_path, "busy")
    rate, memory = section.curves
    for curve in (rate, memory):
        assert set(curve.lines) == {
            *("native", "native, 2 workers", "nbdkit file", "nbdkit python", "qemu-nbd", "nbd-server")
        }
        assert all([x for x, y in line if y > 0] == [2] for line in curve.lines.values())
    assert len(told) == 1


@pytest.mark.usefixtures("few")
def test_nobody_looks_at_a_servers_memory_while_its_requests_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[bool] = []
    watched = Peer.watched

    @contextlib.contextmanager
    def noted(peer: Peer) -> Iterator[None]:
        looked.append(True)
        with watched(peer):
            yield
        looked.append(False)

    def counted(*arguments: Any, **more: Any) -> Any:
        found.append(looked[-1])
        return put_load(*arguments, **more)

    found: list[bool] = []
    monkeypatch.setattr(Peer, "watched", noted)
    monkeypatch.setattr(busy, "put_load", counted)
    measured(tmp_path, "busy")
    assert found == [True] * len(busy.SERVERS) + [False] * len(busy.SERVERS)


@pytest.mark.usefixtures("few")
def test_idle_connections_are_all_open_when_memory_is_looked_at(tmp_path: Path) -> None:
    section, told = measured(tmp_path, "idle")
    memory, processor, opening = section.curves
    assert all([x for x, _ in line] == [1, 10] for line in memory.lines.values())
    assert all(y >= 0 for line in processor.lines.values() for _, y in line)
    assert all(y > 0 for line in opening.lines.values() for _, y in line)
    assert len(section.figures) == len(idle.SERVERS)
    assert set(memory.lines) == {"native", "nbdkit front", "nbdkit file", "nbdkit python", "qemu-nbd", "nbd-server"}
    [remark] = section.remarks
    assert remark.startswith("What is told of connections is of a file on ")
    assert len(told) == 2


@pytest.mark.usefixtures("few")
def test_the_largest_disk_is_served_asked_and_grown(tmp_path: Path) -> None:
    section, _ = measured(tmp_path, "disk of")
    opening, status, reads, memory, query, growing = section.curves
    for curve in (opening, status, reads, memory):
        for server in ("native", "nbdkit front", "nbdkit file"):
            assert [x for x, y in curve.lines[server] if y > 0] == [1 << 30, (8 << 60) - 1], curve.name
    for curve in (query, growing):
        assert all([x for x, _ in line][1] == (8 << 60) - 1 for line in curve.lines.values())
    assert len(section.figures) == 6 * 2 + 4  # qemu-nbd has but one size
    for server in ("native", "nbdkit front", "nbdkit file"):
        names = [figure.name for figure in section.figures if figure.name.endswith(f", {server}")]
        assert [name.partition(":")[0] for name in names[:4]] == [
            curve.name for curve in (opening, status, reads, memory)
        ]
        assert all("8 EiB − 1 against 1 GiB" in name for name in names)
    assert all(len(figure.samples) == 5 for figure in section.figures)
    assert any("ext4" in remark for remark in section.remarks)
    assert not any("nbdresize-bench" in remark for remark in section.remarks)


def test_a_server_that_takes_no_more_is_told_and_measured_with_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: None
) -> None:
    def refuses(*_: object) -> None:
        raise ServerFailed("there are enough")

    monkeypatch.setattr(idle, "open_export", refuses)
    monkeypatch.setattr(idle, "SERVERS", ("native",))
    section, _ = measured(tmp_path, "10 idle")
    assert section.remarks[1:] == ["native took 0 of 10 connections: there are enough"]


def test_descriptors_are_as_many_as_before(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ZeroDivisionError), scale.many_descriptors():
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
        _ = 1 / 0
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def test_a_full_run_has_every_point(tmp_path: Path) -> None:
    full, quick = (scale.names(Options(tmp_path, full=full)) for full in (True, False))
    assert len(full) == len(busy.CONNECTIONS) + len(idle.CONNECTIONS) + len(sizes.SIZES) * len(sizes.SERVERS)
    assert set(quick) < set(full)
    assert "64 busy connections" in full and "1,000 idle connections" in full


def test_a_front_that_can_not_start_is_told(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed), sizes.growable("native", tmp_path / "none" / "disk.img"):
        pass
