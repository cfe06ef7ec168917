"""A connection's thread, kept for the interpreter between calls: seen in real nbdkit by what is local to threads."""

import subprocess
from pathlib import Path

import nbd
import pytest

from tests.wait import until

CHECKOUT = Path(__file__).parents[2]

PLUGIN = f"""
import sys, threading
sys.path.insert(0, {str(CHECKOUT)!r})
import nbdkit
from plugins.nbdkit_thread import KeptThread
API_VERSION = 2
local = threading.local()
kept = {{}}

def thread_model():
    return nbdkit.THREAD_MODEL_SERIALIZE_REQUESTS

def config(key, value):
    global keeps
    keeps = value == "yes"

def open(readonly):
    return KeptThread() if keeps else None

def close(h):
    if h:
        h.let_go()

def get_size(h):
    return 512

def pread(h, buf, offset, flags):
    local.calls = getattr(local, "calls", 0) + 1
    buf[:] = bytes([local.calls]) * len(buf)
"""


@pytest.mark.parametrize(("keeps", "seen"), [("yes", [1, 2, 3]), ("no", [1, 1, 1])])
def test_a_thread_is_the_same_to_python_at_every_request(tmp_path: Path, keeps: str, seen: list[int]) -> None:
    plugin, path = tmp_path / "plugin.py", tmp_path / "nbd.sock"
    plugin.write_text(PLUGIN)
    command = ["nbdkit", "--foreground", f"--unix={path}", "python", str(plugin), f"keep={keeps}"]
    with subprocess.Popen(command) as server:
        try:
            until(path.exists)
            for _ in range(3):  # one after the other, so that a thread which was not let go would show
                client = nbd.NBD()
                client.connect_unix(str(path))
                assert [client.pread(1, 0)[0] for _ in range(3)] == seen
                client.shutdown()
        finally:
            server.terminate()
            assert server.wait(30) == 0
