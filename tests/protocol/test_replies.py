"""Replies from both sides: what the server packs byte for byte, and what the client makes of it, however it arrives."""

import itertools
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdresize.protocol.export_info import ExportInfo
from nbdresize.protocol.negotiated import MetaContext, Mode, Negotiated
from nbdresize.protocol.replies import MAX_OUTSTANDING, ReplyStream
from nbdresize.protocol.reply_check import BlockStatus, Data, Done, Hole, ReplyError, ReplyEvent, SizeTold
from nbdresize.protocol.server_replies import Replies, SizeReply, wire_errno
from nbdresize.protocol.transmission import Request
from nbdresize.protocol.violation import ProtocolViolation
from tests.protocol.feeding import raw, ways

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, RESIZE = range(9)
DF, REQ_ONE, SIZE, QUERY, NOTIFY = 4, 8, 1 << 6, 1 << 7, 1 << 8
COOKIE = 0x1122334455667788
C = "1122334455667788"
AT = 0x1000
NOW = SizeReply(size=1 << 30, generation=7, maximum=1 << 40, granularity=4096, cause=1)
SIZE_FIELDS = "0000000040000000 0000000000000007 0000010000000000 00001000 00000001"


def stream(mode: Mode, *requests: Request, contexts: Sequence[int] = (1,)) -> ReplyStream:
    chosen = tuple(MetaContext(number, f"x:{number}") for number in contexts)
    replies = ReplyStream(Negotiated("d", ExportInfo(1 << 20, 1), mode, chosen, tls=False))
    for request in requests:
        assert replies.request(request) == request.pack(mode)
    return replies


def asked(command: int, length: int = 8, flags: int = 0, cookie: int = COOKIE, offset: int = AT) -> Request:
    return Request(flags, command, cookie, offset, length)


def heard(
    mode: Mode, requests: Sequence[Request], messages: Sequence[bytes], contexts: Sequence[int] = (1,)
) -> list[ReplyEvent]:
    """The events that follow from the messages, the same in whatever way these arrive."""
    found: list[list[ReplyEvent]] = []
    for chunks in ways(messages):
        replies = stream(mode, *requests, contexts=contexts)
        found.append([event for chunk in chunks for event in replies.feed(chunk)])
        assert found[-1] == found[0], chunks
    return found[0]


def violates(mode: Mode, request: Request, *messages: str, contexts: Sequence[int] = (1,)) -> None:
    """However these messages arrive, the server is found out."""
    for chunks in ways([raw(message) for message in messages]):
        replies = stream(mode, request, contexts=contexts)
        with pytest.raises(ProtocolViolation):
            for chunk in chunks:
                list(replies.feed(chunk))


# Both sides: the bytes that the server packs are those that the client understands


def test_a_simple_success_and_a_simple_error() -> None:
    replies = Replies(Mode.SIMPLE)
    done, refused = raw(f"67446698 00000000 {C}"), raw(f"67446698 0000001c {C}")
    assert replies.success(COOKIE, AT) == done
    assert replies.error(COOKIE, AT, 28, "no text here") == refused
    assert heard(Mode.SIMPLE, [asked(WRITE)], [done]) == [Done(COOKIE)]
    assert heard(Mode.SIMPLE, [asked(WRITE)], [refused]) == [Done(COOKIE, (ReplyError(28),))]


def test_a_simple_read() -> None:
    header = raw(f"67446698 00000000 {C}")
    assert Replies(Mode.SIMPLE).data_header(COOKIE, AT, 8) == header
    assert heard(Mode.SIMPLE, [asked(READ)], [header + b"abcdefgh"]) == [Data(COOKIE, AT, b"abcdefgh"), Done(COOKIE)]
    refused = raw(f"67446698 00000005 {C}")
    assert heard(Mode.SIMPLE, [asked(READ)], [refused]) == [Done(COOKIE, (ReplyError(5),))]


def test_a_structured_read_in_one_chunk() -> None:
    header = raw(f"668e33ef 0001 0001 {C} 00000010 0000000000001000")
    assert Replies(Mode.STRUCTURED).data_header(COOKIE, AT, 8) == header
    assert heard(Mode.STRUCTURED, [asked(READ)], [header + b"abcdefgh"]) == [
        Data(COOKIE, AT, b"abcdefgh"),
        Done(COOKIE),
    ]


def test_a_structured_read_with_a_hole_in_any_order() -> None:
    replies = Replies(Mode.STRUCTURED)
    hole = raw(f"668e33ef 0000 0002 {C} 0000000c 0000000000001000 00000005")
    data = raw(f"668e33ef 0000 0001 {C} 0000000b 0000000000001005") + b"fgh"
    done = raw(f"668e33ef 0001 0000 {C} 00000000")
    assert replies.hole_chunk(COOKIE, AT, AT, 5) == hole
    assert replies.data_chunk(COOKIE, AT, AT + 5, 3) + b"fgh" == data
    assert replies.done(COOKIE, AT) == done
    told = [Data(COOKIE, AT + 5, b"fgh"), Hole(COOKIE, AT, 5), Done(COOKIE)]
    assert heard(Mode.STRUCTURED, [asked(READ)], [data, hole, done]) == told


def test_an_extended_read_tells_the_offset_of_the_request_in_every_header() -> None:
    replies = Replies(Mode.EXTENDED)
    hole = raw(f"6e8a278c 0000 0002 {C} 0000000000001000 000000000000000c 0000000000001000 00000005")
    data = raw(f"6e8a278c 0001 0001 {C} 0000000000001000 000000000000000b 0000000000001005") + b"fgh"
    assert replies.hole_chunk(COOKIE, AT, AT, 5) == hole
    assert replies.data_chunk(COOKIE, AT, AT + 5, 3, done=True) + b"fgh" == data
    told = [Hole(COOKIE, AT, 5), Data(COOKIE, AT + 5, b"fgh"), Done(COOKIE)]
    assert heard(Mode.EXTENDED, [asked(READ)], [hole, data]) == told


def test_a_success_without_data_in_each_form() -> None:
    simple, extended = raw(f"67446698 00000000 {C}"), raw(f"6e8a278c 0001 0000 {C} 0000000000001000 0000000000000000")
    assert Replies(Mode.STRUCTURED).success(COOKIE, AT) == simple
    assert Replies(Mode.EXTENDED).success(COOKIE, AT) == extended
    assert heard(Mode.STRUCTURED, [asked(TRIM)], [simple]) == [Done(COOKIE)]
    assert heard(Mode.EXTENDED, [asked(TRIM)], [extended]) == [Done(COOKIE)]


def test_an_error_with_its_text() -> None:
    structured = raw(f"668e33ef 0001 8001 {C} 0000000a 0000001c 0004 'full'")
    extended = raw(f"6e8a278c 0001 8001 {C} 0000000000001000 000000000000000a 0000001c 0004 'full'")
    assert Replies(Mode.STRUCTURED).error(COOKIE, AT, 28, "full") == structured
    assert Replies(Mode.EXTENDED).error(COOKIE, AT, 28, "full") == extended
    told = [Done(COOKIE, (ReplyError(28, "full"),))]
    assert heard(Mode.STRUCTURED, [asked(READ)], [structured]) == told
    assert heard(Mode.EXTENDED, [asked(RESIZE, 0, offset=AT)], [extended]) == told


def test_an_error_at_an_offset_and_one_of_an_unknown_type() -> None:
    at = raw(f"668e33ef 0000 8002 {C} 00000012 00000005 0004 'lost' 0000000000001007")
    unknown = raw(f"668e33ef 0001 8777 {C} 00000009 00000016 0000 010203")
    assert heard(Mode.STRUCTURED, [asked(READ)], [at, unknown]) == [
        Done(COOKIE, (ReplyError(5, "lost", AT + 7), ReplyError(22)))
    ]


def test_block_status_in_32_and_64_bits() -> None:
    compact = raw(f"668e33ef 0001 0005 {C} 00000014 00000001 00000004 00000003 00000004 00000000")
    extended = raw(
        f"6e8a278c 0001 0006 {C} 0000000000001000 0000000000000018 00000001 00000001 0000000100000000 0000000000000003"
    )
    assert Replies(Mode.STRUCTURED).block_status(COOKIE, AT, 1, [(4, 3), (4, 0)]) == compact
    assert Replies(Mode.EXTENDED).block_status(COOKIE, AT, 1, [(1 << 32, 3)]) == extended
    assert heard(Mode.STRUCTURED, [asked(BLOCK_STATUS)], [compact]) == [
        BlockStatus(COOKIE, 1, ((4, 3), (4, 0))),
        Done(COOKIE),
    ]
    assert heard(Mode.EXTENDED, [asked(BLOCK_STATUS)], [extended]) == [
        BlockStatus(COOKIE, 1, ((1 << 32, 3),)),
        Done(COOKIE),
    ]


def test_block_status_without_a_count_or_in_compact_form_among_extended_headers() -> None:
    uncounted = raw(
        f"6e8a278c 0001 0006 {C} 0000000000001000 0000000000000018 00000001 00000000 0000000000000008 0000000000000000"
    )
    compact = raw(f"6e8a278c 0001 0005 {C} 0000000000001000 000000000000000c 00000001 00000008 00000000")
    for chunk in (uncounted, compact):
        assert heard(Mode.EXTENDED, [asked(BLOCK_STATUS)], [chunk]) == [
            BlockStatus(COOKIE, 1, ((8, 0),)),
            Done(COOKIE),
        ]


def test_a_size_chunk_is_32_bytes() -> None:
    structured = raw(f"668e33ef 0001 0007 {C} 00000020 {SIZE_FIELDS}")
    extended = raw(f"6e8a278c 0001 0007 {C} 0000000000001000 0000000000000020 {SIZE_FIELDS}")
    assert Replies(Mode.STRUCTURED).size(COOKIE, AT, NOW) == structured
    assert Replies(Mode.EXTENDED).size(COOKIE, AT, NOW) == extended
    for flags in (SIZE, QUERY):
        assert heard(Mode.STRUCTURED, [asked(RESIZE, 0, flags)], [structured]) == [SizeTold(COOKIE, NOW), Done(COOKIE)]
        assert heard(Mode.EXTENDED, [asked(RESIZE, 0, flags)], [extended]) == [SizeTold(COOKIE, NOW), Done(COOKIE)]


def test_a_subscription_tells_sizes_until_it_is_done() -> None:
    told = raw(f"668e33ef 0000 0007 {C} 00000020 {SIZE_FIELDS}")
    done = raw(f"668e33ef 0001 0000 {C} 00000000")
    assert Replies(Mode.STRUCTURED).size(COOKIE, 0, NOW, done=False) == told
    events = heard(Mode.STRUCTURED, [asked(RESIZE, 0, NOTIFY, offset=0)], [told, told, told, done])
    assert events == [*[SizeTold(COOKIE, NOW)] * 3, Done(COOKIE)]


def test_a_subscription_may_tell_more_sizes_than_another_reply_has_chunks() -> None:
    told = raw(f"668e33ef 0000 0007 {C} 00000020 {SIZE_FIELDS}")
    replies = stream(Mode.STRUCTURED, asked(RESIZE, 0, NOTIFY, offset=0))
    assert len(list(replies.feed(told * 66000))) == 66000


def test_replies_may_come_in_any_order_and_interleaved() -> None:
    first, second = asked(READ, 2, cookie=1), asked(READ, 2, cookie=2)
    messages = [
        raw("668e33ef 0000 0001 0000000000000001 00000009 0000000000001000 'a'"),
        raw("668e33ef 0001 0001 0000000000000002 0000000a 0000000000001000 'xy'"),
        raw("668e33ef 0001 0001 0000000000000001 00000009 0000000000001001 'b'"),
    ]
    events = heard(Mode.STRUCTURED, [first, second], messages)
    assert events == [Data(1, AT, b"a"), Data(2, AT, b"xy"), Done(2), Data(1, AT + 1, b"b"), Done(1)]


# A server that breaks the protocol


@pytest.mark.parametrize("mode", Mode)
def test_a_wrong_magic_is_a_violation(mode: Mode) -> None:
    for magic in ("67446699", "25609513", "00000000"):
        violates(mode, asked(FLUSH, 0, offset=0), magic + "00" * 28)


def test_a_reply_of_a_form_that_was_not_agreed_on_is_a_violation() -> None:
    violates(Mode.SIMPLE, asked(WRITE), f"668e33ef 0001 0000 {C} 00000000")
    violates(Mode.STRUCTURED, asked(WRITE), f"6e8a278c 0001 0000 {C} 0000000000001000 0000000000000000")
    violates(Mode.EXTENDED, asked(WRITE), f"67446698 00000000 {C}" + "00" * 16)
    violates(Mode.EXTENDED, asked(WRITE), f"668e33ef 0001 0000 {C} 00000000" + "00" * 12)


def test_a_reply_that_nobody_awaits_is_a_violation() -> None:
    violates(Mode.SIMPLE, asked(WRITE), "67446698 00000000 1122334455667789")
    violates(Mode.STRUCTURED, asked(WRITE), f"668e33ef 0001 0000 {C} 00000000", f"668e33ef 0001 0000 {C} 00000000")


def test_a_simple_reply_where_chunks_are_due_is_a_violation() -> None:
    violates(Mode.STRUCTURED, asked(READ), f"67446698 00000000 {C}")
    violates(Mode.STRUCTURED, asked(READ), f"67446698 00000005 {C}")
    violates(Mode.STRUCTURED, asked(BLOCK_STATUS), f"67446698 00000000 {C}")
    violates(Mode.STRUCTURED, asked(RESIZE, 0, QUERY), f"67446698 00000000 {C}")


def test_a_header_with_another_offset_than_the_request_is_a_violation() -> None:
    violates(Mode.EXTENDED, asked(WRITE), f"6e8a278c 0001 0000 {C} 0000000000001001 0000000000000000")


@pytest.mark.parametrize(
    "chunk",
    [
        f"668e33ef 0001 0000 {C} 00000001 00",
        f"668e33ef 0000 0000 {C} 00000000",
        f"668e33ef 0001 0000 {C} 00000000",
        f"668e33ef 0001 0003 {C} 00000000",
        f"668e33ef 0001 7777 {C} 00000000",
        f"668e33ef 0001 0001 {C} 00000008 0000000000001000",
        f"668e33ef 0001 0001 {C} 00000011 0000000000001000 'abcdefghi'",
        f"668e33ef 0001 0001 {C} ffffffff",
        f"668e33ef 0001 0001 {C} 00000010 0000000000001001 'abcdefgh'",
        f"668e33ef 0001 0001 {C} 00000010 0000000000000fff 'abcdefgh'",
        f"668e33ef 0001 0001 {C} 00000010 ffffffffffffffff 'abcdefgh'",
        f"668e33ef 0001 0001 {C} 0000000f 0000000000001000 'abcdefg'",
        f"668e33ef 0001 0002 {C} 0000000c 0000000000001000 00000000",
        f"668e33ef 0001 0002 {C} 0000000c 0000000000001000 00000009",
        f"668e33ef 0001 0002 {C} 0000000c 0000000000001000 ffffffff",
        f"668e33ef 0001 0002 {C} 0000000b 0000000000001000 000000",
        f"668e33ef 0001 0005 {C} 0000000c 00000001 00000008 00000000",
        f"668e33ef 0001 0007 {C} 00000020 {SIZE_FIELDS}",
        f"668e33ef 0001 8001 {C} 00000005 00000005 00",
        f"668e33ef 0001 8001 {C} 00000006 00000000 0000",
        f"668e33ef 0001 8001 {C} 00000006 00000005 0001",
        f"668e33ef 0001 8001 {C} 00002000",
        f"668e33ef 0001 8002 {C} 0000000d 00000005 0000 00000000001000",
        f"668e33ef 0001 8002 {C} 0000000e 00000005 0000 0000000000001008",
        f"668e33ef 0001 8002 {C} 0000000e 00000005 0000 0000000000000fff",
    ],
)
def test_a_chunk_that_can_not_answer_a_read_is_a_violation(chunk: str) -> None:
    violates(Mode.STRUCTURED, asked(READ), chunk)


def test_a_length_is_refused_before_anything_of_it_is_held() -> None:
    replies = stream(Mode.EXTENDED, asked(READ))
    with pytest.raises(ProtocolViolation):
        list(replies.feed(raw(f"6e8a278c 0001 0001 {C} 0000000000001000 ffffffffffffffff")))


@pytest.mark.parametrize("again", ["0000000000001000", "0000000000001003", "0000000000000ffd"])
def test_chunks_that_overlap_are_a_violation(again: str) -> None:
    first = f"668e33ef 0000 0001 {C} 0000000c 0000000000001000 'abcd'"
    violates(Mode.STRUCTURED, asked(READ), first, f"668e33ef 0001 0001 {C} 0000000c {again} 'abcd'")


def test_a_chunk_around_an_earlier_one_is_a_violation() -> None:
    inner = f"668e33ef 0000 0001 {C} 0000000a 0000000000001003 'ab'"
    violates(Mode.STRUCTURED, asked(READ), inner, f"668e33ef 0001 0002 {C} 0000000c 0000000000001000 00000008")


def test_a_read_that_must_not_be_in_pieces_is_a_violation_in_two() -> None:
    first = f"668e33ef 0000 0001 {C} 0000000c 0000000000001000 'abcd'"
    violates(Mode.STRUCTURED, asked(READ, flags=DF), first, f"668e33ef 0001 0001 {C} 0000000c 0000000000001004 'efgh'")


@pytest.mark.parametrize(
    "extents",
    [
        "0000000c 00000001 00000000 00000000",
        "00000014 00000001 00000008 00000000 00000008 00000000",
        "00000010 00000001 00000008 00000000 00000000",
        "0000000c 00000002 00000008 00000000",
        "00000004 00000001",
        "00800005 00000001",
    ],
)
def test_extents_that_can_not_be_are_a_violation(extents: str) -> None:
    violates(Mode.STRUCTURED, asked(BLOCK_STATUS), f"668e33ef 0001 0005 {C} {extents}")


def test_extents_that_do_not_follow_the_negotiation_are_a_violation() -> None:
    one = "0000000c 00000001 00000008 00000000"
    violates(Mode.STRUCTURED, asked(BLOCK_STATUS), f"668e33ef 0000 0005 {C} {one}", f"668e33ef 0001 0005 {C} {one}")
    violates(Mode.STRUCTURED, asked(BLOCK_STATUS), f"668e33ef 0001 0005 {C} {one}", contexts=(1, 2))
    violates(Mode.STRUCTURED, asked(BLOCK_STATUS), f"668e33ef 0001 0000 {C} 00000000")
    wide = f"668e33ef 0001 0006 {C} 00000018 00000001 00000001 0000000000000008 0000000000000000"
    violates(Mode.STRUCTURED, asked(BLOCK_STATUS), wide)
    miscounted = "0000000000001000 0000000000000018 00000001 00000002 0000000000000008 0000000000000000"
    violates(Mode.EXTENDED, asked(BLOCK_STATUS), f"6e8a278c 0001 0006 {C} {miscounted}")


@pytest.mark.parametrize(
    "extents",
    ["0000000c 00000001 00000009 00000000", "00000014 00000001 00000004 00000000 00000004 00000000"],
)
def test_more_than_the_one_extent_asked_for_is_a_violation(extents: str) -> None:
    violates(Mode.STRUCTURED, asked(BLOCK_STATUS, flags=REQ_ONE), f"668e33ef 0001 0005 {C} {extents}")


@pytest.mark.parametrize(
    ("flags", "chunk"),
    [
        (0, f"0001 0007 {C} 00000020 {SIZE_FIELDS}"),
        (SIZE, f"0001 0000 {C} 00000000"),
        (NOTIFY, f"0001 0000 {C} 00000000"),
        (QUERY, f"0001 0007 {C} 0000001f {SIZE_FIELDS}"),
        (QUERY, f"0001 0007 {C} 00000020 8000000000000000 {'00' * 16} 00001000 00000000"),
        (QUERY, f"0001 0007 {C} 00000020 {'00' * 24} 00000000 00000000"),
    ],
)
def test_sizes_that_were_not_asked_for_or_missing_or_nonsense_are_a_violation(flags: int, chunk: str) -> None:
    violates(Mode.STRUCTURED, asked(RESIZE, 0, flags), f"668e33ef {chunk}")


def test_a_size_told_twice_is_a_violation() -> None:
    told = f"0007 {C} 00000020 {SIZE_FIELDS}"
    violates(Mode.STRUCTURED, asked(RESIZE, 0, QUERY), f"668e33ef 0000 {told}", f"668e33ef 0001 {told}")


def test_a_reply_of_chunks_without_end_is_a_violation() -> None:
    replies = stream(Mode.STRUCTURED, asked(READ, 1 << 20))
    chunks = b"".join(Replies(Mode.STRUCTURED).hole_chunk(COOKIE, AT, AT + 2 * at, 1) for at in range(65537))
    with pytest.raises(ProtocolViolation):
        list(replies.feed(chunks))
    errors = stream(Mode.STRUCTURED, asked(RESIZE, 0, NOTIFY, offset=0))
    with pytest.raises(ProtocolViolation):
        list(errors.feed(raw(f"668e33ef 0000 8001 {C} 00000006 00000005 0000") * 65537))


def test_cookies_are_distinct_and_requests_not_too_many() -> None:
    replies = stream(Mode.SIMPLE, *(asked(WRITE, cookie=cookie) for cookie in range(MAX_OUTSTANDING)))
    assert replies.outstanding == MAX_OUTSTANDING
    with pytest.raises(RuntimeError):
        replies.request(asked(WRITE, cookie=MAX_OUTSTANDING))
    with pytest.raises(RuntimeError):
        stream(Mode.SIMPLE, asked(WRITE), asked(READ))


def test_a_disconnect_awaits_no_reply() -> None:
    replies = stream(Mode.SIMPLE)
    assert replies.request(Request(0, DISC, 0, 0, 0)) == raw("25609513 0000 0002") + bytes(20)
    assert replies.outstanding == 0


@pytest.mark.parametrize(
    ("linux", "wire"),
    [
        (0, 22),
        (1, 1),
        (2, 22),
        (5, 5),
        (12, 12),
        (13, 1),
        (22, 22),
        (27, 28),
        (28, 28),
        (30, 1),
        (75, 75),
        (95, 95),
        (108, 108),
        (122, 28),
        (9999, 22),
    ],
)
def test_errors_of_linux_become_errors_of_nbd(linux: int, wire: int) -> None:
    assert wire_errno(linux) == wire


@given(st.binary(min_size=1, max_size=200), st.lists(st.integers(0, 200), max_size=6), st.randoms(), st.booleans())
def test_a_read_comes_back_from_any_chunks_in_any_order(
    content: bytes, cuts: list[int], random: Random, wide: bool
) -> None:
    mode = Mode.EXTENDED if wide else Mode.STRUCTURED
    replies, at = Replies(mode), sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    pieces = list(itertools.pairwise(at))
    random.shuffle(pieces)
    sent = b"".join(
        replies.data_chunk(COOKIE, AT, AT + start, end - start) + content[start:end] for start, end in pieces
    )
    events = list(stream(mode, asked(READ, len(content))).feed(sent + replies.done(COOKIE, AT)))
    read = bytearray(len(content))
    for event in events[:-1]:
        assert isinstance(event, Data)
        read[event.offset - AT : event.offset - AT + len(event.data)] = event.data
    assert bytes(read) == content
    assert events[-1] == Done(COOKIE)


@given(st.sampled_from(Mode), st.integers(0, 8), st.binary(max_size=200))
def test_whatever_a_server_sends_is_understood_or_a_violation(mode: Mode, command: int, noise: bytes) -> None:
    magic = {Mode.SIMPLE: "67446698 00000000", Mode.STRUCTURED: "668e33ef 0001", Mode.EXTENDED: "6e8a278c 0001"}[mode]
    for sent in (noise, raw(magic) + noise, raw(magic) + noise[:2] + raw(C) + noise[2:]):
        replies = stream(mode, *([asked(command)] if command != DISC else []))
        try:
            list(replies.feed(sent))
        except ProtocolViolation:
            continue
