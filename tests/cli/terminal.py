"""The command on a terminal, for tests of what only somebody who sits at one sees."""

import os
import pty
import signal
import subprocess

from tests.cli.command import INTERRUPTIBLE, SECONDS, Command


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
        while wanted not in self.text:
            assert self._read(), self.text

    def type(self, text: str) -> None:
        os.write(self._controller, text.encode())

    @property
    def pid(self) -> int:
        return self._process.pid

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """The exit code; the terminal is gone after it."""
        try:
            while self._read():
                pass
            return self._process.wait(timeout=SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._controller)

    def _read(self) -> bool:
        try:
            data = os.read(self._controller, 4096)
        except OSError:  # the last process on the terminal has gone
            return False
        self.text += data.decode(errors="replace")
        return bool(data)
