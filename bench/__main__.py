"""The command line of the benchmarks; scripts/bench sets up what they need and runs this.

Exit codes: 0; 1 a suite failed, or (--compare) something got worse; 2 a mistake in the arguments or files; 3 measured,
but some numbers are refused, since what was measured differs too much; 130 interrupted, with what there is written.
"""

import argparse
import dataclasses
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bench.model import Run
from bench.options import MIB, ROUNDS, SECONDS, SIZE, Options
from bench.report import changes, charts, markdown
from bench.report.figures import of_figure, refused_names
from bench.report.machine import worries
from bench.report.stored import Unreadable, load, save
from bench.report.wording import of_target, reasons
from bench.rounds import Measure
from bench.session import SUITES, Session, Suite, planned
from nbdresize.errors import InvalidArgument
from nbdresize.units import parse_size

CHECKOUT = Path(__file__).parents[1]
_RESULTS = CHECKOUT / "bench/results"
_SMALLEST = 16 * MIB
_FAILED, _USAGE, _REFUSED, _INTERRUPTED = 1, 2, 3, 130
_EXAMPLES = """examples:
  scripts/bench                                  about seven minutes
  scripts/bench --full                           everything, about 45 minutes
  scripts/bench --only 'depth 16' --rounds 8     some rows, with more rounds
  scripts/bench --only resizing                  one suite
  scripts/bench --compare before/run.json after/run.json
"""


class _Mistake(Exception):
    """Told in one line; exit code 2."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Mistake(f"{message} (--help explains)")


def main(arguments: Sequence[str] | None = None, suites: Sequence[str] = SUITES) -> int:
    """Run one command; the exit code."""
    try:
        return _main(_parser().parse_args(arguments), suites)
    except (_Mistake, Unreadable, InvalidArgument) as error:
        say(f"bench: {error}")
        return _USAGE
    except KeyboardInterrupt:
        return _INTERRUPTED


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _main(given: argparse.Namespace, names: Sequence[str]) -> int:
    if given.json and not given.compare:
        raise _Mistake("--json goes with --compare; a run writes a JSON file anyway")
    if given.compare:
        return compare(*(load(_file_of(path)) for path in given.compare), as_json=given.json)
    if given.readme:
        return renew_readme(_RESULTS, CHECKOUT / "README.md")
    options = _options(given)
    suites = planned(options, names)
    if not suites:
        raise _Mistake(f"no row's name has {given.only!r} in it: --list shows them, --full --list shows all")
    if given.list:
        for suite in suites:
            print("\n".join(f"{suite.name}: {row}" for row in suite.rows))
        return 0
    return measure(options, suites, _output(given.output))


# Measuring


def measure(options: Options, suites: list[Suite], output: Path) -> int:
    """Run the suites and write what they find."""
    for worry in worries():
        say(f"bench: warning: {worry}")
    session = Session(options, say, saved=lambda run: save(run, output / markdown.RUN))
    before = _charts_of(output)
    ends = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
    others = {each: signal.signal(each, _interrupt) for each in ends}
    try:
        session.measure(suites)
    finally:
        for number, other in others.items():
            signal.signal(number, other)
    run = session.run()
    write(run, output, before)
    print(summary(run, output))
    if session.stopped:
        return _INTERRUPTED
    if session.failed:
        return _FAILED
    return _REFUSED if _refused(run) else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def write(run: Run, output: Path, before: set[str]) -> None:
    """The run's files; charts that only the run before had are removed."""
    save(run, output / markdown.RUN)
    (output / markdown.REPORT).write_text(markdown.report(run))
    drawn = charts.draw([*charts.charts(run), *charts.targets(run)], output)
    for name in before - {path.name for path in drawn}:
        (output / name).unlink(missing_ok=True)


def _charts_of(output: Path) -> set[str]:
    try:
        run = load(output / markdown.RUN)
    except Unreadable:
        return set()
    return {chart.name for chart in (*charts.charts(run), *charts.targets(run))}


def summary(run: Run, output: Path) -> str:
    """What came of the targets, and where the rest is."""
    rows = [row for section in run.sections for row in section.comparisons]
    asked = [of_target(row, target, what) for row in rows for target in row.targets for what in Measure]
    asked += [of_figure(figure) for section in run.sections for figure in section.figures]
    outcomes = [text.partition(": ")[2].partition(",")[0] for text in asked if text]
    counts = [f"{outcomes.count(outcome)} {outcome}" for outcome in ("met", "missed", "not known")]
    lines = [f"Targets: {', '.join(counts)}.", f"Report: {_shown(output / markdown.REPORT)}"]
    if refused := _refused(run):
        lines.insert(1, f"Refused, wholly or in part, since rounds differ too much: {', '.join(refused)}.")
    return "\n".join(lines)


def _refused(run: Run) -> list[str]:
    """Rows, figures and curves of which not everything has a number."""
    return [
        name
        for section in run.sections
        for name in (*(row.row for row in section.comparisons if reasons(row)), *refused_names(section))
    ]


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


# Comparing, and the README


def compare(old: Run, new: Run, *, as_json: bool) -> int:
    found = changes.changes(old, new)
    if not any(each.old and each.new for each in found):
        raise _Mistake("these two runs have no row in common")
    worse = any(each.regression for each in found)
    if as_json:
        rows = [dataclasses.asdict(each) | {"regression": each.regression} for each in found]
        print(json.dumps({"remarks": changes.remarks(old, new), "changes": rows}, indent=1))
        return _FAILED if worse else 0
    print(changes.as_table(found))
    for remark in changes.remarks(old, new):
        print(f"Not the same: {remark}")
    gone = sum(each.ours and each.old is not None and each.new is None for each in found)
    if gone:
        print(f"{gone} numbers of ours are in the old run only: not measured in the new one, or refused there.")
    print("Worse, beyond noise." if worse else "Nothing of ours that both have is worse beyond noise.")
    return _FAILED if worse else 0


def renew_readme(results: Path, readme: Path) -> int:
    """Make the report, the charts and the README's section anew from the stored run."""
    run = load(results / markdown.RUN)
    write(run, results, set())
    try:
        readme.write_text(markdown.with_part(readme.read_text(), markdown.of_readme(results)))
    except ValueError as error:
        raise _Mistake(f"{readme.name}: {error}") from None
    return 0


def _file_of(path: Path) -> Path:
    return path / markdown.RUN if path.is_dir() else path


# Arguments


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="scripts/bench",
        description="Measure nbdresize beside other NBD servers, in turn, on the same file under the same load.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--full", action="store_true", help="everything, about 45 minutes")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows with this in their name, or one suite")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"at least; default {ROUNDS}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of each sample; default {SECONDS:g}")
    parser.add_argument("--size", default=f"{SIZE // MIB}M", help="of the served file; default %(default)s")
    parser.add_argument("--directory", type=Path, help="where the served files lie; default TMPDIR, else /var/tmp")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: a new one in bench/results-local")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="show the rows that would be measured")
    instead.add_argument("--compare", nargs=2, type=Path, metavar=("OLD", "NEW"), help="two runs: files or directories")
    instead.add_argument("--readme", action="store_true", help="renew what the README shows of bench/results")
    parser.add_argument("--json", action="store_true", help="with --compare")
    return parser


def _options(given: argparse.Namespace) -> Options:
    if not 1 <= given.rounds <= 100:
        raise _Mistake(f"--rounds {given.rounds}: give 1 to 100, and at least 5 for a result")
    if not 0.02 <= given.seconds <= 600:
        raise _Mistake(f"--seconds {given.seconds:g}: give 0.02 to 600")
    size = parse_size(given.size)
    if size < _SMALLEST or size % MIB:
        raise _Mistake(f"--size {given.size}: give whole MiB, at least {_SMALLEST // MIB}M")
    directory = given.directory or Path(os.environ.get("TMPDIR") or "/var/tmp")
    if not directory.is_dir() or not os.access(directory, os.W_OK | os.X_OK):
        raise _Mistake(f"{directory} is no directory that can be written to: give another one as --directory")
    if not given.list and shutil.disk_usage(directory).free < 2 * size:
        raise _Mistake(f"{directory} has not room for twice {given.size}: give another --directory or a smaller --size")
    return Options(directory.resolve(), given.full, given.rounds, given.seconds, given.only, size)


def _output(given: Path | None) -> Path:
    output = given or CHECKOUT / "bench/results-local" / time.strftime("%Y%m%d-%H%M%S")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _Mistake(f"{output}: {error.strerror}") from None
    if not os.access(output, os.W_OK | os.X_OK):
        raise _Mistake(f"{output}: can't be written to")
    return output.resolve()


if __name__ == "__main__":
    sys.exit(main())
