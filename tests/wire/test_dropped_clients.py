"""Clients that the operator drops: their leases end at once, whatever they were about."""

import json
import socket

from nbdresize.control import locks
from nbdresize.control.control import Control
from nbdresize.control.leases import Lease, lease_path
from tests.wait import until
from tests.wire.conftest import SIZE, LedgerDisk
from tests.wire.layout import MIB, RESIZE
from tests.wire.peer import SECONDS, NativeServer

_SOON = 6.0
"""Seconds; a resize waits 10 for another change of its VM to end."""


def drop(control: Control, server: NativeServer, export: bytes) -> None:
    [admin] = control.state.run.glob(f"{server.pid}-*.admin")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(SECONDS)
        sock.connect(str(admin))
        sock.sendall(json.dumps({"command": "drop", "exports": [export.decode()]}).encode() + b"\n")
        assert json.loads(sock.recv(65536)) == {"ok": True, "dropped": 1}


def test_a_dropped_client_waits_for_no_other_change_to_end(grow_server: NativeServer, disk: LedgerDisk) -> None:
    state = disk.control.state
    before = grow_server.counters()["requests"]
    with locks.lock_vm(state.locks, disk.vm, 0), grow_server.connect(disk.export) as client:
        client.start(RESIZE, SIZE + MIB)
        until(lambda: grow_server.counters()["requests"] > before, what="the resize to begin")
        drop(disk.control, grow_server, disk.export)
        Lease.acquire_exclusive(lease_path(state.leases, disk.control.disk(disk.vm, "disk0").volume), _SOON).release()
    assert disk.size == SIZE
