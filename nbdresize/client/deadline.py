"""Time limits that hold over many steps."""

import time


class Deadline:
    """A moment, `seconds` from now, by which something has to be done."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """The seconds that are left, more than none. Raises TimeoutError once it has passed."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left
