"""A benchmark's rows and results, as the suites fill them in and the report shows them.

Everything in a result is plain values, so that `to_json` and `from_json` of `bench.report` need no exceptions.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from bench import certainty
from nbdresize.loads.model import Load

_TAIL = 0.99


class Medium(Enum):
    """On what the served file lies."""

    TMPFS = "tmpfs"
    EXT4 = "ext4"
    XFS = "xfs"


class Transport(Enum):
    UNIX = "unix"
    TCP = "tcp"
    TLS = "tls"
    """TLS over a unix socket."""


@dataclass(frozen=True)
class Setting:
    """A load and the surroundings in which the servers are compared."""

    load: Load
    medium: Medium = Medium.EXT4
    transport: Transport = Transport.UNIX
    cold: bool = False
    workers: int = 1
    """Processes of our native front; peers have what they have."""


@dataclass(frozen=True)
class Target:
    """What the design asks of one of our fronts against nbdkit's file plugin: ratios, None where it asks nothing."""

    server: str
    throughput: float | None = None
    processor: float | None = None
    latency: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of a table: a setting, the servers that are compared in it, and what is asked of them."""

    name: str
    setting: Setting
    servers: tuple[str, ...]
    targets: tuple[Target, ...] = ()
    quick: bool = False
    """Whether it belongs to the run of five minutes too."""


@dataclass(frozen=True)
class Sample:
    """One round of one server: requests and payload bytes per second, processor seconds of the server per request,
    median latency in seconds where it was measured, and the most memory of its own (bytes; not the page cache's)."""

    rate: float
    throughput: float
    processor: float
    latency: float | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Spread:
    """Of several rounds: the median, the lowest and the highest."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Raises statistics.StatisticsError where there are none."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Comparison:
    """A row measured: each server's rounds, in order; round N of one stands beside round N of the others.

    `refused` says why nothing can be concluded (a spread too wide), and is empty otherwise. `unsteady` says it for
    single servers and measures, where something can be concluded from the rest: server -> measure -> why.
    """

    row: str
    samples: dict[str, list[Sample]]
    targets: tuple[Target, ...] = ()
    refused: str = ""
    unsteady: dict[str, dict[str, str]] = field(default_factory=dict)
    looks: list[int] = field(default_factory=list)
    """After how many rounds it was to be decided whether more are needed, in order; nothing where only once."""


@dataclass(frozen=True)
class Figure:
    """One number of a suite that compares no servers: `value` in `unit` (ms, MiB, instructions, per second …).

    It is the median of `samples` (see `Figure.of`), or another quantile, and they tell how well it is known; or it is
    what was seen but once, and then there are none: a count, an end point, or the highest of `extreme_of` measurements.
    """

    name: str
    unit: str
    value: Spread
    target: float | None = None
    lower_is_better: bool = True
    samples: list[float] = field(default_factory=list)
    """All that `value` is taken from, in the order in which they were measured."""
    part: float = 0.5
    """Which quantile of the samples `value` is: of 100 samples, 99 are no higher than that of 0.99."""
    extreme_of: int | None = None
    counted: bool = False
    """Whether it is counted, so that it is the same each time and a few samples do."""

    @classmethod
    def of(
        cls,
        name: str,
        unit: str,
        samples: Sequence[float],
        target: float | None = None,
        *,
        lower_is_better: bool = True,
        counted: bool = False,
    ) -> "Figure":
        """The median of these. Raises statistics.StatisticsError where there are none."""
        return cls(name, unit, Spread.of(samples), target, lower_is_better, list(samples), counted=counted)

    @classmethod
    def slowest(cls, name: str, unit: str, values: Sequence[float], target: float | None = None) -> "Figure":
        """The highest of these. Raises ValueError where there are none."""
        highest = max(values)
        return cls(name, unit, Spread(highest, highest, highest), target, extreme_of=len(values))

    @classmethod
    def tail(cls, name: str, unit: str, values: Sequence[float]) -> "Figure":
        """The 99th percentile where there are enough of these for it to be known, else the slowest; named so."""
        if len(values) < certainty.fewest_for(_TAIL):
            return cls.slowest(f"{name}, slowest", unit, values)
        late = sorted(values)[math.ceil(_TAIL * len(values)) - 1]
        return cls(f"{name}, 99 %", unit, Spread(late, late, late), samples=list(values), part=_TAIL)


@dataclass(frozen=True)
class Curve:
    """How something grows: y over x, a line per server or kind; drawn as a chart.

    `add` takes points that were measured several times. A point that is only in `lines` was measured once.
    """

    name: str
    x: str
    y: str
    lines: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    logarithmic_x: bool = False
    logarithmic_y: bool = False
    samples: dict[str, list[tuple[float, list[float]]]] = field(default_factory=dict)
    """Of each line, by x: all that was measured there, in order."""
    lower_is_better: bool | None = None
    """None where neither is better, or where it is not known."""
    trace: bool = False
    """Whether it is what was seen as time went, so that a point of another run is not the same thing again."""

    def add(self, line: str, x: float, samples: Sequence[float]) -> Spread:
        """One more point of a line: the median of these. Raises statistics.StatisticsError where there are none."""
        spread = Spread.of(samples)
        self.lines.setdefault(line, []).append((x, spread.median))
        self.samples.setdefault(line, []).append((x, list(samples)))
        return spread

    def samples_at(self, line: str, x: float) -> list[float]:
        """Empty where it was measured once, or not at all."""
        return next((values for at, values in self.samples.get(line, []) if at == x), [])


@dataclass(frozen=True)
class Section:
    """What one suite found, in the order in which it is told."""

    suite: str
    title: str
    comparisons: list[Comparison] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """A whole run: when, where, of which versions, with which settings, and what was found."""

    started: str
    seconds: float
    machine: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, str]
    sections: list[Section]
