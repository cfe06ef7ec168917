"""What is recorded of the machine."""

import re

import pytest

from bench.cores import described
from bench.report import machine


def test_the_cores_that_are_used_are_recorded() -> None:
    found = machine.machine()
    assert found["cores used"] == described()
    assert found["governor"]


def test_two_threads_of_one_core_are_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "described", lambda: "client on 0, server on 1: two threads of one core")
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    assert machine.worries() == [
        "client on 0, server on 1: two threads of one core: each slows down the other, and the ratios come out closer"
    ]


def test_the_governor_is_that_of_the_cores_that_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {2: "performance", 5: "powersave"}
    monkeypatch.setattr(machine, "pair", lambda: (2, 5))
    monkeypatch.setattr(machine, "_read", lambda path: told.get(int(re.sub(r"\D", "", path) or -1), ""))
    assert machine.machine()["governor"] == "performance, powersave"
