"""The bytes of the size record and of the request, as design and specification lay them out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdresize.errors import InvalidArgument
from nbdresize.protocol.constants import (
    NBD_CMD_FLAG_CANCEL,
    NBD_CMD_FLAG_EXTEND,
    NBD_CMD_FLAG_FIT,
    NBD_CMD_FLAG_FUA,
    NBD_CMD_FLAG_NOTIFY,
    NBD_CMD_FLAG_QUERY,
    NBD_CMD_FLAG_SHRINK,
    NBD_CMD_FLAG_SIZE,
)
from nbdresize.protocol.size_record import (
    FEATURE_NOTIFY,
    FEATURE_SHRINK,
    RECORD_LENGTH,
    REQUEST_FLAGS,
    REQUEST_LENGTH,
    SizeRecord,
    SizeWish,
    parse_record,
    parse_request,
)

U64 = st.integers(0, 2**64 - 1)
RECORDS = st.builds(SizeRecord, U64, U64, U64, U64, st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1))


def test_record_has_the_layout_of_the_specification() -> None:
    record = SizeRecord(
        size=0x0102030405060708,
        generation=0x1112131415161718,
        minimum=0x2122232425262728,
        maximum=0x3132333435363738,
        granularity=0x41424344,
        features=FEATURE_NOTIFY | FEATURE_SHRINK,
    )
    assert record.pack().hex(" ", 8) == (
        "4e42445245535a31 0102030405060708 1112131415161718 2122232425262728 "
        "3132333435363738 4142434400060000 0000000000000000 0000000000000000"
    )


def test_request_has_the_layout_of_the_specification() -> None:
    wish = SizeWish(0x0102030405060708, NBD_CMD_FLAG_SHRINK | NBD_CMD_FLAG_FIT)
    assert wish.pack() == b"NBDRESZQ" + bytes.fromhex("0102030405060708 0600") + bytes(46)


@given(RECORDS)
def test_every_record_survives_packing(record: SizeRecord) -> None:
    assert len(record.pack()) == RECORD_LENGTH
    assert parse_record(record.pack()) == record


def test_bytes_after_the_record_are_left_for_later_versions() -> None:
    record = SizeRecord(1, 2, 3, 4, 5, 6)
    assert parse_record(record.pack()[:46] + bytes([0xFF] * 18)) == record


@given(st.binary(max_size=130))
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        parse_record(data)


@pytest.mark.parametrize("cut", range(RECORD_LENGTH))
def test_a_cut_record_is_refused(cut: int) -> None:
    with pytest.raises(InvalidArgument):
        parse_record(SizeRecord(1, 2, 3, 4, 5, 6).pack()[:cut])


@given(st.integers(1, 2**64 - 2), st.sampled_from([0, *range(1, 2**16)]).map(lambda bits: bits & REQUEST_FLAGS))
def test_every_request_survives_packing(size: int, flags: int) -> None:
    wish = SizeWish(size, flags)
    assert len(wish.pack()) == REQUEST_LENGTH
    assert parse_request(wish.pack()) == wish


@pytest.mark.parametrize("cut", range(REQUEST_LENGTH))
def test_a_cut_request_is_refused(cut: int) -> None:
    with pytest.raises(InvalidArgument):
        parse_request(SizeWish(4096).pack()[:cut])


@pytest.mark.parametrize("place", range(18, REQUEST_LENGTH))
def test_a_request_with_bytes_after_its_flags_is_refused(place: int) -> None:
    data = bytearray(SizeWish(4096).pack())
    data[place] = 1
    with pytest.raises(InvalidArgument, match="after its flags"):
        parse_request(bytes(data))


@pytest.mark.parametrize("place", range(8))
def test_a_request_with_another_magic_is_refused(place: int) -> None:
    data = bytearray(SizeWish(4096).pack())
    data[place] ^= 0x20
    with pytest.raises(InvalidArgument, match="NBDRESZQ"):
        parse_request(bytes(data))


@pytest.mark.parametrize("bit", [bit for bit in range(16) if not REQUEST_FLAGS >> bit & 1])
def test_a_request_with_a_flag_that_means_nothing_here_is_refused(bit: int) -> None:
    with pytest.raises(InvalidArgument, match="flags"):
        parse_request(SizeWish(4096, 1 << bit | NBD_CMD_FLAG_FIT).pack())


def test_the_flags_of_a_request_are_query_shrink_and_fit() -> None:
    assert NBD_CMD_FLAG_QUERY | NBD_CMD_FLAG_SHRINK | NBD_CMD_FLAG_FIT == REQUEST_FLAGS
    others = NBD_CMD_FLAG_FUA, NBD_CMD_FLAG_SIZE, NBD_CMD_FLAG_NOTIFY, NBD_CMD_FLAG_EXTEND, NBD_CMD_FLAG_CANCEL
    assert not any(flag & REQUEST_FLAGS for flag in others)


@pytest.mark.parametrize("flags", [0, NBD_CMD_FLAG_SHRINK, NBD_CMD_FLAG_FIT, NBD_CMD_FLAG_SHRINK | NBD_CMD_FLAG_FIT])
def test_a_size_of_nothing_is_refused(flags: int) -> None:
    with pytest.raises(InvalidArgument, match="0 bytes"):
        parse_request(SizeWish(0, flags).pack())


def test_all_that_remains_is_asked_for_with_fit_only() -> None:
    assert parse_request(SizeWish(2**64 - 1, NBD_CMD_FLAG_FIT).pack()).size == 2**64 - 1
    for flags in (0, NBD_CMD_FLAG_SHRINK):
        with pytest.raises(InvalidArgument, match="FIT"):
            parse_request(SizeWish(2**64 - 1, flags).pack())


@pytest.mark.parametrize("size", [0, 1, 2**64 - 1])
def test_a_query_may_carry_any_size(size: int) -> None:
    assert parse_request(SizeWish(size, NBD_CMD_FLAG_QUERY).pack()) == SizeWish(size, NBD_CMD_FLAG_QUERY)


@pytest.mark.parametrize(("size", "flags"), [(-1, 0), (2**64, 0), (1, -1), (1, 2**16)])
def test_what_does_not_fit_in_a_request_is_refused_when_it_is_packed(size: int, flags: int) -> None:
    with pytest.raises(InvalidArgument):
        SizeWish(size, flags).pack()
