"""The suite of resizes, end to end on real servers, with as little of everything as it takes."""

import math
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import resizing, subscribers
from bench.around_grows import Met, Moment, percentile
from bench.ledger_disk import FRONTS, MIB, served
from bench.model import Section
from bench.options import Options
from bench.resize_stages import STAGES
from bench.resizing import Amounts
from bench.timed_load import Kind, Record, TimedLoad
from nbdresize.client import connect, connect_resizable
from nbdresize.errors import Inconsistent, PeerFailed

TINY = Amounts(grows=4, rounds=2, changes=2, clients=(1, 3))


def options(directory: Path, only: str) -> Options:
    return Options(directory=directory, only=only, size=4 * MIB)


def ran(directory: Path, only: str) -> tuple[Section, list[str]]:
    """The section of a tiny run, and what was told."""
    told: list[str] = []
    return resizing.run(options(directory, only), told.append, TINY), told


@pytest.mark.parametrize("front", FRONTS)
def test_requests_around_grows_are_measured_and_none_fails(front: str, tmp_path: Path) -> None:
    section, told = ran(tmp_path, f"{front}, 4 KiB reads")
    by_name = {figure.name: figure for figure in section.figures}
    assert by_name["requests that failed"].value.highest == 0
    groups = ("during a grow by an operator", "during a grow by a client", "at moments without a grow", "between grows")
    for group in groups:
        values = [by_name[f"{front}, 4 KiB reads, {group}: {word}"] for word in ("median", "99 %", "99.9 %", "slowest")]
        medians = [figure.value.median for figure in values]
        assert medians[0] > 0 and medians == sorted(medians)
        assert all(figure.value.lowest <= figure.value.median <= figure.value.highest for figure in values)
    assert [figure.name for figure in section.figures if figure.target is not None] == [
        "requests that failed",
        f"{front}, 4 KiB reads, during a grow by an operator: slowest",
        f"{front}, 4 KiB reads, during a grow by a client: slowest",
    ]
    assert [len(curve.lines) for curve in section.curves] == [2, 2]
    assert all(line for curve in section.curves for line in curve.lines.values())
    assert len(told) == 2


def test_large_writes_are_a_load_too(tmp_path: Path) -> None:
    section, _ = ran(tmp_path, "native, 256 KiB writes")
    assert section.figures[0].value.highest == 0


def test_the_stages_of_a_grow_are_all_of_it(tmp_path: Path) -> None:
    section, _ = ran(tmp_path, "stages of a grow, under load")
    assert [figure.name for figure in section.figures][::2] == [
        f"stages of a grow, under load: {stage}" for stage in STAGES
    ]
    lowest = [figure.value.lowest for figure in section.figures[::2]]
    assert all(value > 0 for value in lowest)
    assert sum(lowest[:-1]) <= lowest[-1]


@pytest.mark.parametrize("way", subscribers.WAYS, ids=lambda way: way.name)
def test_every_subscriber_is_told_every_size(way: subscribers.Way, tmp_path: Path) -> None:
    with served(way.front, MIB, tmp_path, pinned=False) as disk:
        told = subscribers.delays(disk.uri, way, clients=3, changes=2)
    assert told.expected == 6
    assert 3 <= told.alone <= 6  # a slow machine may have the first size told together with the last
    assert [len(each) for each in told.known] == [3, 3]


class Late(subscribers._Subscriber):
    """One that was told of both sizes at once, before the answer came."""

    def __init__(self, heard: dict[int, float]) -> None:
        self.heard = heard


def test_what_is_told_before_the_answer_takes_time_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resizer's answer comes when all have been told for long, as where a server is busy telling them."""

    @contextmanager
    def slow(uri: str) -> Iterator[object]:
        with connect_resizable(uri) as resizer:
            resize = resizer.resize

            def late(size: int) -> None:
                resize(size)
                time.sleep(0.2)

            monkeypatch.setattr(resizer, "resize", late)
            yield resizer

    monkeypatch.setattr(subscribers, "connect_resizable", slow)
    with served("native", MIB, tmp_path, pinned=False) as disk:
        told = subscribers.delays(disk.uri, subscribers.WAYS[0], clients=2, changes=1)
    assert min(told.answered) >= 0.2
    assert all(seconds > 0 for each in told.known for seconds in each)


def test_who_was_told_a_larger_size_knows_the_one_before_it() -> None:
    late = Late({1: 0.5, 3: 2.5})
    assert [late.knew(size) for size in (1, 2, 3)] == [0.5, 2.5, 2.5]


def test_subscribers_are_drawn_over_their_number(tmp_path: Path) -> None:
    section, _ = ran(tmp_path, "told by native's RESIZE command")
    [curve] = section.curves
    assert {tuple(x for x, _ in line) for line in curve.lines.values()} == {(1, 3)}
    assert curve.y == "ms since the resize was asked for"
    assert all(y > 0 for line in curve.lines.values() for _, y in line)
    assert [figure.name.rpartition(": ")[2] for figure in section.figures] == [
        "half of them know",
        "all of them know",
        "whoever asked has the answer",
    ] * 2


def test_a_quick_run_has_fewer_rows_than_a_full_one(tmp_path: Path) -> None:
    quick, full = (set(resizing.names(Options(directory=tmp_path, full=each))) for each in (False, True))
    assert quick < full
    assert len(full) == 8 + 2 + 3


def test_a_grown_range_that_is_not_zero_is_found(tmp_path: Path) -> None:
    with served("native", MIB, tmp_path, pinned=False) as disk:
        disk.grow(3 * MIB)
        assert disk.check_grown() == 2 * MIB
        with connect(disk.uri) as client:
            client.write(b"x", 2 * MIB)
        with pytest.raises(Inconsistent, match="not read as zeroes"):
            disk.check_grown()


@pytest.mark.parametrize("writes", (False, True))
def test_failed_requests_are_counted(writes: bool, tmp_path: Path) -> None:
    """Nearly all that this load asks for lies beyond the end."""
    with served("native", MIB, tmp_path, pinned=False) as disk:
        kind = Kind(writes, 256 << 10, 16, reach=64 * MIB)
        with TimedLoad(disk.uri, kind, tmp_path / "record") as load:
            record = load.end()
    assert 0 < record.failed <= len(record.sent)
    assert len(record.sent) == len(record.latencies) >= kind.depth


def test_a_load_whose_server_is_not_there_says_so(tmp_path: Path) -> None:
    load = TimedLoad(f"nbd+unix:///?socket={tmp_path}/none", Kind(False, 4096, 1, MIB), tmp_path / "record")
    with pytest.raises(PeerFailed, match="The load failed"), load:
        pass


def test_requests_are_told_apart_by_the_moments_that_they_met() -> None:
    record = Record(array("d", [0.0, 1.0, 2.0, 9.0]), array("d", [0.5, 1.5, 0.1, 0.2]), 0)
    met = Met(record)
    first, later = Moment(0.4, 0.6), Moment(2.3, 2.6)
    assert met.during([first]) == [0.5]
    assert met.during([later]) == [1.5]
    assert met.during([first, later]) == [0.5, 1.5]
    assert met.outside([first, later], [Moment(0.0, 5.0)]) == [0.1]
    assert met.during([first.later(8.5)]) == [0.2]
    assert met.around([first], 0.5, 1.0, 0.5) == [(-500.0, 500.0), (500.0, 1500.0)]


def test_percentiles() -> None:
    values = [float(number) for number in range(1, 1001)]
    assert [percentile(values, part) for part in (0.5, 0.99, 0.999, 1.0)] == [500, 990, 999, 1000]
    assert percentile([7.0], 0.5) == 7
    assert math.isnan(percentile([], 0.5))
