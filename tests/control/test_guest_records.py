"""Guests in the ledger: attached, replaced, told, and forgotten with their VM."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.model import DiskChanges, GuestNote, OperationState
from nbdresize.errors import InvalidArgument, ResourceNotFound, StateUnusable
from nbdresize.units import SizeRequest
from tests.control.consistency import problems

MIB = 1 << 20
QMP = Path("/run/web1.qmp")
AGENT = Path("/run/web1.agent")


@pytest.fixture(autouse=True)
def web1(control: Control) -> None:
    control.create_vm("web1", 100 * MIB, [SizeRequest(exact=2 * MIB), SizeRequest(exact=MIB)])


def note(control: Control, disk: str = "disk0", size: int | None = 2 * MIB, *, done: bool = True) -> GuestNote:
    return GuestNote(control.disk("web1", disk).id, size, done, "as it is", 1_700_000_000)


def test_a_guest_is_remembered_with_what_it_knows(control: Control) -> None:
    known = note(control)
    attached = control.attach_guest("web1", QMP, AGENT, {"disk0": known})
    assert control.guest("web1") == attached
    assert control.guests() == [attached]
    assert (attached.vm, attached.qmp, attached.agent) == ("web1", str(QMP), str(AGENT))
    (disk,) = attached.disks
    assert (disk.name, disk.size, disk.note, disk.pending) == ("disk0", 2 * MIB, known, False)
    assert control.operations(vm="web1")[0].kind == "attach_guest"


def test_a_second_attachment_takes_the_place_of_the_first(control: Control) -> None:
    control.attach_guest("web1", QMP, AGENT, {"disk0": note(control)})
    again = control.attach_guest("web1", Path("/run/other.qmp"))
    assert (again.qmp, again.agent, again.disks) == ("/run/other.qmp", None, ())
    assert control.guests() == [again]


def test_a_vm_without_a_guest_and_a_guest_without_a_vm(control: Control) -> None:
    assert control.guest("web1") is None
    assert control.guests() == []
    with pytest.raises(ResourceNotFound, match="No guest is attached to VM web1"):
        control.detach_guest("web1")
    with pytest.raises(ResourceNotFound, match="no VM web2"):
        control.attach_guest("web2", QMP)
    with pytest.raises(ResourceNotFound, match="no VM web2"):
        control.guest("web2")
    control.note_guest("web1", {"disk0": note(control)})
    control.note_guest("web2", {"disk0": note(control)})
    assert control.guest("web1") is None


@pytest.mark.parametrize("path", ["web1.qmp", "", "/run/\x1b[2J", "/run/a\nb", "/run/\udcff", "/" + "x" * 5000])
def test_a_path_that_can_not_be_kept_is_refused(control: Control, path: str) -> None:
    for qmp, agent in ((Path(path), None), (QMP, Path(path))):
        with pytest.raises(InvalidArgument, match="can't be the path"):
            control.attach_guest("web1", qmp, agent)
    assert control.guest("web1") is None


def test_notes_of_several_disks_are_kept_side_by_side(control: Control) -> None:
    control.attach_guest("web1", QMP, None, {"disk0": note(control)})
    control.note_guest("web1", {"disk1": note(control, "disk1", MIB, done=False)})
    guest = control.guest("web1")
    assert guest is not None
    assert [(disk.name, disk.pending) for disk in guest.disks] == [("disk0", False), ("disk1", True)]
    assert [disk.name for disk in guest.pending] == ["disk1"]
    control.note_guest("web1", {"disk1": note(control, "disk1", MIB)})
    guest = control.guest("web1")
    assert guest is not None
    assert guest.pending == ()


def test_a_disk_that_was_resized_since_is_pending(control: Control) -> None:
    """Also where it was another command, or a client on the wire, that told nobody."""
    control.attach_guest("web1", QMP, None, {"disk0": note(control), "disk1": note(control, "disk1", None)})
    for disk in ("disk0", "disk1"):
        control.resize_disk("web1", disk, SizeRequest(relative=MIB))
    guest = control.guest("web1")
    assert guest is not None
    assert [disk.name for disk in guest.pending] == ["disk0"], "disk1 is not in use there"


def test_a_new_disk_in_the_slot_of_a_deleted_one_is_another(control: Control) -> None:
    control.attach_guest("web1", QMP, None, {"disk1": note(control, "disk1", MIB, done=False)})
    control.change_disks("web1", DiskChanges(remove=(1,)))
    guest = control.guest("web1")
    assert guest is not None
    assert guest.disks == ()
    control.add_disk("web1", SizeRequest(exact=MIB))
    guest = control.guest("web1")
    assert guest is not None
    assert guest.disks == ()


def test_a_retry_of_an_attachment_changes_nothing(control: Control) -> None:
    first = control.attach_guest("web1", QMP, operation="one")
    control.note_guest("web1", {"disk0": note(control)})
    again = control.attach_guest("web1", QMP, operation="one")
    assert (again.attached, [disk.name for disk in again.disks]) == (first.attached, ["disk0"])
    with pytest.raises(InvalidArgument, match="was another request"):
        control.attach_guest("web1", AGENT, operation="one")
    control.detach_guest("web1", operation="two")
    control.attach_guest("web1", QMP)
    control.detach_guest("web1", operation="two")
    assert control.guest("web1") is not None
    assert control.operation("two").state is OperationState.DONE


def test_a_retry_of_an_attachment_that_has_ended_says_so(control: Control) -> None:
    control.attach_guest("web1", QMP, operation="one")
    control.detach_guest("web1")
    with pytest.raises(ResourceNotFound, match=r"Operation one has attached .* already, and it was detached since"):
        control.attach_guest("web1", QMP, operation="one")
    assert control.guest("web1") is None


def test_a_note_of_an_older_size_is_not_taken_for_the_newest(control: Control) -> None:
    control.attach_guest("web1", QMP, None, {"disk0": note(control)})
    control.resize_disk("web1", "disk0", SizeRequest(relative=MIB))
    control.note_guest("web1", {"disk0": note(control, size=3 * MIB)})
    control.note_guest("web1", {"disk0": note(control, size=2 * MIB, done=False), "disk1": note(control, "disk1", MIB)})
    guest = control.guest("web1")
    assert guest is not None
    assert [(disk.name, disk.note.size, disk.pending) for disk in guest.disks] == [
        ("disk0", 3 * MIB, False),
        ("disk1", MIB, False),
    ]
    control.note_guest("web1", {"disk0": note(control, size=3 * MIB, done=False)})
    guest = control.guest("web1")
    assert guest is not None
    assert [disk.name for disk in guest.pending] == ["disk0"], "the same size, and something else is left to do"


def test_a_note_of_another_attachment_is_not_kept(control: Control) -> None:
    first = control.attach_guest("web1", QMP)
    second = control.attach_guest("web1", Path("/run/other.qmp"))
    control.note_guest("web1", {"disk0": note(control)}, first)
    assert control.guest("web1") == second
    control.note_guest("web1", {"disk0": note(control)}, second)
    assert control.guest("web1") != second


def test_a_deleted_vm_takes_its_guest_along(control: Control, state: StateDirectory) -> None:
    control.attach_guest("web1", QMP, AGENT, {"disk0": note(control)})
    control.delete_vm("web1")
    assert control.guests() == []
    assert problems(state) == []
    control.create_vm("web1", 100 * MIB, [SizeRequest(exact=MIB)])
    assert control.guest("web1") is None


def test_a_guest_of_no_vm_is_found_and_removed_by_check(control: Control, state: StateDirectory) -> None:
    with closing(sqlite3.connect(state.ledger)) as ledger, ledger:
        ledger.execute("INSERT INTO guests (vm_id, qmp, attached, stages) VALUES (99, '/run/gone.qmp', 0, '{}')")
    assert "guest /run/gone.qmp of no VM" in problems(state)
    assert [(each.what.value, each.subject) for each in control.check().problems] == [("dangling_row", "guests row 99")]
    control.check(repair=True)
    assert problems(state) == []


def test_notes_that_somebody_else_wrote_are_told(control: Control, state: StateDirectory) -> None:
    control.attach_guest("web1", QMP)
    with closing(sqlite3.connect(state.ledger)) as ledger, ledger:
        ledger.execute("UPDATE guests SET stages = '[1]'")
    with pytest.raises(StateUnusable, match="does not know"):
        control.guest("web1")
    control.detach_guest("web1")
    assert control.guest("web1") is None
