"""What must hold of a state directory whenever nobody is changing it, looked at from outside of control."""

import sqlite3
from contextlib import closing
from pathlib import Path

from nbdresize.config import StateDirectory

GRANULARITY = 4096


def problems(state: StateDirectory) -> list[str]:
    """Everything that is wrong; reads the ledger and the files by itself, so that it shares no mistake with control."""
    with closing(sqlite3.connect(state.ledger)) as ledger:
        assert ledger.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        vms = {row[0]: row[1:] for row in ledger.execute("SELECT id, name, budget FROM vms")}
        disks = ledger.execute("SELECT vm_id, slot, size, volume FROM disks").fetchall()
        intents = ledger.execute("SELECT kind, operation FROM intents").fetchall()
    found = [f"unfinished {kind} {operation}" for kind, operation in intents]
    for vm_id, (name, budget) in vms.items():
        used = sum(size for owner, _, size, _ in disks if owner == vm_id)
        if used > budget:
            found.append(f"{name} uses {used} of {budget}")
    for vm_id, slot, size, volume in disks:
        name = f"{vms[vm_id][0]}/disk{slot}" if vm_id in vms else f"disk{slot} of no VM"
        if vm_id not in vms:
            found.append(f"{name}: {volume}")
        if size <= 0 or size % GRANULARITY:
            found.append(f"{name} has {size} bytes")
        path = state.volumes / f"{volume}.raw"
        if not path.exists():
            found.append(f"{name} has no volume")
        elif path.stat().st_size != size:
            found.append(f"{name} has {size} bytes, its volume {path.stat().st_size}")
    found += _orphans(state.volumes, {f"{volume}.raw" for *_, volume in disks}, "volume")
    found += _orphans(state.leases, {f"{volume}.lock" for *_, volume in disks}, "lease")
    found += _orphans(state.locks, {f"{name}.lock" for name, _ in vms.values()} | {".ledger.lock"}, "lock")
    return found


def _orphans(directory: Path, known: set[str], what: str) -> list[str]:
    return [f"orphan {what} {name}" for name in sorted({path.name for path in directory.iterdir()} - known)]
