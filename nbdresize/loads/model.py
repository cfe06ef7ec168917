"""What a load is, against which server, and what came out of it."""

from dataclasses import dataclass
from enum import Enum


class Engine(Enum):
    """Who puts the load on."""

    BATCH = "batch"
    """Our own client, which costs little per request: many requests by one send, many replies by one receive."""
    FIO = "fio"
    NBDCOPY = "nbdcopy"


class Operation(Enum):
    READ = "read"
    WRITE = "write"
    MIXED = "mixed"
    """70 % reads, 30 % writes."""


@dataclass(frozen=True)
class Load:
    """Requests of `block` bytes, on every one of `connections` always `depth` of them under way.

    For nbdcopy, READ copies from the server and WRITE to it, once over the whole disk; `block` is its request size.
    `sparse` (nbdcopy only): what is copied is mostly holes. `structured` (BATCH only): replies come in chunks, as
    libnbd and QEMU ask for them, which costs our client more.
    """

    engine: Engine
    operation: Operation
    block: int
    depth: int
    random: bool = True
    connections: int = 1
    sparse: bool = False
    structured: bool = False

    @property
    def writes(self) -> bool:
        return self.operation is not Operation.READ


@dataclass(frozen=True)
class Latency:
    """Percentiles of the time from a request's sending to the last byte of its reply, in seconds."""

    median: float
    p99: float
    p999: float
    slowest: float


@dataclass(frozen=True)
class Measured:
    """What a load came to: whole requests that were answered, their payload in bytes, and how long that took."""

    requests: int
    payload: int
    seconds: float
    latency: Latency | None

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds

    @property
    def throughput(self) -> float:
        """Payload bytes per second."""
        return self.payload / self.seconds
