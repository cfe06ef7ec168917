"""Percentiles from buckets, within half a percent."""

import pytest

from nbdresize.loads.latencies import Latencies


def test_percentiles_of_many_latencies_in_bounded_memory() -> None:
    values = [number / 1e6 for number in range(1, 10001)]
    first, second = Latencies(), Latencies()
    for number, value in enumerate(values):
        (first if number % 2 else second).add(value)
    first.merge(second)
    told = first.summary()
    assert told is not None
    assert told.median == pytest.approx(0.005, rel=0.005)
    assert told.p99 == pytest.approx(0.0099, rel=0.005)
    assert told.p999 == pytest.approx(0.00999, rel=0.005)
    assert told.slowest == 0.01
    assert len(first.buckets) < 2500


def test_one_latency_is_all_of_them() -> None:
    latencies = Latencies()
    latencies.add(0.25)
    told = latencies.summary()
    assert told is not None
    assert told.median == pytest.approx(0.25, rel=0.005)
    assert told.slowest == 0.25
    assert max(told.median, told.p99, told.p999) <= told.slowest


def test_no_latencies_are_none() -> None:
    assert Latencies().summary() is None


def test_clocks_that_stand_still_are_borne() -> None:
    latencies = Latencies()
    latencies.add(0.0)
    assert latencies.summary() is not None
