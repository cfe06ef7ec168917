"""Holding replies back for a moment, so that copies of several disks show them all as at one instant."""

import threading
import time
import weakref
from collections.abc import Callable, Collection


class Hold:
    """Whether replies to the clients of one export are held back now. Every method may be called from any thread.

    A front looks at `on` just before a reply leaves: after the request was done, of which the reply tells. Nobody has
    to wait for requests that are under way. A reply that was let pass before the hold began tells of what was done
    before it, which is therefore in every copy that is begun in it; every other reply waits until the copies are
    taken. So no copy lacks what a client was told before anything that the client did then. What was not answered may
    be in a copy or not, in parts too, as after a loss of power. A read that overlaps a write which is not answered yet
    tells nothing about their order.

    There may be several holds at once; replies wait for the end of all. Each ends by itself at its deadline: nobody
    has to be there for that, those who wait find out.
    """

    def __init__(self) -> None:
        self.on = False
        self._changed = threading.Condition()
        self._deadlines: dict[object, float] = {}

    def begin(self, holder: object, deadline: float) -> None:
        """Hold replies back from now on, until `deadline` (of time.monotonic) at the latest."""
        with self._changed:
            self._deadlines[holder] = deadline
            self.on = True

    def end(self, holder: object) -> bool:
        """End what `holder` began; whether it lasted until now."""
        with self._changed:
            self._look()
            lasted = self._deadlines.pop(holder, None) is not None
            self._look()
            return lasted

    def end_all(self) -> None:
        """Let all replies go."""
        with self._changed:
            self._deadlines.clear()
            self._look()

    def wait(self, gone: Callable[[], bool]) -> bool:
        """Wait until replies may leave, which they may then; False once the client is `gone`, asked on each wake()."""
        with self._changed:
            while True:
                self._look()
                if not self.on:
                    return True
                if gone():
                    return False
                self._changed.wait(max(self._deadlines.values()) - time.monotonic())

    def wake(self) -> None:
        """Make everybody who waits ask once more whether its client is gone."""
        with self._changed:
            self._changed.notify_all()

    def _look(self) -> None:
        now = time.monotonic()
        self._deadlines = {holder: deadline for holder, deadline in self._deadlines.items() if now < deadline}
        if not self._deadlines and self.on:
            self.on = False
            self._changed.notify_all()


class Holds:
    """The holds of one server, by the name of the export, whether anybody has it open or not."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = False
        self._by_name: weakref.WeakValueDictionary[str, Hold] = weakref.WeakValueDictionary()

    def of(self, name: str) -> Hold:
        """That of the export of this name, one for all who ask."""
        with self._lock:
            hold = self._by_name.get(name)
            if hold is None:
                hold = self._by_name[name] = Hold()
            return hold

    def freeze(self, names: Collection[str], seconds: float) -> "Freeze":
        """Hold back the replies of all these exports."""
        freeze = Freeze([self.of(name) for name in sorted(set(names))], time.monotonic() + seconds)
        if self._ended:  # looked at last, so that none is left that end() did not see
            freeze.end()
        return freeze

    def end(self) -> None:
        """Let all replies go, and hold none any more: the server is about to end."""
        with self._lock:
            self._ended = True
            holds = list(self._by_name.values())
        for hold in holds:
            hold.end_all()


class Freeze:
    """Holds on several exports that began together."""

    def __init__(self, holds: list[Hold], deadline: float) -> None:
        self._holds = holds
        for hold in holds:
            hold.begin(self, deadline)

    def end(self) -> bool:
        """Let the replies go; whether all of them were held back until now."""
        lasted = [hold.end(self) for hold in self._holds]
        return all(lasted)
