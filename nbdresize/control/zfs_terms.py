"""The space that a VM's ZFS dataset is given, from RFD 154, "Calculation of ZFS space". All sizes in bytes."""

from collections.abc import Sequence

from nbdresize.control.size_requests import is_number, shown_number
from nbdresize.errors import InvalidArgument
from nbdresize.units import format_size


def zfs_overhead(refreservations: Sequence[int], volsizes: Sequence[int]) -> int:
    """What ZFS needs beyond the sizes of the volumes, for their metadata; charged to the pool, not to the VM.

    A volume's refreservation is its size and its metadata. One that is sparse promises less than its size, and counts
    negative. Raises InvalidArgument where the two don't belong together.
    """
    for name, values in (("refreservation", refreservations), ("volsize", volsizes)):
        for value in values:
            _check(name, value)
    if len(refreservations) != len(volsizes):
        raise InvalidArgument(
            f"There are {len(refreservations)} values of refreservation for {len(volsizes)} volumes", "give one of each"
        )
    return sum(refreservations) - sum(volsizes)


def zfs_quota(vm_quota: int, vm_disk: int, refreservations: Sequence[int], volsizes: Sequence[int]) -> int:
    """`quota` and `reservation` of the VM's dataset: VM.quota + VM.disk + Σ refreservation − Σ volsize.

    `vm_quota` is the VM's own property (ZFS: refquota), `vm_disk` its budget for disks and snapshots. To be set again
    whenever a term changes. Raises InvalidArgument where it is not more than 0: ZFS takes 0 for no limit at all.
    """
    _check("quota", vm_quota)
    _check("disk space", vm_disk)
    quota = vm_quota + vm_disk + zfs_overhead(refreservations, volsizes)
    if quota <= 0:
        raise InvalidArgument(
            f"The dataset's quota would be {format_size(quota)}: {format_size(vm_quota)} of its own and "
            f"{format_size(vm_disk)} for disks, with {format_size(sum(refreservations))} reserved for volumes of "
            f"{format_size(sum(volsizes))}",
            "give the VM at least as much disk space as its disks take",
        )
    return quota


def _check(name: str, value: int) -> None:
    if not is_number(value) or value < 0:
        raise InvalidArgument(f"A {name} of {shown_number(value)} is not possible", "give bytes, 0 or more")
