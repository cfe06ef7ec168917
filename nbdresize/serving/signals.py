"""Signals that ask for the end: counted, and noticed by whoever waits for events."""

import signal
import socket
from types import FrameType, TracebackType
from typing import Self

from nbdresize.serving.process import HANDLED


class EndSignals:
    """Counts them while its block lasts, which may only be in the main thread.

    `fileno()` is readable once one has come since the last look; `taken()` ends that.
    """

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        self._reading, self._writing = socket.socketpair()
        self._reading.setblocking(False)
        self._writing.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        # nohup ignores SIGHUP for its command, and means it.
        wanted = [n for n in HANDLED if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._handle) for number in wanted}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._reading.close()
        self._writing.close()

    def fileno(self) -> int:
        return self._reading.fileno()

    def taken(self) -> None:
        """Forget that some have come; `count` stays."""
        self._reading.recv(4096)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
