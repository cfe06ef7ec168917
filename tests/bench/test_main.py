"""scripts/bench, as somebody runs it: with suites that measure nothing, and once with a real one."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from bench.__main__ import _EXAMPLES, _parser
from bench.options import Options
from bench.report import stored
from bench.report.markdown import REPORT, RUN, report
from bench.session import SUITES, Progress, Suite, minutes
from tests.bench.made import depth_1, made, steady_row, wild_row
from tests.documentation import blocks, examples
from tests.wait import until

CHECKOUT = Path(__file__).parents[2]

DRIVER = """
import sys, types
from bench.__main__ import main
from bench.model import Section
from tests.bench import made

def suite(name, run):
    module = types.ModuleType(name)
    module.run = run
    module.names = lambda options: [row for row in (f"{name} one", f"{name} two") if options.wants(row)]
    sys.modules[f"bench.{name}"] = module
    return name

"""
"""Of a script that runs the command line with suites of its own."""
GOOD = """
def good(options, tell):
    section = Section("good", "Good")
    options.keep(section)
    section.comparisons.append(made.steady_row())
    tell("row one")
    return section
"""


def bench(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command line, without setting up first."""
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=cwd or CHECKOUT)


def start(tmp_path: Path, suites: str, *arguments: str) -> "subprocess.Popen[str]":
    """The command line with these suites, the last line naming them in order."""
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER + textwrap.dedent(suites))
    return subprocess.Popen(
        ["env", "--default-signal=INT,HUP", sys.executable, driver, f"--output={tmp_path / 'out'}", *arguments],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ran(tmp_path: Path, suites: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    with start(tmp_path, suites, *arguments) as process:
        said, warned = process.communicate(timeout=100)
        return process.returncode, said, warned


# A run


def test_a_run_writes_its_file_its_report_and_its_charts(tmp_path: Path) -> None:
    code, said, told = ran(tmp_path, GOOD + 'sys.exit(main(None, [suite("good", good)]))', "--size=16M")
    assert code == 0, told
    run = stored.load(tmp_path / "out" / RUN)
    assert [section.comparisons for section in run.sections] == [[steady_row()]]
    assert run.settings == {"run": "quick", "rounds": "5", "seconds of each sample": "0.5", "file": "16 MiB"}
    assert (tmp_path / "out" / REPORT).read_text() == report(run)
    assert (tmp_path / "out/targets-throughput.svg").stat().st_size > 1000
    assert re.search(r"^\[\d+:\d\d, about \d+:\d\d left\] row one$", told, re.MULTILINE)
    assert said.startswith("Targets: 3 met, 0 missed, 0 not known.\nReport: ")


def test_a_refused_row_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    wild = 'run = lambda options, tell: Section("wild", "W", [made.wild_row(), made.steady_row()])\n'
    code, said, _ = ran(tmp_path, wild + 'sys.exit(main(None, [suite("wild", run)]))')
    assert code == 3
    assert "Refused, wholly or in part, since rounds differ too much: 1 MiB write, depth 16.\n" in said


@pytest.mark.parametrize("what", ["figures", "curves"])
def test_a_refused_figure_and_a_refused_point_have_that_exit_code_too(tmp_path: Path, what: str) -> None:
    wild = f"""
    from bench.model import Curve, Figure
    curve = Curve("wild", "VMs", "ms")
    curve.add("all", 10, made.WILD)
    found = {{"figures": [Figure.of("wild", "ms", made.WILD)], "curves": [curve]}}[{what!r}]
    run = lambda options, tell: Section("wild", "W", {what}=found)
    sys.exit(main(None, [suite("wild", run)]))
    """
    code, said, _ = ran(tmp_path, textwrap.dedent(wild))
    assert code == 3
    assert "Refused, wholly or in part, since rounds differ too much: wild.\n" in said
    assert re.search("wild(, all at 10)? is somewhere from 0.5 to 1.5 ms", (tmp_path / "out" / REPORT).read_text())


def test_a_suite_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    failing = """
    from nbdresize.errors import InvalidArgument
    def bad(options, tell):
        options.keep(Section("bad", "Bad", remarks=["half"]))
        raise InvalidArgument("fio is missing", "run: scripts/setup --bench")
    def broken(options, tell):
        raise KeyError("x")
    sys.exit(main(None, [suite("bad", bad), suite("broken", broken), "gone", suite("good", good)]))
    """
    code, _, told = ran(tmp_path, GOOD + textwrap.dedent(failing))
    assert code == 1
    assert "bad: failed: fio is missing: run: scripts/setup --bench\nbroken: failed: KeyError: 'x'\nTraceback" in told
    run = stored.load(tmp_path / "out" / RUN)
    assert [section.suite for section in run.sections] == ["bad", "good"]
    assert "half" in (tmp_path / "out" / REPORT).read_text()
    assert run.settings["suites that failed"] == "bad, broken, gone"
    assert "gone: failed: ModuleNotFoundError: No module named 'bench.gone'" in told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_ends_it_and_what_was_measured_is_written(tmp_path: Path, number: signal.Signals) -> None:
    slow = f"""
    import pathlib, threading
    def slow(options, tell):
        section = Section("slow", "Slow")
        options.keep(section)
        section.comparisons.append(made.depth_1())
        try:
            pathlib.Path({str(tmp_path / "begun")!r}).touch()
            threading.Event().wait(60)
        finally:
            pathlib.Path({str(tmp_path / "cleaned")!r}).touch()
        raise AssertionError
    sys.exit(main(None, [suite("good", good), suite("slow", slow), suite("after", slow)]))
    """
    with start(tmp_path, GOOD + textwrap.dedent(slow)) as process:
        until((tmp_path / "begun").exists, what="the second suite has begun")
        process.send_signal(number)
        _, told = process.communicate(timeout=100)
        assert process.returncode == 130, told
    assert "Traceback" not in told
    assert (tmp_path / "cleaned").exists()
    run = stored.load(tmp_path / "out" / RUN)
    assert [section.comparisons for section in run.sections] == [[steady_row()], [depth_1()]]
    assert run.settings["interrupted"].startswith("yes")
    assert (tmp_path / "out" / REPORT).exists()


def test_charts_of_a_run_before_in_the_same_place_go_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    stored.save(made(), tmp_path / "out" / RUN)
    for name in ("throughput-latency-1.svg", "mine.svg"):
        (tmp_path / "out" / name).touch()
    code, _, _ = ran(tmp_path, GOOD + 'sys.exit(main(None, [suite("good", good)]))')
    assert code == 0
    assert not (tmp_path / "out/throughput-latency-1.svg").exists()
    assert (tmp_path / "out/mine.svg").exists()


def test_only_names_rows_or_a_whole_suite(tmp_path: Path) -> None:
    listing = GOOD + 'sys.exit(main(None, [suite("good", good), suite("other", good)]))'
    assert ran(tmp_path, listing, "--list")[1].splitlines() == [
        "good: good one",
        "good: good two",
        "other: other one",
        "other: other two",
    ]
    assert ran(tmp_path, listing, "--list", "--only=TWO")[1] == "good: good two\nother: other two\n"
    assert ran(tmp_path, listing, "--list", "--only=other")[1] == "other: other one\nother: other two\n"
    assert not (tmp_path / "out").exists()


def test_the_time_left_follows_the_pace_so_far() -> None:
    now, told = [0.0], list[str]()
    options = Options(Path())
    suites = [Suite("a", options, ["one", "two", "three", "four"], 100.0), Suite("b", options, ["five"], 20.0)]
    progress = Progress(suites, told.append, lambda: now[0])
    progress.begin(suites[0])
    assert progress.left() == 120
    now[0] = 50.0
    assert progress.left() == 70
    progress.tell("a remark")
    assert progress.left() == 70
    progress.tell("one: 5 ms")
    progress.tell("one: 6 ms, at most")
    # A quarter is done: three more of 50 s each count a quarter, what was expected three; and the other suite.
    assert told[-1] == f"[0:50, about {minutes(150 / 4 + 50 * 3 / 4 + 20)} left] one: 6 ms, at most"
    progress.begin(suites[1])
    now[0] = 90.0
    assert progress.left() == 0
    assert minutes(3661) == "61:01"


def test_the_quick_run_is_meant_to_take_seven_minutes_and_the_full_one_forty_five() -> None:
    from bench.session import _EXPECTED

    assert set(_EXPECTED) == set(SUITES)
    assert sum(quick for quick, _ in _EXPECTED.values()) == 7 * 60
    assert sum(full for _, full in _EXPECTED.values()) == 45 * 60


# Two runs


def test_compare_tells_what_got_worse_and_its_exit_code_says_it(tmp_path: Path) -> None:
    for name, rate in (("old", 2.0), ("new", 1.7)):
        (tmp_path / name).mkdir()
        stored.save(made(steady_row(rate), depth_1()), tmp_path / name / RUN)
    worse = bench("--compare", tmp_path / "old", tmp_path / "new" / RUN)
    assert (worse.returncode, worse.stderr) == (1, "")
    assert "| native: throughput | 2 (1.96–2.04) | 1.7 (1.67–1.73) | -15.0 % | worse |" in worse.stdout
    same = bench("--compare", tmp_path / "old", tmp_path / "old")
    assert (same.returncode, same.stderr) == (0, "")
    assert same.stdout.endswith("Nothing of ours that both have is worse beyond noise.\n")
    told = bench("--compare", tmp_path / "old", tmp_path / "new", "--json")
    assert told.returncode == 1
    regressions = [each for each in json.loads(told.stdout)["changes"] if each["regression"]]
    assert [each["what"] for each in regressions] == ["native: throughput"]


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds", "0"], "--rounds 0: give 1 to 100, and at least 5 for a result"),
        (["--rounds", "many"], "argument --rounds: invalid int value: 'many' (--help explains)"),
        (["--seconds", "nan"], "--seconds nan: give 0.02 to 600"),
        (["--size", "5"], "--size 5: give whole MiB, at least 16M"),
        (["--size", "lots"], "'lots' is not a size: give a size such as 20G, 512M or 1048576"),
        (["--size", "1E"], "has not room for twice 1E: give another --directory or a smaller --size"),
        (["--directory", "/nowhere"], "/nowhere is no directory that can be written to: give another one as"),
        (["--output", "/dev/null"], "/dev/null: File exists"),
        (["--json"], "--json goes with --compare"),
        (["--compare", "one"], "argument --compare: expected 2 arguments"),
        (["--compare", "/nowhere/a", "/nowhere/b"], "/nowhere/a: No such file or directory"),
        (["--compare", __file__, __file__], "test_main.py: this is no result of scripts/bench"),
        (["--compare", "old", "new", "--list"], "not allowed with argument"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    code, printed, told = ran(tmp_path, GOOD + 'sys.exit(main(None, [suite("good", good)]))', *arguments)
    assert (code, printed) == (2, "")
    assert said in told
    assert told.startswith("bench: ") and told.count("\n") == 1


def test_a_text_that_no_row_has_is_a_mistake(tmp_path: Path) -> None:
    code, _, told = ran(tmp_path, GOOD + 'sys.exit(main(None, [suite("good", good)]))', "--only=zebra")
    assert code == 2
    assert told == "bench: no row's name has 'zebra' in it: --list shows them, --full --list shows all\n"


def test_runs_with_nothing_in_common_and_other_versions_can_not_be_compared(tmp_path: Path) -> None:
    stored.save(made(wild_row()), tmp_path / "a.json")
    text = stored.to_json(made(depth_1())).replace('"version": 2', '"version": 1')
    (tmp_path / "b.json").write_text(text)
    earlier = bench("--compare", tmp_path / "a.json", tmp_path / "b.json")
    assert earlier.returncode == 2
    assert "b.json: this is of version 1, and this scripts/bench reads version 2: measure it again" in earlier.stderr


# The script


@pytest.mark.slow
def test_the_script_sets_up_and_lists_what_it_would_measure(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(CHECKOUT / "scripts/bench"), "--list"], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert {line.partition(":")[0] for line in done.stdout.splitlines()} <= set(SUITES)
    assert "throughput: " in done.stdout


@pytest.mark.slow
def test_the_script_measures_real_servers(tmp_path: Path) -> None:
    """One row of the README's command, and a look at it only: a single round of a moment, so it is refused."""
    less = ["--only", "cold cache", "--rounds", "1", "--seconds", "0.05", "--size", "32M"]
    command = [CHECKOUT / "scripts/bench", *less, "--directory", tmp_path, "--output", tmp_path / "out"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=280)
    assert done.returncode == 3, done.stderr
    assert "cold cache: refused: rounds: 1; a result takes at least 5" in done.stderr
    [section] = stored.load(tmp_path / "out" / RUN).sections
    [row] = section.comparisons
    assert {"native", "nbdkit file"} <= set(row.samples)
    assert all(sample.rate > 0 for samples in row.samples.values() for sample in samples)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_examples_of_the_pages_are_arguments_that_it_takes() -> None:
    pages = [CHECKOUT / "README.md", CHECKOUT / "docs/bench.md"]
    ours = [block for page in pages for block in blocks(page) if block.elsewhere == "tests/bench/test_main.py"]
    commands = [shlex.split(example.command) for block in ours for example in examples(block)]
    assert len(commands) > 5
    for program, *arguments in commands:
        assert program == "scripts/bench"
        _parser().parse_args(arguments)


def test_the_examples_of_the_help_are_arguments_that_it_takes() -> None:
    lines = [re.split(r" {3,}", line.strip())[0] for line in _EXAMPLES.splitlines()[1:]]
    assert len(lines) == 5
    for example in lines:
        program, *arguments = shlex.split(example)
        assert program == "scripts/bench"
        _parser().parse_args(arguments)
