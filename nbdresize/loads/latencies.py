"""Latencies, however many, in bounded memory: counted in buckets, each 0.4 % wide."""

import math
from dataclasses import dataclass, field

from nbdresize.loads.model import Latency

_PER_FACTOR_OF_E = 256
_SHORTEST = 1e-9


@dataclass
class Latencies:
    """Of some requests; those of several connections are added up."""

    buckets: dict[int, int] = field(default_factory=dict)
    slowest: float = 0.0

    def add(self, seconds: float) -> None:
        if seconds > self.slowest:
            self.slowest = seconds
        bucket = int(math.log(seconds if seconds > _SHORTEST else _SHORTEST) * _PER_FACTOR_OF_E)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1

    def merge(self, others: "Latencies") -> None:
        for bucket, count in others.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count
        self.slowest = max(self.slowest, others.slowest)

    def summary(self) -> Latency | None:
        """None where there are no latencies."""
        if not self.buckets:
            return None
        return Latency(self._percentile(0.5), self._percentile(0.99), self._percentile(0.999), self.slowest)

    def _percentile(self, share: float) -> float:
        """The latency that this share of the requests did not exceed."""
        wanted = share * sum(self.buckets.values())
        for bucket in sorted(self.buckets):
            wanted -= self.buckets[bucket]
            if wanted <= 0:
                return min(math.exp((bucket - 0.5) / _PER_FACTOR_OF_E), self.slowest)
        return self.slowest
