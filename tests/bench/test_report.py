"""The report of a run: its JSON file, its Markdown, its charts; two runs side by side; what the README shows."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy
import pytest

from bench.model import Comparison, Curve, Figure, Run, Section, Spread, Target
from bench.report import changes, charts, figures, markdown, stored
from bench.report.changes import Verdict
from bench.report.machine import machine, versions, worries
from bench.report.markdown import of_readme, report, with_part
from bench.report.wording import number, of_target, verdict
from bench.rounds import Measure, judged, ratios
from tests.bench.made import STEADY, WILD, alone_row, depth_1, made, samples, steady_row, wild_row

CHECKOUT = Path(__file__).parents[2]

# JSON


def test_a_run_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    run = made()
    stored.save(run, tmp_path / "run.json")
    assert stored.load(tmp_path / "run.json") == run
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_numbers_come_back_bit_by_bit_also_those_that_are_none() -> None:
    figure = Figure("f", "ms", Spread(0.1 + 0.2, 5e-324, math.inf))
    run = dataclasses.replace(made(), sections=[Section("s", "S", figures=[figure])])
    assert stored.from_json(stored.to_json(run)) == run


@pytest.mark.parametrize("text", ["", "[1", "{}", "[]", '{"format": "another", "version": 1}', "\udcff\x00"])
def test_files_of_others_are_told_apart(text: str) -> None:
    with pytest.raises(stored.Unreadable, match=r"this is no result of scripts/bench"):
        stored.from_json(text.encode(errors="surrogateescape"))


def test_a_file_of_another_version_is_told_apart() -> None:
    text = stored.to_json(made())
    assert '"version": 2' in text
    for other in (1, 7):
        with pytest.raises(
            stored.Unreadable, match=f"of version {other}, and this scripts/bench reads version 2: meas"
        ):
            stored.from_json(text.replace('"version": 2', f'"version": {other}'))


@pytest.mark.parametrize(
    ("good", "bad", "named"),
    [
        ('"started":', '"begun":', "run.started"),
        ('"median": 4.25', '"median": "much"', "figures.0.value.median"),
        ('"refused": ""', '"refused": 5', "comparisons.0.refused"),
        ('"title":', '"more": 1, "title":', "sections.0.more"),
    ],
)
def test_a_damaged_file_says_where(good: str, bad: str, named: str) -> None:
    text = stored.to_json(made())
    assert good in text
    with pytest.raises(stored.Unreadable, match=f"damaged result of scripts/bench: .*{re.escape(named)}"):
        stored.from_json(text.replace(good, bad, 1))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(stored.Unreadable, match=r"gone\.json: No such file or directory"):
        stored.load(tmp_path / "gone.json")


def test_the_file_holds_every_sample_in_plain_json() -> None:
    text = json.loads(stored.to_json(made()))
    row = text["run"]["sections"][0]["comparisons"][0]
    assert [sample["rate"] for sample in row["samples"]["nbdkit file"]] == [100_000] * 5


# Markdown

EXPECTED = Path(__file__).with_name("expected_report.md")


def test_the_report_is_as_expected() -> None:
    assert report(made()) == EXPECTED.read_text()


def test_the_report_of_a_refused_row_has_no_number_of_it() -> None:
    row = judged(Comparison("wild", {"native": samples(10, 1, by=WILD), "nbdkit file": samples(10, 1, by=(1.0,) * 5)}))
    lines = [line for line in report(made(row)).splitlines() if line.startswith("| wild")]
    assert lines[:2] == [
        "| wild | refused, 0.50–1.50 | — | 10/s, 0.0391 MiB/s |",
        "| wild | 1.00 (1.00–1.00) | — | 1,000,000 µs |",
    ]


def test_a_target_outside_of_where_a_refused_ratio_may_be_is_met_or_missed() -> None:
    by = (2.0, 3.0, 2.5, 3.9, 2.1)
    wild = {"native": samples(10, 1, by=by), "nbdkit file": samples(10, 1, by=(1.0,) * 5)}
    for asked, told in ((1.8, "met"), (2.2, "not known"), (4.0, "missed")):
        target = Target("native", throughput=asked)
        row = judged(Comparison("wild", wild, targets=(target,)))
        assert ratios(row, "native", Measure.THROUGHPUT) is None
        assert of_target(row, target, Measure.THROUGHPUT) == f"≥ {asked:.3g}: {told}"


def test_what_less_is_better_of_is_met_where_all_of_it_is_less() -> None:
    by = (0.6, 0.9, 0.7, 0.8, 0.65)
    row = judged(Comparison("wild", {"native": samples(10, 1, by=by), "nbdkit file": samples(10, 1, by=(1.0,) * 5)}))
    kept = dataclasses.replace(row, refused="for another reason")
    for asked, told in ((0.6, "missed"), (0.5, "missed"), (0.7, "not known"), (0.9, "met"), (1.0, "met")):
        target = Target("native", latency=asked)
        slower = {
            name: [dataclasses.replace(each, latency=each.rate) for each in kept.samples[name]] for name in kept.samples
        }
        assert of_target(dataclasses.replace(kept, samples=slower), target, Measure.LATENCY) == f"≤ {asked:.3g}: {told}"


def test_tables_stay_tables_whatever_a_name_holds() -> None:
    row = dataclasses.replace(steady_row(), row="a | b")
    [line] = [line for line in markdown.report(made(row)).splitlines() if line.startswith("| a") and "/s" in line]
    assert line.count("|") == 7


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.012345, "0.0123"), (4.25, "4.25"), (99.96, "100"), (12_345.6, "12,346"), (1e9, "1,000,000,000")],
)
def test_numbers_have_the_digits_that_count(value: float, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("spread", "asked", "lower", "said"),
    [
        (Spread(2, 1.9, 2.1), 1.8, False, "met"),
        (Spread(1.9, 1.7, 2.1), 1.8, False, "met, narrowly"),
        (Spread(1.7, 1.6, 1.9), 1.8, False, "missed, narrowly"),
        (Spread(1.5, 1.4, 1.6), 1.8, False, "missed"),
        (Spread(0.5, 0.4, 0.55), 0.6, True, "met"),
        (Spread(0.7, 0.65, 0.8), 0.6, True, "missed"),
        (None, 0.6, True, "not known"),
    ],
)
def test_targets_are_met_or_missed_or_not_known(spread: Spread | None, asked: float, lower: bool, said: str) -> None:
    assert verdict(spread, asked, lower_is_better=lower) == said


def test_a_high_quantile_is_told_of_many_only() -> None:
    few, many = (
        Figure.tail("a decision", "ms", [float(value) for value in range(1, number)]) for number in (299, 1001)
    )
    assert (few.name, few.value.median, figures.how_often(few)) == ("a decision, slowest", 298, "the highest of 298")
    assert (many.name, many.value.median, figures.refusal(many)) == ("a decision, 99 %", 990, "")
    assert figures.cell(many) == "990"
    rare = [1.0] * 980 + [float(value) for value in range(1, 21)]
    assert figures.refusal(Figure.tail("a decision", "ms", rare)).startswith("a decision, 99 % is somewhere from")
    far_too_few = dataclasses.replace(many, samples=[1.0] * 100)
    assert "not known: measured 100 times, which takes at least 299 times" in figures.refusal(far_too_few)


def test_what_is_counted_takes_few_measurements() -> None:
    counted = Figure.of("a read", "instructions per request", [100.0, 100.1], counted=True)
    assert figures.refusal(counted) == ""
    assert figures.refusal(dataclasses.replace(counted, counted=False)) == (
        "a read: measurements: 2; a result takes at least 5"
    )
    assert "too wide" in figures.refusal(Figure.of("a read", "per request", [100, 200], counted=True))


def test_a_target_of_a_refused_figure_is_neither_met_nor_missed() -> None:
    wild = Figure.of("a grow", "ms", WILD, target=50)
    assert figures.of_figure(wild) == "≤ 50: not known"
    assert figures.of_figure(dataclasses.replace(wild, samples=[])) == "≤ 50: met"


# Charts


def test_charts_are_drawn_under_their_names_and_the_same_each_time(tmp_path: Path) -> None:
    run = made()
    first, second = tmp_path / "1", tmp_path / "2"
    for directory in (first, second):
        directory.mkdir()
        charts.draw([*charts.charts(run), *charts.targets(run)], directory)
    names = sorted(path.name for path in first.iterdir())
    assert names == [
        "scale-throughput-by-connections.svg",
        "targets-processor.svg",
        "targets-throughput.svg",
        "throughput-latency-1.svg",
        "throughput-processor-1.svg",
        "throughput-throughput-1.svg",
    ]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()
        assert "<path" in (first / name).read_text()


def test_a_chart_shows_its_rows_servers_and_axes(tmp_path: Path) -> None:
    [chart] = [chart for chart in charts.targets(made()) if chart.name == "targets-throughput.svg"]
    [path] = charts.draw([chart], tmp_path)
    drawn = path.read_text()
    for text in ("4 KiB random read, depth 16", "native", "qemu-nbd", "target", "native: no result", "2.00"):
        assert f"<!-- {text} -->" in drawn  # matplotlib notes beside each text what it says
    assert "which is the line at 1; more is better" in drawn
    assert "by RESIZE" not in drawn  # nothing is compared there


def test_a_curve_shows_its_spread_and_no_refused_point(tmp_path: Path) -> None:
    curve = Curve("Listing", "VMs", "ms")
    curve.add("steady", 10, [5, 5.5, 5.2, 4.8, 5.1])
    curve.add("wild", 10, [1, 5, 9, 2, 7])
    section = Section("s", "S", curves=[curve])
    [chart] = charts.charts(dataclasses.replace(made(), sections=[section]))
    figure = charts._figure_of_lines(curve)
    shown = [numpy.asarray(line.get_ydata()).tolist() for line in figure.axes[0].get_lines()]
    assert shown == [[5.1], [4.8, 5.5]]
    assert charts.draw([chart], tmp_path)
    wild = dataclasses.replace(curve, lines={"wild": curve.lines["wild"]})
    assert charts.charts(dataclasses.replace(made(), sections=[Section("s", "S", curves=[wild])])) == []


def test_many_rows_go_on_several_charts() -> None:
    run = made(*(steady_row(name=f"row {at}") for at in range(23)))
    bars = [chart for chart in charts.charts(run) if chart.name.startswith("throughput-throughput")]
    assert [(chart.name, len(chart.rows)) for chart in bars] == [
        ("throughput-throughput-1.svg", 10),
        ("throughput-throughput-2.svg", 10),
        ("throughput-throughput-3.svg", 3),
    ]


def test_what_has_nothing_to_draw_has_no_chart() -> None:
    run = dataclasses.replace(made(alone_row()), sections=made(alone_row()).sections[:1])
    assert charts.charts(run) == [] and charts.targets(run) == []


def test_zero_and_far_apart_values_are_drawn_too(tmp_path: Path) -> None:
    run = made()
    [curve] = run.sections[1].curves
    wide = dataclasses.replace(
        curve, lines={"a": [(0.0, 0.0), (2.0**63, 1e12)]}, x="bytes", logarithmic_x=True, logarithmic_y=True
    )
    section = dataclasses.replace(run.sections[1], curves=[wide])
    [path] = charts.draw(charts.charts(dataclasses.replace(run, sections=[section])), tmp_path)
    assert path.stat().st_size > 1000


# Two runs


ONCE = {
    ("a request, slowest", "ms"),
    ("memory of one more connection", "KiB"),
    ("Throughput by connections", "nbdkit file, connections 1: MiB/s"),
    ("Throughput by connections", "nbdkit file, connections 4: MiB/s"),
}
"""What runs made by hand have measured once."""


def verdicts(old: Run, new: Run) -> dict[tuple[str, str], Verdict]:
    return {(each.row, each.what): each.verdict for each in changes.changes(old, new)}


def test_a_regression_is_found_and_what_did_not_change_is_not() -> None:
    found = verdicts(made(steady_row(2.0), depth_1()), made(steady_row(1.7), depth_1()))
    worse = {key for key, verdict in found.items() if verdict is not Verdict.NOISE}
    assert worse == {("4 KiB random read, depth 16", "native: throughput"), *ONCE}
    assert found["4 KiB random read, depth 16", "native: throughput"] is Verdict.WORSE
    assert {found[each] for each in ONCE} == {Verdict.SINGLE}


def test_an_improvement_is_no_regression() -> None:
    [each] = [
        each for each in changes.changes(made(steady_row(1.7)), made(steady_row(2.0))) if each.verdict == "better"
    ]
    assert each.change == pytest.approx(2 / 1.7)
    assert not each.regression


def test_changes_within_both_intervals_are_noise() -> None:
    noisy = (0.9, 1.0, 1.1, 0.95, 1.05)
    base = {"nbdkit file": samples(10, 1, by=(1.0,) * 5)}
    old, new = (
        made(judged(Comparison("row", {"native": samples(rate, 1, by=noisy), **base}))) for rate in (20.0, 18.0)
    )
    assert verdicts(old, new)["row", "native: throughput"] is Verdict.NOISE


def test_a_change_too_small_to_matter_is_noise() -> None:
    assert Verdict.WORSE not in verdicts(made(steady_row(2.0)), made(steady_row(1.91))).values()


def test_a_machine_that_was_slower_is_no_regression() -> None:
    def scaled(by: float) -> Comparison:
        servers = {"native": samples(20 * by, 1 / by), "nbdkit file": samples(10 * by, 2 / by)}
        return judged(Comparison("row", servers))

    assert set(verdicts(made(scaled(1)), made(scaled(0.3))).values()) == {Verdict.NOISE, Verdict.SINGLE}


def test_more_time_is_worse_and_fewer_per_second_too() -> None:
    def with_figure(milliseconds: float, rate: float, **machine: str) -> Run:
        figures = [
            Figure.of("decision", "ms", [milliseconds * factor for factor in STEADY]),
            Figure.of("decisions", "per second", [rate * factor for factor in STEADY], lower_is_better=False),
        ]
        return dataclasses.replace(made(), sections=[Section("decisions", "D", figures=figures)], machine=machine)

    assert set(verdicts(with_figure(5, 100), with_figure(10, 50)).values()) == {Verdict.WORSE}
    assert set(verdicts(with_figure(10, 50), with_figure(5, 100)).values()) == {Verdict.BETTER}
    assert set(verdicts(with_figure(5, 100), with_figure(10, 50, cores="64")).values()) == {Verdict.ELSEWHERE}


@pytest.mark.parametrize(("lower", "verdict"), [(True, Verdict.WORSE), (False, Verdict.BETTER), (None, "different")])
def test_points_of_curves_are_compared_as_figures_are(lower: bool | None, verdict: str) -> None:
    def with_curve(rounds: tuple[float, ...], *, trace: bool = False) -> Run:
        curve = Curve("Listing", "VMs", "ms", lower_is_better=lower, trace=trace)
        curve.add("in all", 10, [5 * factor for factor in rounds])
        curve.add("in all", 1000, [factor * (50 if rounds is STEADY else 70) for factor in STEADY])
        return dataclasses.replace(made(), sections=[Section("decisions", "D", curves=[curve])])

    many = ("Listing", "in all, VMs 1,000: ms")
    assert verdicts(with_curve(STEADY), with_curve(STEADY[::-1]))[many] is Verdict(verdict)
    assert verdicts(with_curve(STEADY), with_curve(STEADY))[many] is Verdict.NOISE
    assert list(verdicts(with_curve(STEADY), with_curve(WILD)).values()) == [verdict, "only in one"]
    assert verdicts(with_curve(STEADY, trace=True), with_curve(STEADY, trace=True)) == {}


def test_figures_are_compared_by_the_intervals_of_their_medians_and_not_by_extremes() -> None:
    """One of eleven was disturbed in either run, so that all that was measured overlaps; the medians do not."""

    def with_one_disturbed(usual: float, once: float) -> Run:
        figure = Figure.of("decision", "ms", [usual * factor for factor in (*STEADY, *STEADY)] + [once])
        return dataclasses.replace(made(), sections=[Section("decisions", "D", figures=[figure])])

    [change] = changes.changes(with_one_disturbed(10, 13), with_one_disturbed(12, 9))
    assert change.verdict is Verdict.WORSE
    assert change.old is not None and change.old.samples == 11
    assert (change.old.low, change.old.high) == (9.9, 10.2)


def test_a_refused_figure_is_in_no_comparison() -> None:
    assert ("a grow", "ms") not in verdicts(made(), made())


def test_what_was_measured_once_is_one_number_in_a_comparison() -> None:
    [line] = [line for line in changes.as_table(changes.changes(made(), made())).splitlines() if "one more" in line]
    assert line == "| memory of one more connection | KiB | 5 | 5 | +0.0 % | measured once |"


def test_a_figure_measured_once_is_not_judged() -> None:
    def once(value: float) -> Run:
        figure = Figure("the slowest", "ms", Spread(value, value, value))
        return dataclasses.replace(made(), sections=[Section("decisions", "D", figures=[figure])])

    assert set(verdicts(once(5), once(50)).values()) == {Verdict.SINGLE}


@pytest.mark.parametrize("unit", ["instructions per request", "system calls per request"])
def test_one_percent_more_of_what_is_counted_counts(unit: str) -> None:
    def counted(number: float) -> Run:
        figure = Figure.of("4 KiB read", unit, [number] * 3, counted=True)
        return dataclasses.replace(made(), sections=[Section("instructions", "I", figures=[figure])])

    assert set(verdicts(counted(10_000), counted(10_200)).values()) == {Verdict.WORSE}
    assert set(verdicts(counted(10_000), counted(10_050)).values()) == {Verdict.NOISE}


def test_the_first_failed_request_is_worse() -> None:
    def failed(number: float) -> Run:
        figure = Figure("requests that failed", "requests", Spread(number, number, number), 0)
        return dataclasses.replace(made(), sections=[Section("resizing", "R", figures=[figure])])

    assert set(verdicts(failed(0), failed(1)).values()) == {Verdict.WORSE}
    assert Verdict.WORSE not in verdicts(failed(0), failed(0)).values()


def test_what_was_set_only_in_the_old_run_is_told() -> None:
    old = dataclasses.replace(made(), settings={"interrupted": "yes"})
    assert "interrupted: yes → —" in changes.remarks(old, dataclasses.replace(made(), settings={}))


def test_a_peer_that_got_slower_is_told_but_no_regression_of_ours() -> None:
    def with_qemu(rate: float) -> Run:
        servers = {"qemu-nbd": samples(rate, 1), "nbdkit file": samples(10, 1, by=(1.0,) * 5)}
        return made(judged(Comparison("row", servers)))

    worse = [each for each in changes.changes(with_qemu(9), with_qemu(5)) if each.verdict is Verdict.WORSE]
    assert [each.what for each in worse] == ["qemu-nbd: throughput"]
    assert not any(each.regression for each in worse)


def test_rows_that_only_one_run_has_are_told_without_a_verdict() -> None:
    found = verdicts(made(steady_row(), depth_1()), made(steady_row(), wild_row()))
    missing = {row for (row, _), verdict in found.items() if verdict is Verdict.MISSING}
    assert missing == {"4 KiB random read, depth 1", "1 MiB write, depth 16"}


def test_a_refused_ratio_that_is_lower_in_any_case_is_worse() -> None:
    rows = []
    for by in ((1.9, 2.0, 2.1, 2.0, 2.0), (0.4, 0.8, 0.5, 0.7, 0.6), (1.2, 2.2, 1.8, 2.4, 1.5)):
        found = {"native": samples(10, 1, by=by), "nbdkit file": samples(10, 1, by=(1.0,) * 5)}
        rows.append(made(judged(Comparison("row", found))))
    steady, lower, wild = rows
    assert verdicts(steady, lower)["row", "native: throughput"] is Verdict.WORSE
    assert verdicts(steady, wild)["row", "native: throughput"] is Verdict.NOISE


def test_what_else_differs_between_two_runs_is_told() -> None:
    other = dataclasses.replace(made(), versions={"nbdkit": "1.40", "nbdresize": "9"}, machine={"cores": "64"})
    told = changes.remarks(made(), other)
    assert "nbdkit: 1.32.5 → 1.40" in told
    assert "the machine's cores: 2 → 64" in told
    assert not any("nbdresize" in each for each in told)
    assert changes.remarks(made(), made()) == []


# The machine


def test_the_machine_and_the_versions_are_known() -> None:
    assert set(machine()) == {"processor", "cores", "cores used", "memory", "kernel", "governor", "virtualisation"}
    found = versions()
    assert re.fullmatch(r"\d+\.\d+.*\((commit [0-9a-f]{12}(, with changes)?|no checkout)\)", found["nbdresize"])
    assert all(re.match(r"\d+\.\d+", found[name]) for name in ("nbdkit", "libnbd", "qemu-nbd", "fio", "Python"))


def test_a_busy_machine_and_a_single_core_are_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0})
    monkeypatch.setattr("os.getloadavg", lambda: (3.0, 0.0, 0.0))
    few, busy = worries()
    assert "one core for both" in few and "load 3.0 on 1 cores" in busy
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr("os.getloadavg", lambda: (0.2, 0.0, 0.0))
    assert worries() == []


# The README


def test_the_readme_shows_what_the_reference_run_has_found() -> None:
    readme = (CHECKOUT / "README.md").read_text()
    assert with_part(readme, of_readme(CHECKOUT / "bench/results")) == readme, "run scripts/bench --readme"


def test_the_reference_run_is_whole() -> None:
    results = CHECKOUT / "bench/results"
    run = stored.load(results / markdown.RUN)
    assert (results / markdown.REPORT).read_text() == report(run)
    drawn = {chart.name for chart in (*charts.charts(run), *charts.targets(run))}
    assert {path.name for path in results.iterdir()} == drawn | {markdown.RUN, markdown.REPORT}


def test_the_readmes_part_shows_targets_and_charts(tmp_path: Path) -> None:
    assert of_readme(tmp_path) == "There is no reference run yet."
    stored.save(made(), tmp_path / markdown.RUN)
    part = of_readme(tmp_path)
    assert "| 4 KiB random read, depth 16 | native | 2.00 (1.96–2.04), ≥ 1.8: met |" in part
    assert "](bench/results/targets-throughput.svg)" in part
    assert "by RESIZE" not in part


def test_only_what_is_between_the_marks_is_renewed() -> None:
    before = f"# Top\n{markdown.BEGIN}\nold\n{markdown.END}\nrest\n"
    after = with_part(before, "new")
    assert after == f"# Top\n{markdown.BEGIN}\n\nnew\n\n{markdown.END}\nrest\n"
    assert with_part(after, "new") == after
    with pytest.raises(ValueError, match="marks"):
        with_part("# Top\n", "new")
