"""Options, option replies and export information: what is packed is parsed back, and lies are found out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdresize.errors import InvalidArgument
from nbdresize.protocol.export_info import BlockSizes, ExportInfo, ResizeInfo, parse_info_type, parse_infos
from nbdresize.protocol.negotiated import MetaContext
from nbdresize.protocol.option_replies import (
    ExportEntry,
    pack_error,
    pack_meta_context,
    parse_error,
    parse_export_entry,
    parse_greeting,
    parse_meta_context,
    parse_reply_header,
)
from nbdresize.protocol.options import (
    ExportQuery,
    MetaContextQuery,
    pack_option,
    parse_export_query,
    parse_meta_context_query,
    parse_option_header,
    select_contexts,
)
from nbdresize.protocol.strings import pack_message, parse_message
from nbdresize.protocol.violation import ProtocolViolation
from tests.protocol.feeding import raw

U16, U32, U64 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
STRINGS = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=300)


@given(STRINGS, st.lists(U16, max_size=20))
def test_an_export_query_comes_back(name: str, infos: list[int]) -> None:
    query = ExportQuery(name, tuple(infos))
    assert parse_export_query(query.pack()) == query


@given(STRINGS, st.lists(STRINGS, max_size=20))
def test_a_query_for_contexts_comes_back(name: str, queries: list[str]) -> None:
    query = MetaContextQuery(name, tuple(queries))
    assert parse_meta_context_query(query.pack()) == query


@given(STRINGS, st.lists(U16, max_size=5), st.data())
def test_a_query_cut_or_extended_anywhere_is_invalid(name: str, infos: list[int], data: st.DataObject) -> None:
    packed = ExportQuery(name, tuple(infos)).pack()
    cut = data.draw(st.integers(0, len(packed) - 1))
    for wrong in (packed[:cut], packed + b"\0"):
        with pytest.raises(InvalidArgument):
            parse_export_query(wrong)


@given(U32, st.binary(max_size=100))
def test_an_option_header_comes_back(option: int, data: bytes) -> None:
    packed = pack_option(option, data)
    assert parse_option_header(packed[:16]) == (option, len(data))
    assert packed[16:] == data


@given(STRINGS, STRINGS)
def test_an_export_entry_comes_back_with_what_can_be_shown_of_its_description(name: str, description: str) -> None:
    entry = parse_export_entry(ExportEntry(name, description).pack())
    assert entry.name == name
    assert entry.description == parse_message(description.encode())


@given(U32, STRINGS)
def test_a_meta_context_comes_back(number: int, name: str) -> None:
    context = MetaContext(number, name)
    assert parse_meta_context(pack_meta_context(10, context)[20:]) == context


EXPORTS = st.builds(
    ExportInfo,
    size=st.integers(0, 2**63 - 1),
    flags=st.integers(0, 2**15).map(lambda flags: flags | 1 | 1 << 9),
    name=st.none() | STRINGS,
    description=st.none() | STRINGS,
    block_sizes=st.none() | st.builds(BlockSizes, st.just(512), st.just(4096), st.integers(512, 2**32 - 1)),
    resize=st.none()
    | st.builds(ResizeInfo, U16, st.integers(1, 2**32 - 1), st.integers(0, 2**63), st.integers(2**63, 2**64 - 1)),
)


@given(EXPORTS)
def test_what_is_told_of_an_export_comes_back(export: ExportInfo) -> None:
    packed = export.pack_infos(range(5))
    assert parse_infos({parse_info_type(payload): payload for payload in packed}) == export


def test_resize_information_is_24_bytes() -> None:
    export = ExportInfo(1, 1, resize=ResizeInfo(0x0F, 4096, 8192, 2**40))
    assert export.pack_infos([4])[1] == raw("0004 000f 00001000 0000000000002000 0000010000000000")


def test_resize_information_counts_only_beside_its_flag() -> None:
    size, resize = raw("0000 0000000000000001 0001"), raw("0004 000f 00001000 0000000000002000 0000010000000000")
    assert parse_infos({0: size, 4: resize}).resize is None
    assert parse_infos({0: size[:-2] + b"\x02\x01", 4: resize}).resize is not None


@pytest.mark.parametrize(
    "payloads",
    [
        {},
        {0: raw("0000 0000000000000001")},
        {0: raw("0000 0000000000000001 0001 00")},
        {0: raw("0000 8000000000000000 0001")},
        {0: raw("0000 0000000000000001 0000")},
        {0: raw("0000 0000000000000001 0001"), 1: raw("0001 ff")},
        {0: raw("0000 0000000000000001 0001"), 2: raw("0002 61 00")},
        {0: raw("0000 0000000000000001 0001"), 2: raw("0002") + b"d" * 4097},
        {0: raw("0000 0000000000000001 0001"), 3: raw("0003 00000001 00001000")},
        {0: raw("0000 0000000000000001 0001"), 3: raw("0003 00000000 00001000 02000000")},
        {0: raw("0000 0000000000000001 0001"), 3: raw("0003 00000003 00001000 02000000")},
        {0: raw("0000 0000000000000001 0001"), 3: raw("0003 00020000 00020000 02000000")},
        {0: raw("0000 0000000000000001 0001"), 3: raw("0003 00001000 00000200 02000000")},
        {0: raw("0000 0000000000000001 0001"), 3: raw("0003 00001000 00001000 00000200")},
        {0: raw("0000 0000000000000001 0201"), 4: raw("0004 000f 00000000 0000000000000000 0000000000002000")},
        {0: raw("0000 0000000000000001 0201"), 4: raw("0004 000f 00001000 0000000000002001 0000000000002000")},
        {0: raw("0000 0000000000000001 0201"), 4: raw("0004 000f 00001000 0000000000002000")},
    ],
)
def test_a_description_of_an_export_that_can_not_be_true_is_a_violation(payloads: dict[int, bytes]) -> None:
    with pytest.raises(ProtocolViolation):
        parse_infos(payloads)


ALLOCATION = "base:allocation"


@pytest.mark.parametrize(
    ("available", "queries", "listed", "selected"),
    [
        ([ALLOCATION], [], [ALLOCATION], []),
        ([ALLOCATION], ["base:"], [ALLOCATION], []),
        ([ALLOCATION], [ALLOCATION, ALLOCATION], [ALLOCATION], [ALLOCATION]),
        ([ALLOCATION], ["base", "base:alloc", "qemu:", "", ":"], [], []),
        ([], [ALLOCATION], [], []),
        ([ALLOCATION, "x:y", "x:z"], ["x:", ALLOCATION], [ALLOCATION, "x:y", "x:z"], [ALLOCATION]),
    ],
)
def test_which_contexts_queries_mean(
    available: list[str], queries: list[str], listed: list[str], selected: list[str]
) -> None:
    assert list(select_contexts(available, queries, listing=True)) == listed
    assert list(select_contexts(available, queries, listing=False)) == selected


@pytest.mark.parametrize(
    ("greeting", "says"),
    [
        ("'NBDMAGIC' 0000420281861253 0000", "oldstyle"),
        ("'NBDMAGIC' 'IHAVEOPS' 0003", "IHAVEOPT"),
        ("'HTTP/1.1' 'IHAVEOPT' 0003", "NBDMAGIC"),
    ],
)
def test_greetings_of_other_servers_are_told_apart(greeting: str, says: str) -> None:
    with pytest.raises(ProtocolViolation, match=says):
        parse_greeting(raw(greeting))


@pytest.mark.parametrize(
    "header",
    [
        "0003e889045565a8 00000007 00000001 00000000",
        "0003e889045565a9 00000006 00000001 00000000",
        "0003e889045565a9 00000007 00000001 00010001",
        "0003e889045565a9 00000007 80000001 ffffffff",
    ],
)
def test_reply_headers_that_answer_something_else_or_too_much_are_violations(header: str) -> None:
    with pytest.raises(ProtocolViolation):
        parse_reply_header(raw(header), 7)


@pytest.mark.parametrize("data", ["", "000000", "00000002 'd'", "ffffffff 'd'", "00000001 ff", "00000001 00"])
def test_export_entries_that_do_not_add_up_are_violations(data: str) -> None:
    with pytest.raises(ProtocolViolation):
        parse_export_entry(raw(data))


def test_a_description_of_more_than_4096_bytes_is_a_violation() -> None:
    with pytest.raises(ProtocolViolation):
        parse_export_entry(raw("00000001 'd'") + b"x" * 4097)


@pytest.mark.parametrize("data", ["", "000000", "00000001 ff", "00000001 00"])
def test_meta_contexts_that_do_not_add_up_are_violations(data: str) -> None:
    with pytest.raises(ProtocolViolation):
        parse_meta_context(raw(data))


@given(st.text(max_size=5000))
def test_an_error_text_always_fits_and_is_always_utf8(text: str) -> None:
    packed = pack_message(text)
    assert len(packed) <= 4096
    assert b"\0" not in packed
    packed.decode()
    assert len(pack_error(7, 0x80000006, text)) == 20 + len(packed)


def test_an_error_text_is_cut_between_characters() -> None:
    assert pack_message("x" + "ü" * 4096) == b"x" + "ü".encode() * 2047


@given(st.binary(max_size=5000))
def test_an_error_text_of_a_server_can_be_printed_whatever_it_is(data: bytes) -> None:
    assert parse_message(data) == "" or parse_message(data).isprintable()


def test_an_error_without_a_text_is_told_in_words() -> None:
    assert parse_error(0x80000006, b"") == "there is no such export"
    assert parse_error(0x800000FF, b"") == "the server answered with error 0x800000ff"
    assert parse_error(0x80000006, b"gone \x1b[31mfishing") == "gone  [31mfishing"
