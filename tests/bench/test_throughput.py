"""The suite of reads and writes: rows measured from one end to the other, in a tiny setting."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest

from bench import places, servers, throughput
from bench.model import Medium, Row, Section, Setting, Transport
from bench.options import Options
from bench.places import NoPlace
from bench.servers import SERVERS, Missing
from bench.throughput import Bench, Disks, names
from bench.throughput_rows import ROWS, rows
from nbdresize.errors import Inconsistent, InvalidArgument, ServerFailed
from nbdresize.loads.model import Engine, Load, Measured, Operation

MIB = 1 << 20


@pytest.fixture
def options(tmp_path: Path) -> Options:
    """Tiny: what is measured means nothing."""
    return Options(tmp_path, rounds=1, seconds=0.1, size=8 * MIB)


def only(name: str) -> Row:
    [row] = [row for row in ROWS if row.name == name]
    return row


def test_one_row_of_all_servers_from_one_end_to_the_other(options: Options) -> None:
    told: list[str] = []
    kept: list[Section] = []
    options = replace(options, full=True, only="4 KiB random write, depth 16, tmpfs", keep=kept.append)
    section = throughput.run(options, told.append)
    assert kept == [section]
    [comparison] = section.comparisons
    assert list(comparison.samples) == [name for name in SERVERS if name != "nbdkit python"]
    for [sample] in comparison.samples.values():
        assert sample.rate > 0
        assert math.isclose(sample.throughput, sample.rate * 4096)
        assert sample.processor >= 0  # counted in steps of 10 ms
        assert sample.latency is not None
        assert sample.memory is not None
        assert sample.memory > 100 << 10
    assert len(told) == 1
    assert any(remark.startswith("Files of tmpfs lay on tmpfs (rw") for remark in section.remarks)
    assert list(options.directory.iterdir()) == []


@pytest.mark.parametrize(("operation", "part"), [("read", 32), ("write", 16)])
def test_holes_that_are_copied_are_no_throughput(
    operation: str, part: int, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = only(f"256 KiB {operation} by nbdcopy, the data of a sparse disk, depth 16")
    options = replace(options, size=64 * MIB)
    told = Measured(options.size // row.setting.load.block, options.size, 1.0, None)
    monkeypatch.setattr(throughput, "put_on", lambda *arguments, **more: told)
    found = Bench(Disks(options.directory, options.size), options).measure(replace(row, servers=("nbdkit file",)))
    [sample] = found.samples["nbdkit file"]
    assert sample.throughput == options.size // part
    assert sample.rate == options.size // part // row.setting.load.block


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "4 KiB random read, depth 16, by fio",
        "4 KiB random read, depth 32, cold cache",
        "4 KiB random read, depth 16, 4 connections, 4 workers",
        "256 KiB sequential read, depth 16, TLS",
        "256 KiB sequential read, depth 16, TCP",
        "256 KiB sequential mixed, depth 16",
        "256 KiB read by nbdcopy, the data of a sparse disk, depth 16",
        "256 KiB write by nbdcopy, the data of a sparse disk, depth 16",
    ],
)
def test_rows_of_every_kind_can_be_measured(name: str, options: Options) -> None:
    row = replace(only(name), servers=("native", "nbdkit file", "nbd-server"))
    if row.setting.cold:  # of which no part may be read twice
        options = replace(options, size=128 * MIB, seconds=0.02)
    found = Bench(Disks(options.directory, options.size), options).measure(row)
    assert [len(each) for each in found.samples.values()] == [1, 1, 1]
    assert "a result takes at least" in found.refused


def test_what_was_read_twice_was_not_cold(options: Options) -> None:
    row = replace(only("4 KiB random read, depth 32, cold cache"), servers=("native",))
    options = replace(options, size=2 * MIB, seconds=1.0)
    with pytest.raises(InvalidArgument, match="read more than once in 1 s: the second time it was not cold"):
        Bench(Disks(options.directory, options.size), options).measure(row)


def test_a_wrong_byte_is_no_result(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin of the comparison gives zeroes for what it has not read; the verified run has to see it."""
    plugin = options.directory / "plugin.py"
    source = Path(servers.__file__).with_name("plain_plugin.py").read_text()
    plugin.write_text(source.replace("os.preadv(h, [buf], offset)", "os.preadv(h, [buf[1:]], offset) + 1"))
    planted = servers._nbdkit("python", str(plugin))
    monkeypatch.setitem(SERVERS, "nbdkit python", replace(SERVERS["nbdkit python"], command=planted))
    row = replace(only("4 KiB random read, depth 16"), servers=("nbdkit python",))
    with pytest.raises(Inconsistent):
        Bench(Disks(options.directory, options.size), options).measure(row)


def test_a_row_that_fails_is_told_and_the_others_go_on(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Section] = []
    told: list[str] = []
    few = tuple(replace(only(f"4 KiB random read, depth {depth}"), servers=("nbdkit file",)) for depth in (1, 16))
    monkeypatch.setattr(throughput, "rows", lambda options: list(few))
    measure = Bench.measure

    def failing(bench: Bench, row: Row) -> object:
        if row.name.endswith("depth 1"):
            raise ServerFailed("it has ended")
        return measure(bench, row)

    monkeypatch.setattr(Bench, "measure", failing)
    with pytest.raises(ServerFailed, match="4 KiB random read, depth 1: it has ended"):
        throughput.run(replace(options, keep=kept.append), told.append)
    assert [row.row for row in kept[0].comparisons] == ["4 KiB random read, depth 16"]
    assert told[0] == "4 KiB random read, depth 1: failed: it has ended"


def test_a_missing_server_fails_before_anything_is_measured(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Missing, match="apt-get install --no-install-recommends nbdkit"):
        throughput.run(options, pytest.fail)
    assert list(options.directory.iterdir()) == []


def test_a_medium_that_is_not_to_be_had_is_left_out_and_named(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(medium: Medium, directory: Path, size: int) -> object:
        raise NoPlace("that takes root")

    monkeypatch.setattr(places, "placed", refusing)
    told: list[str] = []
    section = throughput.run(replace(options, full=True, only="read, depth 16, xfs"), told.append)
    assert section.comparisons == []
    assert "Nothing was measured on xfs: that takes root." in section.remarks
    assert told[0] == "4 KiB random read, depth 16, xfs: left out: that takes root"


def test_a_server_that_can_not_do_a_setting_is_left_out_of_it() -> None:
    alone = Setting(Load(Engine.BATCH, Operation.READ, 4096, 16), workers=2)
    assert [name for name in SERVERS if servers.can(name, alone)] == ["native", "nbdkit front"]


# Which rows there are


def test_the_quick_run_has_the_rows_with_targets_mostly_of_three_servers(options: Options) -> None:
    quick = rows(options)
    assert len(quick) == 15
    assert all(row.targets for row in quick)
    assert [len(row.servers) for row in quick].count(6) == 3
    assert {len(row.servers) for row in quick} == {3, 6}


def test_the_full_run_has_every_dimension_of_the_issue(options: Options) -> None:
    full = rows(replace(options, full=True))
    loads = [row.setting.load for row in full]
    assert {load.engine for load in loads} == set(Engine)
    assert {load.operation for load in loads} == set(Operation)
    assert {load.block >> 10 for load in loads} == {4, 16, 64, 256, 1024}
    assert {1, 4, 16, 64} <= {load.depth for load in loads}
    assert {load.connections for load in loads} == {1, 4}
    assert {load.random for load in loads} == {True, False}
    by_fio = [row.setting.load for row in full if row.setting.load.engine is Engine.FIO]
    assert {load.operation for load in by_fio} == set(Operation)
    assert {load.block >> 10 for load in by_fio} == {4, 256, 1024}
    assert {load.depth for load in by_fio} == {1, 4, 16, 64}
    assert {load.connections for load in by_fio} == {1, 4}
    assert {load.random for load in by_fio} == {True, False}
    ways = {(row.setting.transport, row.setting.load.operation) for row in full}
    assert ways >= set(itertools.product(Transport, (Operation.READ, Operation.WRITE)))
    copies = {(load.operation, load.sparse) for load in loads if load.engine is Engine.NBDCOPY}
    assert len(copies) == 4
    assert {row.setting.medium for row in full} == set(Medium)
    assert {row.setting.transport for row in full} == set(Transport)
    assert {row.setting.cold for row in full} == {True, False}
    assert all(set(row.servers) >= {"native", "nbdkit front", "nbdkit file", "qemu-nbd"} for row in full)
    usual = [row for row in full if row.setting == Setting(replace(row.setting.load, engine=Engine.BATCH))]
    assert len(usual) > 15 and all(row.servers == tuple(SERVERS) for row in usual)
    without = {each: [row for row in full if each not in row.servers] for each in ("nbd-server", "nbdkit python")}
    assert {row.setting.load.engine for row in without["nbd-server"]} == {Engine.FIO}
    assert not set(map(str, without["nbdkit python"])) & set(map(str, usual))
    assert len(set(names(replace(options, full=True)))) == len(full)


def test_only_chooses_rows_by_name(options: Options) -> None:
    assert names(replace(options, only="tls")) == ["256 KiB sequential read, depth 16, TLS"]
    assert names(replace(options, only="nothing like it")) == []
