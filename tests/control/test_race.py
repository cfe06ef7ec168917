"""Two processes that want the last gigabyte at once: exactly one gets it, whatever way it asks."""

import json
import secrets
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control import recovery
from nbdresize.control.control import Control
from nbdresize.control.ledger import BUSY_SECONDS
from nbdresize.control.model import ResizeOptions
from nbdresize.errors import InsufficientSpace, LimitExceeded
from nbdresize.units import SizeRequest
from tests.control import consistency, crowd, racer
from tests.control.consistency import problems
from tests.filesystems import MIB, mounted
from tests.peers import next_line

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
GIB = 1 << 30
ROUNDS = 100
WAYS = (("add", "add"), ("add", "grow disk0"), ("grow disk0", "grow disk1"), ("grow disk0", "grow disk0"))


class Racer:
    """A process of its own, ready to ask."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        return next_line(self._process).strip()


@contextmanager
def racing(state: StateDirectory) -> Iterator[Racer]:
    command = [sys.executable, "-m", racer.__name__, str(state.root)]
    with subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            one = Racer(process)
            assert one.answer() == "ready"
            yield one
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_exactly_one_of_two_processes_gets_the_last_gigabyte(tmp_path: Path) -> None:
    with ExitStack() as stack:
        state = StateDirectory(stack.enter_context(mounted("tmpfs", tmp_path)))
        control = stack.enter_context(Control.open(state))
        control.update_pool(overcommit="unlimited")
        control.create_vm("vm", 3 * GIB, [SizeRequest(exact=GIB)] * 2)
        racers = [stack.enter_context(racing(state)) for _ in range(2)]
        for number in range(ROUNDS):
            commands = WAYS[number % len(WAYS)]
            for one, command in zip(racers, commands, strict=True):
                one.tell(command)
            answers = [one.answer() for one in racers]
            assert sorted(answers) == ["lost", "won"], (number, commands, answers)
            vm = control.vm("vm")
            assert vm.used == vm.budget
            _give_back(control)
        assert problems(state) == []


@dataclass
class Sampler:
    """Looks at the ledger whenever anybody has committed something."""

    state: StateDirectory
    seen: int = 0
    wrong: list[str] = field(default_factory=list)

    def watch(self, process: subprocess.Popen[str]) -> None:
        """Until that process has ended."""
        with closing(sqlite3.connect(self.state.ledger)) as ledger:
            version = None
            while process.poll() is None:
                now = ledger.execute("PRAGMA data_version").fetchone()
                if now == version:
                    time.sleep(0.001)
                    continue
                version = now
                self.seen += 1
                ledger.row_factory = sqlite3.Row
                books = consistency.read(ledger)
                ledger.row_factory = None
                self.wrong += consistency.overdrawn(books, crowd.CAPACITY)


FAIR = {"done", "InsufficientSpace", "ResourceInUse", "ResourceNotFound", "LimitExceeded", "InvalidArgument"}
"""What may come of an attempt in a crowd: never a broken volume or ledger, nor an error that is none of ours."""

PATIENCE = recovery.WAIT + BUSY_SECONDS + 100
"""Seconds: what it may wait for by its own rules, and what a slow machine takes. One that hangs takes for ever."""


def test_of_fifty_processes_none_gets_what_there_is_not_and_none_hangs(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path, size=256 * MIB) as point:
        state = StateDirectory(point / "state")
        with Control.open(state) as control:
            control.update_pool(capacity=crowd.CAPACITY)
            control.create_vm(crowd.SHARED, crowd.BUDGET, [SizeRequest(exact=MIB)] * 3)
        command = [sys.executable, "-m", crowd.__name__, str(state.root), "20", str(secrets.randbelow(10**9))]
        sampler = Sampler(state)
        with (
            (point / "said").open("w") as said,
            subprocess.Popen(command, cwd=CHECKOUT, stdout=said, stderr=subprocess.PIPE, text=True) as process,
        ):
            sampler.watch(process)
            assert process.stderr is not None
            complaints = process.stderr.read()
        attempts = [json.loads(line) for line in (point / "said").read_text().splitlines()]
        outcomes = Counter((act, outcome) for act, outcome, _ in attempts)
        assert (process.returncode, complaints) == (0, ""), command
        assert sampler.wrong == [], command
        assert sampler.seen > 0
        assert {outcome for _, outcome, _ in attempts} <= FAIR, outcomes
        assert len({act for act, outcome in outcomes if outcome == "done"}) > 8, outcomes
        assert max(seconds for *_, seconds in attempts) < PATIENCE
        assert problems(state) == [], command


def test_eight_threads_of_a_server_share_a_budget(state: StateDirectory, control: Control) -> None:
    """One Control, used by all of them; and slots are given out once."""
    control.create_vm("vm", 5 * GIB, [SizeRequest(exact=GIB)])

    def add(_: int) -> bool:
        try:
            control.add_disk("vm", SizeRequest(exact=GIB))
        except InsufficientSpace:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(add, range(8))) == [False] * 4 + [True] * 4
    assert [disk.slot for disk in control.vm("vm").disks] == [0, 1, 2, 3, 4]
    assert problems(state) == []


def test_slots_run_out_for_one_of_two(control: Control) -> None:
    control.create_vm("vm", 100 * GIB, [SizeRequest(exact=GIB)] * 7)

    def add(_: int) -> str:
        try:
            return control.add_disk("vm", SizeRequest(exact=GIB)).name
        except LimitExceeded as error:
            return error.name

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(add, range(2))) == ["LimitExceeded", "disk7"]


def test_processes_that_set_up_the_same_directory_at_once_all_succeed(tmp_path: Path) -> None:
    for number in range(5):
        state = StateDirectory(tmp_path / f"state{number}")

        def open_and_make(name: str, state: StateDirectory = state) -> str:
            with Control.open(state) as control:
                return control.create_vm(name, GIB).name

        names = [f"vm{each}" for each in range(6)]
        with ThreadPoolExecutor(len(names)) as threads:
            assert list(threads.map(open_and_make, names)) == names
        with Control.open(state) as control:
            assert [vm.name for vm in control.vms()] == names


def _give_back(control: Control) -> None:
    for disk in control.vm("vm").disks:
        if disk.slot > 1:
            control.delete_disk("vm", disk.name)
        else:
            control.resize_disk("vm", disk.name, SizeRequest(exact=GIB), ResizeOptions(shrink=True))
