"""Telling attached guests what became of their disks: what every command calls after control has changed a size.

A change of size is done when control says so. Whatever goes wrong here leaves something pending, with the reason, in
the ledger; `sync` and the next resize of the VM tell it again. Nobody is believed: what a guest has is asked of its
QEMU and of its agent, and what it is to have is read from the ledger when its QEMU listens.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nbdresize.client.deadline import Deadline
from nbdresize.control import names
from nbdresize.control.control import Control
from nbdresize.control.guest_records import already_attached, none_attached
from nbdresize.control.model import Guest, GuestNote, OperationState, Stage
from nbdresize.control.records import Kind
from nbdresize.errors import ERRORS, NbdresizeError, PeerFailed, ResourceNotFound
from nbdresize.guests.agent import Agent, FileSystems, Place, grow_file_systems
from nbdresize.guests.agent.file_systems import GROW_TIME
from nbdresize.guests.agent.session import CONNECT_TIME
from nbdresize.guests.session import Answer, NoSession, Session, too_late

DEVICE = "QEMU"
"""The stage in which the guest's device gets its new size."""

FILE_SYSTEM = "file system"
"""The stage in which what lies on the disk grows, by the guest's agent."""


@dataclass(frozen=True)
class Told:
    """What became of telling a guest of one disk.

    `changed`: the guest had something to learn. `error` is why something is pending; None where nothing is.
    """

    vm: str
    disk: str
    note: GuestNote
    stages: tuple[Stage, ...]
    changed: bool
    error: NbdresizeError | None = None

    @property
    def pending(self) -> bool:
        return self.error is not None


@dataclass(frozen=True)
class Attachment:
    """A guest that has been attached; `version` is that of its QEMU, `warnings` what it may lack later."""

    guest: Guest
    version: str
    warnings: tuple[str, ...] = ()


def tell(control: Control, vm: str, disks: Collection[str], *, timeout: float) -> tuple[Told, ...]:
    """Tell the guest of a VM the sizes of those of these disks that it does not know, and of all that are pending.

    It takes `timeout` seconds at the most. Nothing where the VM has no guest, or is gone. Raises nothing because of
    the guest: see Told.error.
    """
    try:
        guest = control.guest(vm)
        if guest is None:
            return ()
        known = {disk.name for disk in guest.disks if disk.note.size is not None}
        wanted = {disk.name for disk in guest.pending} | (set(disks) - known)
        return _tell(control, guest, wanted, Deadline(timeout)) if wanted else ()
    except ResourceNotFound:  # deleted by now
        return ()


def sync(control: Control, vm: str, disk: str | None, *, timeout: float) -> tuple[Told, ...]:
    """Tell the guest of a VM the sizes of all its disks, or of one, within `timeout` seconds.

    Raises ResourceNotFound where there is no such guest or disk. Of what the guest does: see Told.error.
    """
    guest = control.guest(vm)
    if guest is None:
        raise none_attached(vm)
    wanted = {each.name for each in control.vm(vm).disks} if disk is None else {control.disk(vm, disk).name}
    return _tell(control, guest, wanted, Deadline(timeout))


def attach(
    control: Control, vm: str, qmp: Path, agent: Path | None, *, timeout: float, operation: str | None = None
) -> Attachment:
    """Look at the QEMU that listens at `qmp`, tell it the sizes of the VM's disks, and remember it.

    File systems are left as they are; a retry of an attachment that has ended since is refused. Raises what
    Monitor.connect does, ResourceNotFound where QEMU uses none of the VM's disks, PeerFailed where it can't be told of
    any, in `timeout` seconds; InvalidArgument where `agent` is no socket. A disk that is pending for another reason
    keeps nobody from attaching; nor does an agent that is silent.
    """
    deadline = Deadline(timeout)
    names.check_vm_name(vm)
    disks = [disk.name for disk in control.vm(vm).disks]
    if not disks:
        raise ResourceNotFound(f"VM {vm} has no disks", f"nbdresize disk add {vm} SIZE adds one")
    if operation is not None and control.guest(vm) is None and _has_attached(control, vm, operation):
        raise already_attached(vm, operation)
    qmp = qmp.absolute()
    agent = None if agent is None else agent.absolute()
    nothing_known = Guest(vm, str(qmp), None, 0)
    try:
        with Session(control, vm, qmp, deadline) as session:
            told = [_told(nothing_known, answer) for answer in session.tell(disks)]
            version = session.version
    except NoSession as failed:
        raise failed.error from None
    _check_same(vm, told)
    warnings = () if agent is None else _warnings(agent, deadline)
    guest = control.attach_guest(vm, qmp, agent, {each.disk: each.note for each in told}, operation=operation)
    return Attachment(guest, version, warnings)


def _has_attached(control: Control, vm: str, operation: str) -> bool:
    try:
        known = control.operation(operation)
    except ResourceNotFound:
        return False
    return (known.kind, known.subject, known.state) == (Kind.ATTACH_GUEST.value, vm, OperationState.DONE)


def _check_same(vm: str, told: Sequence[Told]) -> None:
    """Raises what keeps a QEMU from being attached to a VM: it knows none of the disks, or can be told of none."""
    errors = [each.error for each in told if each.error is not None]
    if any(each.note.size is not None for each in told) or not errors:
        return
    for error in errors:
        if isinstance(error, PeerFailed):
            raise error
    if all(isinstance(error, ResourceNotFound) for error in errors):
        raise ResourceNotFound(f"That is not the QEMU of VM {vm}: {errors[0].problem}", errors[0].way_out)


def _warnings(agent: Path, deadline: Deadline) -> tuple[str, ...]:
    try:
        with _agent(agent, deadline):
            return ()
    except (PeerFailed, ResourceNotFound) as error:
        return (f"{error.problem}: file systems don't grow until it answers: {error.way_out}",)


def _tell(control: Control, guest: Guest, wanted: Collection[str], deadline: Deadline) -> tuple[Told, ...]:
    start = time.monotonic()
    try:
        with Session(control, guest.vm, Path(guest.qmp), deadline) as session:
            answers = session.tell(wanted, places=guest.agent is not None)
            told = [_told(guest, answer) for answer in answers]
            _note(control, guest, told)  # before another command can tell more, and note that
    except NoSession as failed:
        seconds, problem = time.monotonic() - start, failed.error.problem
        disks = [disk for disk in control.vm(guest.vm).disks if disk.name in wanted]
        told = [_told(guest, Answer(disk, seconds, problem, error=failed.error)) for disk in disks]
        told = [each for each in told if not _was_told_by_another(control, guest, each.disk)]
        _note(control, guest, told)
        return tuple(told)
    if guest.agent is not None:
        agent = Path(guest.agent)
        told = [
            each if answer.place is None else _with_file_systems(each, agent, answer.place, deadline)
            for each, answer in zip(told, answers, strict=True)
        ]
        _note(control, guest, told)
    return tuple(told)


def _note(control: Control, guest: Guest, told: Collection[Told]) -> None:
    control.note_guest(guest.vm, {each.disk: each.note for each in told}, guest)


def _was_told_by_another(control: Control, before: Guest, disk: str) -> bool:
    """Whether a disk that was pending is no longer: the command that kept QEMU busy has told it."""
    now = control.guest(before.vm)
    pending_now = {each.name for each in now.pending} if now is not None else set()
    return disk in {each.name for each in before.pending} - pending_now


def _told(guest: Guest, answer: Answer) -> Told:
    """What becomes of a disk by an answer. One that the guest does not use has nothing to learn, whatever is wrong."""
    disk = answer.disk
    before = next((each for each in guest.disks if each.name == disk.name), None)
    stage = Stage(DEVICE, answer.seconds, answer.detail, done=answer.error is None)
    if answer.error is None:
        changed = before is None or before.pending or before.note.size not in (answer.size, None)
        note = GuestNote(disk.id, answer.size, True, answer.detail, int(time.time()))
        return Told(guest.vm, disk.name, note, (stage,), changed)
    note = GuestNote(disk.id, before.note.size if before else None, False, answer.detail, int(time.time()))
    if before is not None and before.note.done and before.note.size is None:
        note = before.note
    return Told(guest.vm, disk.name, note, (stage,), True, _of_the_table(answer.error))


def _with_file_systems(told: Told, agent: Path, place: Place, deadline: Deadline) -> Told:
    """The same with one more stage: what lies on the disk, whose device has its size, is grown."""
    assert told.note.size is not None
    start = time.monotonic()
    try:
        with _agent(agent, deadline) as session:
            grown = grow_file_systems(session, place, told.note.size, min(GROW_TIME, deadline.remaining()))
    except TimeoutError:
        grown = FileSystems((), False, too_late(deadline, "before its file systems had grown"))
    except NbdresizeError as error:
        grown = FileSystems((), False, PeerFailed(error.problem, error.way_out))
    detail = ", ".join(grown.grown) or "nothing to grow"
    problem = grown.error
    if problem is None:
        stage = Stage(FILE_SYSTEM, time.monotonic() - start, detail)
        note = replace(told.note, detail=f"{told.note.detail}; {detail}")
        return replace(told, note=note, stages=(*told.stages, stage), changed=told.changed or grown.changed)
    stage = Stage(FILE_SYSTEM, time.monotonic() - start, problem.problem, done=False)
    note = replace(told.note, done=False, detail=f"{told.note.detail}; {problem.problem}")
    return replace(told, note=note, stages=(*told.stages, stage), changed=True, error=problem)


def _agent(path: Path, deadline: Deadline) -> Agent:
    try:
        return Agent.connect(path, min(CONNECT_TIME, deadline.remaining()))
    except TimeoutError:
        raise too_late(deadline, "before its agent was reached") from None


def _of_the_table(error: NbdresizeError) -> NbdresizeError:
    """The same as one of the classes that users know."""
    known = next(each for each in ERRORS if isinstance(error, each))
    return error if type(error) is known else known(error.problem, error.way_out)
