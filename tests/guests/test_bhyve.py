"""The arguments that give disks to bhyve: each at its function for life."""

import pytest

from nbdresize.control.model import VM, Disk
from nbdresize.errors import InvalidArgument, ResourceNotFound
from nbdresize.guests import bhyve


def vm(*slots: int) -> VM:
    disks = tuple(Disk(slot, "web1", slot, 1 << 30, 1, f"web1-disk{slot}") for slot in slots)
    return VM(1, "web1", 1 << 40, disks)


@pytest.mark.parametrize(
    ("slots", "options"),
    [
        ((0,), ["4:0,virtio-blk,/dev/nbd0"]),
        ((0, 2, 7), ["4:0,virtio-blk,/dev/nbd0", "4:2,virtio-blk,/dev/nbd2", "4:7,virtio-blk,/dev/nbd7"]),
        ((1,), ["4:0,hostbridge", "4:1,virtio-blk,/dev/nbd1"]),
    ],
)
def test_each_disk_has_its_function_and_function_0_is_always_there(slots: tuple[int, ...], options: list[str]) -> None:
    assert bhyve.arguments(vm(*slots), "/dev/nbd") == [word for option in options for word in ("-s", option)]


def test_a_vm_without_disks_has_no_arguments() -> None:
    with pytest.raises(ResourceNotFound, match="no disks"):
        bhyve.arguments(vm(), "/dev/nbd")


@pytest.mark.parametrize("prefix", ["", "/dev/a,b", "/dev/a b", "/dev/a\tb", "/dev/a\n", "/dev/\x1b[2J", "/dev/\xa0"])
def test_a_prefix_that_would_be_several_words_or_options_is_refused(prefix: str) -> None:
    with pytest.raises(InvalidArgument, match="can't be how the name of a device begins"):
        bhyve.arguments(vm(0), prefix)
