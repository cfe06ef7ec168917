"""Where a connection's slow requests go, so that they do not hold up the quick ones behind them."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

MAX_THREADS = 16
"""Slow requests of one connection that run at once; a thread is started when one is needed."""

MAX_BYTES = 32 << 20
"""Memory that the waiting and running slow requests of one connection may hold; one larger request runs alone."""

MAX_WAITING = 1024
IDLE_SECONDS = 5.0
"""How long a thread with nothing to do stays."""


@dataclass(frozen=True, slots=True)
class Job:
    """`run` does the work and sends the reply; `cost` is the memory in bytes that it holds until then."""

    run: Callable[[], None]
    cost: int


class Lane:
    """Runs jobs in a few threads of its own, in any order. What a client sends costs its own connection only."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._work_is_waiting = threading.Condition(self._lock)
        self._job_has_ended = threading.Condition(self._lock)
        self._waiting: deque[Job] = deque()
        self._threads = 0
        self._idle = 0
        self._unfinished = 0
        self._held = 0
        self._closed = False

    def submit(self, job: Job) -> None:
        """Have `job` run; waits while too many are unfinished. Called by the connection's own thread only."""
        with self._lock:
            while self._unfinished and (self._held + job.cost > MAX_BYTES or self._unfinished >= MAX_WAITING):
                self._job_has_ended.wait()
            self._held += job.cost
            self._unfinished += 1
            self._waiting.append(job)
            if len(self._waiting) <= self._idle:
                self._work_is_waiting.notify()
                return
            if self._threads < MAX_THREADS:
                self._start_thread()
            if self._threads:
                return
            self._waiting.pop()
        self._run(job)  # slower, but done

    def _start_thread(self) -> None:
        """One more thread, where the system still gives one."""
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=self._work, name=f"{self._name} slow", daemon=True).start()
            self._threads += 1

    def drain(self) -> None:
        """Wait until every job has ended."""
        with self._lock:
            while self._unfinished:
                self._job_has_ended.wait()

    def close(self) -> None:
        """Wait until every job has ended, and let the threads end: those of clients that come and go add up."""
        self.drain()
        with self._lock:
            self._closed = True
            self._work_is_waiting.notify_all()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            self._run(job)

    def _run(self, job: Job) -> None:
        try:
            job.run()
        finally:
            with self._lock:
                self._held -= job.cost
                self._unfinished -= 1
                self._job_has_ended.notify()

    def _next(self) -> Job | None:
        """The next job, or None when this thread has waited in vain and ends."""
        with self._lock:
            self._idle += 1
            try:
                if not self._waiting:
                    self._work_is_waiting.wait_for(lambda: self._closed or bool(self._waiting), timeout=IDLE_SECONDS)
                if self._waiting:
                    return self._waiting.popleft()
                self._threads -= 1
                return None
            finally:
                self._idle -= 1
