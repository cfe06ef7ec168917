"""A benchmark's rows and results, as the suites fill them in and the report shows them.

Everything in a result is plain values, so that `to_json` and `from_json` of `bench.report` need no exceptions.
"""

from dataclasses import dataclass, field
from enum import Enum

from nbdresize.loads.model import Load


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


@dataclass(frozen=True)
class Figure:
    """One number of a suite that compares no servers: `value` in `unit` (ms, MiB, instructions, per second …)."""

    name: str
    unit: str
    value: Spread
    target: float | None = None
    lower_is_better: bool = True


@dataclass(frozen=True)
class Curve:
    """How something grows: y over x, a line per server or kind; drawn as a chart."""

    name: str
    x: str
    y: str
    lines: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    logarithmic_x: bool = False
    logarithmic_y: bool = False


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
