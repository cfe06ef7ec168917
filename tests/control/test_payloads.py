"""Documents in the shapes of RFD 154: what they come to, and that nothing else is taken for one."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbdresize.control.model import DiskChanges, DiskUpdate
from nbdresize.control.payloads import MOST_BYTES, Creation, read_creation, read_update
from nbdresize.errors import InvalidArgument
from nbdresize.units import MAX_SIZE, REMAINING, SizeRequest

MIB = 1 << 20
ZVOL = "/dev/zvol/rdsk/zones/web1"


def mib(number: int) -> SizeRequest:
    return SizeRequest(exact=number * MIB)


def update(document: Any, vm: str = "web1") -> DiskChanges:
    return read_update(json.dumps(document).encode(), vm)


def refusal(document: Any, *, create: bool = False) -> str:
    """The message for a document, as JSON or as bytes; one line that a terminal can show."""
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(InvalidArgument) as caught:
        read_creation(raw) if create else read_update(raw, "web1")
    assert caught.value.way_out
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
    return str(caught.value)


def test_the_three_disks_of_the_rfd() -> None:
    document = b"""{
      "package": "c4fa76e0-6178-ec20-b64a-e5567f3d62d5",
      "image": "aa788e1f-e143-c46e-9417-b4212486c4ae",
      "disks": [
        {
        },
        {
          "size": 20480
        },
        {
          "size": "remaining"
        }
      ]
    }"""
    assert read_creation(document) == Creation(
        (None, mib(20480), REMAINING), "c4fa76e0-6178-ec20-b64a-e5567f3d62d5", "aa788e1f-e143-c46e-9417-b4212486c4ae"
    )


def test_the_same_as_the_rfd_prints_it_lacks_a_comma_and_the_message_says_where() -> None:
    document = b'{\n  "package": "p",\n  "image": "i"\n  "disks": []\n}'
    assert "line 4, column 3" in refusal(document, create=True)


def test_the_vmadm_payload_of_the_rfd() -> None:
    image = "d4c79fef-da87-48e6-8178-f2357b43c293"
    document = {"disks": [{"image_uuid": image, "size": 204800, "boot": True}]}
    assert read_creation(json.dumps(document).encode()) == Creation((mib(204800),), None, image)


def test_a_creation_may_leave_everything_to_the_command_line() -> None:
    assert read_creation(b"{}") == Creation()
    assert read_creation(b'{"disks": []}') == Creation(disks=())


def test_the_updates_of_the_rfd() -> None:
    grow = {"update_disks": [{"path": f"{ZVOL}/disk0", "size": 102400}]}
    assert update(grow) == DiskChanges(update=(DiskUpdate(0, mib(102400)),))
    shrink = {"update_disks": [{"path": f"{ZVOL}/disk0", "size": 20480, "dangerous_allow_shrink": True}]}
    assert update(shrink) == DiskChanges(update=(DiskUpdate(0, mib(20480), shrink=True),))


def test_the_misspelt_key_of_the_rfd_is_refused_and_the_right_one_named() -> None:
    message = refusal({"update_disks": [{"path": f"{ZVOL}/disk0", "size": 20480, "dangrous_allow_shrink": True}]})
    assert message.startswith("update_disks[0]: there is no key 'dangrous_allow_shrink': is dangerous_allow_shrink ")


def test_all_three_kinds_of_change_in_one_document() -> None:
    document = {
        "add_disks": [{"size": 1024}, {"size": "remaining"}],
        "update_disks": [{"slot": "disk2", "size": 2048}],
        "remove_disks": ["disk3", f"{ZVOL}/disk4"],
    }
    assert update(document) == DiskChanges((mib(1024), REMAINING), (DiskUpdate(2, mib(2048)),), (3, 4))


@pytest.mark.parametrize(
    "path", ["disk1", "/disk1", f"{ZVOL}/disk1", "web1/disk1", "/srv/volumes/web1-disk1-0123abcd.raw"]
)
def test_a_disk_is_named_by_the_end_of_a_path(path: str) -> None:
    assert update({"remove_disks": [path]}) == DiskChanges(remove=(1,))


@pytest.mark.parametrize(
    "path", ["web2/disk1", "/srv/volumes/web2-disk1-0123abcd.raw", "/dev/zvol/rdsk/zones/web2/disk1"]
)
def test_a_path_that_names_another_vm_is_refused(path: str) -> None:
    """Else a document for another VM costs this one a disk."""
    for document in ({"remove_disks": [path]}, {"update_disks": [{"path": path, "size": 1}]}):
        assert "is a disk of VM web2, not of web1" in refusal(document)


@pytest.mark.parametrize("size", [20480, "20480", 20480.0, "020480"])
def test_whole_numbers_are_sizes_however_they_are_written(size: object) -> None:
    assert update({"add_disks": [{"size": size}]}) == DiskChanges(add=(mib(20480),))


@pytest.mark.parametrize(
    "written",
    [
        "true",
        "false",
        "null",
        "0",
        "-1",
        "-0.0",
        "1.5",
        "1e-3",
        "NaN",
        "Infinity",
        "-Infinity",
        "1e400",
        "1e300",
        str(MAX_SIZE // MIB + 1),
        "9" * 100,
        "9" * 5000,
        '""',
        '"0"',
        '"-5"',
        '"+5"',
        '"20G"',
        '"1.5"',
        '"0x10"',
        '"\\u0661"',
        '"REMAINING"',
        f'"{"9" * 5000}"',
        '"\\ud800\\u001b[2J"',
        "[]",
        "{}",
        "[20480]",
        '{"size": 20480}',
    ],
)
def test_what_is_no_size_is_refused_with_its_place(written: str) -> None:
    for place, document in (
        ("add_disks[1]", f'{{"add_disks": [{{"size": 1}}, {{"size": {written}}}]}}'),
        ("update_disks[0]", f'{{"update_disks": [{{"slot": "disk0", "size": {written}}}]}}'),
    ):
        message = refusal(document.encode())
        assert message.startswith(place)
        assert "siz" in message or "largest disk" in message


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ([], "The document: a list stands where an object belongs"),
        ("disk0", "The document: 'disk0' stands where an object belongs"),
        (None, "The document: null stands where an object belongs"),
        ({}, "The document changes nothing"),
        ({"add_disks": []}, "The document changes nothing"),
        ({"add_disks": {}}, "add_disks: an object stands where a list belongs"),
        ({"add_disks": None}, "add_disks: null stands where a list belongs"),
        ({"add_disks": [20480]}, "add_disks[0]: 20480 stands where an object belongs"),
        ({"add_disks": [{"sise": 1}]}, "add_disks[0]: there is no key 'sise': is size what you mean? known here: size"),
        ({"add_disks": [{"size": 1, "image_uuid": "i"}]}, "add_disks[0]: there is no key 'image_uuid'"),
        ({"add_disk": [{"size": 1}]}, "The document: there is no key 'add_disk': is add_disks what you mean?"),
        ({"\x1b" * 9999: 1}, "The document: there is no key '\\x1b"),
        ({"update_disks": [{"slot": "disk0"}]}, "update_disks[0].size: is missing"),
        ({"update_disks": [{"size": 1}]}, "update_disks[0]: says not exactly once which disk"),
        ({"update_disks": [{"size": 1, "slot": "disk0", "path": "/disk0"}]}, "update_disks[0]: says not exactly once"),
        ({"update_disks": [{"size": 1, "slot": 0}]}, "update_disks[0].slot: 0 names no disk"),
        ({"update_disks": [{"size": 1, "slot": "disk8"}]}, "update_disks[0].slot: 'disk8' is not the name of a disk"),
        ({"update_disks": [{"size": 1, "path": "/dev/disk0/"}]}, "update_disks[0].path: '' is not the name of a disk"),
        ({"update_disks": [{"size": 1, "shrink": True}]}, "update_disks[0]: there is no key 'shrink'"),
        ({"remove_disks": "disk1"}, "remove_disks: 'disk1' stands where a list belongs"),
        ({"remove_disks": [{"path": "disk1"}]}, "remove_disks[0]: an object names no disk"),
        ({"remove_disks": ["disk1", True]}, "remove_disks[1]: true names no disk"),
    ],
)
def test_what_is_no_update_is_refused_with_its_place(document: object, told: str) -> None:
    assert refusal(document).startswith(told)


@pytest.mark.parametrize("leave", ["true", 1, 0, None, [], {}])
def test_leave_to_shrink_is_given_by_true_alone(leave: object) -> None:
    message = refusal({"update_disks": [{"slot": "disk0", "size": 1, "dangerous_allow_shrink": leave}]})
    assert message.startswith("update_disks[0].dangerous_allow_shrink: ")
    assert "true or false" in message


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"disks": [{}, {"image_uuid": "i"}]}, "The document: disks[1] has an image"),
        ({"disks": [{"boot": False}]}, "The document: disks[0].boot is false"),
        ({"disks": [{}, {"boot": True}]}, "The document: disks[1].boot is true"),
        ({"image": "a", "disks": [{"image_uuid": "b"}]}, "The document: image and disks[0].image_uuid name two"),
        ({"package": 5}, "package: 5 stands where a string belongs"),
        ({"disks": [{"size": None}]}, "disks[0]: null is no size"),
        ({"quota": 5}, "The document: there is no key 'quota'"),
    ],
)
def test_what_is_no_creation_is_refused_with_its_place(document: object, told: str) -> None:
    assert refusal(document, create=True).startswith(told)


def test_a_refusal_names_the_command_whose_help_has_the_shape() -> None:
    assert "see nbdresize vm create --help" in refusal([], create=True)
    assert "see nbdresize vm update --help" in refusal([])


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (b'{"add_disks": [{"size": 1, "size": 2}]}', "add_disks[0]: 'size' stands there twice"),
        (b'{"remove_disks": ["disk1"], "remove_disks": []}', "The document: 'remove_disks' stands there twice"),
        (b"", "The document is empty"),
        (b" \n", "The document is empty"),
        (b"disk0: 20480", "The document is no JSON: line 1, column 1"),
        (b'{"add_disks": [', "The document is no JSON: line 1, column 16"),
        (b'{"remove_disks": ["disk1"]} {}', "The document is no JSON: line 1, column 29: Extra data"),
        (b'{"remove_disks": ["disk1\xff"]}', "The document is not UTF-8: byte 24"),
        ('{"remove_disks": ["disk1"]}'.encode("utf-16"), "The document is not UTF-8: byte 0"),
        (b"[" * 100_000, "The document is nested too deeply"),
        (b'{"a":' * 100_000, "The document is nested too deeply"),
        (b"{" + b" " * (10 * MIB) + b"}", "The document has more than 1 MiB"),
    ],
)
def test_what_is_no_document_is_refused(document: bytes, told: str) -> None:
    assert refusal(document).startswith(told)


def test_the_largest_document_is_read_in_no_time_whatever_is_in_it() -> None:
    keys = ",".join(f'"{number}":1' for number in range(MOST_BYTES // 12))
    assert "there is no key" in refusal(f"{{{keys}}}".encode())
    assert "stands there twice" in refusal(f'{{{keys},"0":1}}'.encode())
    assert refusal({"add_disks": [{"size": -1}] * (MOST_BYTES // 20)}).startswith("add_disks[0].size")


def test_a_byte_order_mark_is_no_part_of_the_document() -> None:
    assert read_update(b'\xef\xbb\xbf{"remove_disks": ["disk1"]}', "web1") == DiskChanges(remove=(1,))


_KEYS = st.sampled_from(
    ["add_disks", "update_disks", "remove_disks", "size", "slot", "path", "dangerous_allow_shrink", "disks", "package"]
) | st.text(max_size=8)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("disk1"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(document=_VALUES | st.dictionaries(_KEYS, _VALUES, max_size=4), raw=st.none() | st.binary(max_size=40))
def test_whatever_is_given_is_a_request_or_one_line_that_says_why_not(document: object, raw: bytes | None) -> None:
    given = json.dumps(document).encode() if raw is None else raw
    for read in (read_creation, lambda text: read_update(text, "web1")):
        try:
            read(given)
        except InvalidArgument as error:
            assert str(error).isprintable()
            assert len(str(error)) < 1000
