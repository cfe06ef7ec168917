"""Two processes that want the last gigabyte at once: exactly one gets it, whatever way it asks."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.model import ResizeOptions
from nbdresize.errors import InsufficientSpace, LimitExceeded
from nbdresize.units import SizeRequest
from tests.control import racer
from tests.control.consistency import problems
from tests.filesystems import mounted

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
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


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
