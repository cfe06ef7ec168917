"""Requests: their headers byte for byte, and the one check of their form, for every command and flag."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdresize.errors import InvalidArgument, NotAuthorized
from nbdresize.protocol.export_info import ExportInfo, ResizeInfo
from nbdresize.protocol.negotiated import MetaContext, Mode, Negotiated
from nbdresize.protocol.transmission import Offer, Request, check_request, parse_request, request_length
from nbdresize.protocol.violation import ProtocolViolation
from tests.protocol.feeding import raw

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, RESIZE = range(9)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = 1, 2, 4, 8, 16, 32
SIZE, QUERY, NOTIFY, SHRINK, FIT, EXTEND, CANCEL = (1 << bit for bit in range(6, 13))
MIB = 1 << 20

SIMPLE = Offer(Mode.SIMPLE, flags=0x0F6D, block_status=False, features=0x0C)
"""All that can be offered without chunks: flush, FUA, trim, write zeroes, multi-conn, resize, cache, fast zero."""
STRUCTURED = Offer(Mode.STRUCTURED, flags=0x0FED, block_status=True, features=0x0F)
EXTENDED = Offer(Mode.EXTENDED, flags=0x0FED, block_status=True, features=0x0F)
READ_ONLY = Offer(Mode.STRUCTURED, flags=0x0FEF, block_status=True, features=0x07)
BARE = Offer(Mode.SIMPLE, flags=0x0001, block_status=False, features=None)


def request(command: int, flags: int = 0, offset: int = 0, length: int = 4096) -> Request:
    return Request(flags, command, 0x1122334455667788, offset, length)


def resize(flags: int, size: int = MIB, length: int = 0) -> Request:
    return request(RESIZE, flags, size, length)


def test_a_compact_header_is_28_bytes() -> None:
    header = raw("25609513 0001 0004 1122334455667788 0000000000001000 00002000")
    asked = Request(1, TRIM, 0x1122334455667788, 4096, 8192)
    for mode in (Mode.SIMPLE, Mode.STRUCTURED):
        assert request_length(mode) == 28
        assert parse_request(header, mode) == asked
        assert asked.pack(mode) == header


def test_an_extended_header_is_32_bytes() -> None:
    header = raw("21e41c71 0021 0001 1122334455667788 0000000000001000 0000000000002000")
    asked = Request(FUA | PAYLOAD_LEN, WRITE, 0x1122334455667788, 4096, 8192)
    assert request_length(Mode.EXTENDED) == 32
    assert parse_request(header, Mode.EXTENDED) == asked
    assert asked.pack(Mode.EXTENDED) == header


@given(
    st.sampled_from(Mode),
    st.builds(
        Request,
        st.integers(0, 2**16 - 1),
        st.integers(0, 2**16 - 1),
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**32 - 1),
    ),
)
def test_a_request_comes_back(mode: Mode, asked: Request) -> None:
    assert parse_request(asked.pack(mode), mode) == asked


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("magic", ["25609514", "12560953", "67446698", "00000000"])
def test_a_wrong_magic_ends_the_connection(mode: Mode, magic: str) -> None:
    with pytest.raises(ProtocolViolation):
        parse_request(raw(magic) + bytes(request_length(mode) - 4), mode)


def test_the_magic_of_the_other_form_ends_the_connection() -> None:
    with pytest.raises(ProtocolViolation):
        parse_request(raw("21e41c71") + bytes(24), Mode.STRUCTURED)
    with pytest.raises(ProtocolViolation):
        parse_request(raw("25609513") + bytes(28), Mode.EXTENDED)


def test_which_requests_have_a_payload() -> None:
    assert request(WRITE).payload_length(Mode.SIMPLE) == 4096
    assert request(READ).payload_length(Mode.STRUCTURED) == 0
    assert request(WRITE, PAYLOAD_LEN).payload_length(Mode.EXTENDED) == 4096
    assert request(WRITE).payload_length(Mode.EXTENDED) == 0
    assert request(READ, PAYLOAD_LEN).payload_length(Mode.EXTENDED) == 4096
    assert request(READ, PAYLOAD_LEN).payload_length(Mode.SIMPLE) == 0
    assert request(TRIM, length=2**64 - 1).payload_length(Mode.EXTENDED) == 0


def test_a_payload_up_to_64_mib_can_be_skipped_and_a_longer_one_ends_the_connection() -> None:
    assert request(WRITE, length=64 * MIB).payload_length(Mode.SIMPLE) == 64 * MIB
    for mode, flags, length in ((Mode.SIMPLE, 0, 64 * MIB + 1), (Mode.EXTENDED, PAYLOAD_LEN, 2**64 - 1)):
        with pytest.raises(ProtocolViolation):
            request(WRITE, flags, length=length).payload_length(mode)


VALID = [
    (SIMPLE, READ, [0, FUA]),
    (SIMPLE, WRITE, [0, FUA, EXTEND, EXTEND | FUA]),
    (SIMPLE, TRIM, [0, FUA]),
    (SIMPLE, CACHE, [0, FUA]),
    (SIMPLE, WRITE_ZEROES, [0, FUA, NO_HOLE, FAST_ZERO, FUA | NO_HOLE | FAST_ZERO, EXTEND | NO_HOLE]),
    (STRUCTURED, READ, [0, FUA, DF, FUA | DF]),
    (STRUCTURED, WRITE, [0, FUA, EXTEND, EXTEND | SIZE]),
    (STRUCTURED, WRITE_ZEROES, [0, EXTEND | SIZE | FUA, NO_HOLE | FAST_ZERO]),
    (STRUCTURED, BLOCK_STATUS, [0, FUA, REQ_ONE]),
    (EXTENDED, WRITE, [PAYLOAD_LEN, PAYLOAD_LEN | FUA, PAYLOAD_LEN | EXTEND | SIZE]),
    (EXTENDED, READ, [0, DF | FUA]),
    (READ_ONLY, READ, [0, DF | FUA]),
    (READ_ONLY, CACHE, [0, FUA]),
    (READ_ONLY, BLOCK_STATUS, [0, REQ_ONE | FUA]),
    (BARE, READ, [0]),
    (BARE, WRITE, [0]),
]


@pytest.mark.parametrize(("offer", "command", "flags"), VALID)
def test_exactly_these_flags_go_with_a_command(offer: Offer, command: int, flags: list[int]) -> None:
    known = 0
    for valid in flags:
        check_request(request(command, valid), offer)
        known |= valid
    for bit in range(16):
        if not 1 << bit & known:
            with pytest.raises(InvalidArgument):
                check_request(request(command, flags[0] | 1 << bit), offer)


def test_size_on_a_write_goes_with_extend_only() -> None:
    for command in (WRITE, WRITE_ZEROES):
        with pytest.raises(InvalidArgument):
            check_request(request(command, SIZE), STRUCTURED)


@pytest.mark.parametrize("command", [DISC, 9, 255, 0x0100, 0xFFFF])
def test_an_unknown_command_is_invalid(command: int) -> None:
    with pytest.raises(InvalidArgument):
        check_request(request(command), EXTENDED)


@pytest.mark.parametrize("command", [FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, RESIZE])
def test_a_command_that_was_not_offered_is_invalid(command: int) -> None:
    with pytest.raises(InvalidArgument):
        check_request(request(command, length=0 if command in (FLUSH, RESIZE) else 4096), BARE)


@pytest.mark.parametrize("command", [READ, WRITE, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS])
def test_a_length_of_zero_is_invalid(command: int) -> None:
    with pytest.raises(InvalidArgument):
        check_request(request(command, length=0), STRUCTURED)


def test_a_flush_has_neither_offset_nor_length() -> None:
    check_request(request(FLUSH, length=0), SIMPLE)
    check_request(request(FLUSH, FUA, length=0), SIMPLE)
    for offset, length in ((0, 1), (1, 0)):
        with pytest.raises(InvalidArgument):
            check_request(request(FLUSH, offset=offset, length=length), SIMPLE)


@pytest.mark.parametrize("command", [WRITE, TRIM, WRITE_ZEROES])
def test_a_write_to_a_read_only_export_is_not_permitted(command: int) -> None:
    with pytest.raises(NotAuthorized):
        check_request(request(command), READ_ONLY)


def test_a_malformed_write_to_a_read_only_export_is_invalid_first() -> None:
    with pytest.raises(InvalidArgument):
        check_request(request(WRITE, length=0), READ_ONLY)
    with pytest.raises(InvalidArgument):
        check_request(request(WRITE, DF), READ_ONLY)


def test_reads_and_payloads_of_32_mib_pass_and_longer_ones_are_invalid() -> None:
    for command in (READ, WRITE):
        check_request(request(command, length=32 * MIB), SIMPLE)
        with pytest.raises(InvalidArgument):
            check_request(request(command, length=32 * MIB + 1), SIMPLE)


def test_a_read_that_is_too_long_for_one_chunk_overflows() -> None:
    check_request(request(READ, DF, length=32 * MIB), STRUCTURED)
    with pytest.raises(OSError) as caught:
        check_request(request(READ, DF, length=32 * MIB + 1), STRUCTURED)
    assert caught.value.errno == errno.EOVERFLOW


@pytest.mark.parametrize("command", [TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS])
def test_lengths_without_a_payload_may_be_as_long_as_the_header_allows(command: int) -> None:
    check_request(request(command, length=2**32 - 1), STRUCTURED)
    check_request(request(command, length=2**63), EXTENDED)


def test_an_extended_write_without_a_payload_is_invalid() -> None:
    with pytest.raises(InvalidArgument):
        check_request(request(WRITE), EXTENDED)


@pytest.mark.parametrize(
    ("offer", "flags", "size"),
    [
        (SIMPLE, 0, MIB),
        (SIMPLE, FUA, MIB),
        (SIMPLE, SHRINK, 1),
        (SIMPLE, FIT, 2**64 - 1),
        (SIMPLE, SHRINK | FIT, MIB),
        (SIMPLE, CANCEL, 7),
        (STRUCTURED, SIZE, MIB),
        (STRUCTURED, SIZE | SHRINK | FIT, 2**64 - 1),
        (STRUCTURED, QUERY, 0),
        (STRUCTURED, QUERY | SIZE, 0),
        (STRUCTURED, NOTIFY, 0),
        (STRUCTURED, NOTIFY | SIZE, 0),
        (STRUCTURED, CANCEL, 0),
        (STRUCTURED, CANCEL, 2**64 - 1),
        (EXTENDED, SIZE, MIB),
        (READ_ONLY, QUERY, 0),
        (READ_ONLY, NOTIFY, 0),
        (READ_ONLY, CANCEL, 7),
    ],
)
def test_a_well_formed_resize_passes(offer: Offer, flags: int, size: int) -> None:
    check_request(resize(flags, size), offer)


@pytest.mark.parametrize(
    ("offer", "flags", "size", "length"),
    [
        (SIMPLE, 0, MIB, 1),
        (SIMPLE, 0, MIB, 2**32 - 1),
        (SIMPLE, 0, 0, 0),
        (SIMPLE, SHRINK, 0, 0),
        (SIMPLE, 0, 2**64 - 1, 0),
        (SIMPLE, SHRINK, 2**64 - 1, 0),
        (SIMPLE, SIZE, MIB, 0),
        (SIMPLE, QUERY, 0, 0),
        (SIMPLE, NOTIFY, 0, 0),
        (STRUCTURED, QUERY | NOTIFY, 0, 0),
        (STRUCTURED, QUERY | CANCEL, 0, 0),
        (STRUCTURED, NOTIFY | CANCEL, 0, 0),
        (STRUCTURED, QUERY | SHRINK, 0, 0),
        (STRUCTURED, NOTIFY | FIT, 0, 0),
        (STRUCTURED, CANCEL | SHRINK, 7, 0),
        (STRUCTURED, CANCEL | SIZE, 7, 0),
        (STRUCTURED, QUERY, 1, 0),
        (STRUCTURED, NOTIFY, MIB, 0),
        (STRUCTURED, QUERY, 0, 1),
        (STRUCTURED, CANCEL, 7, 1),
        (STRUCTURED, EXTEND, MIB, 0),
        (STRUCTURED, NO_HOLE, MIB, 0),
        (STRUCTURED, 1 << 13, MIB, 0),
        (STRUCTURED, 1 << 15, MIB, 0),
        (EXTENDED, PAYLOAD_LEN, MIB, 0),
        (READ_ONLY, 0, 0, 0),
        (BARE, 0, MIB, 0),
    ],
)
def test_a_malformed_resize_is_invalid(offer: Offer, flags: int, size: int, length: int) -> None:
    with pytest.raises(InvalidArgument):
        check_request(resize(flags, size, length), offer)


@pytest.mark.parametrize("flags", [0, SIZE, SHRINK, FIT])
def test_a_resize_of_a_read_only_export_is_not_permitted(flags: int) -> None:
    with pytest.raises(NotAuthorized):
        check_request(resize(flags), READ_ONLY)


def test_extend_needs_its_feature() -> None:
    with pytest.raises(InvalidArgument):
        check_request(request(WRITE, EXTEND), Offer(Mode.SIMPLE, flags=0x0201, block_status=False, features=0x04))


def test_an_offer_follows_from_what_was_negotiated() -> None:
    export = ExportInfo(MIB, 0x028D, resize=ResizeInfo(0x0F, 4096, MIB, MIB))
    full = Negotiated("d", export, Mode.STRUCTURED, (MetaContext(1, "base:allocation"),), tls=False)
    assert Offer.of(full) == Offer(Mode.STRUCTURED, 0x028D, True, 0x0F)
    assert Offer.of(Negotiated("d", ExportInfo(MIB, 1), Mode.SIMPLE, (), tls=False)) == BARE


@given(
    st.sampled_from([SIMPLE, STRUCTURED, EXTENDED, READ_ONLY, BARE]),
    st.integers(0, 2**16 - 1),
    st.integers(0, 10),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
)
def test_every_request_passes_or_is_refused(offer: Offer, flags: int, command: int, offset: int, length: int) -> None:
    try:
        check_request(request(command, flags, offset, length), offer)
    except (InvalidArgument, NotAuthorized) as error:
        assert error.nbd_errno in (errno.EINVAL, errno.EPERM)
    except OSError as error:
        assert error.errno == errno.EOVERFLOW
