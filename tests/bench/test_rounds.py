"""Servers compared round by round, with measures that are made up."""

from collections.abc import Iterator

import pytest

from bench.model import Row, Sample, Setting
from bench.rounds import Measure, compare, interval_of_ratio, per_round, ratios, rotated, spread
from nbdresize.loads.model import Engine, Load, Operation

SETTING = Setting(Load(Engine.BATCH, Operation.READ, 4096, 16))
BASE = "nbdkit file"


def row(*servers: str) -> Row:
    return Row("4 KiB random read", SETTING, servers)


class Fake:
    """Measures by list: each server's throughput, round by round; the last again where there are no more."""

    def __init__(self, **throughputs: list[float]) -> None:
        self.asked: list[str] = []
        self._left = {name.replace("_", " "): self._values(values) for name, values in throughputs.items()}

    def __call__(self, server: str) -> Sample:
        self.asked.append(server)
        throughput = next(self._left[server])
        return Sample(throughput / 4096, throughput, 1e-6)

    @staticmethod
    def _values(values: list[float]) -> Iterator[float]:
        yield from values
        while True:
            yield values[-1]


def test_servers_take_turns_and_each_round_begins_with_another() -> None:
    fake = Fake(a=[1], b=[1], nbdkit_file=[1])
    compare(row("a", "b", BASE), fake, 5)
    assert [fake.asked[at : at + 3] for at in range(0, 15, 3)] == [
        ["a", "b", BASE],
        ["b", BASE, "a"],
        [BASE, "a", "b"],
        ["a", "b", BASE],
        ["b", BASE, "a"],
    ]
    assert len(fake.asked) == 15


def test_rotation_of_nothing_is_nothing() -> None:
    assert rotated((), 3) == []


def test_a_ratio_is_of_the_same_round_however_the_machine_drifts() -> None:
    """Ours is always twice as fast, on a machine that gets ten times faster meanwhile."""
    fake = Fake(native=[2, 4, 8, 16, 20], nbdkit_file=[1, 2, 4, 8, 10])
    found = compare(row("native", BASE), fake, 5)
    assert found.refused == "" and found.unsteady == {}
    assert ratios(found, "native", Measure.THROUGHPUT) == spread([2.0])
    assert len(found.samples["native"]) == 5


def test_the_result_is_the_median_with_lowest_and_highest() -> None:
    fake = Fake(native=[2.0, 2.1, 1.9, 2.2, 2.05], nbdkit_file=[1])
    found = ratios(compare(row("native", BASE), fake, 5), "native", Measure.THROUGHPUT)
    assert found is not None
    assert (found.median, found.lowest, found.highest) == (2.05, 1.9, 2.2)


def test_rounds_are_added_until_the_ratio_is_steady() -> None:
    """One round of eleven was disturbed: the lowest and the highest of eleven no longer count for the interval."""
    fake = Fake(native=[2, 2, 9, 2], nbdkit_file=[1])
    found = compare(row("native", BASE), fake, 5)
    assert len(found.samples["native"]) == len(found.samples[BASE]) == 11
    assert interval_of_ratio(found, "native", Measure.THROUGHPUT) == (2, 2)
    result = ratios(found, "native", Measure.THROUGHPUT)
    assert result is not None and (result.median, result.highest) == (2, 9)


@pytest.mark.parametrize(("rounds", "looks"), [(5, [5, 8, 11]), (6, [6, 10, 13]), (9, [9, 14, 19])])
def test_it_is_looked_at_after_fixed_numbers_of_rounds(rounds: int, looks: list[int]) -> None:
    """So wild that no look ends it; and a second look that does, since a first one was by then of no account."""
    found = compare(row("native", BASE), Fake(native=[1, 3] * 20, nbdkit_file=[1]), rounds)
    assert (found.looks, len(found.samples["native"])) == (looks, looks[-1])
    disturbed = Fake(native=[9] + [2.0] * 50, nbdkit_file=[1])
    assert len(compare(row("native", BASE), disturbed, rounds).samples[BASE]) in looks


def test_the_interval_of_a_ratio_pays_for_all_looks_before() -> None:
    """Eight rounds on their own would leave out one at each end; after a look at five they may not."""
    fake = Fake(native=[2, 2.8, 2, 2, 2, 2, 2, 2], nbdkit_file=[1])
    found = compare(row("native", BASE), fake, 5)
    assert len(found.samples[BASE]) == 11  # at eight, from 2 to 2.8 is too wide
    assert compare(row("native", BASE), Fake(native=[2, 2.8, 2], nbdkit_file=[1]), 9).looks == [9, 14, 19]


def test_a_ratio_that_stays_wild_is_refused_after_a_bounded_number_of_rounds() -> None:
    fake = Fake(native=[1, 3] * 20, nbdkit_file=[1])
    found = compare(row("native", BASE), fake, 5)
    assert len(found.samples["native"]) == 11
    assert "native's throughput is somewhere from 1.00 to 3.00" in found.unsteady["native"]["throughput"]
    assert ratios(found, "native", Measure.THROUGHPUT) is None
    assert found.refused == ""  # its processor time per request is steady
    assert ratios(found, "native", Measure.PROCESSOR) == spread([1.0])


def test_a_row_without_any_steady_ratio_is_refused_as_a_whole() -> None:
    values = iter([1.0, 3.0] * 20)

    def measure(server: str) -> Sample:
        value = 1.0 if server == BASE else next(values)
        return Sample(value, value, value)

    found = compare(row("native", BASE), measure, 5)
    assert found.refused.startswith("after 11 rounds, no ratio is steady: native's throughput is somewhere from 1.00")
    assert all(ratios(found, "native", what) is None for what in Measure)


def test_one_wild_server_does_not_take_the_result_of_the_others() -> None:
    fake = Fake(native=[2], nbd_server=[1, 3] * 20, nbdkit_file=[1])
    found = compare(row("native", "nbd server", BASE), fake, 5)
    assert found.refused == ""
    assert list(found.unsteady) == ["nbd server"]
    assert ratios(found, "native", Measure.THROUGHPUT) == spread([2.0])
    assert ratios(found, "nbd server", Measure.THROUGHPUT) is None
    assert ratios(found, "nbd server", Measure.PROCESSOR) == spread([1.0])


@pytest.mark.parametrize("rounds", [1, 4])
def test_fewer_than_five_rounds_are_a_look_and_no_result(rounds: int) -> None:
    fake = Fake(native=[1, 3] * 20, nbdkit_file=[1])
    found = compare(row("native", BASE), fake, rounds)
    assert len(found.samples["native"]) == rounds
    assert found.refused == f"rounds: {rounds}; a result takes at least 5"
    assert ratios(found, "native", Measure.THROUGHPUT) is None


def test_a_server_alone_has_no_ratio_and_is_not_refused() -> None:
    found = compare(row("native"), Fake(native=[1, 3] * 20), 5)
    assert (found.refused, found.unsteady, len(found.samples["native"])) == ("", {}, 5)
    assert ratios(found, "native", Measure.THROUGHPUT) is None


def test_what_was_not_measured_has_no_ratio() -> None:
    found = compare(row("native", BASE), Fake(native=[1], nbdkit_file=[1]), 5)
    assert ratios(found, "native", Measure.LATENCY) is None
    assert ratios(found, "qemu-nbd", Measure.THROUGHPUT) is None


@pytest.mark.parametrize(("ours", "theirs"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_processor_time_too_little_to_be_measured_is_no_ratio(ours: float, theirs: float) -> None:
    def measure(server: str) -> Sample:
        return Sample(1, 1, theirs if server == BASE else ours)

    found = compare(row("native", BASE), measure, 5)
    assert "too little to be measured" in found.unsteady["native"]["processor"]
    assert ratios(found, "native", Measure.PROCESSOR) is None
    assert ratios(found, "native", Measure.THROUGHPUT) == spread([1.0])


def test_what_a_measure_raises_is_passed_on() -> None:
    def measure(server: str) -> Sample:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(row("native", BASE), measure, 5)


def test_ratios_are_of_rounds_that_both_have() -> None:
    one = [Sample(1, value, 1) for value in (2.0, 4.0, 6.0)]
    assert per_round({"native": one, BASE: one[:2]}, "native", Measure.THROUGHPUT) == [1, 1]
