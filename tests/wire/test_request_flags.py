"""Every flag on every command: those that do not belong there are refused, and never masked away."""

from collections.abc import Iterator

import pytest

from tests.wire.conftest import SIZE
from tests.wire.layout import (
    BLOCK_STATUS,
    CACHE,
    CANCEL,
    DF,
    DISC,
    EINVAL,
    EXTEND,
    EXTENDED,
    FAST_ZERO,
    FIT,
    FLUSH,
    FUA,
    MODES,
    NO_HOLE,
    NOTIFY,
    PAYLOAD_LEN,
    QUERY,
    READ,
    REQ_ONE,
    RESIZE,
    SHRINK,
    SIMPLE,
    TRIM,
    WRITE,
    WRITE_ZEROES,
)
from tests.wire.layout import SIZE as SIZE_FLAG
from tests.wire.peer import NativeServer, RawClient

AT = 20 << 20
"""Where these tests write, zeroes only."""

ALLOWED = {
    READ: FUA,
    WRITE: FUA | EXTEND,
    FLUSH: FUA,
    TRIM: FUA,
    CACHE: FUA,
    WRITE_ZEROES: FUA | NO_HOLE | EXTEND,
    BLOCK_STATUS: FUA | REQ_ONE,
    RESIZE: FUA | SHRINK | FIT,
    77: 0,
}
"""Those that may stand alone in each mode; FAST_ZERO may too, but whether it succeeds is the file system's affair."""

ALLOWED_WITH_CHUNKS = {READ: DF, RESIZE: SIZE_FLAG}

commands = pytest.mark.parametrize("command", ALLOWED)
modes = pytest.mark.parametrize("mode", MODES)


@pytest.fixture
def client(server: NativeServer, mode: str) -> Iterator[RawClient]:
    with server.connect(mode=mode) as client:
        yield client


def call(client: RawClient, command: int, flags: int) -> int:
    """The error of a request that is right but for its flags, perhaps."""
    if command == WRITE:
        return client.call(WRITE, AT, flags=flags & ~PAYLOAD_LEN, payload=bytes(512)).error
    if command == FLUSH:
        return client.call(FLUSH, 0, 0, flags).error
    if command == RESIZE:
        return client.call(RESIZE, SIZE, 0, flags).error
    return client.call(command, AT, 512, flags).error


def allowed(client: RawClient, command: int) -> int:
    return ALLOWED[command] | (0 if client.mode == SIMPLE else ALLOWED_WITH_CHUNKS.get(command, 0))


@modes
@commands
def test_each_flag_alone(client: RawClient, command: int) -> None:
    if (client.mode, command) == (SIMPLE, BLOCK_STATUS):
        return
    assert call(client, command, 0) == (EINVAL if command == 77 else 0)
    for bit in range(16):
        flag = 1 << bit
        if (command, flag) == (WRITE_ZEROES, FAST_ZERO) or (client.mode == EXTENDED and flag == PAYLOAD_LEN):
            continue
        if (command, flag) == (WRITE, PAYLOAD_LEN):
            assert client.call(WRITE, AT, flags=flag, payload=bytes(512)).error == EINVAL
            continue
        assert call(client, command, flag) == (0 if flag & allowed(client, command) else EINVAL), hex(flag)
    assert client.read(0, 3) == b"\1\2\3"


@modes
@commands
def test_one_flag_too_many(client: RawClient, command: int) -> None:
    for bit in range(16):
        flag = 1 << bit
        if flag & (allowed(client, command) | PAYLOAD_LEN | FAST_ZERO | SIZE_FLAG | QUERY | NOTIFY | CANCEL):
            continue
        assert call(client, command, FUA | flag) == EINVAL, hex(flag)
    assert call(client, command, 0xFFFF & ~PAYLOAD_LEN) == EINVAL
    assert client.read(0, 3) == b"\1\2\3"


@modes
def test_size_stands_on_a_write_beside_extend_only(client: RawClient) -> None:
    for command in (WRITE, WRITE_ZEROES):
        assert call(client, command, SIZE_FLAG) == EINVAL
        assert call(client, command, SIZE_FLAG | EXTEND) == (EINVAL if client.mode == SIMPLE else 0)


@modes
@commands
def test_where_clients_may_not_resize_there_are_no_flags_from_bit_6_on(
    off_server: NativeServer, mode: str, command: int
) -> None:
    with off_server.connect(mode=mode) as client:
        for bit in range(6, 16):
            assert call(client, command, 1 << bit) == EINVAL
            assert call(client, command, 1 << bit | EXTEND) == EINVAL
        if command == RESIZE:
            assert call(client, command, 0) == EINVAL
        assert client.read(0, 3) == b"\1\2\3"


@modes
def test_disc_means_it_whatever_its_flags(server: NativeServer, mode: str) -> None:
    for bit in range(16):
        if (mode, 1 << bit) == (EXTENDED, PAYLOAD_LEN):
            continue
        with server.connect(mode=mode) as client:
            client.start(DISC, 2**64 - 1, 2**32 - 1, 1 << bit)
            client.expect_end()


@pytest.mark.parametrize("mode", [EXTENDED])
@pytest.mark.parametrize("length", [0, 1, 28, 512, 100_000])
def test_payloads_of_commands_that_have_none_are_skipped(client: RawClient, length: int) -> None:
    for command in (READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, RESIZE, DISC, 77):
        cookie, header = client.packed(command, 0, length, PAYLOAD_LEN)
        client.send(header + bytes(length))
        assert client.reply(cookie).error == EINVAL
        assert client.read(0, 3) == b"\1\2\3"


@pytest.mark.parametrize("mode", [EXTENDED])
def test_a_write_that_says_that_it_has_no_payload_is_refused(client: RawClient) -> None:
    for length in (0, 512, 100_000, 2**32, 2**64 - 1):
        assert client.call(WRITE, AT, length).error == EINVAL
        assert client.read(0, 3) == b"\1\2\3"
