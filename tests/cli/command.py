"""The real command in a child process, with a state directory of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nbdresize.cli.main import run

PROGRAM = Path(sys.executable).parent / "nbdresize"
INTERRUPTIBLE = ("env", "--default-signal=INT,TERM", PROGRAM)
"""The program, for Ctrl-C to reach it although a shell has started the tests in its background, ignoring SIGINT."""
SECONDS = 100.0


@dataclass(frozen=True)
class Answer:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def ok(self) -> "Answer":
        """This, where the command succeeded and complained of nothing."""
        assert self.code == 0, self.err
        assert self.err == ""
        return self

    def failed(self, code: int, name: str) -> str:
        """The one line of an error with this exit code and name."""
        assert "Traceback" not in self.err
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith(f"nbdresize: {name}: "), lines[0]
        assert self.code == code, lines[0]
        return lines[0]


@dataclass(frozen=True)
class Inside:
    """Runs the entry point within the test's own process: for many calls, where a process each would be a waste."""

    root: Path
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str) -> Answer:
        self.capsys.readouterr()
        code = run(["--root", str(self.root), *arguments])
        return Answer(code, *self.capsys.readouterr())


@dataclass(frozen=True)
class Command:
    """Runs `nbdresize` with NBDRESIZE_ROOT set to `root`."""

    root: Path

    def __call__(self, *arguments: str | bytes | Path, **environment: str) -> Answer:
        done = subprocess.run(
            [*INTERRUPTIBLE, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=self.environment(**environment),
            timeout=SECONDS,
        )
        return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, *arguments: str | Path, **environment: str) -> "subprocess.Popen[bytes]":
        """Start it, with pipes for its output."""
        return subprocess.Popen(
            [*INTERRUPTIBLE, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(**environment),
        )

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "NBDRESIZE_ROOT": str(self.root), "COLUMNS": "80", **more}
