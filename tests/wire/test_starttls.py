"""TLS in the handshake: what comes before it is forgotten, what comes with it ends the connection."""

import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers import run
from tests.wire.conftest import checked, file_server
from tests.wire.layout import (
    ABORT,
    ACK,
    BLOCK_STATUS,
    EINVAL,
    ERR_INVALID,
    ERR_TLS_REQD,
    EXPORT_NAME,
    EXTENDED,
    EXTENDED_HEADERS,
    GO,
    INFO,
    LIST,
    LIST_META_CONTEXT,
    MIB,
    SET_META_CONTEXT,
    SIMPLE,
    STARTTLS,
    STRUCTURED,
    STRUCTURED_REPLY,
    context_query,
    export_query,
    option,
)
from tests.wire.peer import SECONDS, NativeServer, RawClient

pytestmark = pytest.mark.slow

ALLOCATION = context_query(b"", [b"base:allocation"])


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a server's certificate, which is its own authority."""
    directory = tmp_path_factory.mktemp("tls")
    key, template, authority = (directory / name for name in ("server-key.pem", "template", "ca-cert.pem"))
    template.write_text("cn = localhost\ndns_name = localhost\nca\ncert_signing_key\nexpiration_days = 2\n")
    run("certtool", "--generate-privkey", "--key-type", "ecdsa", "--outfile", key)
    run("certtool", "--generate-self-signed", "--load-privkey", key, "--template", template, "--outfile", authority)
    (directory / "server-cert.pem").write_bytes(authority.read_bytes())
    return directory


def tls_server(paths: pytest.TempPathFactory, certificates: Path, mode: str) -> Iterator[NativeServer]:
    yield from file_server(paths, "--tls", certificates, "--tls-mode", mode, "--no-tls-verify-peer")


@pytest.fixture(scope="module")
def optional_worker(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[NativeServer]:
    yield from tls_server(tmp_path_factory, certificates, "optional")


@pytest.fixture(scope="module")
def forced_worker(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[NativeServer]:
    yield from tls_server(tmp_path_factory, certificates, "require")


@pytest.fixture
def optional(optional_worker: NativeServer) -> Iterator[NativeServer]:
    """Serves with TLS and without."""
    yield from checked(optional_worker)


@pytest.fixture
def forced(forced_worker: NativeServer) -> Iterator[NativeServer]:
    """Serves with TLS only."""
    yield from checked(forced_worker)


def context() -> ssl.SSLContext:
    """A client that does not ask who the server is."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    return made


def secure(client: RawClient) -> None:
    """Ask for TLS, and set it up."""
    assert client.ask(STARTTLS) == [(ACK, b"")]
    client.sock = context().wrap_socket(client.sock)
    client.mode = SIMPLE


def hello() -> bytes:
    """The first bytes of a TLS client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    engine = context().wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        engine.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("mode", [SIMPLE, STRUCTURED, EXTENDED])
def test_the_export_is_served_inside(forced: NativeServer, mode: str) -> None:
    with forced.client() as client:
        client.greet()
        secure(client)
        client.agree(mode)
        client.info(b"", option=GO)
        for length in (1, 4096, 3 * MIB):
            data = bytes([length % 251]) * length
            client.write(4 * MIB, data)
            assert client.read(4 * MIB, length) == data


@pytest.mark.parametrize("mode", [STRUCTURED, EXTENDED])
def test_what_was_agreed_on_before_is_forgotten(optional: NativeServer, mode: str) -> None:
    with optional.client() as client:
        client.greet()
        client.agree(mode)
        assert client.ask(SET_META_CONTEXT, ALLOCATION)[-1] == (ACK, b"")
        client.info(b"")
        secure(client)
        assert client.error_of(SET_META_CONTEXT, ALLOCATION) == ERR_INVALID
        client.info(b"", option=GO)
        assert client.read(0, 3) == b"\1\2\3"
        assert client.call(BLOCK_STATUS, 0, 4096).error == EINVAL


def test_contexts_from_before_are_forgotten_even_where_chunks_are_agreed_on_again(optional: NativeServer) -> None:
    with optional.client() as client:
        client.greet()
        client.agree(STRUCTURED)
        assert client.ask(SET_META_CONTEXT, ALLOCATION)[-1] == (ACK, b"")
        secure(client)
        client.agree(STRUCTURED)
        client.info(b"", option=GO)
        assert client.call(BLOCK_STATUS, 0, 4096).error == EINVAL


def test_a_second_starttls_is_invalid(forced: NativeServer) -> None:
    with forced.client() as client:
        client.greet()
        secure(client)
        for _ in range(3):
            assert client.error_of(STARTTLS) == ERR_INVALID
        client.info(b"", option=GO)
        assert client.read(0, 3) == b"\1\2\3"


def test_options_before_and_inside_are_counted_together(optional: NativeServer) -> None:
    with optional.client() as client:
        client.greet()
        client.send(option(STRUCTURED_REPLY) * 2000)
        for _ in range(2000):
            client.option_replies(STRUCTURED_REPLY)
        secure(client)
        client.send(option(STRUCTURED_REPLY) * 2095)
        for _ in range(2095):
            client.option_replies(STRUCTURED_REPLY)
        client.send(option(LIST))
        client.expect_end()


def test_without_tls_nothing_is_told(forced: NativeServer) -> None:
    with forced.client() as client:
        client.greet()
        for number, data in (
            (LIST, b""),
            (STRUCTURED_REPLY, b""),
            (EXTENDED_HEADERS, b""),
            (LIST_META_CONTEXT, ALLOCATION),
            (SET_META_CONTEXT, ALLOCATION),
            (INFO, export_query(b"")),
            (INFO, export_query(b"none")),
            (GO, export_query(b"")),
            (GO, b"nonsense"),
            (77, b""),
            (LIST, bytes(70000)),
        ):
            assert client.error_of(number, data) == ERR_TLS_REQD
        assert client.ask(ABORT) == [(ACK, b"")]
        client.expect_end()


def test_export_name_without_tls_ends_the_connection(forced: NativeServer) -> None:
    with forced.client() as client:
        client.greet()
        client.send(option(EXPORT_NAME))
        client.expect_end()


def test_tls_may_be_left_out_where_it_is_optional(optional: NativeServer) -> None:
    with optional.connect() as client:
        assert client.read(0, 3) == b"\1\2\3"


def test_starttls_with_data_is_invalid(optional: NativeServer) -> None:
    with optional.client() as client:
        client.greet()
        assert client.error_of(STARTTLS, b"now") == ERR_INVALID
        secure(client)
        client.info(b"", option=GO)


def test_what_comes_with_starttls_is_never_taken_for_what_comes_inside(optional: NativeServer) -> None:
    for injected in (option(STRUCTURED_REPLY), option(GO, export_query(b"")), b"I", hello()):
        with optional.client() as client:
            client.greet()
            client.send(option(STARTTLS) + injected)
            client.expect_end()


def test_no_tls_after_starttls_ends_the_connection(optional: NativeServer) -> None:
    for nonsense in (option(LIST), bytes(64), b"\x16\x03\x01\xff\xff" + bytes(1000), hello()[:50] + bytes(500)):
        with optional.client() as client:
            client.greet()
            assert client.ask(STARTTLS) == [(ACK, b"")]
            client.send(nonsense)
            client.finish_sending()
            client.receive_rest()


def test_a_tls_client_may_leave_anywhere(optional: NativeServer) -> None:
    said = hello()
    for cut in range(0, len(said), 7):
        with optional.client() as client:
            client.greet()
            assert client.ask(STARTTLS) == [(ACK, b"")]
            client.send(said[:cut])


def test_a_tls_client_may_say_hello_byte_by_byte(optional: NativeServer) -> None:
    with optional.client() as client:
        client.greet()
        assert client.ask(STARTTLS) == [(ACK, b"")]
        client.send_slowly(hello())
        assert client.receive(3) == b"\x16\x03\x03"


def test_plain_bytes_inside_end_the_connection(optional: NativeServer) -> None:
    with optional.client() as client:
        client.greet()
        secure(client)
        client.info(b"")
        client.sock = socket.socket(fileno=client.sock.detach())
        client.sock.settimeout(SECONDS)
        client.send(option(LIST))
        client.receive_rest()


def test_a_gone_tls_client_leaves_the_next_one_alone(forced: NativeServer) -> None:
    for what in (b"", struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 0, 16 * MIB) * 3):
        with forced.client() as client:
            client.greet()
            secure(client)
            client.info(b"", option=GO)
            client.send(what)


def test_who_does_not_say_hello_in_time_is_hung_up_on(optional: NativeServer) -> None:
    with optional.client() as client, optional.client() as half:
        for each in (client, half):
            each.greet()
            assert each.ask(STARTTLS) == [(ACK, b"")]
        half.send(hello()[:20])
        client.receive_rest()
        half.receive_rest()
