"""An operation that takes as long as a test likes: it allocates a disk by the mebibyte, each when it is told to."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control import operations
from nbdresize.control.control import Control
from nbdresize.control.model import Operation, Progress, ResizeOptions, ResizeOutcome
from nbdresize.storage import reserving
from nbdresize.units import SizeRequest
from tests.wait import until

MIB = 1 << 20
ID = "nightly"
SIZE = 4 * MIB
BIGGER = 8 * MIB
LONG = 60.0


class LongRunning:
    """The growing of web1/disk0 from SIZE to BIGGER, in a thread, with a Control of its own."""

    def __init__(self, control: Control, threads: ThreadPoolExecutor) -> None:
        self._may_go_on = threading.Semaphore(0)
        self.result: Future[ResizeOutcome] = threads.submit(self._grow, control)

    def _grow(self, control: Control) -> ResizeOutcome:
        return grow(control, listener=self._listen)

    def _listen(self, progress: Progress) -> None:
        assert self._may_go_on.acquire(timeout=LONG)

    def go_on(self, steps: int = 1000) -> None:
        """Let it allocate that many mebibytes more; without a number, all."""
        self._may_go_on.release(steps)

    def wait_for(self, control: Control, done: int) -> Operation:
        """The operation once it has recorded that it got so far."""
        found = until(lambda: _at(control, done), LONG, f"{done} bytes")
        assert found is not None
        return found


def grow(
    control: Control, wait: float = 0.0, listener: Callable[[Progress], None] = operations.nobody
) -> ResizeOutcome:
    """What it does; a retry of it when done again."""
    return control.resize_disk(
        "web1", "disk0", SizeRequest(exact=BIGGER), ResizeOptions(wait=wait), operation=ID, listener=listener
    )


@contextmanager
def long_running(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> Iterator[LongRunning]:
    """The operation, begun, which has allocated one mebibyte; ended in the end."""
    monkeypatch.setattr(operations, "_REPORT_EVERY", 0.0)
    monkeypatch.setattr(reserving, "_STEP", MIB)
    with Control.open(state) as control, ThreadPoolExecutor(1) as threads:
        control.create_vm("web1", 64 * MIB, [SizeRequest(exact=SIZE)], preallocate=True)
        running = LongRunning(control, threads)
        try:
            running.wait_for(control, MIB)
            yield running
        finally:
            running.go_on()


def _at(control: Control, done: int) -> Operation | None:
    operation = next(iter(control.operations(vm="web1", running=True)), None)
    return operation if operation and operation.progress and operation.progress.done >= done else None
