"""Who may resize: what the server and the VM allow, as it is when a client asks."""

import pytest

from nbdresize.control.model import ClientResize
from tests.wire.conftest import SIZE, LedgerDisk
from tests.wire.layout import (
    EINVAL,
    EPERM,
    EXTEND,
    INFO_RESIZE,
    MODES,
    NOTIFY,
    QUERY,
    RESIZE,
    SEND_RESIZE,
    SHRINK,
    SIMPLE,
    WRITE,
)
from tests.wire.peer import NativeServer, RawClient

modes = pytest.mark.parametrize("mode", MODES)


def resize(client: RawClient, size: int, flags: int = 0) -> int:
    return client.call(RESIZE, size, 0, flags).error


def allow(disk: LedgerDisk, policy: ClientResize) -> None:
    disk.control.update_vm(disk.vm, client_resize=policy)


@modes
def test_a_vm_whose_clients_may_not_resize_offers_nothing(
    all_server: NativeServer, disk: LedgerDisk, mode: str
) -> None:
    allow(disk, ClientResize.OFF)
    with all_server.connect(disk.export, mode, infos=[INFO_RESIZE]) as client:
        assert not client.flags & SEND_RESIZE and INFO_RESIZE not in client.infos
        for flags in (0, SHRINK, QUERY, NOTIFY):
            assert resize(client, 0 if flags in (QUERY, NOTIFY) else SIZE, flags) == EINVAL
        assert client.call(WRITE, 0, flags=EXTEND, payload=b"!").error == EINVAL
    assert disk.size == SIZE


@modes
def test_the_stricter_of_server_and_vm_holds(
    grow_server: NativeServer, all_server: NativeServer, disk: LedgerDisk, mode: str
) -> None:
    for server, policy in ((grow_server, ClientResize.ALL), (all_server, ClientResize.GROW)):
        allow(disk, policy)
        with server.connect(disk.export, mode, infos=[INFO_RESIZE]) as client:
            assert not client.infos[INFO_RESIZE][1] & 0b100
            assert resize(client, SIZE - 4096, SHRINK) == EPERM
    assert disk.size == SIZE


@modes
def test_a_policy_holds_from_the_next_request_on(all_server: NativeServer, disk: LedgerDisk, mode: str) -> None:
    with all_server.connect(disk.export, mode) as client:
        assert resize(client, SIZE + 4096) == 0
        allow(disk, ClientResize.OFF)
        for size in (SIZE, SIZE + 4096, SIZE + 8192):
            assert resize(client, size, SHRINK) == EPERM
        assert client.call(WRITE, SIZE + 4096, flags=EXTEND, payload=b"!").error == EPERM
        if mode != SIMPLE:
            assert client.call(RESIZE, 0, 0, QUERY).size.size == SIZE + 4096
        allow(disk, ClientResize.GROW)
        assert resize(client, SIZE + 8192) == 0
        assert resize(client, SIZE, SHRINK) == EPERM
        allow(disk, ClientResize.ALL)
        assert resize(client, SIZE, SHRINK) == 0
    assert disk.size == SIZE
