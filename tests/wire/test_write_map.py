"""Writes are marked before they are answered, also by the paths that only raw bytes reach."""

from collections.abc import Iterator

import pytest

from nbdresize.control import admin_client
from nbdresize.storage.write_map import WriteMap
from tests.wait import until
from tests.wire.conftest import SIZE, LedgerDisk
from tests.wire.layout import EXTEND, EXTENDED, FUA, MIB, MODES, PAYLOAD_LEN, WRITE, WRITE_ZEROES
from tests.wire.peer import NativeServer, RawClient

pytestmark = pytest.mark.slow

modes = pytest.mark.parametrize("mode", MODES)


@pytest.fixture
def client(grow_server: NativeServer, disk: LedgerDisk, mode: str) -> Iterator[RawClient]:
    with grow_server.connect(disk.export, mode) as client:
        yield client


@pytest.fixture
def write_map(client: RawClient, disk: LedgerDisk) -> Iterator[WriteMap]:
    """The map of a disk that `client` has attached; the server knows of it."""
    write_map = WriteMap.create(disk.control.state.write_map(disk.volume.stem), SIZE)
    exports = [disk.export.decode()]
    answers = admin_client.ask_all(disk.control.state, {"command": "sizes", "exports": exports})
    marking = [answer.reply["marking"] for answer in answers if answer.reply is not None]
    assert exports in marking  # a server of other tests does not have it open
    yield write_map
    write_map.remove()


@modes
def test_each_of_many_small_writes_in_one_go_is_marked(client: RawClient, write_map: WriteMap) -> None:
    cookies, sent = [], b""
    extended = PAYLOAD_LEN if client.mode == EXTENDED else 0
    for number in range(200):
        cookie, header = client.packed(WRITE, number * 8192, 4096, extended)
        cookies.append(cookie)
        sent += header + b"x" * 4096
    client.send(sent)
    for cookie in cookies:
        assert not client.reply(cookie).error
    assert write_map.take() == [(number * 8192, 4096) for number in range(200)]


@modes
def test_a_large_write_whose_client_goes_halfway_is_marked(
    grow_server: NativeServer, client: RawClient, write_map: WriteMap, disk: LedgerDisk
) -> None:
    extended = PAYLOAD_LEN if client.mode == EXTENDED else 0
    _, header = client.packed(WRITE, MIB, 4 * MIB, extended)
    client.send(header + b"x" * 2 * MIB)
    until(lambda: disk.volume.read_bytes()[MIB : 3 * MIB].count(b"x") > MIB, what="a part to be written")
    client.close()
    grow_server.wait_alone()
    assert write_map.take() == [(MIB, 4 * MIB)]


@modes
@pytest.mark.parametrize("flags", [EXTEND, EXTEND | FUA])
def test_writes_that_may_extend_are_marked_as_far_as_the_map_reaches(
    client: RawClient, write_map: WriteMap, disk: LedgerDisk, flags: int
) -> None:
    for length in (4096, 300 << 10):
        client.write(SIZE - 4096, b"x" * length, flags)
        assert write_map.take() == [(SIZE - 4096, 4096)]
        assert not client.call(WRITE_ZEROES, SIZE - 4096, length, flags).error
        assert write_map.take() == [(SIZE - 4096, 4096)]
    assert disk.size > SIZE


@modes
def test_a_large_write_is_marked_when_it_is_answered(client: RawClient, write_map: WriteMap) -> None:
    for flags in (0, FUA):
        client.write(4097, b"x" * 3 * MIB, flags)
        assert write_map.take() == [(4096, 3 * MIB + 4096)]
