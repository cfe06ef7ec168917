"""NBD_CMD_RESIZE on the wire: changes of the size, queries, and refusals."""

import itertools
import threading
from collections.abc import Iterator

import pytest

from tests.wait import until
from tests.wire.conftest import MAX_SIZE, SIZE, LedgerDisk
from tests.wire.layout import (
    ALL_THAT_REMAINS,
    BLOCK_STATUS,
    CACHE,
    CANCEL,
    EINVAL,
    ENOSPC,
    EPERM,
    EXTENDED,
    FIT,
    FLUSH,
    FUA,
    MIB,
    MODES,
    NONE,
    NOTIFY,
    QUERY,
    READ,
    RESIZE,
    SHRINK,
    SIMPLE,
    STRUCTURED,
    TRIM,
    WRITE,
    WRITE_ZEROES,
)
from tests.wire.layout import SIZE as SIZE_FLAG
from tests.wire.peer import NativeServer, RawClient
from tests.wire.replies import Reply, Size

CAUSE_QUERY, AS_REQUESTED, ROUNDED_UP, FITTED, BY_ANOTHER, EXTENDED_BY_WRITE = range(6)

modes = pytest.mark.parametrize("mode", MODES)
chunked = pytest.mark.parametrize("mode", [STRUCTURED, EXTENDED])


@pytest.fixture
def client(all_server: NativeServer, disk: LedgerDisk, mode: str) -> Iterator[RawClient]:
    """The sole connection to a disk of SIZE bytes in a budget of MAX_SIZE; it may shrink it too."""
    with all_server.connect(disk.export, mode) as client:
        yield client


@pytest.fixture
def grower(grow_server: NativeServer, disk: LedgerDisk, mode: str) -> Iterator[RawClient]:
    """A connection to a disk that clients may grow only."""
    with grow_server.connect(disk.export, mode) as client:
        yield client


def resize(client: RawClient, size: int, flags: int = 0) -> Reply:
    return client.call(RESIZE, size, 0, flags)


def query(client: RawClient) -> Size:
    return resize(client, 0, QUERY).size


@modes
def test_a_client_of_the_draft_grows_a_disk(grower: RawClient, disk: LedgerDisk) -> None:
    grown = 2 * SIZE
    reply = resize(grower, grown)
    assert (reply.error, reply.kinds) == (0, [NONE] if grower.mode == EXTENDED else [None])
    assert disk.size == grown == disk.volume.stat().st_size
    assert grower.read(SIZE, 4096) == bytes(4096)
    grower.write(grown - 4, b"last")
    assert grower.read(grown - 4, 4) == b"last"
    assert grower.call(WRITE, grown - 2, payload=b"last").error == ENOSPC
    assert grower.call(READ, grown, 1).error == EINVAL


@modes
def test_every_other_connection_uses_the_new_size_at_once(
    all_server: NativeServer, grower: RawClient, disk: LedgerDisk
) -> None:
    with all_server.connect(disk.export) as other, all_server.connect(disk.export, SIMPLE) as third:
        assert resize(grower, SIZE + 4096).error == 0
        grower.write(SIZE, b"\xaa" * 4096)
        for each in (other, third):
            assert each.read(SIZE, 4096) == b"\xaa" * 4096
            assert each.call(READ, SIZE + 4096, 1).error == EINVAL
            each.write(SIZE, b"\xaa")


@chunked
def test_size_tells_what_became_of_a_request(grower: RawClient, disk: LedgerDisk) -> None:
    first = query(grower)
    assert first == Size(SIZE, first.generation, MAX_SIZE, 4096, CAUSE_QUERY)
    assert resize(grower, SIZE + 4096, SIZE_FLAG).size == Size(
        SIZE + 4096, first.generation + 1, MAX_SIZE, 4096, AS_REQUESTED
    )
    assert resize(grower, SIZE + 4097, SIZE_FLAG).size == Size(
        SIZE + 8192, first.generation + 2, MAX_SIZE, 4096, ROUNDED_UP
    )
    assert resize(grower, MAX_SIZE, SIZE_FLAG).size == Size(
        MAX_SIZE, first.generation + 3, MAX_SIZE, 4096, AS_REQUESTED
    )
    assert disk.size == MAX_SIZE


@chunked
def test_fua_is_allowed_and_adds_nothing(grower: RawClient, disk: LedgerDisk) -> None:
    assert resize(grower, SIZE + 4096, SIZE_FLAG | FUA).size.size == SIZE + 4096 == disk.size
    assert resize(grower, 0, QUERY | FUA).size.size == SIZE + 4096


@modes
def test_the_present_size_changes_nothing(client: RawClient, disk: LedgerDisk) -> None:
    before = disk.control.disk(disk.vm, "disk0")
    for flags in (0, SHRINK, FIT, SHRINK | FIT, FUA):
        assert resize(client, SIZE, flags).error == 0
        if client.mode != SIMPLE:
            assert resize(client, SIZE, flags | SIZE_FLAG).size.cause == AS_REQUESTED
    assert disk.control.disk(disk.vm, "disk0") == before


@modes
def test_more_than_the_budget_is_refused_with_what_there_was_and_what_was_needed(
    grower: RawClient, disk: LedgerDisk
) -> None:
    reply = resize(grower, MAX_SIZE + 4096)
    assert reply.error == ENOSPC and disk.size == SIZE
    if grower.mode != SIMPLE:
        assert f"{MAX_SIZE - SIZE + 4096} bytes" in reply.text or "192 MiB" in reply.text, reply.text
        assert "192 MiB" in reply.text and disk.vm in reply.text, reply.text
    assert grower.read(0, 4096) == bytes(4096)


@modes
def test_sizes_that_no_file_has_are_refused(grower: RawClient, disk: LedgerDisk) -> None:
    for size in (2**40, 2**63 - 4096, 2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 2):
        assert resize(grower, size).error == ENOSPC
    assert disk.size == SIZE


@modes
def test_rounding_never_passes_the_budget(grower: RawClient, disk: LedgerDisk) -> None:
    disk.control.update_vm(disk.vm, MAX_SIZE + 1000)
    assert resize(grower, MAX_SIZE + 500).error == ENOSPC
    assert disk.size == SIZE
    assert resize(grower, MAX_SIZE - 500).error == 0
    assert disk.size == MAX_SIZE


@chunked
@pytest.mark.parametrize("size", [MAX_SIZE + 1, 2**40, 2**63 - 1, 2**63, 2**64 - 2, ALL_THAT_REMAINS])
def test_fit_grows_as_far_as_the_budget_reaches(grower: RawClient, disk: LedgerDisk, size: int) -> None:
    fitted = resize(grower, size, FIT | SIZE_FLAG).size
    assert (fitted.size, fitted.cause) == (MAX_SIZE, FITTED) and disk.size == MAX_SIZE
    again = resize(grower, size, FIT | SIZE_FLAG).size
    assert (again.size, again.cause, again.generation) == (MAX_SIZE, FITTED, fitted.generation)


@modes
def test_fit_inside_the_budget_is_as_requested(grower: RawClient, disk: LedgerDisk) -> None:
    assert resize(grower, SIZE + 4096, FIT).error == 0
    assert disk.size == SIZE + 4096


@modes
def test_fit_never_makes_a_disk_smaller(client: RawClient, disk: LedgerDisk) -> None:
    disk.control.update_vm(disk.vm, SIZE)
    for flags in (FIT, FIT | SHRINK):
        for size in (MAX_SIZE, ALL_THAT_REMAINS):
            assert resize(client, size, flags).error == 0
            assert disk.size == SIZE
    assert resize(client, SIZE - 4096, FIT).error == EPERM


@modes
def test_smaller_takes_the_flag_and_the_policy(client: RawClient, grower: RawClient, disk: LedgerDisk) -> None:
    for each, flags in ((client, 0), (client, FIT), (grower, 0), (grower, SHRINK)):
        assert resize(each, SIZE - 4096, flags).error == EPERM
        assert resize(each, 1, flags).error == EPERM
    assert disk.size == SIZE


@modes
def test_the_sole_client_shrinks(client: RawClient, disk: LedgerDisk) -> None:
    half = SIZE // 2
    client.write(half - 4096, b"\xaa" * 8192)
    assert resize(client, half, SHRINK).error == 0
    assert disk.size == half == disk.volume.stat().st_size
    assert client.read(half - 4096, 4096) == b"\xaa" * 4096
    for offset, length in ((half, 1), (half - 1, 2), (SIZE - 4096, 4096), (half, half), (0, half + 1)):
        for command in (READ, WRITE_ZEROES, TRIM, CACHE, BLOCK_STATUS):
            if command != READ or length <= 32 * MIB:
                expected = EINVAL if (command, client.mode) == (BLOCK_STATUS, SIMPLE) else ENOSPC
                assert client.call(command, offset, length).error == expected
    for length in (1, 4096, 300_000):
        assert client.call(WRITE, SIZE - length, payload=bytes(length)).error == ENOSPC
    assert client.call(READ, SIZE, 1).error == EINVAL
    assert client.call(READ, SIZE - 1, 2).error == EINVAL
    assert disk.volume.stat().st_size == half


@modes
def test_what_was_shrunk_away_and_grown_again_reads_as_zeroes(client: RawClient, disk: LedgerDisk) -> None:
    client.write(SIZE - 8192, b"\xaa" * 8192)
    assert resize(client, SIZE - 6000, SHRINK).error == 0
    assert disk.size == SIZE - 4096
    assert resize(client, SIZE + 4096).error == 0
    assert client.read(SIZE - 8192, 12288) == b"\xaa" * 4096 + bytes(8192)
    client.write(SIZE, b"\xbb" * 4096)


@modes
def test_nobody_shrinks_what_somebody_else_has_attached(
    all_server: NativeServer, client: RawClient, disk: LedgerDisk
) -> None:
    with all_server.connect(disk.export) as other:
        reply = resize(client, SIZE // 2, SHRINK)
        assert reply.error == EPERM and disk.size == SIZE
        assert other.read(SIZE - 4096, 4096) == bytes(4096)
    until(lambda: resize(client, SIZE // 2, SHRINK).error == 0, what="the other client's lease to end")
    assert disk.size == SIZE // 2


@modes
def test_nobody_shrinks_what_a_client_of_another_server_has_attached(
    grow_server: NativeServer, client: RawClient, disk: LedgerDisk
) -> None:
    with grow_server.connect(disk.export) as other:
        assert resize(client, SIZE // 2, SHRINK).error == EPERM
        assert other.read(SIZE - 4096, 4096) == bytes(4096)


@modes
def test_to_look_at_the_size_export_is_to_be_in_nobodys_way(
    all_server: NativeServer, client: RawClient, disk: LedgerDisk
) -> None:
    with all_server.connect(disk.export + b"@size") as looking:
        looking.read(0, 64)
        assert resize(client, SIZE // 2, SHRINK).error == 0
        assert int.from_bytes(looking.read(8, 8), "big") == SIZE // 2


@chunked
def test_a_query_sees_what_others_changed(client: RawClient, disk: LedgerDisk) -> None:
    before = query(client)
    disk.resize(SIZE + 4096)
    after = query(client)
    assert (after.size, after.cause) == (SIZE + 4096, CAUSE_QUERY) and after.generation > before.generation
    disk.control.update_vm(disk.vm, 2 * MAX_SIZE)
    assert query(client).maximum == 2 * MAX_SIZE
    assert resize(client, 0, QUERY | SIZE_FLAG).size == query(client)


MALFORMED = [
    (0, 0, 0),
    (0, 0, FIT),
    (0, 0, SHRINK),
    (ALL_THAT_REMAINS, 0, 0),
    (ALL_THAT_REMAINS, 0, SHRINK),
    (SIZE, 1, 0),
    (SIZE, 4096, SHRINK),
    (SIZE, 2**32 - 1, 0),
    (0, 1, QUERY),
    (1, 0, QUERY),
    (SIZE, 0, QUERY),
    (SIZE, 0, NOTIFY),
    (0, 1, NOTIFY),
    (0, 1, CANCEL),
    (0, 0, CANCEL | SIZE_FLAG),
    (0, 0, CANCEL),
    (2**64 - 1, 0, CANCEL),
    *((0, 0, one | other) for one, other in itertools.combinations((QUERY, NOTIFY, CANCEL), 2)),
    *((0, 0, one | other) for one in (QUERY, NOTIFY, CANCEL) for other in (SHRINK, FIT)),
]


@modes
def test_what_makes_no_sense_is_invalid(client: RawClient, disk: LedgerDisk) -> None:
    for offset, length, flags in MALFORMED:
        assert client.call(RESIZE, offset, length, flags).error == EINVAL, (offset, length, hex(flags))
    assert client.read(0, 4096) == bytes(4096)
    assert disk.size == SIZE


@pytest.mark.parametrize("mode", [SIMPLE])
def test_sizes_are_told_in_chunks_only(client: RawClient, disk: LedgerDisk) -> None:
    for flags, size in ((QUERY, 0), (NOTIFY, 0), (SIZE_FLAG, SIZE), (SIZE_FLAG | FIT, 2 * SIZE)):
        assert resize(client, size, flags).error == EINVAL
    assert disk.size == SIZE


@modes
def test_of_several_reasons_the_first_is_told(read_only_server: NativeServer, mode: str) -> None:
    with read_only_server.connect(mode=mode) as client:
        for size, flags, error in (
            (0, 0, EINVAL),
            (ALL_THAT_REMAINS, 0, EINVAL),
            (MAX_SIZE + 1, QUERY, EINVAL),
            (MAX_SIZE + 1, 1 << 15, EINVAL),
            (MAX_SIZE + 1, 0, EPERM),
            (2**64 - 2, 0, EPERM),
            (1, SHRINK, EPERM),
            (SIZE, 0, EPERM),
        ):
            assert resize(client, size, flags).error == error, (size, flags)
        assert client.call(RESIZE, SIZE, 1).error == EINVAL
        if mode != SIMPLE:
            assert query(client).size == SIZE


@modes
def test_smaller_is_not_permitted_before_anything_is_found_missing(client: RawClient, disk: LedgerDisk) -> None:
    disk.control.update_vm(disk.vm, SIZE)
    assert resize(client, SIZE - 1).error == 0
    assert resize(client, SIZE - 4096).error == EPERM
    assert resize(client, SIZE + 1).error == ENOSPC


@chunked
def test_refusals_say_why(client: RawClient, grower: RawClient, disk: LedgerDisk) -> None:
    for each, size, flags in (
        (client, SIZE - 4096, 0),
        (client, SIZE - 4096, SHRINK),
        (grower, SIZE - 4096, SHRINK),
        (client, 0, 0),
        (client, 2**64 - 2, 0),
        (client, 0, CANCEL),
    ):
        assert len(resize(each, size, flags).text) > 20


def arrivals(client: RawClient, count: int) -> list[int]:
    """The cookies of replies, in the order in which they come."""
    order: list[int] = []
    while len(order) < count:
        order.append(client.next_done())
    return order


@modes
@pytest.mark.parametrize("size", [SIZE + MIB, SIZE - MIB])
def test_a_change_is_a_barrier(client: RawClient, disk: LedgerDisk, size: int) -> None:
    before = [client.packed(WRITE_ZEROES, number * MIB, MIB, FUA) for number in range(8)]
    before += [client.packed(FLUSH), client.packed(READ, 0, MIB), client.packed(READ, 0, 512)]
    change = client.packed(RESIZE, size, 0, SHRINK)
    after = [client.packed(READ, size - 4096, 4096), client.packed(FLUSH), client.packed(READ, size, 512)]
    client.send(b"".join(header for _, header in (*before, change, *after)))
    order = arrivals(client, 15)
    assert set(order[:11]) == {cookie for cookie, _ in before}
    assert order[11] == change[0]
    assert client.reply(change[0]).error == 0
    assert client.reply(after[0][0]).error == 0
    assert client.reply(after[2][0]).error == (ENOSPC if size < SIZE else EINVAL)
    assert disk.size == size


@modes
def test_requests_up_to_the_new_size_may_follow_at_once(client: RawClient, disk: LedgerDisk) -> None:
    change = client.packed(RESIZE, 2 * SIZE)
    read = client.packed(READ, 2 * SIZE - 512, 512)
    client.send(change[1] + read[1])
    assert client.reply(change[0]).error == 0
    assert client.reply(read[0]).data(2 * SIZE - 512, 512) == bytes(512)


def test_racing_clients_never_pass_the_budget(
    all_server: NativeServer, grow_server: NativeServer, disk: LedgerDisk
) -> None:
    told: list[list[Size]] = [[] for _ in range(4)]

    def race(number: int) -> None:
        server = (all_server, grow_server)[number % 2]
        with server.connect(disk.export, (STRUCTURED, EXTENDED)[number // 2]) as client:
            for step in range(1, 9):
                size = SIZE + step * 32 * MIB + number * 4096
                reply = resize(client, size, SIZE_FLAG | (FIT if number % 2 else 0))
                if reply.error:
                    assert reply.error in (EPERM, ENOSPC)
                else:
                    told[number].append(reply.size)
                told[number].append(query(client))

    threads = [threading.Thread(target=race, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
        assert not thread.is_alive()
    assert all(len(sizes) >= 8 for sizes in told)
    for sizes in told:
        assert all(size.size <= MAX_SIZE and size.maximum <= MAX_SIZE for size in sizes)
        assert [size.generation for size in sizes] == sorted(size.generation for size in sizes)
        assert [size.size for size in sizes] == sorted(size.size for size in sizes)
    assert disk.size == disk.volume.stat().st_size <= MAX_SIZE
