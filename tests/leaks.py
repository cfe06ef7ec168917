"""What a test session left behind: processes, mounts, loop devices, temporary files.

Other sessions may run on the same machine, so each knows its own by two marks: a variable in the environment, which
every process started by a test inherits, and one directory under which all its temporary files lie.
"""

import os
import secrets
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

VARIABLE = "NBDRESIZE_TEST_SESSION"


@dataclass(frozen=True)
class TestSession:
    """The marks of a session. Its paths are short, because the path of a unix socket has 107 bytes at most."""

    __test__ = False

    directory: Path
    mark: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def tests(self) -> Path:
        """Where pytest makes the `tmp_path` of each test; they stay until the session ends."""
        return self.directory / "p"

    @property
    def temporary(self) -> Path:
        """TMPDIR of the tests and of what they start: whoever makes a file here removes it."""
        return self.directory / "t"

    @classmethod
    def start(cls) -> "TestSession":
        """Mark this process, so that all that it starts is marked."""
        session = cls(Path(tempfile.mkdtemp(prefix="nbdr-")).resolve())
        session.temporary.mkdir()
        os.environ[VARIABLE] = session.mark
        os.environ["TMPDIR"] = tempfile.tempdir = str(session.temporary)
        return session

    def left_behind(self, seconds: float = 10.0) -> list[str]:
        """What there is of this session besides this process, one line each, after `seconds` to go away by itself."""
        deadline = time.monotonic() + seconds
        while (found := self._look()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def end(self, *, keep: bool) -> None:
        """Remove the directory, or, after failures, keep what may tell about them."""
        if not keep:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _look(self) -> list[str]:
        return [*self._processes(), *self._mounts(), *self._loop_devices(), *self._files()]

    def _processes(self) -> list[str]:
        wanted = f"{VARIABLE}={self.mark}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if int(process.name) == os.getpid() or wanted not in (process / "environ").read_bytes().split(b"\0"):
                    continue
                words = (process / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            except OSError:
                continue  # it has ended meanwhile, or is another user's
            found.append(f"process {process.name}: {b' '.join(words).decode(errors='replace')}")
        return found

    def _mounts(self) -> list[str]:
        # Field 5 of a line is the mount point, with spaces and the like as octal escapes, which our paths do without.
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return [f"mount at {point}" for point in points if self._ours(point)]

    def _loop_devices(self) -> list[str]:
        found = []
        for file in Path("/sys/block").glob("loop*/loop/backing_file"):
            try:
                backing = file.read_text().strip()
            except OSError:
                continue  # detached meanwhile
            if self._ours(backing):
                found.append(f"loop device /dev/{file.parts[3]} on {backing}")
        return found

    def _files(self) -> list[str]:
        return [f"temporary file {path}" for path in self.temporary.iterdir()]

    def _ours(self, path: str) -> bool:
        return Path(path).is_relative_to(self.directory)
