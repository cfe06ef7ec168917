"""Decisions to grow a disk: one after the other in this process, or by several processes side by side.

    python -m bench.deciding ROOT VMS NUMBER PROCESSES SECONDS

Such a process prints a line when it is ready, waits for one, and prints what it has made as JSON.
"""

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from bench.full_ledger import DISKS, vm_name
from nbdresize.config import StateDirectory
from nbdresize.control import operations, records
from nbdresize.control.catalog_records import account_of
from nbdresize.control.changes import DiskTerms, decide_changes
from nbdresize.control.control import Control
from nbdresize.control.ledger import Ledger
from nbdresize.control.model import DiskChanges, DiskUpdate
from nbdresize.control.records import Action, Kind, Step
from nbdresize.errors import ServerFailed
from nbdresize.units import SizeRequest

PARTS = ("begin", "read", "decide", "record", "commit")
_GROWTH = SizeRequest(relative=1 << 20)
_PATIENCE = 60.0
_CHECKOUT = Path(__file__).parents[1]


class Deciding:
    """The decision as `disks` makes and records it, each about another disk; `take_back` undoes all that were made.

    Of several processes, each has the disks whose numbers leave `number` when divided by `processes`.
    """

    def __init__(self, ledger: Ledger, vms: int, number: int = 0, processes: int = 1) -> None:
        self._ledger = ledger
        self._vms = vms
        self._numbers = iter(range(number, vms * DISKS, processes))
        self.parts: list[tuple[float, ...]] = []
        """The seconds of each part, of each decision."""

    def decide(self) -> bool:
        """Make one decision; False where all disks have one."""
        number = next(self._numbers, None)
        if number is None:
            return False
        vm, slot = vm_name(number % self._vms + 1), number // self._vms
        request = operations.Request(f"bench-{number}", Kind.RESIZE_DISK.value, vm, "{}")
        times = [time.perf_counter()]
        with self._ledger.deciding() as connection:
            times.append(time.perf_counter())
            entry = records.read_vm(connection, vm)
            assert entry is not None
            operations.outcome_of(connection, request)
            account = account_of(connection, entry)
            times.append(time.perf_counter())
            terms = {disk.slot: DiskTerms(disk.export_name, disk.size, disk.minimum) for disk in entry.vm.disks}
            wanted = DiskChanges(update=(DiskUpdate(slot, _GROWTH),))
            [(_, old, each)] = decide_changes(account, terms, wanted).update
            times.append(time.perf_counter())
            disk = entry.disk(slot)
            assert disk is not None
            steps = [Step(disk.id, Action.RESIZE, old, each.size)]
            records.open_intent(connection, request, Kind.RESIZE_DISK, vm_id=entry.vm.id, steps=steps)
            times.append(time.perf_counter())
        times.append(time.perf_counter())
        self.parts.append(tuple(ended - begun for begun, ended in pairwise(times)))
        return True

    def decide_for(self, seconds: float) -> "Made":
        """As many decisions as can be made in that time, the last one perhaps ending later."""
        begun = time.perf_counter()
        first = len(self.parts)
        while time.perf_counter() - begun < seconds and self.decide():
            pass
        used = time.perf_counter() - begun  # less than asked for where the disks have run out
        took = [sum(parts) for parts in self.parts[first:]]
        return Made(len(took), used, max(took, default=0.0))


@dataclass(frozen=True)
class Made:
    """Decisions of one process in so many seconds; the seconds of the slowest, with its wait for the others."""

    count: int
    seconds: float
    slowest: float


def take_back(ledger: Ledger) -> None:
    """Forget every promise that is open."""
    with ledger.deciding() as connection:
        for intent in records.read_intents(connection):
            records.drop_intent(connection, intent)


def side_by_side(state: StateDirectory, vms: int, processes: int, seconds: float) -> list[Made]:
    """What each of so many processes at once has made, on one ledger."""
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(
                    [
                        *(sys.executable, "-m", "bench.deciding", str(state.root)),
                        *(str(vms), str(number), str(processes), str(seconds)),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=_CHECKOUT,
                )
            )
            for number in range(processes)
        ]
        for process in running:
            stack.callback(process.kill)
        for process in running:
            _line(process)
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [_line(process) for process in running]
        for process in running:
            process.wait(_PATIENCE)
    return [Made(**json.loads(each)) for each in told]


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise ServerFailed(f"A process that decides has failed, with exit code {process.wait(_PATIENCE)}")
    return line


def main() -> None:
    root, vms, number, processes, seconds = sys.argv[1:]
    with Control.open(StateDirectory(Path(root)), create=False) as control:
        deciding = Deciding(control._site.ledger, int(vms), int(number), int(processes))
        deciding.decide()  # the first one loads code
        print("ready", flush=True)
        sys.stdin.readline()
        print(json.dumps(asdict(deciding.decide_for(float(seconds)))), flush=True)


if __name__ == "__main__":
    main()
