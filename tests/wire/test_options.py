"""What each option of the handshake is answered with."""

import struct

import pytest

from tests.wire.conftest import MAX_SIZE, SIZE, LedgerDisk
from tests.wire.layout import (
    ABORT,
    ACK,
    CAN_MULTI_CONN,
    DISC,
    ERR_EXT_HEADER_REQD,
    ERR_INVALID,
    ERR_POLICY,
    ERR_UNKNOWN,
    ERR_UNSUP,
    EXPORT_NAME,
    EXTENDED,
    EXTENDED_HEADERS,
    GO,
    HAS_FLAGS,
    INFO,
    INFO_BLOCK_SIZE,
    INFO_DESCRIPTION,
    INFO_EXPORT,
    INFO_NAME,
    INFO_RESIZE,
    LIST,
    LIST_META_CONTEXT,
    META_CONTEXT,
    PEEK_EXPORT,
    READ_ONLY,
    SEND_CACHE,
    SEND_DF,
    SEND_FAST_ZERO,
    SEND_FLUSH,
    SEND_FUA,
    SEND_RESIZE,
    SEND_TRIM,
    SEND_WRITE_ZEROES,
    SERVER,
    SET_META_CONTEXT,
    SIMPLE,
    STARTTLS,
    STRUCTURED,
    STRUCTURED_REPLY,
    context_query,
    export_query,
)
from tests.wire.peer import NativeServer

FLAGS = (
    HAS_FLAGS
    | SEND_FLUSH
    | SEND_FUA
    | SEND_TRIM
    | SEND_WRITE_ZEROES
    | CAN_MULTI_CONN
    | SEND_CACHE
    | SEND_FAST_ZERO
    | SEND_RESIZE
)
"""Those of a disk that clients may write to and grow, without structured replies."""

ALLOCATION = b"base:allocation"


@pytest.mark.parametrize("client_flags", [1, 3])
def test_greeting_is_newstyle_and_either_answer_will_do(server: NativeServer, client_flags: int) -> None:
    with server.client() as client:
        client.greet(client_flags)
        assert client.ask(ABORT) == [(ACK, b"")]
        client.expect_end()


@pytest.mark.parametrize("zeroes", [False, True])
def test_export_name_tells_size_and_flags(server: NativeServer, zeroes: bool) -> None:
    with server.client() as client:
        client.greet(1 if zeroes else 3)
        client.send(b"IHAVEOPT" + struct.pack(">II", EXPORT_NAME, 0))
        assert client.receive(10) == struct.pack(">QH", SIZE, FLAGS)
        if zeroes:
            assert client.receive(124) == bytes(124)
        assert client.read(0, 3) == b"\1\2\3"


def test_export_name_works_without_fixed_newstyle(server: NativeServer) -> None:
    with server.client() as client:
        client.greet(0)
        client.send(b"IHAVEOPT" + struct.pack(">II", EXPORT_NAME, 0))
        assert client.receive(134) == struct.pack(">QH", SIZE, FLAGS) + bytes(124)
        client.send(struct.pack(">IHHQQI", 0x25609513, 0, DISC, 0, 0, 0))
        client.expect_end()


def test_export_name_of_nothing_ends_the_connection(server: NativeServer) -> None:
    with server.client() as client:
        client.greet()
        client.send(b"IHAVEOPT" + struct.pack(">II", EXPORT_NAME, 4) + b"none")
        client.expect_end()


def test_list_names_a_file_as_the_default_export(server: NativeServer) -> None:
    with server.client() as client:
        client.greet()
        (kind, entry), last = client.ask(LIST)
        assert (kind, last) == (SERVER, (ACK, b""))
        assert entry[:4] == bytes(4)
        assert entry[4:].decode().startswith("disk.img")


def test_list_names_the_disks_of_a_ledger(grow_server: NativeServer, disk: LedgerDisk) -> None:
    with grow_server.client() as client:
        client.greet()
        *entries, last = client.ask(LIST)
        assert last == (ACK, b"")
        names = [entry[4 : 4 + int.from_bytes(entry[:4], "big")] for kind, entry in entries if kind == SERVER]
        assert disk.export in names and len(names) == len(entries)


def test_info_tells_what_it_is_asked_for_and_nothing_else(server: NativeServer) -> None:
    with server.client() as client:
        client.greet()
        assert client.info(b"") == {INFO_EXPORT: struct.pack(">QH", SIZE, FLAGS)}
        told = client.info(b"disk.img", [INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE, INFO_RESIZE, 77, INFO_NAME])
        assert set(told) == {INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE, INFO_RESIZE}
        assert told[INFO_NAME] == b"disk.img"
        assert told[INFO_DESCRIPTION] == b"disk.img, 64 MiB"
        assert told[INFO_BLOCK_SIZE] == struct.pack(">III", 1, 4096, 32 << 20)
        assert told[INFO_RESIZE] == struct.pack(">HIQQ", 0b1000, 1, SIZE, MAX_SIZE)


def test_go_tells_as_info_does_and_ends_the_handshake(server: NativeServer) -> None:
    with server.client() as client:
        client.greet()
        told = client.info(b"", [INFO_NAME, INFO_BLOCK_SIZE, INFO_RESIZE])
        assert client.info(b"", [INFO_NAME, INFO_BLOCK_SIZE, INFO_RESIZE], option=GO) == told
        assert client.read(0, 3) == b"\1\2\3"


@pytest.mark.parametrize("mode", [STRUCTURED, EXTENDED])
def test_replies_in_chunks_bring_their_flags_and_features(server: NativeServer, mode: str) -> None:
    with server.client() as client:
        client.greet()
        client.agree(mode)
        told = client.info(b"", [INFO_RESIZE])
        assert told[INFO_EXPORT] == struct.pack(">QH", SIZE, FLAGS | SEND_DF)
        assert told[INFO_RESIZE] == struct.pack(">HIQQ", 0b1011, 1, SIZE, MAX_SIZE)


def test_a_ledger_tells_granularity_budget_and_that_it_shrinks(all_server: NativeServer, disk: LedgerDisk) -> None:
    with all_server.connect(disk.export, infos=[INFO_RESIZE]) as client:
        assert client.infos[INFO_RESIZE] == struct.pack(">HIQQ", 0b1111, 4096, 4096, MAX_SIZE)


def test_a_read_only_export_says_so_and_offers_no_extend(read_only_server: NativeServer) -> None:
    with read_only_server.connect(infos=[INFO_RESIZE]) as client:
        assert client.flags & READ_ONLY
        if client.flags & SEND_RESIZE:
            features, granularity, minimum, maximum = struct.unpack(">HIQQ", client.infos[INFO_RESIZE])
            assert (features, granularity, minimum) == (0b0011, 1, SIZE)
            assert maximum >= SIZE


def test_where_clients_may_not_resize_nothing_says_that_they_could(off_server: NativeServer) -> None:
    with off_server.connect(infos=[INFO_RESIZE]) as client:
        assert not client.flags & SEND_RESIZE
        assert INFO_RESIZE not in client.infos


@pytest.mark.parametrize("option", [INFO, GO])
def test_there_is_no_such_export(server: NativeServer, option: int) -> None:
    with server.client() as client:
        client.greet()
        for name in (b"none", b"/etc/passwd", b"../disk.img", b"a" * 4096, "Ö☃".encode() * 500, b"none@size"):
            assert client.error_of(option, export_query(name)) == ERR_UNKNOWN
        assert client.info(b"", option=GO)


def test_contexts_are_listed_and_selected(server: NativeServer) -> None:
    with server.client() as client:
        client.greet()
        client.agree(STRUCTURED)
        listed = [(META_CONTEXT, bytes(4) + ALLOCATION), (ACK, b"")]
        for queries in ([], [b"base:"], [ALLOCATION], [b"qemu:", ALLOCATION, ALLOCATION]):
            assert client.ask(LIST_META_CONTEXT, context_query(b"", queries)) == listed
        assert client.ask(LIST_META_CONTEXT, context_query(b"", [b"qemu:dirty-bitmap:b"])) == [(ACK, b"")]
        (kind, context), last = client.ask(SET_META_CONTEXT, context_query(b"", [b"x:y", ALLOCATION]))
        assert (kind, context[4:], last) == (META_CONTEXT, ALLOCATION, (ACK, b""))
        for queries in ([], [b"base:"], [b"base:allocatio"], [b""]):
            assert client.ask(SET_META_CONTEXT, context_query(b"", queries)) == [(ACK, b"")]


@pytest.mark.parametrize("option", [LIST_META_CONTEXT, SET_META_CONTEXT])
def test_contexts_need_structured_replies_and_an_export(server: NativeServer, option: int) -> None:
    with server.client() as client:
        client.greet()
        assert client.error_of(option, context_query(b"", [ALLOCATION])) == ERR_INVALID
        client.agree(STRUCTURED)
        assert client.error_of(option, context_query(b"none", [ALLOCATION])) == ERR_UNKNOWN


def test_extended_headers_go_beyond_structured_replies_and_not_back(server: NativeServer) -> None:
    with server.client() as client:
        client.greet()
        assert client.ask(STRUCTURED_REPLY) == [(ACK, b"")]
        assert client.ask(STRUCTURED_REPLY) == [(ACK, b"")]
        client.agree(EXTENDED)
        assert client.error_of(STRUCTURED_REPLY) == ERR_EXT_HEADER_REQD
        assert client.ask(EXTENDED_HEADERS) == [(ACK, b"")]
        client.info(b"", option=GO)
        assert client.read(0, 3) == b"\1\2\3"


def test_export_name_after_extended_headers_ends_the_connection(server: NativeServer) -> None:
    with server.client() as client:
        client.greet()
        client.agree(EXTENDED)
        client.send(b"IHAVEOPT" + struct.pack(">II", EXPORT_NAME, 0))
        client.expect_end()


@pytest.mark.parametrize("option", [LIST, STARTTLS, STRUCTURED_REPLY, EXTENDED_HEADERS])
def test_options_without_data_refuse_some(server: NativeServer, option: int) -> None:
    with server.client() as client:
        client.greet()
        assert client.error_of(option, b"\0") == ERR_INVALID
        client.info(b"", option=GO)
        assert client.mode == SIMPLE and client.read(0, 3) == b"\1\2\3"


def test_abort_is_acknowledged_whatever_comes_with_it(server: NativeServer) -> None:
    with server.client() as client:
        client.greet()
        assert client.ask(ABORT, b"goodbye") == [(ACK, b"")]
        client.expect_end()


@pytest.mark.parametrize("option", [0, PEEK_EXPORT, 12, 77, 2**31, 2**32 - 1])
def test_unknown_options_are_refused_and_the_handshake_goes_on(server: NativeServer, option: int) -> None:
    with server.client() as client:
        client.greet()
        assert client.error_of(option) == ERR_UNSUP
        assert client.error_of(option, b"some data" * 100) == ERR_UNSUP
        assert client.info(b"")


def test_tls_is_refused_where_there_is_none(server: NativeServer) -> None:
    with server.client() as client:
        client.greet()
        assert client.error_of(STARTTLS) == ERR_POLICY
        assert client.info(b"")


def test_the_size_export_is_a_small_device(server: NativeServer) -> None:
    with server.connect(b"@size", infos=[INFO_RESIZE]) as client:
        assert client.size == 4096
        assert not client.flags & SEND_RESIZE and INFO_RESIZE not in client.infos
        magic, size, _, minimum, maximum = struct.unpack_from(">8sQQQQ", client.read(0, 64))
        assert (magic, size, minimum, maximum) == (b"NBDRESZ1", SIZE, SIZE, MAX_SIZE)


def test_the_largest_number_of_infos_is_looked_at(server: NativeServer) -> None:
    with server.client() as client:
        client.greet()
        many = [INFO_BLOCK_SIZE] * 32000 + [0xFFFF]
        assert set(client.info(b"", many)) == {INFO_EXPORT, INFO_BLOCK_SIZE}
