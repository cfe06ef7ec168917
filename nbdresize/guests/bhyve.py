"""bhyve: the arguments that give a VM its disks, each at the PCI function of its slot for life.

bhyve has no monitor to tell it that a device has grown: it looks at its devices when it starts.
Source: bhyve(8), `-s`; RFD 154, "bhyve brand: sticky PCI functions for disks".
"""

from nbdresize.control.model import VM
from nbdresize.control.names import shown
from nbdresize.errors import InvalidArgument, ResourceNotFound

PCI_SLOT = 4

_PLACEHOLDER = f"{PCI_SLOT}:0,hostbridge"
"""What takes function 0 where no disk does: a guest does not look at the others of a device that lacks it."""


def arguments(vm: VM, device_prefix: str) -> list[str]:
    """The words to add to bhyve's command line: `-s`, `4:0,virtio-blk,/dev/nbd0`, and so on, by slot.

    The device of disk1 is `device_prefix` with a 1 after it. Raises ResourceNotFound for a VM without disks, and
    InvalidArgument for a prefix that can't be a part of bhyve's arguments.
    """
    if not device_prefix or not device_prefix.isprintable() or any(each in " ," for each in device_prefix):
        raise InvalidArgument(
            f"{shown(device_prefix)} can't be how the name of a device begins",
            "give a path without commas and spaces, such as /dev/nbd",
        )
    if not vm.disks:
        raise ResourceNotFound(f"VM {vm.name} has no disks", f"nbdresize disk add {vm.name} SIZE adds one")
    options = [f"{PCI_SLOT}:{disk.slot},virtio-blk,{device_prefix}{disk.slot}" for disk in vm.disks]
    if vm.disks[0].slot != 0:
        options.insert(0, _PLACEHOLDER)
    return [word for option in options for word in ("-s", option)]
