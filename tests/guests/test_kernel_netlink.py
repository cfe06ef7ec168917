"""Netlink messages byte by byte: laid out by hand here, from netlink(7) and the kernel's headers."""

import sys

import pytest

from nbdresize.guests.kernel.netlink import (
    GENL_ID_CTRL,
    NLMSG_ERROR,
    Malformed,
    Message,
    pack_get_family,
    pack_set_size,
    parse_error,
    parse_family,
    parse_messages,
)


def number(value: int, length: int) -> bytes:
    """In the machine's own byte order."""
    return value.to_bytes(length, sys.byteorder, signed=value < 0)


def header(length: int, kind: int, flags: int, sequence: int, port: int = 0) -> bytes:
    return number(length, 4) + number(kind, 2) + number(flags, 2) + number(sequence, 4) + number(port, 4)


def attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return number(length, 2) + number(kind, 2) + value + bytes(-length % 4)


def test_the_question_for_a_family() -> None:
    body = bytes([3, 1, 0, 0]) + attribute(2, b"nbd\0")
    assert pack_get_family("nbd", 7) == header(16 + len(body), 0x10, 0x5, 7) + body


def test_a_name_is_padded_and_its_length_is_not() -> None:
    packed = pack_get_family("nbd12", 1)
    assert packed[20:] == number(10, 2) + number(2, 2) + b"nbd12\0" + b"\0\0"
    assert packed[:4] == number(len(packed), 4)


def test_the_request_for_a_size() -> None:
    packed = pack_set_size(0x1C, 3, 5 * 2**40 + 512, b"", 2)
    body = bytes([3, 1, 0, 0]) + attribute(1, number(3, 4)) + attribute(2, number(5 * 2**40 + 512, 8))
    assert packed == header(16 + len(body), 0x1C, 0x5, 2) + body
    assert len(packed) == 40


def test_the_request_names_the_backend_of_a_device_that_has_one() -> None:
    plain, named = pack_set_size(0x1C, 0, 4096, b"", 2), pack_set_size(0x1C, 0, 4096, b"web1/0", 2)
    assert named[4:40] == plain[4:40]
    assert named[40:] == number(11, 2) + number(10, 2) + b"web1/0\0" + b"\0"
    assert named[:4] == number(52, 4)


def test_messages_of_one_datagram_are_taken_apart() -> None:
    first = header(16 + 5, 0x10, 0, 7) + b"hello" + bytes(3)
    second = header(16 + 4, 2, 0, 8) + number(0, 4)
    assert list(parse_messages(first + second)) == [Message(0x10, 7, b"hello"), Message(2, 8, number(0, 4))]
    assert list(parse_messages(b"")) == []


@pytest.mark.parametrize("cut", range(1, 36))
def test_a_datagram_cut_anywhere_is_malformed(cut: int) -> None:
    whole = header(36, 0x10, 0, 7) + bytes(20)
    with pytest.raises(Malformed):
        list(parse_messages(whole[:cut]))


@pytest.mark.parametrize("length", [0, 1, 15, 21, 2**32 - 1])
def test_a_length_that_lies_is_malformed(length: int) -> None:
    with pytest.raises(Malformed):
        list(parse_messages(header(length, 2, 0, 1) + bytes(4)))


def test_an_error_has_the_errno_of_the_kernel() -> None:
    assert parse_error(number(-22, 4) + header(40, 0x1C, 5, 2)) == 22
    assert parse_error(number(0, 4) + header(40, 0x1C, 5, 2)) == 0
    with pytest.raises(Malformed):
        parse_error(b"\0\0\0")
    assert (GENL_ID_CTRL, NLMSG_ERROR) == (16, 2)


def test_a_family_is_found_among_other_attributes() -> None:
    answer = bytes([1, 2, 0, 0]) + attribute(2, b"nbd\0") + attribute(1, number(0x1C, 2)) + attribute(3, number(1, 4))
    assert parse_family(answer) == 0x1C
    flagged = bytes([1, 2, 0, 0]) + attribute(1 | 0x8000, number(0x1D, 2))
    assert parse_family(flagged) == 0x1D


@pytest.mark.parametrize(
    "attributes",
    [
        b"",
        attribute(2, b"nbd\0"),
        attribute(1, number(0x1C, 4)),
        attribute(1, number(0x1C, 2))[:5],
        number(0, 2) + number(1, 2),
        number(3, 2) + number(1, 2),
        b"\6",
    ],
)
def test_a_family_without_its_number_is_malformed(attributes: bytes) -> None:
    with pytest.raises(Malformed):
        parse_family(bytes([1, 2, 0, 0]) + attributes)
