"""What packages and images give: budgets, and the disks of a VM that asks for none. All sizes in bytes."""

from collections.abc import Mapping, Sequence

from nbdresize.errors import InvalidArgument
from nbdresize.units import SizeRequest, round_down, round_up


def package_budget(disk_space: int, image_original_size: int = 0) -> int:
    """The budget of a VM with that package, made from that image (RFD 154: `VM.disk`).

    The image counts with the size that it had originally, not with that of a grown disk it was made from: so an image
    made from a disk of 1 TiB buys nobody 1 TiB. Rounded up as its disk is, so that what the package promises is left
    for other disks in full.
    """
    return disk_space + round_up(image_original_size)


def which_fit(used: int, packages: Mapping[str, int]) -> list[str]:
    """The names of those packages whose budgets (the values) hold `used`, the smallest first."""
    return sorted(
        (name for name, budget in packages.items() if budget >= used), key=lambda name: (packages[name], name)
    )


def default_disks(
    flexible: bool, defaults: Sequence[SizeRequest | None], disk_space: int, *, from_image: bool
) -> tuple[SizeRequest | None, ...]:
    """The disks of a new VM that asks for none, for DiskChanges.add: None is the image's size.

    A package that is not flexible fixes two: the image's, and one of the package's `disk_space`. A flexible one has
    `defaults`, or just the image's disk. Raises InvalidArgument where a package with fixed disks is given no image.
    """
    if not flexible:
        if not from_image:
            raise InvalidArgument(
                "A package with fixed disks makes the boot disk from an image, and none was named",
                "name one with --image, or choose a package with flexible disks",
            )
        return (None, SizeRequest(exact=round_down(disk_space)))
    if defaults:
        return tuple(defaults)
    return (None,) if from_image else ()
