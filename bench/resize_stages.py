"""How long each stage of a resize takes, measured around the real calls; the product has no clock for this in it.

A grow goes through these stages one after the other, and together they are all of it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

from bench.ledger_disk import LedgerDisk
from nbdresize.control import disks
from nbdresize.control.ledger import Ledger
from nbdresize.control.operations import Task

DECIDE = "decide: lock the VM, read, check volume and budget"
PROMISE = "promise: decided again and recorded durably"
MAKE = "make: extend the volume"
COMMIT = "commit and close: the new size, durably"
ANSWER = "answer: read it back, unlock"
PUBLISH = "publish: each server told"
TOTAL = "all of it"
STAGES = (DECIDE, PROMISE, MAKE, COMMIT, ANSWER, PUBLISH, TOTAL)


class StageClock:
    """Times grows of an operator in this process, one at a time, while `watching`."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}
        self._spans: list[tuple[str, float, float]] = []

    def time(self, disk: LedgerDisk, size: int) -> None:
        """Grow the disk to `size`, and take down how long each stage took."""
        self._spans.clear()
        begun = time.monotonic()
        disk.grow(size)
        ended = time.monotonic()
        names = [name for name, _, _ in self._spans]
        if names != ["transaction", MAKE, "transaction", PUBLISH]:
            raise AssertionError(f"A grow has other steps than those that are timed here: {names}")
        (_, promise, promised), (_, make, made), (_, commit, committed), (_, publish, published) = self._spans
        parts = (promise - begun, promised - promise, made - make, committed - commit)
        for stage, seconds in zip(STAGES, (*parts, publish - committed, published - publish), strict=False):
            self.seconds[stage].append(seconds)
        self.seconds[TOTAL].append(ended - begun)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Have the calls that are stages timed."""
        with (
            mock.patch.object(Ledger, "deciding", self._transaction(Ledger.deciding)),
            mock.patch.object(disks._Run, "_make", self._call(MAKE, disks._Run._make)),
            mock.patch.object(Task, "publish", self._call(PUBLISH, Task.publish)),
        ):
            yield

    def _transaction(self, real: Callable[[Ledger], AbstractContextManager[Any]]) -> Callable[[Ledger], Any]:
        @contextmanager
        def timed(ledger: Ledger) -> Iterator[Any]:
            begun = time.monotonic()
            with real(ledger) as connection:
                yield connection
            self._spans.append(("transaction", begun, time.monotonic()))

        return timed

    def _call(self, name: str, real: Callable[..., None]) -> Callable[..., None]:
        def timed(*arguments: Any) -> None:
            begun = time.monotonic()
            real(*arguments)
            self._spans.append((name, begun, time.monotonic()))

        return timed
