"""Each request of the transmission phase in each mode: what it does, and which error it gets."""

import itertools
import os
import struct
from collections.abc import Iterator

import pytest

from tests.wire.conftest import SIZE, LedgerDisk
from tests.wire.layout import (
    BLOCK_STATUS,
    CACHE,
    DF,
    DISC,
    EINVAL,
    ENOSPC,
    ENOTSUP,
    EOVERFLOW,
    EPERM,
    EXTENDED,
    FAST_ZERO,
    FLUSH,
    FUA,
    MIB,
    MODES,
    NO_HOLE,
    NONE,
    OFFSET_DATA,
    OFFSET_HOLE,
    PAYLOAD_LEN,
    READ,
    REQ_ONE,
    RESIZE,
    SET_META_CONTEXT,
    SIMPLE,
    STATUS,
    STATUS_EXT,
    STRUCTURED,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    context_query,
)
from tests.wire.peer import NativeServer, RawClient
from tests.wire.replies import Reply

DATA = bytes(range(1, 256)) * 1024
"""What stands at the beginning of the file; nothing writes there."""

HOLE = 48 * MIB
"""Nothing writes here either."""

modes = pytest.mark.parametrize("mode", MODES)
chunked = pytest.mark.parametrize("mode", [STRUCTURED, EXTENDED])


@pytest.fixture
def area() -> int:
    """The offset of a mebibyte that only this test writes to."""
    return (1 + next(_AREAS) % 15) * MIB


_AREAS = itertools.count()


@pytest.fixture
def client(server: NativeServer, mode: str) -> Iterator[RawClient]:
    with server.connect(mode=mode) as client:
        yield client


@modes
@pytest.mark.parametrize("piece", [7, 1000, 4096, 200_000])
def test_long_writes_may_come_in_pieces_of_any_size(client: RawClient, area: int, piece: int) -> None:
    """Also in so many small ones that no pipe holds them; short ones and reads between are understood as before."""
    payloads = [os.urandom(length) for length in (100_000, 40_000, 100, 70_000)]
    flags = PAYLOAD_LEN if client.mode == EXTENDED else 0
    sent, cookies, offset = b"", [], area
    for payload in payloads:
        cookie, header = client.packed(WRITE, offset, len(payload), flags)
        sent += header + payload
        cookies.append(cookie)
        offset += len(payload)
    cookie, header = client.packed(READ, area, 1000)
    sent += header
    for start in range(0, len(sent), piece):
        client.send(sent[start : start + piece])
    for each in cookies:
        assert not client.reply(each).error
    assert len(client.reply(cookie).data(area, 1000)) == 1000
    assert client.read(area, offset - area) == b"".join(payloads)


@modes
@pytest.mark.parametrize("length", [1, 511, 4096, 32 << 10, (32 << 10) + 1, 200_000, len(DATA)])
def test_read_returns_the_bytes(client: RawClient, length: int) -> None:
    for offset in (0, 1, 4095):
        assert client.read(offset, length) == (DATA + bytes(MIB))[offset : offset + length]


@modes
@pytest.mark.parametrize("length", [1, 4096, 100_000, 32 * MIB])
def test_read_reaches_the_end(client: RawClient, length: int) -> None:
    assert client.read(SIZE - length, length)[-4096:] == bytes(min(length, 4096))


@modes
def test_read_of_data_and_hole(client: RawClient) -> None:
    assert client.read(0, MIB) == DATA + bytes(MIB - len(DATA))


@chunked
def test_a_hole_is_told_as_one(client: RawClient) -> None:
    reply = client.call(READ, HOLE, MIB)
    assert reply.data(HOLE, MIB) == bytes(MIB)
    assert OFFSET_HOLE in reply.kinds
    assert sum(len(chunk.payload) for chunk in reply.chunks) < 4096


@chunked
def test_df_means_one_chunk(client: RawClient) -> None:
    for offset, length in ((0, 4096), (0, MIB), (HOLE, MIB)):
        reply = client.call(READ, offset, length, DF)
        assert reply.kinds == [OFFSET_DATA]
        assert reply.data(offset, length) == (DATA + bytes(MIB))[:length] if offset == 0 else bytes(length)


@modes
@pytest.mark.parametrize("length", [1, 4096, 32 << 10, (32 << 10) + 1, 300_000, MIB])
@pytest.mark.parametrize("flags", [0, FUA])
def test_write_is_read_back(client: RawClient, area: int, length: int, flags: int) -> None:
    data = os.urandom(length)
    client.write(area, data, flags)
    assert client.read(area, length) == data
    assert client.call(FLUSH).error == 0


@modes
@pytest.mark.parametrize("flags", [0, FUA, NO_HOLE, NO_HOLE | FUA, FAST_ZERO])
def test_zeroes_are_written(client: RawClient, area: int, flags: int) -> None:
    client.write(area, b"\xaa" * 100_000)
    reply = client.call(WRITE_ZEROES, area + 10, 90_000, flags)
    if reply.error:
        assert reply.error == ENOTSUP and flags & FAST_ZERO
        return
    assert client.read(area, 100_000) == b"\xaa" * 10 + bytes(90_000) + b"\xaa" * 9_990


@modes
def test_trim_and_cache_succeed(client: RawClient, area: int) -> None:
    client.write(area, b"\xaa" * 8192)
    assert client.call(CACHE, area, 8192).error == 0
    assert client.call(TRIM, area, 8192, FUA).error == 0
    assert set(client.read(area, 8192)) <= {0, 0xAA}


@chunked
def test_success_without_data_has_no_payload(client: RawClient) -> None:
    for reply in (client.call(FLUSH), client.call(WRITE_ZEROES, HOLE, 1), client.call(CACHE, 0, 1)):
        assert reply.kinds in ([None], [NONE])
        assert reply.chunks[0].payload == b""


def extents(reply: Reply) -> list[tuple[int, int]]:
    """Length and flags of each extent in the answer to BLOCK_STATUS."""
    [chunk] = reply.chunks
    if chunk.kind == STATUS:
        return list(struct.iter_unpack(">II", chunk.payload[4:]))
    assert chunk.kind == STATUS_EXT
    found = list(struct.iter_unpack(">QQ", chunk.payload[8:]))
    assert len(found) == int.from_bytes(chunk.payload[4:8], "big")
    return found


@chunked
def test_block_status_tells_data_and_holes(server: NativeServer, client: RawClient) -> None:
    with server.client() as other:
        other.greet()
        other.agree(client.mode)
        (_, context), _ = other.ask(SET_META_CONTEXT, context_query(b"", [b"base:allocation"]))
    reply = client.call(BLOCK_STATUS, HOLE, MIB)
    assert reply.chunks[0].payload[:4] == context[:4]
    assert extents(reply) == [(MIB, 3)]
    [first, *_] = extents(client.call(BLOCK_STATUS, 0, MIB))
    assert first[0] >= len(DATA) and first[1] == 0
    assert extents(client.call(BLOCK_STATUS, 100, 1)) == [(1, 0)]


@chunked
def test_req_one_means_one_extent_inside_the_range(client: RawClient) -> None:
    for length in (1, 4096, 2 * MIB, SIZE):
        [(found, _)] = extents(client.call(BLOCK_STATUS, 0, length, REQ_ONE))
        assert 0 < found <= length


@modes
def test_block_status_is_refused_where_no_context_was_selected(server: NativeServer, mode: str) -> None:
    with server.connect(mode=mode, contexts=()) as client:
        assert client.call(BLOCK_STATUS, 0, 4096).error == EINVAL


@modes
def test_disc_ends_the_connection_after_everything_before_it(client: RawClient) -> None:
    cookies = [client.start(READ, 0, 100_000) for _ in range(10)] + [client.start(FLUSH)]
    client.start(DISC)
    for cookie in cookies:
        assert client.reply(cookie).error == 0
    client.expect_end()


PAST_END = (SIZE, SIZE - 1, SIZE + 1, 2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 1)


@modes
@pytest.mark.parametrize(
    ("command", "error"),
    [(READ, EINVAL), (TRIM, EINVAL), (CACHE, EINVAL), (BLOCK_STATUS, EINVAL), (WRITE_ZEROES, ENOSPC)],
)
def test_a_range_past_the_end_is_refused(client: RawClient, command: int, error: int) -> None:
    if (client.mode, command) == (SIMPLE, BLOCK_STATUS):
        return
    for offset in PAST_END:
        assert client.call(command, offset, 4096).error == error
        assert client.call(command, offset, 2).error == error
    lengths = [2**32 - 1] if client.mode != EXTENDED else [2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
    for offset, length in itertools.product((0, 4096, *PAST_END), lengths):
        assert client.call(command, offset, length).error == error
    assert client.read(0, 3) == DATA[:3]


@modes
def test_a_write_past_the_end_is_refused_and_makes_nothing_longer(client: RawClient) -> None:
    for offset, length in itertools.product(PAST_END, (2, 4096, 32 << 10, 200_000)):
        for flags in (0, FUA):
            assert client.call(WRITE, offset, flags=flags, payload=bytes(length)).error == ENOSPC
    assert client.read(0, 3) == DATA[:3]


def test_extended_headers_carry_lengths_of_64_bits(all_server: NativeServer, disk: LedgerDisk) -> None:
    large = 6 << 30
    disk.control.update_vm(disk.vm, large)
    disk.resize(large)
    with all_server.connect(disk.export, EXTENDED) as client:
        client.write(large - 4096, b"end!")
        assert extents(client.call(BLOCK_STATUS, 0, large))[0] == (large - 4096, 3)
        assert client.call(CACHE, 0, large).error == 0
        assert client.call(WRITE_ZEROES, 0, large).error == 0
        assert client.call(TRIM, 0, large).error == 0
        assert client.read(large - 4096, 4) == bytes(4)


@modes
def test_nothing_can_be_asked_of_no_bytes(client: RawClient) -> None:
    for command in (READ, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS):
        for offset in (0, 4096, SIZE, 2**64 - 1):
            assert client.call(command, offset, 0).error == EINVAL
    for offset in (0, SIZE, 2**64 - 1):
        assert client.call(WRITE, offset, payload=b"").error == EINVAL
    assert client.read(0, 3) == DATA[:3]


@modes
def test_a_read_that_is_too_long_is_refused(client: RawClient) -> None:
    lengths = [32 * MIB + 1, 64 * MIB, 2**32 - 1] + ([2**32, 2**64 - 1] if client.mode == EXTENDED else [])
    for length in lengths:
        assert client.call(READ, 0, length).error == EINVAL
        if client.mode != SIMPLE:
            assert client.call(READ, 0, length, DF).error in (EINVAL, EOVERFLOW)
    assert client.read(0, 3) == DATA[:3]


@modes
def test_a_flush_has_no_range(client: RawClient) -> None:
    for offset, length in ((1, 0), (0, 1), (4096, 4096), (2**64 - 1, 2**32 - 1)):
        assert client.call(FLUSH, offset, length).error == EINVAL
    assert client.call(FLUSH).error == 0


@modes
def test_unknown_commands_are_refused(client: RawClient) -> None:
    for command in (9, 10, 77, 255, 256, 2**15, 2**16 - 1):
        for offset, length in ((0, 0), (0, 4096), (2**64 - 1, 2**32 - 1)):
            assert client.call(command, offset, length).error == EINVAL
    assert client.read(0, 3) == DATA[:3]


@modes
def test_a_read_only_export_is_only_read(read_only_server: NativeServer, mode: str) -> None:
    with read_only_server.connect(mode=mode) as client:
        for length in (1, 4096, 100_000):
            for offset in (0, SIZE):
                assert client.call(WRITE, offset, payload=bytes(length)).error == EPERM
                assert client.call(WRITE, offset, flags=FUA, payload=bytes(length)).error == EPERM
        for command in (TRIM, WRITE_ZEROES):
            assert client.call(command, 0, 4096).error == EPERM
        for command in (WRITE_ZEROES, TRIM):
            assert client.call(command, 0, 0).error == EINVAL
        assert client.read(0, len(DATA)) == DATA
        assert client.call(FLUSH).error == 0
        assert client.call(CACHE, 0, 4096).error == 0
        assert client.call(RESIZE, SIZE).error == EPERM


@chunked
def test_a_refusal_says_why(client: RawClient) -> None:
    for reply in (client.call(READ, SIZE, 1), client.call(WRITE_ZEROES, SIZE, 4096), client.call(77)):
        assert len(reply.text) > 10


@modes
def test_many_requests_at_once_are_all_answered(client: RawClient, area: int) -> None:
    data = os.urandom(200_000)
    cookies = []
    packed = b""
    for number in range(100):
        cookie, header = client.packed(WRITE, area + number * 2000, 2000, PAYLOAD_LEN if client.mode == EXTENDED else 0)
        packed += header + data[number * 2000 : number * 2000 + 2000]
        cookies.append(cookie)
    client.send(packed)
    for cookie in cookies:
        assert client.reply(cookie).error == 0
    reads = [(offset, client.start(READ, area + offset, 4000)) for offset in range(0, 200_000, 4000)]
    others = [client.start(FLUSH), client.start(CACHE, area, 100), client.start(77, area, 100)]
    for offset, cookie in reversed(reads):
        assert client.reply(cookie).data(area + offset, 4000) == data[offset : offset + 4000]
    assert [client.reply(cookie).error for cookie in others] == [0, 0, EINVAL]
