"""A whole run: one suite after the other, with the time left, and with what there is kept whatever happens."""

import importlib
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType

from bench.model import Run, Section
from bench.options import ROUNDS, SECONDS, Options
from bench.report.machine import machine, versions
from nbdresize.errors import NbdresizeError
from nbdresize.units import format_size

SUITES = ("throughput", "resizing", "decisions", "scale", "instructions")
_EXPECTED = {  # seconds: of a quick run, of a full one
    "throughput": (280, 1620),
    "resizing": (50, 300),
    "decisions": (30, 180),
    "scale": (40, 480),
    "instructions": (20, 120),
}


@dataclass(frozen=True)
class Suite:
    """A suite as this run has it: with which options, and with which rows."""

    name: str
    options: Options
    rows: list[str]
    expected: float
    """Seconds, before anything is known better."""


def planned(options: Options, names: Sequence[str]) -> list[Suite]:
    """Those that have a row that is wanted. `only` may also be the name of a suite: that one, whole."""
    found = []
    for name in names:
        if options.only.casefold() in names and options.only.casefold() != name:
            continue
        own = replace(options, only="") if options.only.casefold() == name else options
        try:
            suite = importlib.import_module(f"bench.{name}")
        except ImportError:
            found.append(Suite(name, own, [name], 0.0))  # tells why when it is to run, and the others go on
            continue
        if rows := _rows(suite, own):
            found.append(Suite(name, own, rows, _expected(name, suite, own, len(rows))))
    return found


def _rows(suite: ModuleType, options: Options) -> list[str]:
    return list(suite.names(options))


def _expected(name: str, suite: ModuleType, options: Options, rows: int) -> float:
    whole = _EXPECTED.get(name, (10, 60))[options.full]
    share = rows / max(1, len(_rows(suite, replace(options, only=""))))
    if name == "throughput":
        share *= options.rounds * (options.seconds + 0.3) / (ROUNDS * (SECONDS + 0.3))
    return whole * share


class Progress:
    """Lines of a run as it goes, each with the time that it has taken and about how long it will still take."""

    def __init__(
        self, suites: list[Suite], say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._suites = suites
        self._say = say
        self._clock = clock
        self._began = self._suite_began = clock()
        self._now = 0
        self._done: set[str] = set()

    def begin(self, suite: Suite) -> None:
        self._now, self._done, self._suite_began = self._suites.index(suite), set(), self._clock()

    def tell(self, line: str) -> None:
        self._done |= {row for row in self._suites[self._now].rows if line.startswith(row)}
        self._say(f"[{minutes(self._clock() - self._began)}, about {minutes(self.left())} left] {line}")

    def left(self) -> float:
        """Seconds: at first what is expected, later rather the pace of the rows that were told."""
        suite, spent = self._suites[self._now], self._clock() - self._suite_began
        left = max(0.0, suite.expected - spent)
        if self._done:
            part = len(self._done) / len(suite.rows)
            left = part * (spent / part - spent) + (1 - part) * left
        return left + sum(each.expected for each in self._suites[self._now + 1 :])


def minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


@dataclass
class Session:
    """What a run has found so far; `stopped` is whether it was interrupted, `failed` which suites were not."""

    options: Options
    say: Callable[[str], None]
    started: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))
    sections: list[Section] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    stopped: bool = False
    saved: Callable[[Run], None] = lambda run: None
    """Takes the run so far after each suite."""

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self._machine, self._versions = machine(), versions()

    def measure(self, suites: list[Suite]) -> None:
        """All of them, however many fail, up to a KeyboardInterrupt."""
        progress = Progress(suites, self.say)
        try:
            for suite in suites:
                progress.begin(suite)
                self._measure(suite, progress)
                self.saved(self.run())
        except KeyboardInterrupt:
            self.stopped = True

    def _measure(self, suite: Suite, progress: Progress) -> None:
        before = list(self.sections)
        options = replace(suite.options, keep=self.sections.append)
        try:
            section = importlib.import_module(f"bench.{suite.name}").run(options, progress.tell)
        except NbdresizeError as error:
            self._fail(suite, str(error))
        except Exception as error:  # noqa: BLE001  whatever it is, the other suites' results are not to be lost
            self._fail(suite, f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        else:
            self.sections = [*before, section]

    def _fail(self, suite: Suite, why: str) -> None:
        self.failed.append(suite.name)
        self.say(f"{suite.name}: failed: {why.strip()}")

    def run(self) -> Run:
        options = self.options
        settings = {
            "run": "full" if options.full else "quick",
            "rounds": str(options.rounds),
            "seconds of each sample": f"{options.seconds:g}",
            "file": format_size(options.size),
        }
        if options.only:
            settings["only rows with"] = options.only
        if self.failed:
            settings["suites that failed"] = ", ".join(self.failed)
        if self.stopped:
            settings["interrupted"] = "yes: what is missing was not measured"
        sections = [each for each in self.sections if any((each.comparisons, each.figures, each.curves, each.remarks))]
        took = time.monotonic() - self._began
        return Run(self.started, took, self._machine, self._versions, settings, sections)
