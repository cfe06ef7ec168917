"""Programs of others that put a load on a server: run on a core, for a time that is bounded, and ended in any case."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nbdresize.errors import PeerFailed, ProgramMissing

_SHOWN_LINES = 3
_LONGEST_SHOWN = 500


@dataclass(frozen=True)
class Finished:
    """What a program printed, and how long it ran."""

    output: str
    seconds: float


def run(command: Sequence[str], package: str, limit: float, core: int | None = None) -> Finished:
    """Run it to its end. Raises ProgramMissing where it is not installed, PeerFailed where it fails or takes longer
    than `limit` seconds."""
    name = command[0]
    if shutil.which(name) is None:
        raise ProgramMissing(f"{name} is not installed", f"apt-get install {package}")
    begun = time.monotonic()
    with _on_core(core):
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    try:
        output, complaints = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        raise PeerFailed(f"{name} has not ended within {limit:.0f} s", "check the server") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    if process.returncode:
        told = _last_lines(complaints or output)
        raise PeerFailed(f"{name} failed: {told}", "check the server, and what its log says")
    return Finished(output, time.monotonic() - begun)


@contextlib.contextmanager
def _on_core(core: int | None) -> Iterator[None]:
    """What this thread starts meanwhile runs on that core only."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        if core is not None:
            os.sched_setaffinity(0, before)


def _last_lines(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-_SHOWN_LINES:])[-_LONGEST_SHOWN:] or "it does not say why"
