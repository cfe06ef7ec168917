"""What snapshots are charged, against a model that knows each block of each disk by who wrote it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.units import SizeRequest
from tests.control.consistency import problems
from tests.filesystems import mounted

pytestmark = pytest.mark.slow

BLOCK = 4096
BLOCKS = 64
MIB = 1 << 20
SIZE = BLOCKS * BLOCK
NAMES = [f"s{number}" for number in range(5)]

Written = tuple[int, int]
"""Which block of a disk, and which of all writes it was."""

WRITE = st.tuples(st.just("write"), st.integers(0, 1), st.integers(0, BLOCKS - 1), st.integers(1, 16))
TRIM = st.tuples(st.just("trim"), st.integers(0, 1), st.integers(0, BLOCKS - 1), st.integers(1, 16))
TAKE = st.tuples(st.just("create"), st.sampled_from(NAMES))
DELETE = st.tuples(st.just("delete"), st.sampled_from(NAMES))
ROLL_BACK = st.tuples(st.just("rollback"), st.sampled_from(NAMES))


@dataclass
class Model:
    """The disks, and their snapshots in order: what each block was last written by; blocks that are holes are not."""

    sharing: bool
    disks: list[dict[int, int]] = field(default_factory=lambda: [{}, {}])
    snapshots: dict[str, list[dict[int, int]]] = field(default_factory=dict)
    writes: int = 0

    def held(self, *, but: str = "") -> int:
        """The bytes that the snapshots take together, without one of them."""
        others = [disks for name, disks in self.snapshots.items() if name != but]
        if not self.sharing:
            return BLOCK * sum(len(disk) for disks in others for disk in disks)
        return BLOCK * len(
            {(slot, *each) for disks in others for slot, disk in enumerate(disks) for each in disk.items()}
        )

    def alone(self) -> int:
        """The bytes that only snapshots have."""
        if not self.sharing:
            return self.held()
        disks = {(slot, *each) for slot, disk in enumerate(self.disks) for each in disk.items()}
        held = {
            (slot, *each)
            for disks in self.snapshots.values()
            for slot, disk in enumerate(disks)
            for each in disk.items()
        }
        return BLOCK * len(held - disks)


@pytest.fixture(scope="module", params=["xfs", "btrfs", "tmpfs"])
def pool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    with mounted(request.param, tmp_path_factory.mktemp("charges")) as point:
        yield request.param, point


@contextmanager
def opened(pool: Path) -> Iterator[Control]:
    with Control.open(StateDirectory(pool / "state")) as control:
        control.create_vm("web1", 16 * MIB, [SizeRequest(exact=SIZE)] * 2)
        try:
            yield control
        finally:
            control.delete_vm("web1")


@settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(st.lists(st.one_of(WRITE, WRITE, TRIM, TAKE, TAKE, DELETE, ROLL_BACK), max_size=25))
def test_all_snapshots_are_charged_what_they_hold_together(
    pool: tuple[str, Path], changes: list[tuple[str, str]]
) -> None:
    kind, point = pool
    model = Model(sharing=kind != "tmpfs")
    with opened(point) as control:
        for change in changes:
            _do(control, model, *change)
            assert control.vm("web1").snapshot_space == model.held(), change
        report = control.snapshot_report("web1")
        assert [each.name for each in report.snapshots] == list(model.snapshots)
        assert report.space == model.held()
        assert report.frees == {name: model.held() - model.held(but=name) for name in model.snapshots}
        assert report.held == model.alone()
        for name, snapshot in zip(model.snapshots, report.snapshots, strict=True):
            for disk, expected in zip(snapshot.disks, model.snapshots[name], strict=True):
                assert _read(control, disk.volume) == expected, name
        now = [_read(control, disk.volume) for disk in control.vm("web1").disks]
        assert now == model.disks
        assert problems(control.state) == []


def _do(control: Control, model: Model, what: str, *arguments: int | str) -> None:
    if what in ("write", "trim"):
        slot, first, count = map(int, arguments)
        blocks = range(first, min(first + count, BLOCKS))
        model.writes += 1
        path = _path(control, control.vm("web1").disks[slot].volume)
        for block in blocks:
            model.disks[slot].pop(block, None)
        if what == "write":
            model.disks[slot].update(dict.fromkeys(blocks, model.writes))
            with path.open("r+b") as file:
                file.seek(first * BLOCK)
                file.write(model.writes.to_bytes(4, "big") * (len(blocks) * BLOCK // 4))
        else:
            with control._site.pool.volume(path.stem).open() as handle:
                handle.trim(first * BLOCK, len(blocks) * BLOCK)
        return
    name = str(arguments[0])
    if what == "create" and name not in model.snapshots:
        control.create_snapshot("web1", name)
        model.snapshots[name] = [dict(disk) for disk in model.disks]
    elif what == "delete" and name in model.snapshots:
        control.delete_snapshot("web1", name)
        del model.snapshots[name]
    elif what == "rollback" and name in model.snapshots:
        control.rollback("web1", name)
        model.disks = [dict(disk) for disk in model.snapshots[name]]


def _path(control: Control, volume: str) -> Path:
    return control.state.volumes / f"{volume}.raw"


def _read(control: Control, volume: str) -> dict[int, int]:
    """Which write each block of a volume shows."""
    content = _path(control, volume).read_bytes()
    assert len(content) == SIZE
    shown = {block: content[block * BLOCK : (block + 1) * BLOCK] for block in range(BLOCKS)}
    for block in shown.values():
        assert block == block[:4] * (BLOCK // 4)
    return {number: int.from_bytes(block[:4], "big") for number, block in shown.items() if any(block)}


def test_a_snapshot_in_the_middle_leaves_its_blocks_to_the_next(pool: tuple[str, Path]) -> None:
    """What two snapshots hold is charged to the older one, and to the other once that is gone."""
    kind, point = pool
    with opened(point) as control:
        volume = _path(control, control.vm("web1").disks[0].volume)
        for number, name in enumerate(("old", "middle", "new")):
            with volume.open("r+b") as file:
                file.seek(number * 8 * BLOCK)
                file.write(os.urandom(8 * BLOCK))
            control.create_snapshot("web1", name)
        shared = kind != "tmpfs"
        spaces = {each.name: each.space // BLOCK for each in control.snapshots("web1")}
        assert spaces == ({"old": 8, "middle": 8, "new": 8} if shared else {"old": 8, "middle": 16, "new": 24})
        control.delete_snapshot("web1", "middle")
        spaces = {each.name: each.space // BLOCK for each in control.snapshots("web1")}
        assert spaces == ({"old": 8, "new": 16} if shared else {"old": 8, "new": 24})
        control.delete_snapshot("web1", "old")
        assert [each.space // BLOCK for each in control.snapshots("web1")] == [24]
