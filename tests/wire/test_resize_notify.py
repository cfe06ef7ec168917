"""Subscriptions: NBD_CMD_RESIZE with NOTIFY, and its end."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.wait import until
from tests.wire.conftest import MAX_SIZE, SIZE, LedgerDisk, make_image
from tests.wire.layout import (
    CANCEL,
    EINVAL,
    EIO,
    ENOSPC,
    EXTEND,
    EXTENDED,
    FIT,
    MIB,
    NONE,
    NOTIFY,
    QUERY,
    READ,
    RESIZE,
    SHRINK,
    STRUCTURED,
    WRITE,
)
from tests.wire.layout import SIZE as SIZE_FLAG
from tests.wire.peer import NativeServer, RawClient
from tests.wire.replies import Size

pytestmark = pytest.mark.slow

CAUSE_QUERY, AS_REQUESTED, ROUNDED_UP, FITTED, BY_ANOTHER, EXTENDED_BY_WRITE = range(6)

modes = pytest.mark.parametrize("mode", [STRUCTURED, EXTENDED])


@pytest.fixture
def client(all_server: NativeServer, disk: LedgerDisk, mode: str) -> Iterator[RawClient]:
    """The sole connection to a disk of SIZE bytes in a budget of MAX_SIZE."""
    with all_server.connect(disk.export, mode) as client:
        yield client


def subscribe(client: RawClient) -> tuple[int, Size]:
    """The cookie of a subscription, and what it tells at once."""
    cookie = client.start(RESIZE, 0, 0, NOTIFY)
    return cookie, heard(client, cookie)


def heard(client: RawClient, cookie: int) -> Size:
    """The next notification."""
    chunk = client.chunk(cookie)
    assert not chunk.done
    return Size.of(chunk)


def rest() -> None:
    """Let so much time pass that the next change is told at once."""
    due = time.monotonic() + 0.15
    until(lambda: time.monotonic() >= due, what="time to pass")


@modes
def test_the_size_is_told_at_once(client: RawClient) -> None:
    _, first = subscribe(client)
    assert first == Size(SIZE, first.generation, MAX_SIZE, 4096, CAUSE_QUERY)
    assert client.call(RESIZE, 0, 0, QUERY).size == first


@modes
def test_a_change_by_another_process_is_told(client: RawClient, disk: LedgerDisk) -> None:
    cookie, first = subscribe(client)
    disk.resize(SIZE + 4096)
    assert heard(client, cookie) == Size(SIZE + 4096, first.generation + 1, MAX_SIZE, 4096, BY_ANOTHER)
    assert client.read(SIZE, 4096) == bytes(4096)


@modes
def test_a_change_by_another_connection_is_told(
    all_server: NativeServer, grow_server: NativeServer, client: RawClient, disk: LedgerDisk
) -> None:
    cookie, first = subscribe(client)
    for number, server in enumerate((all_server, grow_server), start=1):
        with server.connect(disk.export) as other:
            assert other.call(RESIZE, SIZE + number * 4096).error == 0
            told = heard(client, cookie)
            assert told == Size(SIZE + number * 4096, first.generation + number, MAX_SIZE, 4096, BY_ANOTHER)


@modes
def test_changes_of_ones_own_are_told_with_their_cause(client: RawClient) -> None:
    cookie, _ = subscribe(client)
    for size, flags, cause in (
        (SIZE + 4096, 0, AS_REQUESTED),
        (SIZE + 4097, 0, ROUNDED_UP),
        (SIZE, SHRINK, AS_REQUESTED),
        (MAX_SIZE + 4096, FIT, FITTED),
    ):
        changed = client.call(RESIZE, size, 0, flags | SIZE_FLAG).size
        assert heard(client, cookie) == changed and changed.cause == cause


def test_a_change_of_ones_own_is_never_told_as_anothers(all_server: NativeServer, disk: LedgerDisk) -> None:
    with all_server.connect(disk.export) as client:
        cookie, _ = subscribe(client)
        for number in range(1, 6):
            rest()
            assert client.call(RESIZE, SIZE + number * 4096).error == 0
            assert heard(client, cookie).cause == AS_REQUESTED


@modes
def test_an_extending_write_of_ones_own_is_told(client: RawClient) -> None:
    cookie, first = subscribe(client)
    assert client.call(WRITE, SIZE, flags=EXTEND, payload=bytes(4096)).error == 0
    assert heard(client, cookie) == Size(SIZE + 4096, first.generation + 1, MAX_SIZE, 4096, EXTENDED_BY_WRITE)


@modes
def test_a_shrink_is_told(all_server: NativeServer, client: RawClient, disk: LedgerDisk) -> None:
    cookie, _ = subscribe(client)
    assert client.call(RESIZE, SIZE - MIB, 0, SHRINK).error == 0
    assert heard(client, cookie).size == SIZE - MIB
    assert client.call(READ, SIZE - MIB, 1).error == ENOSPC


@modes
def test_a_refused_change_is_not_told(client: RawClient) -> None:
    cookie, _ = subscribe(client)
    assert client.call(RESIZE, 2 * MAX_SIZE).error == ENOSPC
    assert client.call(RESIZE, SIZE).error == 0
    assert client.call(RESIZE, SIZE + 4096).error == 0
    assert heard(client, cookie).size == SIZE + 4096


@modes
def test_a_second_subscription_is_refused_and_the_first_stays(client: RawClient, disk: LedgerDisk) -> None:
    cookie, _ = subscribe(client)
    assert client.call(RESIZE, 0, 0, NOTIFY).error == EINVAL
    disk.resize(SIZE + 4096)
    assert heard(client, cookie).size == SIZE + 4096


@modes
def test_cancel_ends_a_subscription_before_it_is_answered(client: RawClient, disk: LedgerDisk) -> None:
    for _ in range(3):
        cookie, _ = subscribe(client)
        cancel = client.start(RESIZE, cookie, 0, CANCEL)
        assert [client.next_done(), client.next_done()] == [cookie, cancel]
        last = client.chunk(cookie)
        assert (last.kind, last.payload, last.done) == (NONE, b"", True)
        assert client.reply(cancel).error == 0
        assert client.call(RESIZE, cookie, 0, CANCEL).error == EINVAL
    disk.resize(SIZE + 4096)
    assert client.read(SIZE, 512) == bytes(512)


@modes
def test_cancel_of_anything_else_is_refused(client: RawClient, disk: LedgerDisk) -> None:
    cookie, _ = subscribe(client)
    for other in (0, cookie + 1, cookie ^ 1 << 63, 2**64 - 1):
        assert client.call(RESIZE, other, 0, CANCEL).error == EINVAL
    disk.resize(SIZE + 4096)
    assert heard(client, cookie).size == SIZE + 4096


@modes
def test_requests_go_on_beside_a_subscription(client: RawClient, disk: LedgerDisk) -> None:
    cookie, _ = subscribe(client)
    data = os.urandom(MIB)
    for number in range(1, 6):
        client.write(number * MIB, data)
        disk.resize(SIZE + number * MIB)
        assert client.read(number * MIB, MIB) == data
        assert client.read(SIZE, MIB) == bytes(MIB)
    until(lambda: heard(client, cookie).size == SIZE + 5 * MIB, what="the last size to be told")


@modes
def test_changes_come_together_at_most_ten_a_second_and_the_last_is_told(
    grow_server: NativeServer, client: RawClient, disk: LedgerDisk
) -> None:
    begun = time.monotonic()
    cookie, first = subscribe(client)
    last = SIZE + 25 * 4096
    with grow_server.connect(disk.export) as other:
        for size in range(SIZE + 4096, last + 1, 4096):
            assert other.call(RESIZE, size).error == 0
    told = [first]
    while told[-1].size != last:
        told.append(heard(client, cookie))
    taken = time.monotonic() - begun
    assert len(told) <= 1 + taken * 10
    assert [size.generation for size in told] == sorted({size.generation for size in told})
    assert [size.size for size in told] == sorted({size.size for size in told})


def test_a_subscriber_that_reads_nothing_holds_up_nobody(
    all_server: NativeServer, grow_server: NativeServer, disk: LedgerDisk
) -> None:
    with all_server.connect(disk.export) as silent, grow_server.connect(disk.export) as other:
        cookie = silent.start(RESIZE, 0, 0, NOTIFY)
        for _ in range(40):
            silent.start(READ, 0, MIB)
        for number in range(1, 30):
            assert other.call(RESIZE, SIZE + number * 4096).error == 0
        for _ in range(40):
            assert silent.next_done()
        until(lambda: heard(silent, cookie).size == SIZE + 29 * 4096, what="the last size to be told")


@modes
def test_shutdown_ends_a_subscription(tmp_path: Path, mode: str) -> None:
    with (
        NativeServer("--file", make_image(tmp_path), directory=tmp_path) as server,
        server.connect(mode=mode) as client,
    ):
        cookie, _ = subscribe(client)
        server.process.send_signal(signal.SIGTERM)
        last = client.chunk(cookie)
        assert (last.kind, last.done) == (NONE, True)
        client.expect_end()
        assert server.wait() == 0


def test_a_subscriber_outlives_a_size_that_cannot_be_found_out(tmp_path: Path) -> None:
    image = make_image(tmp_path)
    away = tmp_path / "away.img"
    with NativeServer("--file", image, directory=tmp_path) as server, server.connect() as client:
        cookie, first = subscribe(client)
        image.rename(away)
        since = time.monotonic()
        while time.monotonic() < since + 3:  # time for the server to look, in vain
            assert client.call(RESIZE, 0, 0, QUERY).error == EIO
            assert client.read(0, 3) == b"\1\2\3"
        os.truncate(away, SIZE + 100)
        away.rename(image)
        told = heard(client, cookie)
        assert told.size == SIZE + 100 and told.generation > first.generation


def test_a_subscription_to_a_size_that_cannot_be_found_out_is_refused(tmp_path: Path) -> None:
    image = make_image(tmp_path)
    away = tmp_path / "away.img"
    with NativeServer("--file", image, directory=tmp_path) as server, server.connect() as client:
        image.rename(away)
        assert client.call(RESIZE, 0, 0, NOTIFY).error == EIO
        away.rename(image)
        assert subscribe(client)[1].size == SIZE


def test_a_change_that_nobody_told_the_server_of_is_found_out(tmp_path: Path) -> None:
    image = make_image(tmp_path)
    with NativeServer("--file", image, directory=tmp_path) as server, server.connect() as client:
        cookie, first = subscribe(client)
        os.truncate(image, SIZE + 100)
        told = heard(client, cookie)
        assert (told.size, told.cause) == (SIZE + 100, BY_ANOTHER) and told.generation > first.generation
