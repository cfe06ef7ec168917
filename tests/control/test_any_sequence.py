"""Any sequence of operations, some of them killed in the middle, against a model that is two dictionaries."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.model import ResizeOptions
from nbdresize.errors import InsufficientSpace, LimitExceeded, NbdresizeError, NotAuthorized, ResourceInUse
from nbdresize.storage.file import FilePool, FileVolume
from nbdresize.units import GRANULARITY, SizeRequest
from tests.control.consistency import problems

pytestmark = pytest.mark.slow

Disks = dict[int, int]
Model = dict[str, tuple[int, Disks]]

blocks = st.integers(1, 12).map(lambda number: number * GRANULARITY)
names = st.sampled_from(["a", "b"])
kills = st.none() | st.tuples(
    st.sampled_from([(FilePool, "create"), (FilePool, "delete"), (FileVolume, "grow"), (FileVolume, "shrink")]),
    st.booleans(),
)
Kill = tuple[tuple[type, str], bool] | None


class Killed(BaseException):
    """Stands for a SIGKILL inside this process."""


class Operations(RuleBasedStateMachine):
    """Each rule says what the model expects of one operation: its new state, or the error."""

    vms = Bundle("vms")

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.state = StateDirectory(self.directory)
        self.control = Control.open(self.state)
        self.model: Model = {}

    def teardown(self) -> None:
        self.control.close()
        shutil.rmtree(self.directory)

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        assert self._seen() == self.model
        assert problems(self.state) == []

    @rule(target=vms, name=names, budget=blocks, sizes=st.lists(blocks, max_size=3), kill=kills)
    def create(self, name: str, budget: int, sizes: list[int], kill: Kill) -> str:
        expected: Model | type[NbdresizeError] = {**self.model, name: (budget, dict(enumerate(sizes)))}
        if name in self.model:
            expected = ResourceInUse
        elif sum(sizes) > budget:
            expected = InsufficientSpace
        requests = [SizeRequest(exact=size) for size in sizes]
        self._try(lambda: self.control.create_vm(name, budget, requests), expected, kill)
        return name

    @rule(name=vms, size=blocks, kill=kills)
    def add(self, name: str, size: int, kill: Kill) -> None:
        if name not in self.model:
            return
        budget, disks = self.model[name]
        expected: Model | type[NbdresizeError]
        if len(disks) == 8:
            expected = LimitExceeded
        elif sum(disks.values()) + size > budget:
            expected = InsufficientSpace
        else:
            slot = min(set(range(8)) - set(disks))
            expected = self._with(name, disks | {slot: size})
        self._try(lambda: self.control.add_disk(name, SizeRequest(exact=size)), expected, kill)

    @rule(name=vms, which=st.integers(0, 7), size=blocks, shrink=st.booleans(), fit=st.booleans(), kill=kills)
    def resize(self, name: str, which: int, size: int, shrink: bool, fit: bool, kill: Kill) -> None:
        budget, disks = self.model.get(name, (0, {}))
        if not disks:
            return
        slot = sorted(disks)[which % len(disks)]
        most = disks[slot] + budget - sum(disks.values())
        expected: Model | type[NbdresizeError]
        if size < disks[slot] and not shrink:
            expected = NotAuthorized
        elif size > most and not fit:
            expected = InsufficientSpace
        else:
            expected = self._with(name, disks | {slot: min(size, most // GRANULARITY * GRANULARITY)})
        options = ResizeOptions(shrink=shrink, fit=fit)
        request = SizeRequest(exact=size)
        self._try(lambda: self.control.resize_disk(name, f"disk{slot}", request, options), expected, kill)

    @rule(name=vms, which=st.integers(0, 7), kill=kills)
    def delete_disk(self, name: str, which: int, kill: Kill) -> None:
        _, disks = self.model.get(name, (0, {}))
        slots = sorted(set(disks) - {0})
        if not slots:
            return
        slot = slots[which % len(slots)]
        left = {other: size for other, size in disks.items() if other != slot}
        self._try(lambda: self.control.delete_disk(name, f"disk{slot}"), self._with(name, left), kill)

    @rule(name=vms, budget=blocks)
    def update(self, name: str, budget: int) -> None:
        if name not in self.model:
            return
        _, disks = self.model[name]
        expected: Model | type[NbdresizeError] = {**self.model, name: (budget, disks)}
        if sum(disks.values()) > budget:
            expected = InsufficientSpace
        self._try(lambda: self.control.update_vm(name, budget), expected, None)

    @rule(name=consumes(vms), kill=kills)
    def delete(self, name: str, kill: Kill) -> None:
        if name not in self.model:
            return
        expected = {other: vm for other, vm in self.model.items() if other != name}
        self._try(lambda: self.control.delete_vm(name), expected, kill)

    def _try(self, attempt: Callable[[], object], expected: Model | type[NbdresizeError], kill: Kill) -> None:
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
                assert self._seen() == expected
        self.control.close()
        self.control = Control.open(self.state)
        seen = self._seen()
        assert seen in (self.model, expected)
        self.model = seen

    def _with(self, name: str, disks: Disks) -> Model:
        return {**self.model, name: (self.model[name][0], disks)}

    def _seen(self) -> Model:
        return {vm.name: (vm.budget, {disk.slot: disk.size for disk in vm.disks}) for vm in self.control.vms()}


def _dying(target: type, method: str, *, after: bool) -> Callable[..., None]:
    original = getattr(target, method)

    def die(*arguments: object, **named: object) -> None:
        if after:
            original(*arguments, **named)
        raise Killed

    return die


class TestOperations(Operations.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(max_examples=10, stateful_step_count=20)
