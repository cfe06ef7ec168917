"""One worker of a front: a process that is started, becomes ready, and is started again when it dies."""

import os
import re
import select
from collections import deque
from collections.abc import Callable
from pathlib import Path
from signal import Signals

from nbdresize.control import admin_client
from nbdresize.errors import ServerFailed
from nbdresize.serving.process import Process

FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0
MOST_FAILED_STARTS = 5
START_SECONDS = 60.0
"""How long a worker may take until it is ready."""
SETTLED_SECONDS = 10.0
"""A worker that was ready for so long starts again at once, whatever was before."""

_KEPT_LINES = 20
_LONGEST_LINE = 2000
_WRITABLE_WHOLE = 4096  # PIPE_BUF: a descriptor that poll() calls writable takes so much without blocking
_ANSWER_SECONDS = 1.0
_NOISE = re.compile(rb"(?:nbdkit: .*)?(?:accept: Invalid argument|aborting sleep to shut down)$")
"""What nbdkit says when its end is begun; it is how the end is meant to go."""


class Worker:
    """A worker, across its lives. Times are of time.monotonic(), given by the caller.

    `ready` once its admin socket in `run_directory` answers, which is the last thing that it sets up.
    """

    def __init__(self, start: Callable[[int], Process], run_directory: Path, front: str) -> None:
        self.front = front
        self._start = start
        self._run_directory = run_directory
        self.process: Process | None = None
        self.ready = False
        self.failed_starts = 0
        self.start_at = 0.0
        self._delay = FIRST_DELAY
        self._since = 0.0
        self.stderr: int | None = None
        self._partial = b""
        self.last_lines: deque[str] = deque(maxlen=_KEPT_LINES)

    def start(self, now: float) -> bool:
        """Start its process; whether there is one now. If not, it is tried again like after a crash."""
        self.stderr, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(writing, True)
        self._since = now
        self.ready = False
        try:
            self.process = self._start(writing)
        except OSError as error:
            self.last_lines.append(f"no process can be started: {error.strerror}")
            self._failed(now)
            return False
        finally:
            os.close(writing)
        return True

    def check_ready(self, now: float) -> bool:
        """Whether it is ready now; asks it, if it was not. One that takes too long is killed."""
        if self.ready or self.process is None:
            return self.ready
        if any(_answers(path) for path in self._run_directory.glob(f"{self.process.pid}-*{admin_client.SUFFIX}")):
            self.ready = True
            self.failed_starts = 0
            self._since = now
        elif now - self._since > START_SECONDS:
            say(f"nbdresize: {self.front} (process {self.process.pid}) was not ready within {START_SECONDS:g} s")
            self.process.signal(Signals.SIGKILL)
        return self.ready

    def ended(self, now: float) -> str:
        """Its process has ended: set when the next one starts; what happened, in words."""
        assert self.process is not None
        what = f"{self.front} (process {self.process.pid}) {self.process.how_ended()}"
        self.read_stderr(ending=False)
        if self.ready and now - self._since >= SETTLED_SECONDS:
            self._delay = FIRST_DELAY
        return f"{what}; another starts in {self._failed(now):g} s"

    def _failed(self, now: float) -> float:
        """Set when it starts again; seconds until then."""
        if not self.ready:
            self.failed_starts += 1
        delay = self._delay
        self.start_at = now + delay
        self._delay = min(delay * 2, LONGEST_DELAY)
        self.forget()
        return delay

    def forget(self) -> None:
        """Give the descriptors of its ended process back."""
        if self.process is not None:
            self.process.close()
            self.process = None
        if self.stderr is not None:
            os.close(self.stderr)
            self.stderr = None
        self._partial = b""
        self.ready = False

    def read_stderr(self, *, ending: bool) -> bool:
        """Pass on what it has said on standard error; whether it may say more."""
        if self.stderr is None:
            return False
        while True:
            try:
                piece = os.read(self.stderr, 65536)
            except BlockingIOError:
                return True
            if not piece:
                if self._partial:
                    self._line(self._partial, ending)
                    self._partial = b""
                return False
            *lines, self._partial = (self._partial + piece).split(b"\n")
            if len(self._partial) > _LONGEST_LINE:
                lines.append(self._partial)
                self._partial = b""
            for line in lines:
                self._line(line, ending)

    def _line(self, line: bytes, ending: bool) -> None:
        if not (ending and _NOISE.match(line)):
            self.last_lines.append(line[:_LONGEST_LINE].decode("utf-8", "backslashreplace"))
            say(line)


def _answers(path: Path) -> bool:
    try:
        admin_client.ask(path, {"command": "counters"}, _ANSWER_SECONDS)
    except ServerFailed:
        return False
    return True


def say(line: str | bytes) -> None:
    """Put a line on standard error, unless nobody takes it: a supervisor must not stand still for its log."""
    data = (line.encode("utf-8", "backslashreplace") if isinstance(line, str) else line)[: _WRITABLE_WHOLE - 1] + b"\n"
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    try:
        if any(event & select.POLLOUT for _, event in poll.poll(0)):
            os.write(2, data)
    except OSError:
        return  # closed, or its reader has gone
