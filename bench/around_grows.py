"""Requests under full load while a disk grows again and again: which of them met a grow, and how long they took.

Grows and quiet times take turns. The quiet time after a run of grows is as long as that was, and the same moments in it
are looked at as were those of the grows: as many, as long, and as far apart. So what these control moments show comes
from the load, the server and the machine alone, and only what goes beyond them can come from growing.
"""

import math
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bench.ledger_disk import MIB, LedgerDisk, cores, wait_until
from bench.timed_load import Kind, Record, TimedLoad
from nbdresize.client import Resizable, connect_resizable

_PAUSE = 0.03
"""Seconds between two grows."""
_SETTLING = 0.3
_AFTER_LAST = 0.05


class By(StrEnum):
    """Who grows the disk."""

    OPERATOR = "an operator"
    CLIENT = "a client"


@dataclass(frozen=True)
class Moment:
    """A grow, or one of the control: from asking for it to having its outcome."""

    begun: float
    ended: float
    by: By = By.OPERATOR

    def later(self, seconds: float) -> "Moment":
        return Moment(self.begun + seconds, self.ended + seconds, self.by)


@dataclass(frozen=True)
class Growing:
    """What was measured: all requests, the grows, the control's moments, and the periods in which grows happened."""

    record: Record
    grows: list[Moment]
    control: list[Moment]
    periods: list[Moment]


def measure(disk: LedgerDisk, kind: Kind, rounds: int, grows: int) -> Growing:
    """Put the load on, and grow the disk `grows` times in each of `rounds` rounds, each followed by as long a quiet."""
    moments: list[Moment] = []
    control: list[Moment] = []
    periods: list[Moment] = []
    pair = cores()
    with (
        tempfile.TemporaryDirectory(prefix="nbdresize-bench-") as place,
        connect_resizable(disk.uri) as client,
        TimedLoad(disk.uri, kind, Path(place) / "record", core=pair[0] if pair else None) as load,
    ):
        time.sleep(_SETTLING)
        for _ in range(rounds):
            begun = time.monotonic()
            grown = list(_grow(disk, client, grows))
            ended = time.monotonic() + _AFTER_LAST
            took = ended - begun
            wait_until(ended + took)
            periods.append(Moment(begun, ended))
            moments += grown
            control += [moment.later(took) for moment in grown]
        record = load.end()
    disk.check_grown()
    return Growing(record, moments, control, periods)


def _grow(disk: LedgerDisk, client: Resizable, grows: int) -> Iterator[Moment]:
    """By the operator and by a client in turn."""
    size = client.query().size
    for number in range(grows):
        wait_until(time.monotonic() + _PAUSE)
        by = By.CLIENT if number % 2 else By.OPERATOR
        size += MIB
        begun = time.monotonic()
        if by is By.CLIENT:
            client.resize(size)
        else:
            disk.grow(size)
        yield Moment(begun, time.monotonic(), by)


class Met:
    """The requests of a record, by the moments that they met: those that were under way at some time in one of them."""

    def __init__(self, record: Record) -> None:
        pairs = sorted(zip(record.sent, record.latencies, strict=True))
        self._sent = [sent for sent, _ in pairs]
        self._latencies = [latency for _, latency in pairs]
        self._longest = max(self._latencies, default=0.0)

    def during(self, moments: Sequence[Moment]) -> list[float]:
        """The latencies of those that met any of these moments, sorted."""
        return sorted(self._latencies[at] for at in self._places(moments))

    def outside(self, moments: Sequence[Moment], of: Sequence[Moment]) -> list[float]:
        """The latencies of those that met any of `of`, but none of these, sorted."""
        return sorted(self._latencies[at] for at in self._places(of) - self._places(moments))

    def around(self, moments: Sequence[Moment], before: float, after: float, step: float) -> list[tuple[float, float]]:
        """The slowest of those sent so many seconds after the begin of any moment, per `step`; both in milliseconds."""
        slowest = [0.0] * math.ceil((before + after) / step)
        for moment in moments:
            first = moment.begun - before
            for at in range(bisect_left(self._sent, first), bisect_left(self._sent, moment.begun + after)):
                place = min(int((self._sent[at] - first) / step), len(slowest) - 1)
                slowest[place] = max(slowest[place], self._latencies[at])
        return [
            (round((number * step - before) * 1e3, 3), latency * 1e3)
            for number, latency in enumerate(slowest)
            if latency
        ]

    def _places(self, moments: Sequence[Moment]) -> set[int]:
        found: set[int] = set()
        for moment in moments:
            earliest = bisect_left(self._sent, moment.begun - self._longest)
            latest = bisect_left(self._sent, moment.ended)
            found.update(at for at in range(earliest, latest) if self._sent[at] + self._latencies[at] > moment.begun)
        return found


def percentile(ordered: Sequence[float], part: float) -> float:
    """Of sorted values, the lowest that `part` of them do not exceed; NaN where there are none."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else math.nan


PERCENTILES: tuple[tuple[str, Callable[[Sequence[float]], float]], ...] = (
    ("median", lambda ordered: percentile(ordered, 0.5)),
    ("99 %", lambda ordered: percentile(ordered, 0.99)),
    ("99.9 %", lambda ordered: percentile(ordered, 0.999)),
    ("slowest", lambda ordered: percentile(ordered, 1.0)),
)
