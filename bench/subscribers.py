"""How long after a resize each subscriber knows the new size: milliseconds after the reply to whoever resized.

    .venv/bin/python bench/subscribers.py
    .venv/bin/python bench/subscribers.py --clients 10 --changes 50

A disk of a ledger is grown step by step over NBD while clients watch it; every one of them is told each size, since
the steps are slow enough not to be told together. Negative: told before the one who asked.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

from nbdresize.client import connect
from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.units import SizeRequest

_MIB = 1 << 20
_STEP_SECONDS = 0.15
_PATIENCE = 30.0


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """The URI of a disk of 16 MiB in a budget of 100 GiB, behind the native front."""
    with Control.open(StateDirectory(directory / "state")) as control:
        control.update_pool(overcommit="unlimited")  # whatever this disk holds
        control.create_vm("vm", 100 * 1024 * _MIB, [SizeRequest(exact=16 * _MIB)])
    path = directory / "nbd.sock"
    command = [sys.executable, "-m", "nbdresize.cli.main", "serve", f"--root={directory / 'state'}", f"--socket={path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        server.stdout.readline()
        try:
            yield f"nbd+unix:///vm/disk0?socket={quote(str(path))}"
        finally:
            server.terminate()
            server.wait(timeout=30)


class Watcher:
    """One subscriber: when it heard of each size."""

    def __init__(self, uri: str, last: int) -> None:
        self.heard: dict[int, float] = {}
        self.begun = threading.Event()
        self.thread = threading.Thread(target=self._watch, args=(uri, last))
        self.thread.start()

    def _watch(self, uri: str, last: int) -> None:
        with connect(uri) as client:
            for told in client.watch():
                self.heard[told.size] = time.monotonic()
                self.begun.set()
                if told.size >= last:
                    return


def delays(uri: str, clients: int, changes: int, start: int) -> list[float]:
    """Milliseconds from the reply to the one who resizes to each watcher's news, over all changes."""
    sizes = [start + number * _MIB for number in range(1, changes + 1)]
    watchers = [Watcher(uri, sizes[-1]) for _ in range(clients)]
    for watcher in watchers:
        assert watcher.begun.wait(_PATIENCE)
    replied: dict[int, float] = {}
    with connect(uri) as resizer:
        for size in sizes:
            time.sleep(_STEP_SECONDS)
            resizer.resize(size)
            replied[size] = time.monotonic()
    for watcher in watchers:
        watcher.thread.join(_PATIENCE)
    return [
        (watcher.heard[size] - replied[size]) * 1000 for watcher in watchers for size in sizes if size in watcher.heard
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how soon subscribers know a new size.")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 10, 100])
    parser.add_argument("--changes", type=int, default=20)
    options = parser.parse_args()
    print("| subscribers | told | median ms | 99 % ms | slowest ms |")
    print("| --- | --- | --- | --- | --- |")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nbdresize-bench-")))
        uri = stack.enter_context(served(directory))
        start = 16 * _MIB
        for clients in options.clients:
            found = sorted(delays(uri, clients, options.changes, start))
            start += options.changes * _MIB
            late = found[min(len(found) - 1, len(found) * 99 // 100)]
            print(
                f"| {clients} | {len(found)} of {clients * options.changes} | {statistics.median(found):.1f}"
                f" | {late:.1f} | {found[-1]:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
