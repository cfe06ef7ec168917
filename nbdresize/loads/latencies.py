"""Latencies, however many, in bounded memory: counted in buckets, each 0.4 % wide."""

import math
from collections import Counter
from dataclasses import dataclass, field

from nbdresize.loads.model import Latency

_PER_FACTOR_OF_E = 256
_SHORTEST = 1e-9


@dataclass
class Latencies:
    """Of some requests; those of several connections are added up."""

    buckets: Counter[int] = field(default_factory=Counter)
    slowest: float = 0.0

    def add(self, seconds: float) -> None:
        self.buckets[int(math.log(max(seconds, _SHORTEST)) * _PER_FACTOR_OF_E)] += 1
        self.slowest = max(self.slowest, seconds)

    def merge(self, others: "Latencies") -> None:
        self.buckets.update(others.buckets)
        self.slowest = max(self.slowest, others.slowest)

    def summary(self) -> Latency | None:
        """None where there are no latencies."""
        if not self.buckets:
            return None
        return Latency(self._percentile(0.5), self._percentile(0.99), self._percentile(0.999), self.slowest)

    def _percentile(self, share: float) -> float:
        """The latency that this share of the requests did not exceed."""
        wanted = share * self.buckets.total()
        for bucket in sorted(self.buckets):
            wanted -= self.buckets[bucket]
            if wanted <= 0:
                return min(math.exp((bucket - 0.5) / _PER_FACTOR_OF_E), self.slowest)
        return self.slowest
