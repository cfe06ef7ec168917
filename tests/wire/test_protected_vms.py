"""Disks of a protected VM as clients see them: they grow, and never shrink."""

import pytest

from nbdresize.control.model import DiskChanges
from nbdresize.errors import DeletionProtected
from nbdresize.units import SizeRequest
from tests.wire.conftest import SIZE, LedgerDisk
from tests.wire.layout import EPERM, MODES, RESIZE, SHRINK
from tests.wire.peer import NativeServer


@pytest.mark.parametrize("mode", MODES)
def test_a_client_can_not_shrink_a_disk_of_a_protected_vm_but_grow_it(
    all_server: NativeServer, disk: LedgerDisk, mode: str
) -> None:
    with all_server.connect(disk.export, mode) as client:
        disk.control.update_vm(disk.vm, protected=True)
        assert client.call(RESIZE, SIZE // 2, 0, SHRINK).error == EPERM
        assert disk.size == SIZE
        assert client.call(RESIZE, SIZE + 4096, 0, SHRINK).error == 0
        with pytest.raises(DeletionProtected):
            disk.control.delete_vm(disk.vm)
        disk.control.update_vm(disk.vm, protected=False)
        assert client.call(RESIZE, SIZE // 2, 0, SHRINK).error == 0
    assert disk.size == SIZE // 2


@pytest.mark.parametrize("mode", MODES)
def test_a_client_can_not_resize_where_flexible_disks_are_switched_off(
    all_server: NativeServer, disk: LedgerDisk, mode: str
) -> None:
    with all_server.connect(disk.export, mode) as client:
        disk.control.set_switch("flexible_disks", "off", vm=disk.vm)
        for size in (SIZE // 2, SIZE + 4096):
            assert client.call(RESIZE, size, 0, SHRINK).error == EPERM
        disk.control.unset_switch("flexible_disks", vm=disk.vm)
        disk.control.change_disks(disk.vm, DiskChanges(add=(SizeRequest(exact=4096),)))
        assert client.call(RESIZE, SIZE + 4096, 0, SHRINK).error == 0
    assert disk.size == SIZE + 4096
