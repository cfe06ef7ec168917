"""Writes that extend the disk: WRITE and WRITE_ZEROES with NBD_CMD_FLAG_EXTEND."""

import itertools
from collections.abc import Iterator

import pytest

from tests.wire.conftest import MAX_SIZE, SIZE, LedgerDisk
from tests.wire.layout import (
    EINVAL,
    ENOSPC,
    ENOTSUP,
    EPERM,
    EXTEND,
    EXTENDED,
    FAST_ZERO,
    FLUSH,
    FUA,
    MIB,
    MODES,
    NO_HOLE,
    NOTIFY,
    PAYLOAD_LEN,
    QUERY,
    READ,
    RESIZE,
    SHRINK,
    SIMPLE,
    STRUCTURED,
    WRITE,
    WRITE_ZEROES,
)
from tests.wire.layout import SIZE as SIZE_FLAG
from tests.wire.peer import NativeServer, RawClient
from tests.wire.replies import Size

pytestmark = pytest.mark.slow

CAUSE_QUERY, BY_ANOTHER, EXTENDED_BY_WRITE = 0, 4, 5

modes = pytest.mark.parametrize("mode", MODES)
chunked = pytest.mark.parametrize("mode", [STRUCTURED, EXTENDED])
LENGTHS = (1, 4096, 30_000, 300_000)


@pytest.fixture
def client(grow_server: NativeServer, disk: LedgerDisk, mode: str) -> Iterator[RawClient]:
    """A connection to a disk of SIZE bytes in a budget of MAX_SIZE."""
    with grow_server.connect(disk.export, mode) as client:
        yield client


def rounded(size: int) -> int:
    return -(-size // 4096) * 4096


@modes
def test_a_write_past_the_end_grows_the_disk_to_cover_it(client: RawClient, disk: LedgerDisk) -> None:
    for length, flags in itertools.product(LENGTHS, (0, FUA)):
        data = b"\xa5" * length
        before = disk.size
        client.write(before - 1, data, EXTEND | flags)
        assert disk.size == rounded(before - 1 + length) == disk.volume.stat().st_size
        assert client.read(before - 1, length) == data
        at = disk.size + 10_000
        client.write(at, data, EXTEND | flags)
        assert disk.size == rounded(at + length)
        assert client.read(at - 10_000, 10_000 + length) == bytes(10_000) + data
        rest = disk.size - at - length
        assert not rest or client.read(at + length, rest) == bytes(rest)


@modes
@pytest.mark.parametrize("flags", [0, NO_HOLE, FUA, FAST_ZERO, FAST_ZERO | NO_HOLE])
def test_zeroes_past_the_end_grow_the_disk_to_cover_them(client: RawClient, disk: LedgerDisk, flags: int) -> None:
    client.write(SIZE - 4096, b"\xaa" * 4096)
    error = client.call(WRITE_ZEROES, SIZE - 2048, MIB, EXTEND | flags).error
    if error:
        assert error == ENOTSUP and flags & FAST_ZERO and disk.size == SIZE
        return
    assert disk.size == rounded(SIZE - 2048 + MIB)
    assert client.read(SIZE - 4096, 4096 + MIB) == b"\xaa" * 2048 + bytes(MIB + 2048)


@chunked
def test_size_tells_what_a_write_made_of_the_disk(client: RawClient, disk: LedgerDisk) -> None:
    first = client.call(RESIZE, 0, 0, QUERY).size
    for number, command in enumerate((WRITE, WRITE_ZEROES), start=1):
        payload = bytes(100) if command == WRITE else None
        inside = client.call(command, 0, 100, EXTEND | SIZE_FLAG, payload=payload).size
        assert inside == Size(disk.size, first.generation + number - 1, MAX_SIZE, 4096, CAUSE_QUERY)
        past = client.call(command, disk.size, 100, EXTEND | SIZE_FLAG, payload=payload).size
        assert past == Size(SIZE + number * 4096, first.generation + number, MAX_SIZE, 4096, EXTENDED_BY_WRITE)


@chunked
def test_size_is_told_for_writes_of_every_length(client: RawClient, disk: LedgerDisk) -> None:
    for length, flags in itertools.product(LENGTHS, (EXTEND | SIZE_FLAG, EXTEND | SIZE_FLAG | FUA)):
        before = disk.size
        told = client.call(WRITE, before, flags=flags, payload=b"\xa5" * length).size
        assert (told.size, told.cause) == (before + rounded(length), EXTENDED_BY_WRITE)
        assert disk.size == told.size


@modes
def test_inside_the_disk_the_flag_has_no_effect(client: RawClient, disk: LedgerDisk) -> None:
    before = disk.control.disk(disk.vm, "disk0")
    for length, flags in itertools.product(LENGTHS, (EXTEND, EXTEND | FUA)):
        client.write(SIZE - length, b"\xa5" * length, flags)
        assert client.call(WRITE_ZEROES, SIZE - length, 1, flags).error == 0
        assert client.read(SIZE - length, length) == b"\0" + b"\xa5" * (length - 1)
    assert disk.control.disk(disk.vm, "disk0") == before


@modes
def test_what_the_budget_does_not_hold_fails_whole(client: RawClient, disk: LedgerDisk) -> None:
    disk.control.update_vm(disk.vm, SIZE + 4096)
    client.write(SIZE - 4096, b"\xaa" * 4096)
    for length, flags in itertools.product(LENGTHS, (EXTEND, EXTEND | FUA)):
        for offset in (SIZE + 4097 - length, SIZE + 4096, 2**63 - 4096, 2**63, 2**64 - 1):
            reply = client.call(WRITE, offset, flags=flags, payload=b"\xbb" * length)
            assert reply.error == ENOSPC, offset
            assert len(reply.text) > 20 or client.mode == SIMPLE
            assert client.call(WRITE_ZEROES, offset, length, flags).error == ENOSPC
    assert disk.size == SIZE == disk.volume.stat().st_size
    assert client.read(SIZE - 4096, 4096) == b"\xaa" * 4096


@chunked
def test_a_refusal_says_how_much_there_was_and_how_much_was_needed(client: RawClient, disk: LedgerDisk) -> None:
    text = client.call(WRITE, MAX_SIZE, flags=EXTEND, payload=bytes(4096)).text
    assert "192 MiB" in text and str(MAX_SIZE - SIZE + 4096) in text, text


@pytest.mark.parametrize("mode", [EXTENDED])
def test_offset_and_length_are_added_without_overflow(client: RawClient, disk: LedgerDisk) -> None:
    for offset, length in itertools.product((0, SIZE, 2**63, 2**64 - 1), (2**63, 2**64 - SIZE, 2**64 - 1)):
        assert client.call(WRITE_ZEROES, offset, length, EXTEND).error == ENOSPC
    assert disk.size == SIZE


@modes
def test_a_disk_may_be_written_from_its_end_on(client: RawClient, disk: LedgerDisk) -> None:
    """As whoever writes a growing file format does, with many requests at once."""
    packed, cookies = b"", []
    for number in range(40):
        flags = EXTEND | (PAYLOAD_LEN if client.mode == EXTENDED else 0)
        cookie, header = client.packed(WRITE, SIZE + number * 3000, 3000, flags)
        packed += header + bytes([number + 1]) * 3000
        cookies.append(cookie)
    client.send(packed)
    for cookie in cookies:
        assert client.reply(cookie).error == 0
    for number in range(40):
        assert client.read(SIZE + number * 3000, 3000) == bytes([number + 1]) * 3000
    assert client.call(FLUSH).error == 0
    assert disk.size == rounded(SIZE + 40 * 3000)


@modes
def test_without_the_flag_nothing_grows(client: RawClient, disk: LedgerDisk) -> None:
    client.write(SIZE, b"\xaa", EXTEND)
    assert client.call(WRITE, SIZE + 4096, payload=b"\xaa").error == ENOSPC
    assert client.call(WRITE_ZEROES, SIZE + 4095, 2).error == ENOSPC
    assert client.call(READ, SIZE + 4096, 1).error == EINVAL
    assert disk.size == SIZE + 4096


@modes
def test_a_read_only_export_extends_nothing(read_only_server: NativeServer, mode: str) -> None:
    with read_only_server.connect(mode=mode) as client:
        for offset in (0, SIZE):
            assert client.call(WRITE, offset, flags=EXTEND, payload=bytes(512)).error in (EINVAL, EPERM)
            assert client.call(WRITE_ZEROES, offset, 512, EXTEND).error in (EINVAL, EPERM)
        assert client.read(0, 3) == b"\1\2\3"


@modes
def test_others_hear_of_it(all_server: NativeServer, client: RawClient, disk: LedgerDisk) -> None:
    with all_server.connect(disk.export) as other:
        cookie = other.start(RESIZE, 0, 0, NOTIFY)
        assert Size.of(other.chunk(cookie)).size == SIZE
        client.write(SIZE, b"\xaa" * 4096, EXTEND)
        told = Size.of(other.chunk(cookie))
        assert (told.size, told.cause) == (SIZE + 4096, BY_ANOTHER)
        assert other.read(SIZE, 4096) == b"\xaa" * 4096


@modes
def test_what_was_shrunk_away_can_be_extended_into_again(all_server: NativeServer, disk: LedgerDisk, mode: str) -> None:
    with all_server.connect(disk.export, mode) as client:
        client.write(SIZE - 8192, b"\xaa" * 8192)
        assert client.call(RESIZE, SIZE - 8192, 0, SHRINK).error == 0
        client.write(SIZE - 1, b"\xbb", EXTEND)
        assert client.read(SIZE - 8192, 8192) == bytes(8191) + b"\xbb"
