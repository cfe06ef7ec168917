"""Clients that mean harm, or are broken: the right error, or the end of the connection; never more memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdresize.errors import NbdresizeError
from nbdresize.protocol.export_info import ExportInfo
from nbdresize.protocol.server_events import HandshakeSettings, Tls
from nbdresize.protocol.server_handshake import State
from nbdresize.protocol.violation import ProtocolViolation
from tests.protocol.feeding import FIXED, Server, raw, ways

DISK = {"d": ExportInfo(1 << 20, 0x0D)}
MAGIC = "0003e889045565a9"
STRUCTURED = raw("'IHAVEOPT' 00000008 00000000")
EXTENDED = raw("'IHAVEOPT' 0000000b 00000000")
STARTTLS = raw("'IHAVEOPT' 00000005 00000000")
ACK_STRUCTURED = raw(f"{MAGIC} 00000008 00000001 00000000")
NAME_4096 = b"n" * 4096


def ends(*messages: bytes, settings: HandshakeSettings | None = None) -> None:
    """However these messages arrive, the connection is dropped."""
    for chunks in ways(messages) if sum(map(len, messages)) < 300 else [list(messages), [b"".join(messages)]]:
        server = Server(settings, DISK)
        with pytest.raises(ProtocolViolation):
            server.feed_all(chunks)
        assert server.handshake.state is State.ENDED
        with pytest.raises(RuntimeError):
            server.feed(b"more")


def invalid(option: int, data: bytes, number: int = 3) -> None:
    """However this option arrives, it gets that error, and the next option is heard."""
    message = b"IHAVEOPT" + option.to_bytes(4, "big") + len(data).to_bytes(4, "big") + data
    all_ways = ways([FIXED, STRUCTURED, message, STRUCTURED])
    for chunks in all_ways if len(data) < 300 else [[FIXED, STRUCTURED, message, STRUCTURED]]:
        server = Server(exports=DISK).feed_all(chunks)
        refused = bytes.fromhex(MAGIC) + option.to_bytes(4, "big") + (0x80000000 + number).to_bytes(4, "big")
        assert server.sent.startswith(ACK_STRUCTURED + refused), (option, data)
        assert server.sent.endswith(ACK_STRUCTURED)


@pytest.mark.parametrize("flags", ["00000004", "00000007", "80000001", "ffffffff", "01000000"])
def test_unknown_client_flags_end_the_connection(flags: str) -> None:
    ends(raw(flags))


def test_a_wrong_magic_ends_the_connection() -> None:
    ends(FIXED, raw("'IHAVEOPS' 00000008 00000000"))
    ends(FIXED, STRUCTURED, raw("'GET / HTTP/1.1' 0d0a0d0a"))


def test_options_without_fixed_newstyle_end_the_connection() -> None:
    ends(bytes(4), STRUCTURED)
    ends(raw("00000002"), raw("'IHAVEOPT' 00000003 00000000"))


@pytest.mark.parametrize("option", [6, 7])
@pytest.mark.parametrize(
    "data",
    [
        "",
        "000000",
        "00000001 'd' 00",
        "00000002 'd' 0000",
        "ffffffff 'd' 0000",
        "00000001 'd' 0001",
        "00000001 'd' 0001 00",
        "00000001 'd' ffff 0000",
        "00000001 'd' 0000 00",
        "00000001 'd' 0001 0000 0001",
        "00000001 00 0000",
        "00000001 ff 0000",
        "00000002 c3 'd' 0000",
    ],
)
def test_a_malformed_info_or_go_is_invalid(option: int, data: str) -> None:
    invalid(option, raw(data))


@pytest.mark.parametrize("option", [9, 10])
@pytest.mark.parametrize(
    "data",
    [
        "",
        "00000001 'd'",
        "00000001 'd' 000000",
        "00000001 'd' 00000001",
        "00000001 'd' ffffffff",
        "00000001 'd' 00000001 00000010 'base:allocation'",
        "00000001 'd' 00000001 ffffffff 'base:allocation'",
        "00000001 'd' 00000001 0000000e 'base:allocation'",
        "00000001 'd' 00000000 00",
        "00000001 'd' 00000001 00000001 00",
        "00000001 'd' 00000001 00000001 ff",
        "fffffffe 'd' 00000000",
    ],
)
def test_a_malformed_request_for_contexts_is_invalid(option: int, data: str) -> None:
    invalid(option, raw(data))


@pytest.mark.parametrize("option", [3, 8, 11])
def test_data_where_none_belongs_is_invalid(option: int) -> None:
    invalid(option, b"\0")


def test_names_of_4096_bytes_are_looked_up_and_longer_ones_are_invalid() -> None:
    server = Server(exports=DISK)
    server.feed_all([FIXED, raw("'IHAVEOPT' 00000007 00001006 00001000") + NAME_4096 + bytes(2)])
    assert server.sent.startswith(raw(f"{MAGIC} 00000007 80000006"))
    invalid(7, raw("00001001") + NAME_4096 + b"n" + bytes(2))
    invalid(10, raw("00001001") + NAME_4096 + b"n" + bytes(4))
    invalid(10, raw("00000001 'd' 00000001 00001001") + NAME_4096 + b"n")


def test_export_name_ends_the_connection_where_it_would_need_an_error_reply() -> None:
    ends(FIXED, raw("'IHAVEOPT' 00000001 00000003 61 00 62"))
    ends(FIXED, raw("'IHAVEOPT' 00000001 00000001 ff"))
    ends(FIXED, raw("'IHAVEOPT' 00000001 00001001") + NAME_4096 + b"n")
    ends(FIXED, EXTENDED, raw("'IHAVEOPT' 00000001 00000001 'd'"))
    ends(FIXED, raw("'IHAVEOPT' 00000001 00000001 'd'"), settings=HandshakeSettings(tls=Tls.REQUIRED))


def test_the_name_of_4097_bytes_is_refused_before_it_has_arrived() -> None:
    with pytest.raises(ProtocolViolation):
        Server(exports=DISK).feed_all([FIXED, raw("'IHAVEOPT' 00000001 00001001")])


@pytest.mark.parametrize("length", [65537, 1 << 20])
def test_too_much_data_is_skipped_and_too_big(length: int) -> None:
    header = raw("'IHAVEOPT' 00000063") + length.to_bytes(4, "big")
    data = bytes(length)
    for chunks in (
        [FIXED, header + data + STRUCTURED],
        [FIXED, header, data, STRUCTURED],
        [FIXED + header + data[:5], data[5:-1], data[-1:] + STRUCTURED],
        [FIXED, header, *[data[at : at + 1000] for at in range(0, length, 1000)], STRUCTURED],
    ):
        server = Server(exports=DISK).feed_all(chunks)
        assert server.sent.startswith(raw(f"{MAGIC} 00000063 80000009"))
        assert server.sent.endswith(ACK_STRUCTURED)


def test_the_largest_data_that_is_taken_is_looked_at() -> None:
    server = Server(exports=DISK).feed_all([FIXED, raw("'IHAVEOPT' 00000063 00010000") + bytes(65536)])
    assert server.sent.startswith(raw(f"{MAGIC} 00000063 80000001"))


@pytest.mark.parametrize("length", ["00100001", "80000000", "ffffffff"])
def test_data_that_nobody_could_mean_ends_the_connection_before_it_has_arrived(length: str) -> None:
    ends(FIXED, raw("'IHAVEOPT' 00000063") + raw(length))


def test_abort_with_too_much_data_is_acknowledged_nevertheless() -> None:
    server = Server(exports=DISK).feed_all([FIXED, raw("'IHAVEOPT' 00000002 00010001") + bytes(65537)])
    assert server.sent == raw(f"{MAGIC} 00000002 00000001 00000000")
    assert server.handshake.state is State.ENDED


def test_the_65th_option_ends_the_connection() -> None:
    server = Server(exports=DISK).feed_all([FIXED, *[STRUCTURED] * 4096])
    assert server.sent == ACK_STRUCTURED * 4096
    with pytest.raises(ProtocolViolation):
        server.feed(STRUCTURED)


def test_options_before_tls_count_too() -> None:
    server = Server(HandshakeSettings(tls=Tls.OPTIONAL), DISK)
    server.feed_all([FIXED, *[STRUCTURED] * 4095, STARTTLS])
    with pytest.raises(ProtocolViolation):
        server.feed(STRUCTURED)


def test_plaintext_attached_to_starttls_ends_the_connection() -> None:
    for attached in (STRUCTURED, b"I", b"\x16\x03\x01"):
        server = Server(HandshakeSettings(tls=Tls.OPTIONAL), DISK)
        with pytest.raises(ProtocolViolation):
            server.feed_all([FIXED, STARTTLS + attached])
        assert server.sent == b""


def test_nothing_in_plaintext_is_taken_while_tls_is_set_up() -> None:
    server = Server(HandshakeSettings(tls=Tls.OPTIONAL), DISK)
    events = server.handshake.feed(FIXED + STARTTLS)
    next(events)
    with pytest.raises(RuntimeError):
        server.handshake.feed(STRUCTURED)


@given(st.binary(max_size=400))
def test_whatever_a_client_sends_is_answered_or_ends_the_connection(noise: bytes) -> None:
    server = Server(exports=DISK)
    try:
        server.feed_all([FIXED, noise])
    except NbdresizeError as error:
        assert isinstance(error, ProtocolViolation)


@given(st.integers(0, 12), st.binary(max_size=100), st.booleans())
def test_whatever_an_option_holds_is_answered_or_ends_the_connection(option: int, data: bytes, first: bool) -> None:
    server = Server(HandshakeSettings(tls=Tls.OPTIONAL), DISK)
    message = b"IHAVEOPT" + option.to_bytes(4, "big") + len(data).to_bytes(4, "big") + data
    try:
        server.feed_all([FIXED, *([STRUCTURED] if first else []), message])
    except ProtocolViolation:
        assert server.handshake.state is State.ENDED
    else:
        assert server.sent or server.handshake.state is State.ENDED
