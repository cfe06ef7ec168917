"""Negotiation from the client's side: what it sends byte for byte, and what it makes of servers good and bad."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdresize.errors import InvalidArgument
from nbdresize.protocol.client_handshake import (
    MAX_ANSWER,
    TRANSITIONS,
    Answered,
    ClientHandshake,
    Event,
    Greeted,
    State,
    Step,
)
from nbdresize.protocol.export_info import BlockSizes, ExportInfo, ResizeInfo
from nbdresize.protocol.negotiated import MetaContext, Mode
from nbdresize.protocol.option_replies import ExportEntry
from nbdresize.protocol.server_events import HandshakeSettings, Tls
from nbdresize.protocol.violation import ProtocolViolation
from tests.protocol.feeding import Server, raw, ways

GREETING = raw("'NBDMAGIC' 'IHAVEOPT' 0003")
MAGIC = "0003e889045565a9"
SIZE = raw(f"{MAGIC} 00000007 00000003 0000000c 0000 0000000000100000 000d")
ACK_GO = raw(f"{MAGIC} 00000007 00000001 00000000")

Ask = Callable[[ClientHandshake], bytes]


def ack(option: int) -> bytes:
    return bytes.fromhex(MAGIC) + option.to_bytes(4, "big") + raw("00000001 00000000")


def greeted(greeting: bytes = GREETING) -> ClientHandshake:
    client = ClientHandshake()
    list(client.feed(greeting))
    return client


def answer(ask: Ask, *messages: bytes) -> Answered:
    """The one event that follows from the messages, however they arrive."""
    answers: set[Answered] = set()
    for chunks in ways(messages):
        client = greeted()
        ask(client)
        events = [event for chunk in chunks for event in client.feed(chunk)]
        assert len(events) == 1, chunks
        assert isinstance(events[0], Answered)
        answers.add(events[0])
    assert len(answers) == 1
    return answers.pop()


def violates(ask: Ask, *messages: bytes) -> None:
    """However these messages arrive, the server is found out."""
    whole = b"".join(messages)
    for chunks in ways(messages) if len(whole) < 300 else [list(messages), [whole]]:
        client = greeted()
        ask(client)
        with pytest.raises(ProtocolViolation):
            for chunk in chunks:
                list(client.feed(chunk))
        assert client.state is State.ENDED
        with pytest.raises(RuntimeError):
            client.feed(b"more")


@pytest.mark.parametrize(
    ("greeting", "flags", "fixed"),
    [("0003", "00000003", True), ("0001", "00000001", True), ("0000", "00000000", False), ("fff3", "00000003", True)],
)
def test_the_greeting_is_answered_with_the_flags_that_the_server_knows(greeting: str, flags: str, fixed: bool) -> None:
    for chunks in ways([raw("'NBDMAGIC' 'IHAVEOPT'"), raw(greeting)]):
        client = ClientHandshake()
        assert [event for chunk in chunks for event in client.feed(chunk)] == [Greeted(raw(flags), fixed)]


@pytest.mark.parametrize(
    "greeting", ["'NBDMAGIC' 0000420281861253 0000", "'SSH-2.0-OpenSSH_9' 0d", "'NBDMAGIC' 'IHAVEOPT' 0003 00"]
)
def test_a_greeting_that_is_none_is_a_violation(greeting: str) -> None:
    client = ClientHandshake()
    with pytest.raises(ProtocolViolation):
        list(client.feed(raw(greeting)))
    assert client.state is State.ENDED


def test_every_option_is_laid_out_as_the_protocol_says() -> None:
    sent: list[tuple[Ask, str]] = [
        (lambda client: client.export_name("d"), "'IHAVEOPT' 00000001 00000001 'd'"),
        (lambda client: client.abort(), "'IHAVEOPT' 00000002 00000000"),
        (lambda client: client.list_exports(), "'IHAVEOPT' 00000003 00000000"),
        (lambda client: client.start_tls(), "'IHAVEOPT' 00000005 00000000"),
        (lambda client: client.info("d", [3, 4]), "'IHAVEOPT' 00000006 0000000b 00000001 'd' 0002 0003 0004"),
        (lambda client: client.go("d"), "'IHAVEOPT' 00000007 00000007 00000001 'd' 0000"),
        (lambda client: client.structured_replies(), "'IHAVEOPT' 00000008 00000000"),
        (lambda client: client.list_contexts("d"), "'IHAVEOPT' 00000009 00000009 00000001 'd' 00000000"),
        (
            lambda client: client.set_contexts("d", ["x:y"]),
            "'IHAVEOPT' 0000000a 00000010 00000001 'd' 00000001 00000003 'x:y'",
        ),
        (lambda client: client.extended_headers(), "'IHAVEOPT' 0000000b 00000000"),
    ]
    for ask, expected in sent:
        assert ask(greeted()) == raw(expected)


def test_go_tells_of_the_export_and_ends_the_handshake() -> None:
    blocks = raw(f"{MAGIC} 00000007 00000003 0000000e 0003 00000200 00001000 02000000")
    later = raw(f"{MAGIC} 00000007 00000003 00000004 7777 0000")
    told = ExportInfo(1 << 20, 0x0D, block_sizes=BlockSizes(512, 4096, 32 << 20))
    assert answer(lambda client: client.go("d"), blocks, later, SIZE, ACK_GO) == Answered(7, export=told)
    client = greeted()
    client.go("d")
    list(client.feed(SIZE + ACK_GO))
    assert client.state is State.TRANSMISSION
    assert client.negotiated is not None
    assert (client.negotiated.name, client.negotiated.mode) == ("d", Mode.SIMPLE)


def test_resize_information_is_understood() -> None:
    size = raw(f"{MAGIC} 00000006 00000003 0000000c 0000 0000000000100000 020d")
    resize = raw(f"{MAGIC} 00000006 00000003 00000018 0004 000f 00001000 0000000000100000 0000000001000000")
    told = ExportInfo(1 << 20, 0x020D, resize=ResizeInfo(0x0F, 4096, 1 << 20, 16 << 20))
    assert answer(lambda client: client.info("d", [4]), size, resize, ack(6)).export == told


def test_an_error_carries_its_text_and_leaves_the_negotiation_open() -> None:
    refused = raw(f"{MAGIC} 00000007 80000006 00000007 'no disk'")
    assert answer(lambda client: client.go("x"), refused) == Answered(7, 0x80000006, "no disk")
    assert answer(lambda client: client.go("x"), SIZE, refused).export is None
    client = greeted()
    client.go("x")
    list(client.feed(refused))
    assert client.go("d")


def test_export_name_is_answered_with_or_without_zeroes() -> None:
    short = raw("0000000000100000 000d")
    told = Answered(1, export=ExportInfo(1 << 20, 0x0D))
    assert answer(lambda client: client.export_name("d"), short) == told
    for chunks in ways([short, bytes(124)]):
        client = greeted(raw("'NBDMAGIC' 'IHAVEOPT' 0000"))
        client.export_name("d")
        assert [event for chunk in chunks for event in client.feed(chunk)] == [told]
        assert client.state is State.TRANSMISSION


def test_the_list_of_exports() -> None:
    first = raw(f"{MAGIC} 00000003 00000002 0000000b 00000001 'd' 'Disk 0'")
    second = raw(f"{MAGIC} 00000003 00000002 00000008 00000004 'web2'")
    told = answer(lambda client: client.list_exports(), first, second, ack(3))
    assert told.exports == (ExportEntry("d", "Disk 0"), ExportEntry("web2"))
    assert answer(lambda client: client.list_exports(), ack(3)).exports == ()


def test_contexts_hold_for_the_export_that_they_were_set_for() -> None:
    told = raw(f"{MAGIC} 0000000a 00000004 00000013 00000001 'base:allocation'") + ack(10)
    for name, expected in (("d", (MetaContext(1, "base:allocation"),)), ("e", ())):
        client = greeted()
        client.structured_replies()
        list(client.feed(ack(8)))
        client.set_contexts("d", ["base:allocation"])
        list(client.feed(told))
        client.go(name)
        list(client.feed(SIZE + ACK_GO))
        assert client.negotiated is not None
        assert client.negotiated.contexts == expected
        assert client.negotiated.mode is Mode.STRUCTURED


def test_setting_contexts_replaces_the_earlier_ones_also_where_it_is_refused() -> None:
    client = greeted()
    client.set_contexts("d", ["base:allocation"])
    list(client.feed(raw(f"{MAGIC} 0000000a 00000004 00000013 00000001 'base:allocation'") + ack(10)))
    client.set_contexts("d", ["x:y"])
    list(client.feed(raw(f"{MAGIC} 0000000a 80000003 00000000")))
    client.go("d")
    list(client.feed(SIZE + ACK_GO))
    assert client.negotiated is not None
    assert client.negotiated.contexts == ()


def test_after_starttls_everything_is_negotiated_anew() -> None:
    client = greeted()
    client.extended_headers()
    list(client.feed(ack(11)))
    client.start_tls()
    list(client.feed(ack(5)))
    assert client.state is State.TLS
    with pytest.raises(RuntimeError):
        client.feed(b"plaintext")
    client.secured()
    assert client.mode is Mode.SIMPLE
    with pytest.raises(RuntimeError):
        client.start_tls()
    client.go("d")
    list(client.feed(SIZE + ACK_GO))
    assert client.negotiated is not None
    assert client.negotiated.tls


def test_refused_tls_leaves_the_connection_in_plaintext_and_says_so() -> None:
    client = greeted()
    client.start_tls()
    assert list(client.feed(raw(f"{MAGIC} 00000005 80000002 00000000"))) == [
        Answered(5, 0x80000002, "the server's configuration forbids it")
    ]
    assert not client.tls


def test_export_name_may_not_follow_extended_headers() -> None:
    client = greeted()
    client.extended_headers()
    list(client.feed(ack(11)))
    with pytest.raises(RuntimeError):
        client.export_name("d")


def test_one_option_is_asked_at_a_time() -> None:
    client = ClientHandshake()
    with pytest.raises(RuntimeError):
        client.go("d")
    client = greeted()
    client.list_exports()
    with pytest.raises(RuntimeError):
        client.go("d")


def test_a_server_without_fixed_newstyle_is_asked_for_an_export_only() -> None:
    client = greeted(raw("'NBDMAGIC' 'IHAVEOPT' 0000"))
    with pytest.raises(RuntimeError):
        client.go("d")
    assert client.export_name("d")


@pytest.mark.parametrize("name", ["a\0b", "n" * 4097, "\ud800"])
def test_names_that_the_protocol_forbids_are_not_sent(name: str) -> None:
    for ask in (ClientHandshake.go, ClientHandshake.info, ClientHandshake.export_name, ClientHandshake.list_contexts):
        client = greeted()
        with pytest.raises(InvalidArgument):
            ask(client, name)
        assert client.state is State.READY


# A server that breaks the protocol


@pytest.mark.parametrize(
    "reply",
    [
        "0003e889045565a8 00000007 00000001 00000000",
        f"{MAGIC} 00000006 00000001 00000000",
        f"{MAGIC} 00000007 00000001 00000000",
        f"{MAGIC} 00000007 00000001 00000001 00",
        f"{MAGIC} 00000007 00000002 00000005 00000001 'd'",
        f"{MAGIC} 00000007 00000004 00000005 00000001 'd'",
        f"{MAGIC} 00000007 00000005 00000000",
        f"{MAGIC} 00000007 00000000 00000000",
        f"{MAGIC} 00000007 00000003 00010001",
        f"{MAGIC} 00000007 80000001 ffffffff",
    ],
)
def test_a_reply_that_answers_something_else_or_makes_no_sense_is_a_violation(reply: str) -> None:
    violates(lambda client: client.go("d"), raw(reply))


@pytest.mark.parametrize(
    "info",
    [
        "00000001 00",
        "0000000b 0000 0000000000100000 00",
        "0000000d 0000 0000000000100000 000d 00",
        "0000000c 0000 ffffffffffffffff 000d",
        "0000000c 0000 0000000000100000 000c",
    ],
)
def test_information_that_can_not_be_true_is_a_violation(info: str) -> None:
    violates(lambda client: client.go("d"), raw(f"{MAGIC} 00000007 00000003 {info}"), ACK_GO)


def test_the_same_information_twice_is_a_violation() -> None:
    violates(lambda client: client.go("d"), SIZE, SIZE, ACK_GO)


def test_two_contexts_with_one_number_are_a_violation() -> None:
    context = raw(f"{MAGIC} 0000000a 00000004 00000007 00000001 'x:y'")
    violates(lambda client: client.set_contexts("d", ["x:y"]), context, context, ack(10))


def test_whatever_follows_an_answer_unasked_is_a_violation() -> None:
    violates(lambda client: client.structured_replies(), ack(8), ack(8))
    last: list[tuple[Ask, bytes]] = [
        (ClientHandshake.start_tls, ack(5) + b"\x16"),
        (lambda client: client.go("d"), SIZE + ACK_GO + b"\0"),
        (ClientHandshake.abort, ack(2) + b"\0"),
    ]
    for ask, attached in last:
        client = greeted()
        ask(client)
        with pytest.raises(ProtocolViolation):
            list(client.feed(attached))
        assert client.state is State.ENDED
    client = greeted()
    with pytest.raises(ProtocolViolation):
        list(client.feed(ack(8)))


def test_an_answer_without_end_is_a_violation() -> None:
    entry = raw(f"{MAGIC} 00000003 00000002 00010000 00001000") + b"n" * 65532
    client = greeted()
    client.list_exports()
    with pytest.raises(ProtocolViolation, match=str(MAX_ANSWER)):
        for _ in range(MAX_ANSWER // 65536 + 1):
            list(client.feed(entry))


def test_every_state_leads_somewhere_and_all_can_end() -> None:
    assert {step for _, step in TRANSITIONS} == set(Step)
    assert {state for state, step in TRANSITIONS if step is Step.END} == set(State)


# Both sides together


def talk(
    client: ClientHandshake, server: Server, asks: Sequence[Ask], cut: Callable[[bytes], list[bytes]]
) -> list[Event]:
    """Have the client ask one thing after the other, with every byte cut as `cut` does."""
    events: list[Event] = []
    left = list(asks)
    incoming = raw("'NBDMAGIC' 'IHAVEOPT' 0003")
    while incoming:
        outgoing = b""
        for piece in cut(incoming):
            for event in client.feed(piece):
                events.append(event)
                if isinstance(event, Greeted):
                    outgoing += event.data
                elif event.option == 5 and not event.error:
                    client.secured()
        if left and client.state is State.READY:
            outgoing += left.pop(0)(client)
        server.sent = b""
        for piece in cut(outgoing):
            server.feed(piece)
        incoming = server.sent
    assert not left
    return events


def cut_with(step: int) -> Callable[[bytes], list[bytes]]:
    return lambda data: [data[at : at + step] for at in range(0, len(data), step)]


@given(
    st.integers(1, 40), st.sampled_from([None, ClientHandshake.structured_replies, ClientHandshake.extended_headers])
)
def test_client_and_server_come_to_the_same_outcome(step: int, replies: Ask | None) -> None:
    export = ExportInfo(
        size=1 << 30,
        flags=0x0D,
        name="web1/disk0",
        description="Boot disk",
        block_sizes=BlockSizes(),
        resize=ResizeInfo(0x0F, 4096, 4096, 1 << 40),
    )
    server = Server(HandshakeSettings(tls=Tls.REQUIRED), {"web1/disk0": export})
    client = ClientHandshake()
    asks: list[Ask] = [
        ClientHandshake.list_exports,
        ClientHandshake.start_tls,
        *([replies] if replies else []),
        ClientHandshake.list_exports,
        lambda client: client.set_contexts("web1/disk0", ["base:allocation"]),
        lambda client: client.go("web1/disk1"),
        lambda client: client.go("web1/disk0", range(5)),
    ]
    events = talk(client, server, asks, cut_with(step))
    errors = [event.error for event in events if isinstance(event, Answered)]
    assert errors[0] == 0x80000005
    assert errors[-2:] == [0x80000006, 0]
    assert client.negotiated == server.handshake.negotiated
    assert client.negotiated is not None
    assert client.negotiated.tls
    assert bool(client.negotiated.contexts) == bool(replies)


@given(st.integers(0, 11), st.binary(max_size=200))
def test_whatever_a_server_sends_is_understood_or_a_violation(option: int, noise: bytes) -> None:
    asks: dict[int, Ask] = {
        1: lambda client: client.export_name("d"),
        3: ClientHandshake.list_exports,
        5: ClientHandshake.start_tls,
        7: lambda client: client.go("d"),
        10: lambda client: client.set_contexts("d", []),
    }
    header = bytes.fromhex(MAGIC) + option.to_bytes(4, "big")
    for sent in (noise, header + noise, header + noise[:4] + max(0, len(noise) - 4).to_bytes(4, "big") + noise[4:]):
        client = greeted()
        asks.get(option, ClientHandshake.structured_replies)(client)
        try:
            list(client.feed(sent))
        except ProtocolViolation:
            assert client.state is State.ENDED
