"""Any sequence of operations, some of them killed in the middle, against a model that is a few dictionaries."""

import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.model import DiskChanges, DiskUpdate, ResizeOptions
from nbdresize.errors import (
    DeletionProtected,
    InsufficientSpace,
    LimitExceeded,
    NbdresizeError,
    NotAuthorized,
    ResourceInUse,
    ResourceNotFound,
)
from nbdresize.storage.file import FilePool, FileVolume
from nbdresize.units import GRANULARITY, SizeRequest
from tests.control.consistency import problems
from tests.filesystems import mounted

pytestmark = pytest.mark.slow

CAPACITY = 64 * GRANULARITY
SMALL, LARGE = 8 * GRANULARITY, 14 * GRANULARITY
PACKAGES = {"small": SMALL, "large": LARGE}
SNAPSHOTS = 3

Error = type[NbdresizeError]

blocks = st.integers(1, 12).map(lambda number: number * GRANULARITY)
names = st.sampled_from(["a", "b"])
slots = st.integers(0, 7)
moments = st.sampled_from(["monday", "tuesday", "friday", "sunday"])
kills = st.none() | st.tuples(
    st.sampled_from(
        [
            *((FilePool, method) for method in ("create", "delete", "copy", "replace")),
            *((FileVolume, method) for method in ("grow", "shrink")),
        ]
    ),
    st.booleans(),
)
Kill = tuple[tuple[type, str], bool] | None


class Killed(BaseException):
    """Stands for a SIGKILL inside this process."""


@dataclass
class Disk:
    """`born` tells apart disks that were in the same slot one after another; `minimum` is the size of its image."""

    born: int
    size: int
    minimum: int = 0


@dataclass
class VM:
    """`image_space` is what the image added to the budget."""

    budget: int
    disks: dict[int, Disk] = field(default_factory=dict)
    snapshots: dict[str, dict[int, Disk]] = field(default_factory=dict)
    package: str | None = None
    image_space: int = 0
    protected: bool = False
    flexible: bool = True
    snapping: bool = True

    @property
    def used(self) -> int:
        """Disks are full, and copies share nothing: each snapshot takes all of its disks."""
        return _sum(self.disks.values()) + sum(_sum(disks.values()) for disks in self.snapshots.values())

    @property
    def free(self) -> int:
        return self.budget - self.used


@dataclass
class Model:
    vms: dict[str, VM] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)

    @property
    def promised(self) -> int:
        return sum(vm.budget for vm in self.vms.values()) + sum(self.images.values())


class Operations(RuleBasedStateMachine):
    """Each rule says what the model expects of one operation: its new state, or the error."""

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        above = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self.directory = self._stack.enter_context(mounted("tmpfs", above))
        self.state = StateDirectory(self.directory / "state")
        self.control = Control.open(self.state)
        self.control.update_pool(capacity=CAPACITY)
        for name, space in PACKAGES.items():
            self.control.create_package(name, space, snapshot_limit=SNAPSHOTS)
        self.model = Model()
        self._born = 0

    def teardown(self) -> None:
        self.control.close()
        self._stack.close()

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        assert _seen(self.control) == _plain(self.model)
        assert problems(self.state) == []

    # VMs

    @rule(name=names, budget=blocks, sizes=st.lists(blocks, max_size=3), kill=kills)
    def create(self, name: str, budget: int, sizes: list[int], kill: Kill) -> None:
        new = self._next()
        new.vms[name] = VM(budget, {slot: self._disk(size) for slot, size in enumerate(sizes)})
        error: Error | None = None
        if name in self.model.vms:
            error = ResourceInUse
        elif new.promised > CAPACITY or new.vms[name].free < 0:
            error = InsufficientSpace
        requests = [SizeRequest(exact=size) for size in sizes]
        self._try(lambda: self.control.create_vm(name, budget, requests), error or new, kill)

    @rule(name=names, package=st.sampled_from(sorted(PACKAGES)), image=names, kill=kills)
    def create_from_package_and_image(self, name: str, package: str, image: str, kill: Kill) -> None:
        new = self._next()
        size = self.model.images.get(image, 0)
        new.vms[name] = VM(PACKAGES[package] + size, {0: self._disk(size, size)}, package=package, image_space=size)
        error: Error | None = None
        if name in self.model.vms:
            error = ResourceInUse
        elif image not in self.model.images:
            error = ResourceNotFound
        elif new.promised > CAPACITY:
            error = InsufficientSpace
        self._try(lambda: self.control.create_vm(name, package=package, image=image), error or new, kill)

    @rule(name=names, budget=blocks)
    def update(self, name: str, budget: int) -> None:
        vm = self.model.vms.get(name)
        if vm is not None and vm.package is None:
            self._rebudget(name, budget, lambda: self.control.update_vm(name, budget))

    @rule(name=names, package=st.sampled_from(sorted(PACKAGES)))
    def change_package(self, name: str, package: str) -> None:
        vm = self.model.vms.get(name)
        if vm is not None:
            budget = PACKAGES[package] + vm.image_space
            self._rebudget(name, budget, lambda: self.control.update_vm(name, package=package), package)

    def _rebudget(self, name: str, budget: int, attempt: Callable[[], object], package: str | None = None) -> None:
        new = self._next()
        vm = new.vms[name]
        more = budget - vm.budget
        vm.budget, vm.package = budget, package
        too_much = vm.free < 0 or (more > 0 and new.promised > CAPACITY)
        self._try(attempt, InsufficientSpace if too_much else new, None)

    @rule(name=names, protected=st.booleans())
    def protect(self, name: str, protected: bool) -> None:
        if name in self.model.vms:
            new = self._next()
            new.vms[name].protected = protected
            self._try(lambda: self.control.update_vm(name, protected=protected), new, None)

    @rule(name=names, feature=st.sampled_from(["snapshots", "flexible_disks"]), on=st.booleans())
    def switch(self, name: str, feature: str, on: bool) -> None:
        if name in self.model.vms:
            new = self._next()
            if feature == "snapshots":
                new.vms[name].snapping = on
            else:
                new.vms[name].flexible = on
            value = "on" if on else "off"
            self._try(lambda: self.control.set_switch(feature, value, vm=name), new, None)

    @rule(name=names, kill=kills)
    def delete(self, name: str, kill: Kill) -> None:
        vm = self.model.vms.get(name)
        if vm is None:
            return
        new = self._next()
        del new.vms[name]
        self._try(lambda: self.control.delete_vm(name), DeletionProtected if vm.protected else new, kill)

    # Disks

    @rule(name=names, size=blocks, kill=kills)
    def add(self, name: str, size: int, kill: Kill) -> None:
        self._change(name, DiskChanges(add=(SizeRequest(exact=size),)), kill)

    @rule(name=names, which=slots, size=blocks, shrink=st.booleans(), fit=st.booleans(), kill=kills)
    def resize(self, name: str, which: int, size: int, shrink: bool, fit: bool, kill: Kill) -> None:
        slot = self._a_slot(name, which)
        if slot is None:
            return
        vm = self.model.vms[name]
        update = DiskUpdate(slot, SizeRequest(exact=size), shrink=shrink)
        if fit and size > vm.disks[slot].size + vm.free and vm.flexible:
            new = self._next()
            new.vms[name].disks[slot].size += vm.free
            options = ResizeOptions(shrink=shrink, fit=True)
            self._try(lambda: self.control.resize_disk(name, f"disk{slot}", update.size, options), new, kill)
            return
        self._change(name, DiskChanges(update=(update,)), kill)

    @rule(name=names, which=slots, kill=kills)
    def delete_disk(self, name: str, which: int, kill: Kill) -> None:
        slot = self._a_slot(name, which)
        if slot:
            self._change(name, DiskChanges(remove=(slot,)), kill)

    @precondition(lambda self: any(len(vm.disks) > 1 for vm in self.model.vms.values()))
    @rule(
        name=names,
        which=st.permutations(range(8)),
        add=st.lists(blocks, max_size=2),
        sizes=st.lists(blocks, max_size=2),
        shrink=st.booleans(),
        remove=st.booleans(),
        kill=kills,
    )
    def change_several(
        self, name: str, which: list[int], add: list[int], sizes: list[int], shrink: bool, remove: bool, kill: Kill
    ) -> None:
        vm = self.model.vms.get(name, VM(0))
        there = [slot for slot in which if slot in vm.disks]
        update = tuple(
            DiskUpdate(slot, SizeRequest(exact=size), shrink=shrink) for slot, size in zip(there, sizes, strict=False)
        )
        removed = tuple(slot for slot in there[len(sizes) : len(sizes) + 1] if slot and remove)
        changes = DiskChanges(tuple(SizeRequest(exact=size) for size in add), update, removed)
        if add or update or removed:
            self._change(name, changes, kill)

    def _change(self, name: str, changes: DiskChanges, kill: Kill) -> None:
        """What any set of changes comes to; each rule's own words are for one of them."""
        vm = self.model.vms.get(name)
        if vm is None:
            return
        new = self._next()
        disks = new.vms[name].disks
        empty = [slot for slot in range(8) if slot not in vm.disks]
        for slot in changes.remove:
            del disks[slot]
        for each in changes.update:
            disks[each.slot].size = each.size.exact or 0
        for slot, request in zip(empty, changes.add, strict=False):
            disks[slot] = self._disk(request.exact or 0 if request else 0)
        less = [each for each in changes.update if (each.size.exact or 0) < vm.disks[each.slot].size]
        more = bool(changes.add) or any((each.size.exact or 0) > vm.disks[each.slot].size for each in changes.update)
        error: Error | None = None
        if not vm.flexible:
            error = NotAuthorized
        elif len(changes.add) > len(empty):
            error = LimitExceeded
        elif any(disk.size < disk.minimum for disk in disks.values()):
            return  # the minimum is tested elsewhere, and the order of errors is not told here
        elif any(not each.shrink for each in less):
            error = NotAuthorized
        elif more and new.vms[name].free < 0:
            error = InsufficientSpace
        elif vm.protected and (less or changes.remove):
            error = DeletionProtected
        self._try(lambda: self.control.change_disks(name, changes), error or new, kill)

    # Snapshots

    @rule(name=names, moment=moments, kill=kills)
    def snapshot(self, name: str, moment: str, kill: Kill) -> None:
        vm = self.model.vms.get(name)
        if vm is None:
            return
        _fill(self.state, self.control, name)
        new = self._next()
        new.vms[name].snapshots[moment] = deepcopy(vm.disks)
        limit = SNAPSHOTS if vm.package else 128
        error: Error | None = None
        if not vm.snapping:
            error = NotAuthorized
        elif not vm.disks:
            error = ResourceNotFound
        elif moment in vm.snapshots:
            error = ResourceInUse
        elif len(vm.snapshots) >= limit:
            error = LimitExceeded
        elif new.vms[name].free < 0:
            error = InsufficientSpace
        self._try(lambda: self.control.create_snapshot(name, moment), error or new, kill)

    @rule(name=names, moment=moments, kill=kills)
    def delete_snapshot(self, name: str, moment: str, kill: Kill) -> None:
        vm = self.model.vms.get(name)
        if vm is None:
            return
        new = self._next()
        there = new.vms[name].snapshots.pop(moment, None) is not None
        self._try(lambda: self.control.delete_snapshot(name, moment), new if there else ResourceNotFound, kill)

    @rule(name=names, moment=moments, kill=kills)
    def roll_back(self, name: str, moment: str, kill: Kill) -> None:
        vm = self.model.vms.get(name)
        if vm is None:
            return
        new = self._next()
        then = vm.snapshots.get(moment, {})
        new.vms[name].disks.update(deepcopy(then))
        taken = any(slot in vm.disks and vm.disks[slot].born != disk.born for slot, disk in then.items())
        resized = any(slot not in vm.disks or vm.disks[slot].size != disk.size for slot, disk in then.items())
        error: Error | None = None
        if not then:
            error = ResourceNotFound
        elif not vm.snapping:
            error = NotAuthorized
        elif vm.protected:
            error = DeletionProtected
        elif taken:
            error = ResourceInUse
        elif resized and not vm.flexible:
            error = NotAuthorized
        elif new.vms[name].free < 0 and new.vms[name].used > vm.used:
            error = InsufficientSpace
        self._try(lambda: self.control.rollback(name, moment), error or new, kill)

    # Images

    @rule(name=names, size=st.integers(1, 4).map(lambda number: number * GRANULARITY), kill=kills)
    def add_image(self, name: str, size: int, kill: Kill) -> None:
        source = self.directory / "image.raw"
        source.write_bytes(b"\xa5" * size)
        new = self._next()
        new.images[name] = size
        error: Error | None = None
        if name in self.model.images:
            error = ResourceInUse
        elif new.promised > CAPACITY:
            error = InsufficientSpace
        self._try(lambda: self.control.add_image(name, source), error or new, kill)

    @rule(name=names, kill=kills)
    def delete_image(self, name: str, kill: Kill) -> None:
        new = self._next()
        there = new.images.pop(name, None) is not None
        self._try(lambda: self.control.delete_image(name), new if there else ResourceNotFound, kill)

    # How

    def _try(self, attempt: Callable[[], object], expected: Model | Error, kill: Kill) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if kill is not None:
                patch.setattr(*kill[0], _dying(*kill[0], after=kill[1]))
            try:
                attempt()
            except NbdresizeError as error:
                assert type(error) is expected, error
                return
            except Killed:
                pass
            else:
                assert isinstance(expected, Model), expected
                assert _seen(self.control) == _plain(expected)
        self.control.close()
        self.control = Control.open(self.state)
        done = isinstance(expected, Model) and _seen(self.control) == _plain(expected)
        if done:
            assert isinstance(expected, Model)
            self.model = expected
        assert _seen(self.control) == _plain(self.model)

    def _next(self) -> Model:
        return deepcopy(self.model)

    def _disk(self, size: int, minimum: int = 0) -> Disk:
        self._born += 1
        return Disk(self._born, size, minimum)

    def _a_slot(self, name: str, which: int) -> int | None:
        there = sorted(self.model.vms.get(name, VM(0)).disks)
        return there[which % len(there)] if there else None


def _sum(disks: Iterable[Disk]) -> int:
    return sum(disk.size for disk in disks)


def _fill(state: StateDirectory, control: Control, vm: str) -> None:
    """Write all of its disks, so that the room for a snapshot is what the model says."""
    for disk in control.vm(vm).disks:
        with (state.volumes / f"{disk.volume}.raw").open("r+b") as volume:
            volume.write(b"\xa5" * disk.size)


def _plain(model: Model) -> object:
    """What of the model users see."""
    return (
        {
            name: (
                vm.budget,
                vm.package,
                vm.protected,
                vm.used,
                {slot: disk.size for slot, disk in vm.disks.items()},
                {moment: {slot: disk.size for slot, disk in then.items()} for moment, then in vm.snapshots.items()},
            )
            for name, vm in model.vms.items()
        },
        model.images,
    )


def _seen(control: Control) -> object:
    return (
        {
            vm.name: (
                vm.budget,
                vm.package,
                vm.protected,
                vm.used,
                {disk.slot: disk.size for disk in vm.disks},
                {each.name: {disk.slot: disk.size for disk in each.disks} for each in control.snapshots(vm.name)},
            )
            for vm in control.vms()
        },
        {image.name: image.size for image in control.images()},
    )


def _dying(target: type, method: str, *, after: bool) -> Callable[..., None]:
    original = getattr(target, method)

    def die(*arguments: object, **named: object) -> None:
        if after:
            original(*arguments, **named)
        raise Killed

    return die


class TestOperations(Operations.TestCase):  # type: ignore[misc, valid-type]
    # No sequence is shrunk: that takes many times what finding one does.
    settings = settings(max_examples=25, stateful_step_count=30, phases=[Phase.explicit, Phase.reuse, Phase.generate])
