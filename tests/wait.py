"""Waiting for a thing to happen, with a deadline, instead of for time to pass."""

import select
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def until(condition: Callable[[], Result], seconds: float = 30, what: str = "") -> Result:
    """Ask `condition` until its answer is true, and return that. Fails, naming `what`, after `seconds`."""
    deadline = time.monotonic() + seconds
    pause = 0.001
    while True:
        late = time.monotonic() >= deadline  # looked at before asking, so that a slow machine gets one more answer
        if answer := condition():
            return answer
        if late:
            raise AssertionError(f"Waited {seconds} s for {what or getattr(condition, '__name__', 'a condition')}")
        time.sleep(pause)
        pause = min(pause * 2, 0.1)


def readable(descriptor: int, deadline: float) -> bool:
    """Wait until there is something to read, or the other side has gone; whether that was before `deadline`."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
