"""Holds on replies: who waits, and what ends the wait."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from nbdresize.export.hold import Hold, Holds
from tests.wait import until

LONG = 60.0


def stays() -> bool:
    return False


def waits(hold: Hold) -> bool:
    """Whether somebody waits."""
    return bool(hold._changed._waiters)  # type: ignore[attr-defined]


def test_nobody_waits_where_nothing_is_held() -> None:
    holds = Holds()
    assert not holds.of("a").on
    assert holds.of("a").wait(stays)
    holds.freeze(["b"], LONG)
    assert not holds.of("a").on


def test_a_hold_is_by_name_and_there_before_anybody_opens() -> None:
    holds = Holds()
    freeze = holds.freeze(["a", "a", "b"], LONG)
    assert holds.of("a").on and holds.of("b").on
    assert holds.of("a") is holds.of("a")
    assert freeze.end()
    assert not holds.of("a").on and not holds.of("b").on


def test_all_holds_must_end_before_anything_leaves() -> None:
    holds = Holds()
    first, second = holds.freeze(["a"], LONG), holds.freeze(["a", "b"], LONG)
    hold = holds.of("a")
    with ThreadPoolExecutor(1) as threads:
        reply = threads.submit(hold.wait, stays)
        until(lambda: waits(hold), what="the reply to wait")
        assert first.end()
        assert hold.on
        assert not reply.done()
        assert second.end()
        assert reply.result(LONG)


def test_a_hold_ends_by_itself_and_says_so() -> None:
    holds = Holds()
    freeze = holds.freeze(["a"], 0.05)
    start = time.monotonic()
    assert holds.of("a").wait(stays)
    assert time.monotonic() - start > 0.04
    assert not holds.of("a").on
    assert not freeze.end()


def test_a_hold_that_nobody_waited_for_has_run_out_all_the_same() -> None:
    holds = Holds()
    freeze = holds.freeze(["a"], 0.001)
    until(lambda: time.monotonic() > max([0, *holds.of("a")._deadlines.values()]))
    assert not freeze.end()
    assert not freeze.end()


def test_a_client_that_has_gone_waits_no_longer_and_gets_nothing() -> None:
    holds, gone = Holds(), threading.Event()
    holds.freeze(["a"], LONG)
    hold = holds.of("a")
    with ThreadPoolExecutor(1) as threads:
        reply = threads.submit(hold.wait, gone.is_set)
        until(lambda: waits(hold), what="the reply to wait")
        gone.set()
        hold.wake()
        assert reply.result(LONG) is False
    assert hold.on


def test_the_end_of_the_server_ends_all_holds_and_those_to_come() -> None:
    holds = Holds()
    before = holds.freeze(["a"], LONG)
    holds.end()
    after = holds.freeze(["a"], LONG)
    assert not holds.of("a").on
    assert not before.end()
    assert not after.end()


def test_names_that_nobody_holds_or_has_open_are_forgotten() -> None:
    holds = Holds()
    holds.freeze([f"disk{number}" for number in range(100)], LONG).end()
    assert len(holds._by_name) == 0
