"""The suite of decisions, end to end, with little ledgers."""

from pathlib import Path

import pytest

from bench import decisions
from bench.deciding import PARTS, Deciding, side_by_side, take_back
from bench.decisions import Amounts
from bench.full_ledger import DISKS, Filling, full_ledger, vm_name
from bench.model import Section
from bench.options import Options
from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.units import SizeRequest

FILLING = Filling(vms=10, snapshots=20, operations=30)
TINY = Amounts(FILLING, decisions=5, seconds=0.05, processes=(1, 2), commands=1, listed=(3, 6), checked=2)


def ran(directory: Path, only: str) -> Section:
    return decisions.run(Options(directory=directory, only=only), lambda line: None, TINY)


def test_a_decision_and_its_parts_are_timed(tmp_path: Path) -> None:
    section = ran(tmp_path, "a decision")
    assert [figure.name for figure in section.figures] == [
        "a decision",
        "a decision, slowest",
        *(f"a decision: {part}" for part in PARTS),
    ]
    assert section.figures[0].target == decisions.DECISION
    assert all(figure.value.lowest > 0 for figure in section.figures)
    assert section.remarks[0].startswith("The ledgers lay on ")
    assert "10 VMs with 4 disks each, 20 snapshots" in section.remarks[1]


def test_processes_decide_side_by_side(tmp_path: Path) -> None:
    section = ran(tmp_path, "decisions per second")
    [curve] = section.curves
    assert [processes for processes, _ in curve.lines["all together"]] == [1, 2]
    assert all(rate > 0 for _, rate in curve.lines["all together"])


def test_whole_commands_are_timed(tmp_path: Path) -> None:
    section = ran(tmp_path, "nbdresize vm list")
    targets = {figure.name: figure.target for figure in section.figures if figure.target is not None}
    assert targets == {
        "nbdresize vm list, the whole command": decisions.LISTING,
        "nbdresize vm list --json": decisions.LISTING,
    }


def test_listings_are_drawn_over_the_number_of_vms(tmp_path: Path) -> None:
    [curve] = ran(tmp_path, "listing").curves
    assert [[vms for vms, _ in line] for line in curve.lines.values()] == [[3, 6], [3, 6]]


def test_a_check_is_timed(tmp_path: Path) -> None:
    [figure] = ran(tmp_path, "check").figures
    assert figure.name == "check: 2 VMs, 88 volumes"


def test_a_full_ledger_has_nothing_wrong(tmp_path: Path) -> None:
    """Its disks can be used as any other."""
    with full_ledger(FILLING, tmp_path, volumes=True) as state, Control.open(state) as control:
        report = control.check()
        assert report.problems == ()
        assert report.checked["vms"] == 10
        assert report.checked["snapshots"] == 20
        assert control.resize_disk(vm_name(1), "disk3", SizeRequest(relative=4096)).size > 4096
    assert list(tmp_path.iterdir()) == []


def test_each_decision_is_about_another_disk_and_all_are_taken_back(tmp_path: Path) -> None:
    with full_ledger(FILLING, tmp_path) as state, Control.open(state) as control:
        halves = [Deciding(control._site.ledger, FILLING.vms, number, 2) for number in range(2)]
        for half in halves:
            while half.decide():
                pass
        assert [len(half.parts) for half in halves] == [FILLING.vms * DISKS // 2] * 2
        assert all(disk.pending_size for vm in control.vms() for disk in vm.disks)
        take_back(control._site.ledger)
        assert not any(disk.pending_size for vm in control.vms() for disk in vm.disks)


def test_a_process_that_can_not_decide_is_told(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="has failed"):
        side_by_side(StateDirectory(tmp_path / "none"), 1, 1, 0.01)
