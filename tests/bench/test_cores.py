"""Which cores are used, on machines made by hand and on this one."""

import os
from pathlib import Path

import pytest

from bench import cores


def machine(directory: Path, threads: dict[int, str], processors: dict[int, int] | None = None) -> Path:
    """Where the kernel tells of such a machine: the threads of each one's core, and its processor."""
    for number, text in threads.items():
        topology = directory / f"cpu{number}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{text}\n")
        (topology / "physical_package_id").write_text(f"{(processors or {}).get(number, 0)}\n")
    return directory


def may_use(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(numbers))


def test_two_threads_of_one_core_are_not_the_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_use(monkeypatch, 0, 1, 2, 3)
    assert cores.pair(machine(tmp_path, {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"})) == (0, 2)
    assert cores.described(tmp_path) == "client on 0, server on 2: a core each"


def test_where_threads_are_numbered_apart_the_next_number_is_another_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_use(monkeypatch, 1, 3, 4)
    made = machine(tmp_path, {1: "1,3", 3: "1,3", 4: "4,6"})
    assert cores.pair(made) == (1, 4)


def test_the_servers_core_is_of_the_same_processor_where_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_use(monkeypatch, 0, 1, 2)
    made = machine(tmp_path, {0: "0", 1: "1", 2: "2"}, processors={1: 1})
    assert cores.pair(made) == (0, 2)


def test_where_there_are_only_two_threads_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_use(monkeypatch, 4, 5)
    made = machine(tmp_path, {4: "4-5", 5: "4-5"})
    assert cores.pair(made) == (4, 5)
    assert cores.described(made) == "client on 4, server on 5: two threads of one core"


def test_one_core_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_use(monkeypatch, 7)
    assert cores.pair(tmp_path) == (7, 7)
    assert cores.described(tmp_path) == "client and server share core 7"


def test_a_machine_that_does_not_tell_has_cores_of_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_use(monkeypatch, 0, 1)
    assert cores.pair(tmp_path) == (0, 1)


def test_this_machine_has_a_pair() -> None:
    usable = os.sched_getaffinity(0)
    client, server = cores.pair()
    assert {client, server} <= usable
    assert (client != server) == (len(usable) > 1)
