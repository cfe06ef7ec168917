"""Options cut into pieces, run together, ended early, and with lengths that lie."""

import struct

import pytest

from tests.wire.layout import (
    ABORT,
    ACK,
    DISC,
    ERR_INVALID,
    ERR_TOO_BIG,
    ERR_UNKNOWN,
    ERR_UNSUP,
    EXPORT_NAME,
    EXTENDED,
    EXTENDED_HEADERS,
    GO,
    INFO,
    INFO_BLOCK_SIZE,
    INFO_NAME,
    INFO_RESIZE,
    LIST,
    LIST_META_CONTEXT,
    SET_META_CONTEXT,
    SIMPLE,
    STARTTLS,
    STRUCTURED,
    STRUCTURED_REPLY,
    context_query,
    export_query,
    option,
    request,
)
from tests.wire.peer import NativeServer

CLIENT_FLAGS = struct.pack(">I", 3)
ALLOCATION = context_query(b"", [b"base:allocation"])
QUERY = export_query(b"", [INFO_NAME, INFO_BLOCK_SIZE, INFO_RESIZE])
LEAVE = option(ABORT)
CHUNKS = option(STRUCTURED_REPLY)
LONGEST = 65536
"""Bytes of data that an option may have; LARGEST_SKIPPED, what is taken off and refused rather than hung up on."""
LARGEST_SKIPPED = 1 << 20

CONVERSATIONS = {
    "EXPORT_NAME": option(EXPORT_NAME) + request(SIMPLE, DISC, 0, 0),
    "ABORT": LEAVE,
    "LIST": option(LIST) + LEAVE,
    "STARTTLS": option(STARTTLS) + LEAVE,
    "INFO": option(INFO, QUERY) + LEAVE,
    "GO": option(GO, QUERY) + request(SIMPLE, DISC, 0, 0),
    "GO with chunks": CHUNKS + option(GO, QUERY) + request(STRUCTURED, DISC, 0, 0),
    "GO with extended headers": option(EXTENDED_HEADERS) + option(GO, QUERY) + request(EXTENDED, DISC, 0, 0),
    "LIST_META_CONTEXT": CHUNKS + option(LIST_META_CONTEXT, ALLOCATION) + LEAVE,
    "SET_META_CONTEXT": CHUNKS + option(SET_META_CONTEXT, ALLOCATION) + LEAVE,
    "unknown": option(77, b"unknown") + LEAVE,
}
"""What a client sends after its flags, each option in turn, up to what makes the server close the connection."""

ALL_AT_ONCE = (
    option(SET_META_CONTEXT, ALLOCATION)
    + option(GO, QUERY)
    + request(STRUCTURED, 0, 0, 3, cookie=9)
    + request(STRUCTURED, DISC, 0, 0)
)

conversations = pytest.mark.parametrize("said", CONVERSATIONS.values(), ids=list(CONVERSATIONS))


def answers(server: NativeServer, said: bytes) -> bytes:
    """All that the server says to a client that says this, greeting included."""
    with server.client() as client:
        client.send(CLIENT_FLAGS + said)
        return client.receive_rest()


@conversations
def test_each_option_may_come_byte_by_byte(server: NativeServer, said: bytes) -> None:
    whole = answers(server, said)
    assert len(whole) > 18
    with server.client() as client:
        client.send_slowly(CLIENT_FLAGS + said)
        assert client.receive_rest() == whole


@conversations
def test_each_option_may_end_in_the_next_piece(server: NativeServer, said: bytes) -> None:
    whole = answers(server, said)
    for cut in range(1, len(said)):
        with server.client() as client:
            client.send(CLIENT_FLAGS + said[:cut])
            client.send(said[cut:])
            assert client.receive_rest() == whole


@conversations
def test_a_handshake_may_be_cut_anywhere(server: NativeServer, said: bytes) -> None:
    whole = answers(server, said)
    everything = CLIENT_FLAGS + said
    for cut in range(len(everything)):
        with server.client() as client:
            client.send(everything[:cut])
            client.finish_sending()
            assert whole.startswith(client.receive_rest())
        with server.client() as client:
            client.send(everything[:cut])


def test_options_may_all_come_at_once(server: NativeServer) -> None:
    with server.client() as client:
        client.send(CLIENT_FLAGS + option(LIST) + CHUNKS + option(INFO, QUERY) + option(77) + ALL_AT_ONCE)
        client.receive(18)
        assert client.option_replies(LIST)[-1] == (ACK, b"")
        assert client.option_replies(STRUCTURED_REPLY) == [(ACK, b"")]
        assert client.option_replies(INFO)[-1] == (ACK, b"")
        assert client.option_replies(77)[-1][0] == ERR_UNSUP
        assert client.option_replies(SET_META_CONTEXT)[-1] == (ACK, b"")
        assert client.option_replies(GO)[-1] == (ACK, b"")
        assert client.receive(20) == struct.pack(">IHHQI", 0x668E33EF, 1, 1, 9, 11)
        assert client.receive(11) == bytes(8) + b"\1\2\3"
        client.expect_end()


@pytest.mark.parametrize("flags", [1 << bit for bit in range(2, 32)] + [2**32 - 1])
def test_unknown_client_flags_end_the_connection(server: NativeServer, flags: int) -> None:
    with server.client() as client:
        client.greet(flags | 3)
        client.expect_end()


@pytest.mark.parametrize("number", [LIST, STRUCTURED_REPLY, GO, 77])
def test_without_fixed_newstyle_other_options_end_the_connection(server: NativeServer, number: int) -> None:
    with server.client() as client:
        client.greet(2)
        client.send(option(number))
        client.expect_end()


def test_a_wrong_magic_ends_the_connection(server: NativeServer) -> None:
    for bit in range(64):
        magic = (int.from_bytes(b"IHAVEOPT", "big") ^ 1 << bit).to_bytes(8, "big")
        with server.client() as client:
            client.greet()
            client.send(option(LIST, magic=magic))
            client.expect_end()
    for nonsense in (bytes(16), b"GET / HTTP/1.1\r\nHost: nbd\r\n\r\n", b"\xff" * 64):
        with server.client() as client:
            client.greet()
            client.send(nonsense)
            client.expect_end()


def shifted(field: int, data: bytes, size: str = ">I") -> list[bytes]:
    """`data` with the number at `field` made a lie, in every way that there is."""
    true = struct.unpack_from(size, data, field)[0]
    most = 256 ** struct.calcsize(size) - 1
    lies = {true - 1, true + 1, true + 2, true + 4, most // 2, most // 2 + 1, most - 1, most} - {-1, true}
    return [data[:field] + struct.pack(size, lie) + data[field + struct.calcsize(size) :] for lie in sorted(lies)]


INNER_LIES = [
    *((number, lie) for number in (INFO, GO) for lie in shifted(0, export_query(b"disk.img", [INFO_NAME]))),
    *((number, lie) for number in (INFO, GO) for lie in shifted(4, export_query(b"", [INFO_NAME] * 3), ">H")),
    *((number, lie) for number in (INFO, GO) for lie in (b"", b"\0", bytes(3), bytes(4), bytes(5), bytes(7))),
    *(
        (number, lie)
        for number in (LIST_META_CONTEXT, SET_META_CONTEXT)
        for field in (0, 4, 8)
        for lie in shifted(field, ALLOCATION)
    ),
    *((number, lie) for number in (LIST_META_CONTEXT, SET_META_CONTEXT) for lie in (b"", bytes(3), bytes(4), bytes(7))),
]


def test_lengths_inside_an_option_are_held_against_its_own(server: NativeServer) -> None:
    with server.client() as client:
        client.greet()
        client.agree(STRUCTURED)
        asked = 1
        for number, lie in INNER_LIES:
            assert client.error_of(number, lie) == ERR_INVALID, (number, lie)
            asked += 1
            if asked == 60:
                client.close()
                client = server.client()
                client.greet()
                client.agree(STRUCTURED)
                asked = 1
        client.info(b"", option=GO)


@pytest.mark.parametrize("number", [INFO, GO, LIST_META_CONTEXT, SET_META_CONTEXT])
def test_a_length_outside_that_is_too_long_takes_in_the_next_option(server: NativeServer, number: int) -> None:
    data = ALLOCATION if number in (LIST_META_CONTEXT, SET_META_CONTEXT) else QUERY
    with server.client() as client:
        client.greet()
        client.agree(STRUCTURED)
        client.send(option(number, data, length=len(data) + 16) + option(LIST))
        assert client.option_replies(number)[0][0] == ERR_INVALID
        assert client.ask(ABORT) == [(ACK, b"")]


@pytest.mark.parametrize("number", [INFO, GO, LIST_META_CONTEXT, SET_META_CONTEXT, 77])
def test_a_length_outside_that_is_too_short_ends_the_connection(server: NativeServer, number: int) -> None:
    data = ALLOCATION if number in (LIST_META_CONTEXT, SET_META_CONTEXT) else QUERY
    for length in range(len(data)):
        with server.client() as client:
            client.greet()
            client.agree(STRUCTURED)
            client.send(option(number, data, length=length) + option(LIST))
            [(error, _)] = client.option_replies(number)
            assert error == (ERR_UNSUP if number == 77 else ERR_INVALID)
            client.expect_end()


@pytest.mark.parametrize("number", [ABORT, LIST, INFO, GO, LIST_META_CONTEXT, SET_META_CONTEXT, EXPORT_NAME, 77])
@pytest.mark.parametrize("length", [LARGEST_SKIPPED + 1, 2**31, 2**32 - 1])
def test_a_length_that_nobody_means_ends_the_connection(server: NativeServer, number: int, length: int) -> None:
    with server.client() as client:
        client.greet()
        client.send(option(number, length=length))
        client.expect_end()


@pytest.mark.parametrize("number", [LIST, STARTTLS, INFO, GO, LIST_META_CONTEXT, SET_META_CONTEXT, 77])
@pytest.mark.parametrize("length", [LONGEST + 1, LARGEST_SKIPPED])
def test_data_that_is_too_long_is_skipped(server: NativeServer, number: int, length: int) -> None:
    with server.client() as client:
        client.greet()
        client.agree(STRUCTURED)
        client.send(option(number, bytes(length)) + option(STRUCTURED_REPLY))
        assert client.option_replies(number)[0][0] == ERR_TOO_BIG
        assert client.option_replies(STRUCTURED_REPLY) == [(ACK, b"")]
        client.info(b"", option=GO)


def test_data_that_is_just_not_too_long_is_looked_at(server: NativeServer) -> None:
    with server.client() as client:
        client.greet()
        client.agree(STRUCTURED)
        assert client.error_of(77, bytes(LONGEST)) == ERR_UNSUP
        assert client.error_of(GO, bytes(LONGEST)) == ERR_INVALID
        queries = [b"x:" + b"y" * 4094] * 15
        assert client.ask(SET_META_CONTEXT, context_query(b"", queries)) == [(ACK, b"")]


BAD_NAMES = {
    "4097 bytes": b"a" * 4097,
    "NUL": b"disk\0.img",
    "only NUL": b"\0",
    "no UTF-8": b"\xff\xfe",
    "an UTF-8 that ends early": b"disk\xe2\x98",
    "a surrogate": b"\xed\xa0\x80",
    "an overlong slash": b"web1\xc0\xafdisk0",
}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=list(BAD_NAMES))
def test_names_that_are_no_strings_are_invalid(server: NativeServer, name: bytes) -> None:
    with server.client() as client:
        client.greet()
        client.agree(STRUCTURED)
        for number in (INFO, GO):
            assert client.error_of(number, export_query(name)) == ERR_INVALID
        for number in (LIST_META_CONTEXT, SET_META_CONTEXT):
            assert client.error_of(number, context_query(name, [b"base:allocation"])) == ERR_INVALID
            assert client.error_of(number, context_query(b"", [name])) == ERR_INVALID
        client.send(option(EXPORT_NAME, name))
        client.expect_end()


def test_the_longest_name_is_looked_for(server: NativeServer) -> None:
    with server.client() as client:
        client.greet()
        assert client.error_of(GO, export_query(b"a" * 4096)) == ERR_UNKNOWN
        assert client.error_of(GO, export_query(b"a" * 4091 + b"@size")) == ERR_UNKNOWN
        client.send(option(EXPORT_NAME, b"a" * 4096))
        client.expect_end()
