"""Programs of others that put a load on a server: run on a core, for a time that is bounded, and ended in any case."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nbdresize.errors import PeerFailed, ProgramMissing

STARTING_SECONDS = 15.0
"""What a program may take for itself, besides the time that it puts the load on and waits for the server."""

_SHOWN_LINES = 3
_LONGEST_SHOWN = 500
_PR_SET_PDEATHSIG = 1
_FAILED_TO_START = 127
_prctl = ctypes.CDLL(None, use_errno=True).prctl  # found here: between fork and exec, the loader may be locked


@dataclass(frozen=True)
class Finished:
    """What a program printed, and how long it ran."""

    output: str
    seconds: float


def run(command: Sequence[str], package: str, limit: float, core: int | None = None) -> Finished:
    """Run it to its end. Raises ProgramMissing where it is not installed, PeerFailed where it fails or takes longer
    than `limit` seconds.

    The kernel kills it when this process dies, however that dies; but not what it has started itself.
    """
    name = command[0]
    if shutil.which(name) is None:
        raise ProgramMissing(f"{name} is not installed", f"apt-get install {package}")
    parent = os.getpid()
    with _on_core(core):
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=lambda: end_with(parent),
        )
    begun = time.monotonic()  # how long forking took says nothing about the server
    try:
        output, complaints = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        raise PeerFailed(
            f"{name} has not ended within {limit:.0f} s", "check the server, or give more --timeout"
        ) from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    if process.returncode:
        told = _last_lines(complaints or output)
        raise PeerFailed(f"{name} failed: {told}", "check the server, and what its log says")
    return Finished(output, time.monotonic() - begun)


def end_with(parent: int) -> None:
    """For a child between fork and exec: have the kernel kill it when the thread that has forked it dies."""
    if _prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the kernel was told
        os._exit(_FAILED_TO_START)


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
