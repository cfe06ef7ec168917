"""Names that are refused, and how they are shown."""

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control import names
from nbdresize.control.control import Control
from nbdresize.errors import InvalidArgument
from nbdresize.units import SizeRequest

GIB = 1 << 30
BAD = [
    "",
    ".",
    "..",
    "-web",
    "_web",
    ".web",
    "a/b",
    "../../etc/passwd",
    "a b",
    " a",
    "a\n",
    "a\tb",
    "a\x00b",
    "\x1b[31mred",
    "ä",
    "１",  # a digit, but not one of ASCII's
    "a" * 64,
    "x" * 300,
    "\udcff",
    "web1@size",
]


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_a_bad_name_is_refused_in_one_short_printable_line(control: Control, name: str) -> None:
    one = SizeRequest(exact=GIB)
    for attempt in (
        lambda: control.create_vm(name, GIB),
        lambda: control.vm(name),
        lambda: control.disk(name, "disk0"),
        lambda: control.maximum(name, "disk0"),
        lambda: control.update_vm(name, GIB),
        lambda: control.delete_vm(name),
        lambda: control.add_disk(name, one),
        lambda: control.resize_disk(name, "disk0", one),
        lambda: control.delete_disk(name, "disk1"),
        lambda: control.take_lease(name, "disk0"),
    ):
        with pytest.raises(InvalidArgument, match="can't be the name of a VM") as caught:
            attempt()
        text = str(caught.value)
        text.encode()
        assert len(text) < 300
        assert text.isprintable()
        assert "1 to 63 letters" in caught.value.way_out
    assert control.vms() == []


@pytest.mark.parametrize("name", ["a", "0", "web1", "a.b", "a-b_c", "A" * 63, "web1.lock", "x.", "9-"])
def test_a_good_name_is_taken(control: Control, name: str) -> None:
    control.create_vm(name, GIB, [SizeRequest(exact=4096)])
    assert control.disk(name, "disk0").export_name == f"{name}/disk0"
    control.delete_vm(name)
    assert control.vms() == []


@pytest.mark.parametrize(
    "name", ["", "disk8", "disk", "disk00", "disk-1", "Disk0", "disk0@size", "disk0\n", "x" * 300, "disk٣"]
)
def test_a_bad_disk_name_is_refused(control: Control, name: str) -> None:
    control.create_vm("vm", GIB, [SizeRequest(exact=4096)])
    for attempt in (
        lambda: control.disk("vm", name),
        lambda: control.resize_disk("vm", name, SizeRequest(exact=8192)),
        lambda: control.delete_disk("vm", name),
        lambda: control.maximum("vm", name),
    ):
        with pytest.raises(InvalidArgument, match="disk0 to disk7") as caught:
            attempt()
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("operation", ["", "a b", "a/b", "x" * 129, "a\n", "-x", "auto-nightly", "auto-"])
def test_a_bad_operation_id_is_refused_before_anything_is_made(control: Control, operation: str) -> None:
    with pytest.raises(InvalidArgument, match="id of an operation"):
        control.create_vm("vm", GIB, operation=operation)
    assert control.vms() == []


def test_an_id_that_was_made_up_can_be_given_again(control: Control) -> None:
    control.create_vm("vm", GIB)
    made_up = control.operations()[0].id
    assert control.create_vm("vm", GIB, operation=made_up).name == "vm"
    assert control.operation(made_up).kind == "create_vm"


@pytest.mark.parametrize("owner", ["", "a\nb", "x" * 256, "\x7f", "a\u2028b"])
def test_a_bad_owner_is_refused(control: Control, owner: str) -> None:
    with pytest.raises(InvalidArgument, match="owner"):
        control.create_vm("vm", GIB, owner=owner)


def test_an_owner_is_kept(control: Control) -> None:
    control.create_vm("vm", GIB, owner="Ädam & co")
    assert control.vm("vm").owner == "Ädam & co"


def test_nothing_is_left_of_refused_names(control: Control, state: StateDirectory) -> None:
    with pytest.raises(InvalidArgument):
        control.create_vm("vm", GIB, [SizeRequest(exact=4097)])
    with pytest.raises(InvalidArgument):
        control.create_vm("vm", GIB, [SizeRequest(relative=4096)])
    assert [path.name for path in state.locks.iterdir()] == [".ledger.lock"]


def test_volume_names_are_never_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    given = iter(["00000000", "00000000", "00000001"])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(given))
    assert names.new_volume_name("vm-disk1", {"vm-disk1-00000000"}) == "vm-disk1-00000001"
