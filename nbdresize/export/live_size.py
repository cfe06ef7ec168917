"""The size of a disk as this process knows it, shared by all its connections."""

import threading
import time
from collections.abc import Callable
from typing import NamedTuple


class SizeState(NamedTuple):
    """A size in bytes with its generation."""

    size: int
    generation: int


Watcher = Callable[[SizeState], None]
"""Called with each new size, in order, before update() returns. It must not raise, nor call update()."""


class LiveSize:
    """A size that changes while it is in use. Every method may be called from any thread.

    `size` is read without a lock: that is one attribute, and what a request is checked against.
    """

    def __init__(self, size: int, generation: int) -> None:
        self.size = size
        self._state = SizeState(size, generation)
        self._changed = threading.Condition()
        self._updating = threading.Lock()  # one update at a time, so that watchers see the sizes in order
        self._watchers: list[Watcher] = []

    @property
    def generation(self) -> int:
        return self._state.generation

    @property
    def state(self) -> SizeState:
        """Size and generation that belong together."""
        return self._state

    def update(self, size: int, generation: int) -> bool:
        """Take over a size, where its generation is newer; whether it was. All watchers know it then."""
        with self._updating:
            if generation <= self._state.generation:
                return False
            return self._take(SizeState(size, generation))

    def observe(self, size: int) -> bool:
        """Take over a size that comes without a generation: where it differs, it starts the next one."""
        with self._updating:
            if size == self.size:
                return False
            return self._take(SizeState(size, self._state.generation + 1))

    def _take(self, state: SizeState) -> bool:
        with self._changed:
            self._state = state
            self.size = state.size
            self._changed.notify_all()
            watchers = tuple(self._watchers)
        for watcher in watchers:
            watcher(state)
        return True

    def wait_newer(self, generation: int, timeout: float, ended: Callable[[], bool] = lambda: False) -> bool:
        """Wait until the generation is newer than this one; whether it is.

        Gives up after `timeout` seconds, and once `ended` says so, which is asked at the start and on each wake().
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while self._state.generation <= generation and not ended():
                remaining = deadline - time.monotonic()
                if remaining <= 0 or not self._changed.wait(remaining):
                    break
            return self._state.generation > generation

    def wake(self) -> None:
        """Make everybody who waits ask once more whether their wait has ended."""
        with self._changed:
            self._changed.notify_all()

    def watch(self, watcher: Watcher) -> SizeState:
        """Call `watcher` with every size from now on; what it is now."""
        with self._changed:
            self._watchers.append(watcher)
            return self._state

    def unwatch(self, watcher: Watcher) -> None:
        """Call it no more. One call that is under way may still end."""
        with self._changed:
            self._watchers.remove(watcher)
