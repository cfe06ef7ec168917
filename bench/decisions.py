"""The suite of control: how fast decisions are made and durable, and listings and checks of full ledgers.

A decision is one transaction, durable when it ends; most of its time is the disk's, in one fsync. A listing looks at no
volume: there is none here, so whoever looked for one would fail.
"""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.deciding import PARTS, Deciding, side_by_side, take_back
from bench.full_ledger import DISKS, Filling, full_ledger, vm_name
from bench.model import Curve, Figure, Section, Spread
from bench.mounts import described
from bench.options import Options
from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.errors import Inconsistent

DECISION = 20.0
LISTING = 500.0
"""Milliseconds: what the design asks of a decision, and of `vm list` with 1,000 VMs as a whole command."""

_PROGRAM = (sys.executable, "-m", "nbdresize.cli.main")

Tell = Callable[[str], None]


_LEDGER = Filling(1000, 10_000, 10_000)


@dataclass(frozen=True)
class Amounts:
    """How much a run measures."""

    full: Filling = _LEDGER
    decisions: int = 100
    seconds: float = 1.0
    """Of deciding side by side, for each number of processes."""
    processes: tuple[int, ...] = (1, 2, 4)
    commands: int = 5
    """Runs of each command, and of it for each point of the curve."""
    listed: tuple[int, ...] = (10, 100, 1000)
    """VMs, for the curve."""
    checked: int = 100
    """VMs, each with ten snapshots, whose volumes are there."""


QUICK = Amounts()
FULL = Amounts(decisions=500, seconds=5.0, commands=15, listed=(10, 100, 1000, 10_000), checked=1000)

_DECIDING, _RATE, _COMMANDS, _GROWING, _CHECK = (
    "a decision",
    "decisions per second",
    "nbdresize vm list",
    "listing more and more VMs",
    "check",
)


def names(options: Options) -> list[str]:
    """The rows that such a run has."""
    return [name for name in (_DECIDING, _RATE, _COMMANDS, _GROWING, _CHECK) if options.wants(name)]


def run(options: Options, tell: Tell, amounts: Amounts | None = None) -> Section:
    """Measure all of it; `amounts` other than those of a quick or a full run are for tests."""
    amounts = amounts or (FULL if options.full else QUICK)
    section = Section("decisions", "Decisions and listings with full ledgers")
    options.keep(section)
    section.remarks.append(f"The ledgers lay on {described(options.directory)}.")
    wanted = names(options)
    steps = {_DECIDING: _decisions, _RATE: _rates, _COMMANDS: _commands}
    if set(steps) & set(wanted):
        filling = amounts.full
        section.remarks.append(
            f"The ledger has {filling.vms:,} VMs with {DISKS} disks each, {filling.snapshots:,} snapshots and"
            f" {filling.operations:,} operations that have ended."
        )
        with full_ledger(filling, options.directory) as state:
            for name, step in steps.items():
                if name in wanted:
                    step(state, amounts, section, tell)
    if _GROWING in wanted:
        _growing(options, amounts, section, tell)
    if _CHECK in wanted:
        _check(options, amounts, section, tell)
    return section


def _decisions(state: StateDirectory, amounts: Amounts, section: Section, tell: Tell) -> None:
    with Control.open(state, create=False) as control:
        ledger = control._site.ledger
        deciding = Deciding(ledger, amounts.full.vms)
        deciding.decide()  # the first one loads code
        deciding.parts.clear()
        while len(deciding.parts) < amounts.decisions and deciding.decide():
            pass
        take_back(ledger)
    took = [sum(parts) for parts in deciding.parts]
    _add(section, tell, _DECIDING, took, DECISION)
    section.figures.append(Figure.tail(_DECIDING, "ms", [each * 1e3 for each in took]))
    for part, seconds in zip(PARTS, zip(*deciding.parts, strict=True), strict=True):
        _add(section, tell, f"{_DECIDING}: {part}", seconds)


def _rates(state: StateDirectory, amounts: Amounts, section: Section, tell: Tell) -> None:
    line: list[tuple[float, float]] = []
    for processes in amounts.processes:
        made = side_by_side(state, amounts.full.vms, processes, amounts.seconds)
        rate, slowest = sum(each.count / each.seconds for each in made), max(each.slowest for each in made) * 1e3
        with Control.open(state, create=False) as control:
            take_back(control._site.ledger)
        name = f"{_RATE}, {processes} {'process' if processes == 1 else 'processes at once'}"
        section.figures.append(Figure(name, "per second", Spread(rate, rate, rate), lower_is_better=False))
        of_all = sum(each.count for each in made)
        latest = Figure(f"{name}: the slowest", "ms", Spread(slowest, slowest, slowest), extreme_of=of_all)
        section.figures.append(latest)
        line.append((processes, rate))
        tell(f"{name}: {rate:.0f}, the slowest {slowest:.1f} ms")
    section.curves.append(
        Curve("Decisions on one ledger", "processes at once", _RATE, {"all together": line}, lower_is_better=False)
    )


def _commands(state: StateDirectory, amounts: Amounts, section: Section, tell: Tell) -> None:
    with Control.open(state, create=False) as control:
        one = vm_name(amounts.full.vms // 2 + 1)
        _add(section, tell, "control.vm(), one VM in the process", timed(lambda: control.vm(one), amounts.decisions))
        _add(section, tell, "control.vms(), all in the process", timed(control.vms, amounts.commands))
    commands: tuple[tuple[str, tuple[str, ...], float | None], ...] = (
        (f"{_COMMANDS}, the whole command", (*_PROGRAM, "vm", "list"), LISTING),
        (f"{_COMMANDS} --json", (*_PROGRAM, "vm", "list", "--json"), LISTING),
        ("of it: nbdresize --version (Python, the app)", (*_PROGRAM, "--version"), None),
        ("of it: Python and import sqlalchemy", (sys.executable, "-c", "import sqlalchemy"), None),
        ("of it: Python alone", (sys.executable, "-c", ""), None),
    )
    for name, command, target in commands:
        took, processor = _whole(state, command, amounts.commands)
        _add(section, tell, name, took, target)
        _add(section, tell, f"{name}: processor time", processor)
    section.remarks.append("Processor times depend less than times on what else a machine does.")


def _growing(options: Options, amounts: Amounts, section: Section, tell: Tell) -> None:
    curve = Curve("Listing VMs", "VMs", "ms", logarithmic_x=True, logarithmic_y=True, lower_is_better=True)
    section.curves.append(curve)
    for vms in amounts.listed:
        filling = Filling(vms, min(10 * vms, 10_000), min(10 * vms, 10_000))
        with full_ledger(filling, options.directory) as state:
            with Control.open(state, create=False) as control:
                inside = timed(control.vms, amounts.commands)
            took, _ = _whole(state, (*_PROGRAM, "vm", "list"), amounts.commands)
        for line, seconds in ((_COMMANDS, took), ("in the process", inside)):
            curve.add(line, vms, [each * 1e3 for each in seconds])
        told = ", ".join(f"{name} {points[-1][1]:.1f} ms" for name, points in curve.lines.items())
        tell(f"{vms:,} VMs: {told}")


def _check(options: Options, amounts: Amounts, section: Section, tell: Tell) -> None:
    filling = Filling(amounts.checked, amounts.checked * 10, amounts.checked * 10)
    with (
        full_ledger(filling, options.directory, volumes=True) as state,
        Control.open(state, create=False) as control,
    ):
        begun = time.perf_counter()
        report = control.check()
        took = time.perf_counter() - begun
    if report.problems:
        raise Inconsistent(f"The check finds {len(report.problems)} problems: {report.problems[0].detail}")
    volumes = report.checked["disks"] + report.checked["snapshots"] * DISKS
    _add(section, tell, f"{_CHECK}: {report.checked['vms']:,} VMs, {volumes:,} volumes", [took])


def timed(what: Callable[[], object], rounds: int) -> list[float]:
    """The seconds of each round."""
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        what()
        seconds.append(time.perf_counter() - begun)
    return seconds


def _whole(state: StateDirectory, command: Sequence[str], rounds: int) -> tuple[list[float], list[float]]:
    """Of a whole command: the seconds of each run, and its processor seconds; the first one, to warm up, left out."""
    environment = {**os.environ, "NBDRESIZE_ROOT": str(state.root)}
    took, processor = [], []
    for _ in range(rounds + 1):
        before = _processor_seconds()
        begun = time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        took.append(time.perf_counter() - begun)
        processor.append(_processor_seconds() - before)
    return took[1:], processor[1:]


def _processor_seconds() -> float:
    """Of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _add(section: Section, tell: Tell, name: str, seconds: Sequence[float], target: float | None = None) -> None:
    figure = Figure.of(name, "ms", [each * 1e3 for each in seconds], target)
    section.figures.append(figure)
    asked = "" if target is None else f" (at most {target:g})"
    tell(f"{name}: {figure.value.median:.2f} ms{asked}, slowest {figure.value.highest:.2f}")
