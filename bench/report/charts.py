"""The charts of a run: ratios as bars, growth as lines, drawn with matplotlib as SVG.

Each has its own light background, so it reads the same on a light and on a dark page. Colours are those of Okabe and
Ito, which colour-blind people tell apart; a hatch or a marker goes with each, for print in grey. The same run gives
the same bytes, as long as matplotlib is the same.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.model import Comparison, Curve, Run, Section
from bench.report.figures import Point, points
from bench.report.wording import TITLES, number, servers_of, wanted
from bench.rounds import BASE, Measure, ratios

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROWS = 10
"""Of one chart; more go onto the next."""
_WIDTH = 8.0
_INK, _PAPER, _FAINT = "#222222", "#ffffff", "#d9d9d9"
_SERVERS = {
    "native": "#0072B2",
    "nbdkit front": "#56B4E9",
    "nbdkit python": "#E69F00",
    "qemu-nbd": "#009E73",
    "nbd-server": "#CC79A7",
    BASE: "#666666",
}
_MORE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#666666")
_HATCHES = ("", "///", "\\\\\\", "xxx", "---", "|||")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = ("-", "--", "-.", ":")
_DIAMOND: dict[str, Any] = {
    "linestyle": "",
    "marker": "D",
    "markersize": 5,
    "color": _PAPER,
    "markeredgecolor": _INK,
}
_STYLE = {
    "svg.hashsalt": "nbdresize",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "figure.facecolor": _PAPER,
    "axes.facecolor": _PAPER,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Chart:
    """`name` is the file's; `text` says in words what it shows. Bars of `rows`, or the lines of a curve."""

    name: str
    suite: str
    text: str
    rows: list[Comparison] = field(default_factory=list)
    what: Measure = Measure.THROUGHPUT
    curve: Curve | None = None


def charts(run: Run) -> list[Chart]:
    """All that belong to a run, in order; nothing is drawn."""
    return [chart for section in run.sections for chart in (*_bars(section), *_lines(section))]


def targets(run: Run) -> list[Chart]:
    """Those of the README: the loads of which the design asks something, ours beside the rest."""
    rows = [row for section in run.sections for row in section.comparisons if row.targets]
    return [
        Chart(f"targets-{what.value}.svg", "", _text(what), _with(rows, what), what)
        for what in (Measure.THROUGHPUT, Measure.PROCESSOR)
        if _with(rows, what)
    ]


def _bars(section: Section) -> list[Chart]:
    found = []
    for what in Measure:
        rows = _with(section.comparisons, what)
        for page, first in enumerate(range(0, len(rows), _ROWS), start=1):
            name = f"{slug(section.suite)}-{what.value}-{page}.svg"
            found.append(Chart(name, section.suite, _text(what), rows[first : first + _ROWS], what))
    return found


def _with(rows: Sequence[Comparison], what: Measure) -> list[Comparison]:
    return [row for row in rows if any(ratios(row, server, what) for server in row.samples if server != BASE)]


def _text(what: Measure) -> str:
    better = "more" if what is Measure.THROUGHPUT else "less"
    return f"{TITLES[what]} as a multiple of nbdkit's file plugin, which is the line at 1; {better} is better"


def _lines(section: Section) -> list[Chart]:
    return [
        Chart(f"{slug(section.suite)}-{slug(curve.name)}.svg", section.suite, curve.name, curve=curve)
        for curve in section.curves
        if _drawn(curve)
    ]


def _drawn(curve: Curve) -> dict[str, list[Point]]:
    """The points of each line that are not refused, from left to right."""
    found: dict[str, list[Point]] = {}
    for point in sorted(points(curve), key=lambda point: (point.x, point.y)):
        if not point.refused:
            found.setdefault(point.line, []).append(point)
    return {line: found[line] for line in curve.lines if line in found}


def slug(text: str) -> str:
    """A part of a file's name: letters and digits, `-` between them."""
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-")


def draw(wanted_charts: Sequence[Chart], directory: Path) -> list[Path]:
    """Write each into the directory, under its name."""
    import matplotlib

    matplotlib.use("Agg")
    written = []
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        for chart in wanted_charts:
            figure = _figure_of_lines(chart.curve) if chart.curve else _figure_of_bars(chart)
            path = directory / chart.name
            figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
            written.append(path)
    return written


def _figure_of_bars(chart: Chart) -> "Figure":
    from matplotlib.figure import Figure

    servers = [server for server in servers_of(chart.rows) if server != BASE]
    bars = [[server for server in servers if server in row.samples] for row in chart.rows]
    height = sum(len(each) + 1 for each in bars)
    figure = Figure(figsize=(_WIDTH, 1.1 + 0.17 * height))
    axes = figure.subplots()
    longest = max(1.0, *(_end(row, server, chart.what) for row in chart.rows for server in servers))
    top, middles = 0, []
    for row, each in zip(chart.rows, bars, strict=True):
        for place, server in enumerate(each):
            _bar(axes, row, chart.what, server, top + place, longest, _HATCHES[servers.index(server) % len(_HATCHES)])
        middles.append(top + (len(each) - 1) / 2)
        top += len(each) + 1
    axes.axvline(1.0, color=_INK, linewidth=1)
    axes.set_xlim(0, longest * 1.1)
    axes.set_ylim(top - 1.2, -0.8)
    axes.set_yticks(middles, [row.row for row in chart.rows])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=_FAINT, linewidth=0.6)
    axes.set_xlabel(chart.text)
    _bar_legend(axes, chart, servers)
    return figure


def _end(row: Comparison, server: str, what: Measure) -> float:
    """Where all that is drawn of a bar ends."""
    found = ratios(row, server, what)
    return max(found.highest, _asked(row, server, what) or 0) if found else 0


def _bar(axes: "Axes", row: Comparison, what: Measure, server: str, place: int, longest: float, hatch: str) -> None:
    """With its whisker, its target and its number."""
    found = ratios(row, server, what)
    if found is None:
        axes.text(longest * 0.01, place, f"{server}: no result", va="center", fontsize=7)
        return
    axes.barh(place, found.median, 0.86, color=_colour(server), hatch=hatch, edgecolor=_PAPER, linewidth=0)
    axes.plot([found.lowest, found.highest], [place, place], color=_INK, linewidth=1, marker="|", markersize=4)
    end, asked = found.highest, _asked(row, server, what)
    if asked is not None:
        axes.plot([asked], [place], **_DIAMOND, zorder=5)
        if end - longest * 0.02 < asked < end + longest * 0.08:
            end = asked + longest * 0.01
    axes.text(end + longest * 0.015, place, f"{found.median:.2f}", va="center", fontsize=7)


def _asked(row: Comparison, server: str, what: Measure) -> float | None:
    return next((wanted(target, what) for target in row.targets if target.server == server), None)


def _bar_legend(axes: "Axes", chart: Chart, servers: list[str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Patch | Line2D] = [
        Patch(facecolor=_colour(server), hatch=_HATCHES[place % len(_HATCHES)], edgecolor=_PAPER, linewidth=0)
        for place, server in enumerate(servers)
    ]
    labels = [*servers, "lowest to highest"]
    handles.append(Line2D([], [], color=_INK, linewidth=1, marker="|", markersize=4))
    if any(_asked(row, server, chart.what) is not None for row in chart.rows for server in row.samples):
        handles.append(Line2D([], [], **_DIAMOND))
        labels.append("target")
    axes.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=len(labels), fontsize=8)


def _colour(server: str) -> str:
    return _SERVERS.get(server, _MORE[sum(server.encode()) % len(_MORE)])


def _figure_of_lines(curve: Curve) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 4.2))
    axes = figure.subplots()
    drawn = _drawn(curve)
    colours = _distinct(list(drawn))
    for place, (name, line) in enumerate(drawn.items()):
        axes.plot(
            [point.x for point in line],
            [point.y for point in line],
            label=name,
            color=colours[name],
            linestyle=_DASHES[place % len(_DASHES)],
            marker=_MARKERS[place % len(_MARKERS)],
            markersize=5,
            linewidth=1.6,
        )
        for point in line:
            if point.samples:
                ends = [min(point.samples), max(point.samples)]
                axes.plot([point.x] * 2, ends, color=colours[name], linewidth=1, marker="_", markersize=6)
    _scale(axes, curve, drawn)
    axes.set_xlabel(curve.x)
    axes.set_ylabel(curve.y)
    axes.set_title(curve.name, fontsize=10)
    axes.grid(color=_FAINT, linewidth=0.6)
    if len(drawn) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _distinct(names: list[str]) -> dict[str, str]:
    """A colour for each, a server's own where it is one."""
    found = {name: _SERVERS[name] for name in names if name in _SERVERS}
    free = [colour for colour in _MORE if colour not in found.values()]
    others = [name for name in names if name not in found]
    return found | {name: (free or list(_MORE))[place % len(free or _MORE)] for place, name in enumerate(others)}


def _scale(axes: "Axes", curve: Curve, drawn: dict[str, list[Point]]) -> None:
    """Logarithmic where asked and possible; a linear y axis begins at 0. The measured places of x are the ticks."""
    xs = sorted({point.x for line in drawn.values() for point in line})
    ys = [y for line in drawn.values() for point in line for y in (point.y, *point.samples)]
    if curve.logarithmic_x and xs[0] > 0:
        axes.set_xscale("log", base=2)
    if curve.logarithmic_y and min(ys) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, place: number(value))
    else:
        axes.set_ylim(bottom=min(0.0, *ys))
    apart = all(later >= earlier * 1.4 for earlier, later in pairwise(xs))
    if len(xs) <= 12 and (curve.logarithmic_x and apart):
        axes.set_xticks(xs, [_tick(x, curve.x) for x in xs])
        axes.set_xticks([], minor=True)


def _tick(value: float, axis: str) -> str:
    if "bytes" not in axis:
        return number(value)
    exponent = max(0, (round(value).bit_length() - 1) // 10)
    name = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")[min(exponent, 6)]
    return f"{value / 1024 ** min(exponent, 6):.3g} {name}"
