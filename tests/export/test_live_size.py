"""A size that all connections of a process share."""

import threading
from concurrent.futures import ThreadPoolExecutor

from nbdresize.export.live_size import LiveSize, SizeState
from tests.wait import until

LONG = 60.0


def test_a_newer_size_is_taken_over() -> None:
    live = LiveSize(4096, 1)
    assert live.update(8192, 2)
    assert (live.size, live.generation, live.state) == (8192, 2, SizeState(8192, 2))


def test_an_older_size_that_arrives_late_is_ignored() -> None:
    live = LiveSize(8192, 5)
    assert not live.update(4096, 4)
    assert not live.update(4096, 5)
    assert live.state == SizeState(8192, 5)


def test_a_size_without_generation_starts_the_next_where_it_differs() -> None:
    live = LiveSize(4096, 1)
    assert not live.observe(4096)
    assert live.observe(5000)
    assert live.state == SizeState(5000, 2)


def test_watchers_know_a_size_before_its_update_returns() -> None:
    live = LiveSize(4096, 1)
    seen: list[SizeState] = []
    assert live.watch(seen.append) == SizeState(4096, 1)
    live.update(8192, 2)
    live.update(4096, 1)
    live.observe(100)
    live.unwatch(seen.append)
    live.update(1, 9)
    assert seen == [SizeState(8192, 2), SizeState(100, 3)]


def test_watchers_see_the_sizes_of_many_threads_in_order() -> None:
    live = LiveSize(0, 0)
    seen: list[SizeState] = []
    live.watch(seen.append)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: live.update(number * 10, number), range(1, 501)))
    assert live.state == SizeState(5000, 500)
    assert seen[-1] == live.state
    assert seen == sorted(seen, key=lambda state: state.generation)
    assert all(state.size == state.generation * 10 for state in seen)


def test_a_wait_ends_at_once_where_there_is_news() -> None:
    assert LiveSize(4096, 7).wait_newer(6, LONG)


def test_a_wait_without_news_ends_with_its_time() -> None:
    assert not LiveSize(4096, 7).wait_newer(7, 0.01)
    assert not LiveSize(4096, 7).wait_newer(7, -1)


def test_a_wait_ends_with_a_newer_size() -> None:
    live = LiveSize(4096, 7)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(live.wait_newer, 7, LONG)
        live.update(8192, 8)
        assert waiting.result(LONG)


def test_a_wait_ends_when_its_waiter_is_told_to_go() -> None:
    live = LiveSize(4096, 7)
    ended = threading.Event()
    asked = threading.Event()

    def has_ended() -> bool:
        asked.set()
        return ended.is_set()

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(live.wait_newer, 7, LONG, has_ended)
        assert asked.wait(LONG)
        ended.set()
        live.wake()
        assert not until(lambda: (waiting.result(LONG),), what="the wait's end")[0]
