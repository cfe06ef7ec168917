"""What a worker says on standard error: one line per event, and not more lines than somebody wants to read."""

import sys
import threading
import time

_MOST = 20
_PER_SECONDS = 10.0


class Log:
    """Writes lines, at most 20 in ten seconds: a client that breaks the protocol over and over fills no disk."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since = time.monotonic()
        self._written = 0
        self._left_out = 0

    def __call__(self, line: str) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._since >= _PER_SECONDS:
                if self._left_out:
                    self._write(f"{self._left_out} more lines were left out")
                self._since, self._written, self._left_out = now, 0, 0
            if self._written < _MOST:
                self._written += 1
                self._write(line)
            else:
                self._left_out += 1

    def _write(self, line: str) -> None:
        printable = "".join(character if character.isprintable() else "?" for character in line)
        try:
            print(f"nbdresize: {printable}", file=sys.stderr, flush=True)
        except OSError:
            return  # nobody reads it
