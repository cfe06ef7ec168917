"""A cap on how often a server may tell something, fair to one whose client did not listen for a while."""

MOST_A_SECOND = 100
"""docs/resize-extension.md: a client drops a server that notifies it more often; one that keeps to it sends ten."""


class RateCap:
    """Counts what arrives, and forgets MOST_A_SECOND of it each second. Times are of one clock, in seconds.

    What had piled up while nobody looked is held against all the time that it had, so the caller says when there was
    nothing left to receive.
    """

    def __init__(self, now: float) -> None:
        self._now = now
        self._level = 0.0

    def pass_time(self, now: float, *, drained: bool) -> None:
        """Time has passed; `drained`: everything that had come until then was taken."""
        self._level -= MOST_A_SECOND * (now - self._now)
        self._now = now
        if drained:
            self._level = max(self._level, 0.0)

    def allows(self) -> bool:
        """Count one more; whether it came at a bearable rate."""
        self._level += 1
        return self._level <= MOST_A_SECOND
