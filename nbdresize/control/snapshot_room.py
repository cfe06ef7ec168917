"""Whether a VM has room for one more snapshot, in space and in number. All sizes in bytes."""

from collections.abc import Mapping

from nbdresize.control.budget import Account, either
from nbdresize.errors import InsufficientSpace, LimitExceeded
from nbdresize.units import format_size

_NAMED = 3
"""How many snapshots a refusal names."""


def check_snapshot(account: Account, needed: int, snapshots: Mapping[str, int]) -> None:
    """Raises InsufficientSpace where `needed` bytes for a snapshot are not free.

    `snapshots`: what the deletion of each would free, by name. The refusal names those that free most (RFD 154,
    "Relation to snapshots", has the ways out; trimming helps where the guest's disks pass it on).
    """
    if needed <= account.free:
        return
    freeing = sorted((name for name in snapshots if snapshots[name] > 0), key=lambda name: (-snapshots[name], name))
    ways = ["delete a disk", *account.ways_to_more(needed)]
    if freeing:
        named = " or ".join(f"{name} (frees {format_size(snapshots[name])})" for name in freeing[:_NAMED])
        ways = [f"delete snapshot {named}", "delete a disk", account.ways_to_more(needed)[0]]
    raise InsufficientSpace(
        f"A snapshot of VM {account.vm} needs {format_size(needed)}, but it has {account.state}", either(ways)
    )


def check_snapshot_count(vm: str, count: int, limit: int) -> None:
    """Raises LimitExceeded where a VM that has `count` snapshots may not have one more."""
    if count >= limit:
        way_out = f"delete one first with nbdresize snapshot delete {vm} NAME, or " if count else ""
        way_out += f"change to a package that allows more with nbdresize vm update {vm} --package NAME"
        raise LimitExceeded(f"VM {vm} has {count} snapshots, and may have {limit}", way_out)
