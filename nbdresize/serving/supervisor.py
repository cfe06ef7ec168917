"""Keeps the workers of a front running on sockets that it holds itself, and ends them in bounded time.

One thread, one loop: it waits for signals, for the end of a process, for what workers say, and for the next start.

How it ends (all of it from outside of the workers, so that nothing that a worker does can hold it up):

1. SIGTERM to every worker: nbdkit finishes the requests that it has taken in, and accepts no one any more.
2. The listening sockets are shut down. A worker that lost the race for a connection to another worker waits in
   accept(2), where nbdkit does not notice a signal; this wakes all of them.
3. The end pipe is closed: the plugin shuts the connections down for reading, so that idle clients don't keep nbdkit,
   which waits for its clients to leave; replies under way still reach them.
4. Whoever is left after END_SECONDS is killed. A second signal kills at once.
"""

import os
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nbdresize.errors import ProgramMissing, ServerFailed
from nbdresize.serving.listening import Listener
from nbdresize.serving.process import Process
from nbdresize.serving.signals import EndSignals
from nbdresize.serving.worker import MOST_FAILED_STARTS, Worker, say

END_SECONDS = 10.0
"""How long the requests in flight may take when a server is told to end."""

_KILLED_SECONDS = 5.0
_ASK_READY_EVERY = 0.02
_AS_A_SHELL_SHOWS_SIGNALS = 128


class Supervisor:
    """Runs `count` workers on the listeners until a signal, or until the command that runs beside them, ends it.

    `command_line(end_descriptor)` gives the arguments of a worker. `on_ready` is called once, when all workers are
    ready; it may return a command to run.
    """

    def __init__(
        self,
        command_line: Callable[[int], Sequence[str]],
        env: dict[str, str],
        listeners: Sequence[Listener],
        count: int,
        run_directory: Path,
        front: str,
        signals: EndSignals,
    ) -> None:
        self._command_line = command_line
        self._env = env
        self._listeners = listeners
        self._sockets = [listening.fileno() for listener in listeners for listening in listener.sockets]
        self._selector = selectors.DefaultSelector()
        self._signals = signals
        self._selector.register(signals, selectors.EVENT_READ)
        self._end_reading, self._end_writing = os.pipe2(os.O_CLOEXEC)
        self._workers = [Worker(self._start_process, run_directory, front) for _ in range(count)]
        self._command: Process | None = None

    def run(self, on_ready: Callable[[], Process | None]) -> int:
        """Serve until the end; the exit code: that of the command, else 0. Raises ServerFailed, ProgramMissing."""
        try:
            self._serve(until_ready=True)
            if not self._signals.count:
                self._run_beside(on_ready())
            self._serve()
        finally:
            self._end()
        return self._exit_code()

    # While it serves

    def _serve(self, *, until_ready: bool = False) -> None:
        """Keep the workers running until all are ready, or else until the end has come."""
        while not self._signals.count and not self._command_ended():
            now = time.monotonic()
            self._start_due(now)
            ready = [worker.check_ready(now) for worker in self._workers]
            if until_ready and all(ready):
                return
            self._wait(self._pause(now))
            self._look_after_ended(time.monotonic())

    def _start_due(self, now: float) -> None:
        for worker in self._workers:
            if worker.process is not None or now < worker.start_at:
                continue
            if worker.start(now):
                for watched in (worker.process, worker.stderr):
                    assert watched is not None
                    self._selector.register(watched, selectors.EVENT_READ, worker)
            _check_starts(worker)

    def _pause(self, now: float) -> float | None:
        """Seconds until something is to be done without an event."""
        if any(worker.process is not None and not worker.ready for worker in self._workers):
            return _ASK_READY_EVERY
        due = [worker.start_at for worker in self._workers if worker.process is None]
        return max(0.0, min(due) - now) if due else None

    def _look_after_ended(self, now: float) -> None:
        for worker in self._workers:
            if self._signals.count or worker.process is None or not worker.process.ended():
                continue
            self._unregister(worker)
            what = worker.ended(now)
            _check_starts(worker)
            say(f"nbdresize: {what}")

    def _start_process(self, stderr: int) -> Process:
        end_descriptor = 3 + len(self._sockets)
        return Process(
            self._command_line(end_descriptor),
            self._env,
            listening=self._sockets,
            passed=[self._end_reading],
            stderr=stderr,
            detached=True,
        )

    def _run_beside(self, command: Process | None) -> None:
        self._command = command
        if command is not None:
            self._selector.register(command, selectors.EVENT_READ, command)

    def _command_ended(self) -> bool:
        return self._command is not None and self._command.ended()

    def _wait(self, seconds: float | None, *, ending: bool = False) -> None:
        """Wait for an event, or `seconds`; pass on what workers have said."""
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._signals:
                self._signals.taken()
            elif isinstance(key.fileobj, int) and not key.data.read_stderr(ending=ending):
                self._selector.unregister(key.fileobj)

    def _unregister(self, worker: Worker) -> None:
        for watched in (worker.process, worker.stderr):
            if watched is not None and watched in self._selector.get_map():
                self._selector.unregister(watched)

    # The end

    def _end(self) -> None:
        """End every process, in bounded time."""
        running = [worker for worker in self._workers if worker.process is not None]
        self._signal_all(signal.SIGTERM)
        for listener in self._listeners:
            listener.stop()
        os.close(self._end_writing)
        if not self._all_end_within(END_SECONDS, lambda: self._signals.count > 1):
            if self._signals.count < 2:
                say(f"nbdresize: what had not ended within {END_SECONDS:g} s was killed")
            self._signal_all(signal.SIGKILL)
            if not self._all_end_within(_KILLED_SECONDS, lambda: False):
                say("nbdresize: a worker can't be killed now: the storage below it does not answer")
        for worker in running:
            self._unregister(worker)
            worker.read_stderr(ending=True)
            worker.forget()
        os.close(self._end_reading)
        self._selector.close()

    def _signal_all(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.process is not None:
                worker.process.signal(number)
        if self._command is not None:
            self._command.signal(number)

    def _all_end_within(self, seconds: float, enough: Callable[[], bool]) -> bool:
        """Wait until all processes have ended; False if they have not after `seconds`, or once that is `enough`."""
        deadline = time.monotonic() + seconds
        while not self._all_ended():
            left = deadline - time.monotonic()
            if left <= 0 or enough():
                return False
            self._wait(left, ending=True)
        return True

    def _all_ended(self) -> bool:
        """Whether all have; those that have are not waited for any more."""
        alive = False
        for process in [*(worker.process for worker in self._workers), self._command]:
            if process is None:
                continue
            if not process.ended():
                alive = True
            elif process in self._selector.get_map():
                self._selector.unregister(process)
        return not alive

    def _exit_code(self) -> int:
        if self._command is None:
            return 0
        code = self._command.returncode
        self._command.close()
        if code is None:
            return _AS_A_SHELL_SHOWS_SIGNALS + signal.SIGKILL
        return code if code >= 0 else _AS_A_SHELL_SHOWS_SIGNALS - code


def _check_starts(worker: Worker) -> None:
    """Raises ServerFailed or ProgramMissing where it fails to start again and again.

    The reason is in one line; all that the worker said stands on standard error already.
    """
    if worker.failed_starts < MOST_FAILED_STARTS:
        return
    if any("cannot open plugin 'python'" in line for line in worker.last_lines):
        raise ProgramMissing("nbdkit's Python plugin is not installed", "apt-get install nbdkit-plugin-python")
    said = next((line for line in reversed(worker.last_lines) if line.strip()), "it said nothing")
    raise ServerFailed(
        f"{worker.front} did not start {MOST_FAILED_STARTS} times in a row: {said}", "put right what it says above"
    )
