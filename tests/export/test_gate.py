"""Requests pass the gate together; who closes it has it to himself."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from nbdresize.errors import ResourceInUse
from nbdresize.export.gate import Gate
from tests.wait import until

LONG = 60.0


def test_closing_waits_for_those_inside_and_holds_back_the_next() -> None:
    gate = Gate()
    order: list[str] = []
    gate.enter()
    closing = threading.Event()

    def close() -> None:
        closing.set()
        with gate.closed(LONG):
            order.append("closed")

    def enter() -> None:
        gate.enter()
        order.append("entered")
        gate.leave()

    with ThreadPoolExecutor(2) as threads:
        closer = threads.submit(close)
        assert closing.wait(LONG)
        with pytest.raises(ResourceInUse), gate.closed(0.01):
            raise AssertionError("the gate was closed with somebody inside")
        order.append("left")
        gate.leave()
        closer.result(LONG)
        threads.submit(enter).result(LONG)
    assert order == ["left", "closed", "entered"]


def test_a_gate_that_could_not_be_closed_is_open_again() -> None:
    gate = Gate()
    gate.enter()
    with pytest.raises(ResourceInUse), gate.closed(0.01):
        raise AssertionError("the gate was closed with somebody inside")
    gate.enter()
    gate.leave()
    gate.leave()
    with gate.closed(0.01):
        pass


def test_nobody_is_ever_inside_a_closed_gate() -> None:
    gate = Gate()
    inside: set[int] = set()
    met: list[set[int]] = []
    stop = threading.Event()

    passes = [0] * 4

    def pass_through(number: int) -> None:
        while not stop.is_set():
            gate.enter()
            inside.add(number)
            inside.discard(number)
            gate.leave()
            passes[number] += 1

    with ThreadPoolExecutor(6) as threads:
        passers = [threads.submit(pass_through, number) for number in range(4)]
        try:
            for _ in range(300):
                with gate.closed(LONG):
                    met.append(set(inside))
            until(lambda: all(passes), LONG, "everybody to have passed")
        finally:
            stop.set()
        for passer in passers:
            passer.result(LONG)
    assert met == [set()] * 300
