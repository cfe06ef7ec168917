"""What is sent is what Request.pack would have packed, and every block has its turn."""

from nbdresize.loads.model import Operation
from nbdresize.loads.requests import MOST, RequestTable
from nbdresize.protocol.constants import NBD_CMD_READ, NBD_CMD_WRITE
from nbdresize.protocol.negotiated import Mode
from nbdresize.protocol.transmission import Request
from tests.loads.conftest import MIB, batch


def offsets(table: RequestTable) -> list[int]:
    return [table.offset(number) for number in range(len(table))]


def test_what_is_sent_is_what_the_protocol_packs() -> None:
    def payload(number: int) -> bytes:
        return number.to_bytes(2, "big") * 256

    for operation in Operation:
        table = RequestTable(batch(operation, 512, 4), 2 * MIB, payload)
        kinds = set()
        expected = b""
        for number in range(100, 300):
            command = NBD_CMD_READ if table.reads(number) else NBD_CMD_WRITE
            kinds.add(command)
            expected += Request(0, command, number, table.offset(number), 512).pack(Mode.SIMPLE)
            expected += payload(number) if command == NBD_CMD_WRITE else b""
        assert b"".join(table.parts(100, 300)) == expected
        assert len(kinds) == (2 if operation is Operation.MIXED else 1)


def test_a_random_load_has_every_block_once() -> None:
    table = RequestTable(batch(block=4096), 8 * MIB)
    assert offsets(table) != sorted(offsets(table))
    assert sorted(offsets(table)) == list(range(0, 8 * MIB, 4096))


def test_a_sequential_load_has_every_block_in_order() -> None:
    table = RequestTable(batch(block=4096, random=False), 8 * MIB + 100)
    assert offsets(table) == list(range(0, 8 * MIB, 4096))


def test_of_a_huge_disk_there_are_as_many_requests_as_fit_into_memory() -> None:
    size = 2**63 - 4096
    found = offsets(RequestTable(batch(), size))
    assert len(set(found)) == len(found) == MOST
    assert max(found) > size // 2
    assert max(found) <= size - 4096


def test_a_small_disk_gets_its_few_blocks_again_and_again() -> None:
    table = RequestTable(batch(depth=1000), 3 * 4096)
    assert len(table) >= 4000
    assert set(offsets(table)) == {0, 4096, 8192}


def test_connections_begin_at_different_places() -> None:
    table = RequestTable(batch(), 8 * MIB)
    assert [table.share(number, 4) for number in range(4)] == [0, 512, 1024, 1536]
