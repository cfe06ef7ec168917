"""Negotiation from the server's side: what it answers to well-behaved clients, byte for byte."""

from collections.abc import Sequence

import pytest

from nbdresize.protocol.export_info import BlockSizes, ExportInfo, ResizeInfo
from nbdresize.protocol.negotiated import MetaContext, Mode
from nbdresize.protocol.option_replies import ExportEntry
from nbdresize.protocol.server_events import ExportWanted, HandshakeSettings, Tls
from nbdresize.protocol.server_handshake import TRANSITIONS, ServerHandshake, State, Step
from tests.protocol.feeding import FIXED, FIXED_NO_ZEROES, GREETING, Server, raw, ways

MIB = 1 << 20
PLAIN = ExportInfo(size=MIB, flags=0x0D, name="web1/disk0", description="Disk 0")
FULL = ExportInfo(
    size=MIB,
    flags=0x0D,
    name="web1/disk0",
    description="Disk 0",
    block_sizes=BlockSizes(1, 4096, 33554432),
    resize=ResizeInfo(features=0x0F, granularity=4096, minimum=MIB, maximum=16 * MIB),
)
DISK = {"d": PLAIN}

STRUCTURED = raw("'IHAVEOPT' 00000008 00000000")
EXTENDED = raw("'IHAVEOPT' 0000000b 00000000")
STARTTLS = raw("'IHAVEOPT' 00000005 00000000")
LIST = raw("'IHAVEOPT' 00000003 00000000")
ABORT = raw("'IHAVEOPT' 00000002 00000000")
GO = raw("'IHAVEOPT' 00000007 00000007 00000001 'd' 0000")
GO_OTHER = raw("'IHAVEOPT' 00000007 00000007 00000001 'e' 0000")
INFO = raw("'IHAVEOPT' 00000006 00000007 00000001 'd' 0000")
EXPORT_NAME = raw("'IHAVEOPT' 00000001 00000001 'd'")
SET_ALLOCATION = raw("'IHAVEOPT' 0000000a 0000001c 00000001 'd' 00000001 0000000f 'base:allocation'")

MAGIC = "0003e889045565a9"
ACK_STRUCTURED = raw(f"{MAGIC} 00000008 00000001 00000000")
ACK_EXTENDED = raw(f"{MAGIC} 0000000b 00000001 00000000")
ACK_STARTTLS = raw(f"{MAGIC} 00000005 00000001 00000000")
ACK_GO = raw(f"{MAGIC} 00000007 00000001 00000000")
GO_SIZE = raw(f"{MAGIC} 00000007 00000003 0000000c 0000 0000000000100000")
CONTEXT_1 = raw(f"{MAGIC} 0000000a 00000004 00000013 00000001 'base:allocation'")
ACK_SET = raw(f"{MAGIC} 0000000a 00000001 00000000")


def error(option: int, number: int) -> bytes:
    """The first 16 bytes of an error reply; its text is free."""
    return bytes.fromhex(MAGIC) + option.to_bytes(4, "big") + (0x80000000 + number).to_bytes(4, "big")


def converse(
    messages: Sequence[bytes],
    expected: bytes,
    exports: dict[str, ExportInfo] | None = None,
    settings: HandshakeSettings | None = None,
) -> Server:
    """Feed the messages in every way; the same is sent each time. The last server, for a closer look."""
    server = Server()
    for chunks in ways(messages):
        server = Server(settings, exports or DISK)
        server.feed_all(chunks)
        assert server.sent == expected, chunks
    return server


def test_the_greeting_offers_fixed_newstyle_and_no_zeroes() -> None:
    assert ServerHandshake(HandshakeSettings()).greeting() == raw("'NBDMAGIC' 'IHAVEOPT' 0003")


def test_export_name_is_answered_with_size_flags_and_zeroes() -> None:
    server = converse([FIXED, EXPORT_NAME], raw("0000000000100000 000d") + bytes(124))
    assert server.handshake.state is State.TRANSMISSION
    assert server.handshake.negotiated is not None
    assert server.handshake.negotiated.mode is Mode.SIMPLE


def test_export_name_is_answered_without_zeroes_where_both_want_none() -> None:
    converse([FIXED_NO_ZEROES, EXPORT_NAME], raw("0000000000100000 000d"))


def test_export_name_serves_a_client_without_fixed_newstyle() -> None:
    converse([bytes(4), EXPORT_NAME], raw("0000000000100000 000d") + bytes(124))


def test_an_unknown_export_name_ends_the_connection_without_a_word() -> None:
    for chunks in ways([FIXED, raw("'IHAVEOPT' 00000001 00000001 'x'")]):
        server = Server(exports=DISK).feed_all(chunks)
        assert server.sent == b""
        assert server.handshake.state is State.ENDED


def test_go_tells_only_the_size_to_a_client_that_asks_for_nothing() -> None:
    server = converse([FIXED, GO], GO_SIZE + raw("000d") + ACK_GO, {"d": PLAIN})
    assert server.handshake.negotiated is not None
    assert server.handshake.negotiated.name == "d"


def test_go_tells_name_description_block_sizes_and_resize_when_asked() -> None:
    go = raw("'IHAVEOPT' 00000007 0000000f 00000001 'd' 0004 0001 0002 0003 0004")
    expected = (
        GO_SIZE
        + raw("020d")
        + raw(f"{MAGIC} 00000007 00000003 0000000c 0001 'web1/disk0'")
        + raw(f"{MAGIC} 00000007 00000003 00000008 0002 'Disk 0'")
        + raw(f"{MAGIC} 00000007 00000003 0000000e 0003 00000001 00001000 02000000")
        + raw(f"{MAGIC} 00000007 00000003 00000018 0004 000c 00001000 0000000000100000 0000000001000000")
        + ACK_GO
    )
    converse([FIXED, go], expected, {"d": FULL})


def test_go_offers_df_size_replies_and_notifications_once_replies_are_structured() -> None:
    go = raw("'IHAVEOPT' 00000007 00000009 00000001 'd' 0001 0004")
    resize = raw(f"{MAGIC} 00000007 00000003 00000018 0004 000f 00001000 0000000000100000 0000000001000000")
    converse([FIXED, STRUCTURED, go], ACK_STRUCTURED + GO_SIZE + raw("028d") + resize + ACK_GO, {"d": FULL})


def test_resize_is_not_mentioned_where_it_is_not_offered() -> None:
    go = raw("'IHAVEOPT' 00000007 00000009 00000001 'd' 0001 0004")
    converse([FIXED, go], GO_SIZE + raw("000d") + ACK_GO, {"d": PLAIN})


def test_information_that_nobody_knows_is_passed_over() -> None:
    go = raw("'IHAVEOPT' 00000007 0000000b 00000001 'd' 0002 7777 0000")
    converse([FIXED, go], GO_SIZE + raw("000d") + ACK_GO)


def test_go_never_sends_zeroes() -> None:
    server = converse([FIXED, GO], GO_SIZE + raw("000d") + ACK_GO)
    assert server.handshake.trailing() == b""


def test_requests_attached_to_go_are_kept() -> None:
    for chunks in ([FIXED + GO + b"requests"], [FIXED, GO + b"requests"]):
        server = Server(exports=DISK).feed_all(chunks)
        assert server.handshake.trailing() == b"requests"
        assert server.handshake.trailing() == b""


def test_info_leaves_the_negotiation_open() -> None:
    info = raw(f"{MAGIC} 00000006 00000003 0000000c 0000 0000000000100000 000d {MAGIC} 00000006 00000001 00000000")
    converse([FIXED, INFO, INFO, GO], info + info + GO_SIZE + raw("000d") + ACK_GO)


def test_go_of_an_unknown_export_is_refused_and_another_may_follow() -> None:
    server = converse_prefix([FIXED, GO_OTHER, GO])
    assert server.sent.startswith(error(7, 6))
    assert server.sent.endswith(GO_SIZE + raw("000d") + ACK_GO)


def converse_prefix(messages: Sequence[bytes], settings: HandshakeSettings | None = None) -> Server:
    """As converse, for answers with free text: in every way of feeding the same."""
    expected = Server(settings, DISK).feed_all(messages)
    converse(messages, expected.sent, DISK, settings)
    return expected


def test_the_default_export_has_the_empty_name() -> None:
    go = raw("'IHAVEOPT' 00000007 00000006 00000000 0000")
    converse([FIXED, go], GO_SIZE + raw("000d") + ACK_GO, {"": PLAIN})


def test_list_names_and_describes_every_export() -> None:
    listing = (
        raw(f"{MAGIC} 00000003 00000002 0000000b 00000001 'd' 'Disk 0'")
        + raw(f"{MAGIC} 00000003 00000002 00000008 00000004 'web2'")
        + raw(f"{MAGIC} 00000003 00000001 00000000")
    )
    converse([FIXED, LIST], listing, {"d": PLAIN, "web2": ExportInfo(1, 1)})


def test_abort_is_acknowledged_whatever_data_it_has() -> None:
    ack = raw(f"{MAGIC} 00000002 00000001 00000000")
    converse([FIXED, ABORT], ack)
    server = converse([FIXED, raw("'IHAVEOPT' 00000002 00000003 'bye'")], ack)
    assert server.handshake.state is State.ENDED


@pytest.mark.parametrize("option", [4, 12, 0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_an_unknown_option_is_unsupported_and_the_next_is_heard(option: int) -> None:
    unknown = b"IHAVEOPT" + option.to_bytes(4, "big") + raw("00000003 'abc'")
    unsupported = error(option, 1) + bytes(4)
    converse([FIXED, unknown, STRUCTURED], unsupported + ACK_STRUCTURED)


def test_options_that_are_switched_off_are_unsupported() -> None:
    settings = HandshakeSettings(structured=False, extended=False)
    converse([FIXED, STRUCTURED, EXTENDED], error(8, 1) + bytes(4) + error(11, 1) + bytes(4), settings=settings)


def test_extended_headers_imply_structured_replies() -> None:
    go = [FIXED, EXTENDED, SET_ALLOCATION, GO]
    server = converse(go, ACK_EXTENDED + CONTEXT_1 + ACK_SET + GO_SIZE + raw("008d") + ACK_GO)
    assert server.handshake.negotiated is not None
    assert server.handshake.negotiated.mode is Mode.EXTENDED
    assert server.handshake.negotiated.contexts == (MetaContext(1, "base:allocation"),)


def test_extended_headers_may_follow_structured_replies_but_not_the_other_way_round() -> None:
    server = converse_prefix([FIXED, STRUCTURED, EXTENDED, STRUCTURED, GO])
    assert server.sent.startswith(ACK_STRUCTURED + ACK_EXTENDED + error(8, 10))
    assert server.handshake.negotiated is not None
    assert server.handshake.negotiated.mode is Mode.EXTENDED


def test_structured_replies_may_be_asked_for_twice() -> None:
    converse([FIXED, STRUCTURED, STRUCTURED], ACK_STRUCTURED + ACK_STRUCTURED)


def test_listing_contexts_without_a_query_or_by_namespace_tells_all() -> None:
    told = raw(f"{MAGIC} 00000009 00000004 00000013 00000000 'base:allocation'")
    ack = raw(f"{MAGIC} 00000009 00000001 00000000")
    everything = raw("'IHAVEOPT' 00000009 00000009 00000001 'd' 00000000")
    namespace = raw("'IHAVEOPT' 00000009 00000012 00000001 'd' 00000001 00000005 'base:'")
    unknown = raw("'IHAVEOPT' 00000009 0000001c 00000001 'd' 00000001 0000000f 'qemu:allocation'")
    converse([FIXED, STRUCTURED, everything, namespace, unknown], ACK_STRUCTURED + told + ack + told + ack + ack)


def test_setting_contexts_takes_whole_names_only() -> None:
    namespace = raw("'IHAVEOPT' 0000000a 00000012 00000001 'd' 00000001 00000005 'base:'")
    nothing = raw("'IHAVEOPT' 0000000a 00000009 00000001 'd' 00000000")
    twice = raw(
        "'IHAVEOPT' 0000000a 0000002f 00000001 'd' 00000002 0000000f 'base:allocation' 0000000f 'base:allocation'"
    )
    converse([FIXED, STRUCTURED, namespace, nothing, twice], ACK_STRUCTURED + ACK_SET + ACK_SET + CONTEXT_1 + ACK_SET)


def test_contexts_need_structured_replies() -> None:
    server = converse_prefix([FIXED, SET_ALLOCATION, raw("'IHAVEOPT' 00000009 00000009 00000001 'd' 00000000")])
    assert server.sent.startswith(error(10, 3))
    assert error(9, 3) in server.sent


def contexts_after(*messages: bytes) -> tuple[MetaContext, ...]:
    server = Server(exports={"d": PLAIN, "e": PLAIN}).feed_all([FIXED, *messages])
    assert server.handshake.negotiated is not None
    return server.handshake.negotiated.contexts


def test_a_context_holds_for_the_export_that_it_was_set_for() -> None:
    assert contexts_after(STRUCTURED, SET_ALLOCATION, GO) == (MetaContext(1, "base:allocation"),)
    assert contexts_after(STRUCTURED, SET_ALLOCATION, INFO, GO) == (MetaContext(1, "base:allocation"),)
    assert contexts_after(STRUCTURED, SET_ALLOCATION, GO_OTHER) == ()


def test_a_context_outlasts_a_refused_go_of_another_export() -> None:
    server = Server(exports=DISK).feed_all([FIXED, STRUCTURED, SET_ALLOCATION, GO_OTHER, GO])
    assert server.handshake.negotiated is not None
    assert server.handshake.negotiated.contexts == (MetaContext(1, "base:allocation"),)


def test_setting_contexts_replaces_the_earlier_ones_also_where_it_fails() -> None:
    unknown = raw("'IHAVEOPT' 0000000a 00000009 00000001 'x' 00000000")
    malformed = raw("'IHAVEOPT' 0000000a 00000004 00000001")
    oversized = raw("'IHAVEOPT' 0000000a 00010001") + bytes(65537)
    for bad in (unknown, malformed, oversized):
        assert contexts_after(STRUCTURED, SET_ALLOCATION, bad, GO) == ()


def test_starttls_is_acknowledged_and_everything_learnt_before_is_forgotten() -> None:
    settings = HandshakeSettings(tls=Tls.OPTIONAL)
    messages = [FIXED, STRUCTURED, SET_ALLOCATION, STARTTLS, GO]
    server = Server(settings, DISK).feed_all(messages)
    assert server.sent == (ACK_STRUCTURED + CONTEXT_1 + ACK_SET + ACK_STARTTLS + GO_SIZE + raw("000d") + ACK_GO)
    negotiated = server.handshake.negotiated
    assert negotiated is not None
    assert (negotiated.mode, negotiated.contexts, negotiated.tls) == (Mode.SIMPLE, (), True)


def test_optional_tls_is_optional() -> None:
    server = converse([FIXED, GO], GO_SIZE + raw("000d") + ACK_GO, settings=HandshakeSettings(tls=Tls.OPTIONAL))
    assert server.handshake.negotiated is not None
    assert not server.handshake.negotiated.tls


def test_a_second_starttls_is_invalid() -> None:
    server = Server(HandshakeSettings(tls=Tls.REQUIRED), DISK).feed_all([FIXED, STARTTLS, STARTTLS, GO])
    assert server.sent.startswith(ACK_STARTTLS + error(5, 3))
    assert server.handshake.state is State.TRANSMISSION


def test_starttls_with_data_is_invalid() -> None:
    server = converse_prefix([FIXED, raw("'IHAVEOPT' 00000005 00000001 00")], HandshakeSettings(tls=Tls.OPTIONAL))
    assert server.sent.startswith(error(5, 3))


def test_without_tls_starttls_is_refused_by_policy() -> None:
    assert converse_prefix([FIXED, STARTTLS, GO]).sent.startswith(error(5, 2))


def test_required_tls_is_demanded_for_everything_but_starttls_and_abort() -> None:
    malformed_go = raw("'IHAVEOPT' 00000007 00000001 00")
    unknown = raw("'IHAVEOPT' 00000063 00000000")
    oversized = raw("'IHAVEOPT' 00000063 00010001") + bytes(65537)
    options = [LIST, STRUCTURED, EXTENDED, GO, INFO, SET_ALLOCATION, malformed_go, unknown, oversized]
    for option in options:
        server = Server(HandshakeSettings(tls=Tls.REQUIRED), DISK).feed_all([FIXED, option])
        assert server.sent.startswith(error(int.from_bytes(option[8:12], "big"), 5)), option
    server = Server(HandshakeSettings(tls=Tls.REQUIRED), DISK).feed_all([FIXED, ABORT])
    assert server.sent == raw(f"{MAGIC} 00000002 00000001 00000000")


def test_required_tls_is_never_demanded_once_it_is_there() -> None:
    server = Server(HandshakeSettings(tls=Tls.REQUIRED), DISK).feed_all([FIXED, STARTTLS, STRUCTURED, LIST, GO])
    assert error(3, 5)[12:] not in server.sent
    assert server.handshake.negotiated is not None
    assert server.handshake.negotiated.tls


def test_a_question_must_be_answered_by_the_right_answer_and_before_the_next_event() -> None:
    handshake = ServerHandshake(HandshakeSettings())
    handshake.greeting()
    events = handshake.feed(FIXED + GO + LIST)
    assert next(events) == ExportWanted(7, "d")
    with pytest.raises(RuntimeError):
        handshake.answer_list([ExportEntry("d")])
    with pytest.raises(RuntimeError):
        next(events)


def test_nothing_but_the_table_of_transitions_may_happen() -> None:
    handshake = ServerHandshake(HandshakeSettings())
    with pytest.raises(RuntimeError):
        handshake.feed(FIXED)
    assert handshake.greeting() == GREETING
    for call in (handshake.greeting, handshake.secured, handshake.trailing):
        with pytest.raises(RuntimeError):
            call()
    with pytest.raises(RuntimeError):
        handshake.accept(PLAIN)
    with pytest.raises(RuntimeError):
        handshake.refuse(0x80000006)


def test_every_state_but_the_last_ones_leads_somewhere() -> None:
    assert {state for state, _ in TRANSITIONS} == set(State) - {State.TRANSMISSION, State.ENDED}
    assert {step for _, step in TRANSITIONS} == set(Step)
