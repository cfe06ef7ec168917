"""The command on a terminal, for tests of what only somebody who sits at one sees."""

import os
import pty
import signal
import subprocess
import time

from tests.cli.command import INTERRUPTIBLE, SECONDS, Command
from tests.wait import readable


class Terminal:
    """The command on a terminal of its own, which a test types into and reads from."""

    def __init__(self, nbdresize: Command, *arguments: str) -> None:
        self._controller, terminal = pty.openpty()
        try:
            self._process = subprocess.Popen(
                [*INTERRUPTIBLE, *arguments],
                stdin=terminal,
                stdout=terminal,
                stderr=terminal,
                env=nbdresize.environment(TERM="xterm"),
                start_new_session=True,
            )
        finally:
            os.close(terminal)
        self.text = ""

    def expect(self, wanted: str) -> None:
        deadline = time.monotonic() + SECONDS
        while wanted not in self.text:
            assert self._read(deadline), self.text

    def type(self, text: str) -> None:
        os.write(self._controller, text.encode())

    @property
    def pid(self) -> int:
        return self._process.pid

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """The exit code; the terminal is gone after it."""
        deadline = time.monotonic() + SECONDS
        try:
            while self._read(deadline):
                pass
            return self._process.wait(timeout=SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._controller)

    def _read(self, deadline: float) -> bool:
        if not readable(self._controller, deadline):
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"Waited {SECONDS} s for more than {self.text!r}")
        try:
            data = os.read(self._controller, 4096)
        except OSError:  # the last process on the terminal has gone
            return False
        self.text += data.decode(errors="replace")
        return bool(data)
