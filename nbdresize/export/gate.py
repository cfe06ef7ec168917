"""What keeps a write in flight and a shrink of the same disk apart."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from nbdresize.errors import ResourceInUse


class Gate:
    """Requests pass, any number at a time; whoever closes the gate waits until none is inside, and holds back others.

    A request checks its range against the live size inside the gate, and a shrink publishes and truncates with it
    closed. So no request that was checked against a larger size is still running when the volume is cut.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = False

    def enter(self) -> None:
        """Go in, once the gate is open. The same thread must not go in twice."""
        with self._changed:
            while self._closed:
                self._changed.wait()
            self._inside += 1

    def leave(self) -> None:
        with self._changed:
            self._inside -= 1
            if self._closed and not self._inside:
                self._changed.notify_all()

    @contextmanager
    def closed(self, timeout: float) -> Iterator[None]:
        """Nobody is inside while this lasts. Raises ResourceInUse where that takes longer than `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            if not self._changed.wait_for(lambda: not self._closed, timeout):
                raise ResourceInUse("Another change of this disk's size is under way", "try again")
            self._closed = True
        try:
            with self._changed:
                if not self._changed.wait_for(lambda: not self._inside, max(0.0, deadline - time.monotonic())):
                    raise ResourceInUse("Requests to this disk have not ended yet", "try again")
            yield
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()
