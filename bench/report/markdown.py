"""A run as a Markdown report, and the part of the README that shows the reference run."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.model import Comparison, Curve, Run, Section
from bench.report.charts import Chart, charts, targets
from bench.report.figures import cell as figure_cell
from bench.report.figures import how_often, how_often_each, of_figure, point_cell, points, refusals
from bench.report.stored import load
from bench.report.wording import (
    NONE,
    TITLES,
    cell,
    number,
    of_target,
    reasons,
    servers_of,
)
from bench.rounds import BASE, Measure, spread

RUN, REPORT = "run.json", "report.md"
"""The files of a run, beside its charts."""
BEGIN, END = "<!-- speed: begin, written by scripts/bench --readme -->", "<!-- speed: end -->"
_MIB = 1 << 20


def report(run: Run) -> str:
    """The whole of it; charts are beside it, under their names."""
    drawn = charts(run)
    about = (
        f"{run.started}, {_lasting(run.seconds)}. Ratios are each round's value divided by that of nbdkit's file"
        " plugin in the same round, on the same file under the same load: the median, with the lowest and the highest."
        " `docs/bench.md` tells how to read this."
    )
    parts = [
        "# Benchmark",
        about,
        _pairs("Machine", run.machine),
        _pairs("Version of", run.versions),
        _pairs("Setting", run.settings),
        *(part for section in run.sections for part in _section(section, drawn)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _lasting(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _pairs(title: str, pairs: dict[str, str]) -> str:
    return table([title, ""], list(pairs.items())) if pairs else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        f"| {' | '.join(text.replace('|', '¦') for text in line)} |".replace("|  |", "| |") for line in lines
    )


def _section(section: Section, drawn: list[Chart]) -> list[str]:
    ours = [chart for chart in drawn if chart.suite == section.suite]
    parts = [f"## {section.title}"]
    for what in Measure:
        parts += [_compared(section.comparisons, what), *(image(chart) for chart in ours if _is_of(chart, what))]
    refused = [f"{row.row}: {why}" for row in section.comparisons for why in reasons(row)]
    parts += [_memory(section.comparisons), _refused(refused)]
    if section.figures:
        rows = [
            (figure.name, figure_cell(figure), figure.unit, how_often(figure), of_figure(figure) or NONE)
            for figure in section.figures
        ]
        parts.append(table(["", "median (lowest–highest)", "unit", "measured", "target"], rows))
    parts += [part for curve in section.curves for part in _curve(curve, ours)]
    parts.append(_refused(refusals(section)))
    parts.append("\n".join(f"- {remark}" for remark in section.remarks))
    return parts


def _is_of(chart: Chart, what: Measure) -> bool:
    return chart.curve is None and chart.what is what


def image(chart: Chart, folder: str = "") -> str:
    return f"![{chart.text}]({folder}{chart.name})"


def _compared(comparisons: list[Comparison], what: Measure) -> str:
    """One measure of all rows: each server's ratio, what is asked, and what nbdkit itself did."""
    rows = [row for row in comparisons if any(_value(sample, what) for each in row.samples.values() for sample in each)]
    if not rows:
        return ""
    others = [server for server in servers_of(rows) if server != BASE]
    lines = [
        [row.row, *(cell(row, server, what) for server in others), _asked(row, what), _absolute(row, what)]
        for row in rows
    ]
    return table([TITLES[what], *others, "target", f"{BASE}, absolute"], lines)


def _value(sample: object, what: Measure) -> object:
    return getattr(sample, what.value)


def _asked(row: Comparison, what: Measure) -> str:
    said = [(target.server, of_target(row, target, what)) for target in row.targets]
    return "; ".join(f"{server} {text}" for server, text in said if text) or NONE


def _absolute(row: Comparison, what: Measure) -> str:
    """Of nbdkit, for orientation; of the only server where it has no part."""
    server = BASE if BASE in row.samples else next(iter(row.samples), None)
    samples = row.samples.get(server, []) if server else []
    if not samples:
        return NONE
    named = "" if server == BASE else f"{server}: "
    if what is Measure.THROUGHPUT:
        rate = spread([sample.rate for sample in samples]).median
        bytes_ = spread([sample.throughput for sample in samples]).median
        return f"{named}{number(rate)}/s, {number(bytes_ / _MIB)} MiB/s"
    values = [sample.processor if what is Measure.PROCESSOR else sample.latency for sample in samples]
    known = [value for value in values if value is not None]
    return f"{named}{number(spread(known).median * 1e6)} µs" if known else NONE


def _memory(comparisons: list[Comparison]) -> str:
    """The most that each server had for itself in any round."""
    most = {
        server: {
            row.row: max(sample.memory for sample in row.samples[server] if sample.memory is not None)
            for row in comparisons
            if any(sample.memory is not None for sample in row.samples.get(server, []))
        }
        for server in servers_of(comparisons)
    }
    servers = [server for server, found in most.items() if found]
    if not servers:
        return ""
    rows = [
        [
            row.row,
            *(f"{number(most[server][row.row] / _MIB)}" if row.row in most[server] else NONE for server in servers),
        ]
        for row in comparisons
        if any(row.row in most[server] for server in servers)
    ]
    return table(["Most memory of its own seen, MiB", *servers], rows)


def _refused(reasons: list[str]) -> str:
    return "\n".join(["Refused, so there is no number:", "", *(f"- {why}" for why in reasons)]) if reasons else ""


def _curve(curve: Curve, drawn: list[Chart]) -> list[str]:
    cells = {(point.line, point.x): point_cell(point) for point in points(curve)}
    if not cells:
        return []
    rows = [[number(x), *(cells.get((line, x), NONE) for line in curve.lines)] for x in sorted({x for _, x in cells})]
    pictures = [image(chart) for chart in drawn if chart.curve is not None and chart.curve.name == curve.name]
    return [
        f"### {curve.name}",
        *pictures,
        how_often_each(curve),
        table([f"{curve.x} \\ {curve.y}", *curve.lines], rows),
    ]


# The README


def of_readme(results: Path, folder: str = "bench/results/") -> str:
    """What belongs between the marks: what the design asks for and what the reference run has found."""
    if not (results / RUN).exists():
        return "There is no reference run yet."
    run = load(results / RUN)
    rows = [
        [row.row, target.server, *(_outcome(row, target.server, what) for what in Measure)]
        for section in run.sections
        for row in section.comparisons
        for target in row.targets
    ]
    machine = f"{run.machine.get('processor', '?')}, {run.machine.get('cores', '?')} cores"
    about = (
        "As multiples of nbdkit's file plugin, on the same file under the same load"
        f" ({machine}): the median of the rounds, with the lowest and the highest. Where rounds differ too much there"
        " is no number: `refused, 1.42–2.31` says between what it lies, nine times in ten. Latency stands where there"
        " is one request at a time; with several, a server that prefers some of them has a short median."
    )
    return "\n\n".join(
        [
            about,
            table(["load", "front", *(TITLES[what] for what in Measure)], rows),
            *(image(chart, folder) for chart in targets(run)),
            f"Everything measured, and on what: [the reference run]({folder}{REPORT}).",
        ]
    )


def _outcome(row: Comparison, server: str, what: Measure) -> str:
    """The ratio and what is asked of it."""
    asked = next((of_target(row, target, what) for target in row.targets if target.server == server), None)
    found = cell(row, server, what)
    if what is Measure.LATENCY and not asked:
        return NONE
    return f"{found}, {asked}" if asked else found


def with_part(readme: str, part: str) -> str:
    """The README with another part between the marks. Raises ValueError where they are missing."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the marks {BEGIN} and {END} are missing")
    return f"{before}{begin}\n\n{part}\n\n{end}{after}"
