"""What a program needs to run as a service of systemd, by the standard library. Source: sd_notify(3)."""

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator


def tell_manager(**states: str) -> None:
    """Tell whoever started this process as a service, such as READY="1" or STATUS="…"; nobody where nobody waits.

    Never raises and never waits: what the manager does with it is its own affair.
    """
    where = os.environ.get("NOTIFY_SOCKET", "")
    if not where.startswith(("/", "@")):
        return
    address = "\0" + where[1:] if where.startswith("@") else where
    text = "\n".join(f"{name}={value.replace(chr(10), ' ')}" for name, value in states.items())
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager,
    ):
        manager.setblocking(False)
        manager.sendto(text.encode(errors="backslashreplace"), address)


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """While the block lasts, SIGTERM ends this process at once, and quietly, with exit code 0; main thread only."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
