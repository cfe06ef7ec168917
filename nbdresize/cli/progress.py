"""A progress bar on standard error for whatever takes long, where somebody sits at a terminal to see it."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nbdresize.cli import output

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import Task

    from nbdresize.control.model import Progress

DELAY = 0.3
"""Seconds before a bar is shown: what ends sooner needs none."""

_LONGEST_STEP = 30


@contextmanager
def shown(*, json: bool) -> "Iterator[Callable[[Progress], None]]":
    """The listener of an operation, which shows one bar for the step that is going on, gone again at the end.

    It shows nothing with `json`, where standard error is no terminal, and for what takes no longer than DELAY.
    """
    if json or sys.stderr is None or not sys.stderr.isatty():
        yield lambda progress: None
        return
    display = _Display()
    try:
        yield display
    finally:
        display.stop()


class _Display:
    """The bar, which comes with the first report after DELAY. Drawn by whoever reports, not by a thread of its own."""

    def __init__(self) -> None:
        self._from = time.monotonic() + DELAY
        self._bar: Bar | None = None
        self._step = ""

    def __call__(self, progress: "Progress") -> None:
        if self._bar is None:
            if time.monotonic() < self._from or progress.done >= progress.total:
                return
            self._bar = _bar()
            self._bar.start()
        step = _shortened(output.shown(progress.step))
        if step != self._step:  # a new task: the speed of the step before says nothing about this one
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._bar.add_task(step, total=progress.total, counted=output.shown(progress.counted))
            self._step = step
        self._bar.update(self._bar.task_ids[0], completed=progress.done, total=progress.total)
        self._bar.refresh()

    def stop(self) -> None:
        """Take the bar away, and leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def _bar() -> "Bar":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    def whole() -> Column:
        return Column(no_wrap=True)

    class Amounts(ProgressColumn):
        """`1.5 GiB of 20 GiB, 310 MiB/s`; `17 of 1000 VMs`."""

        def render(self, task: "Task") -> Text:
            if task.fields["counted"]:
                return Text(f"{task.completed:.0f} of {task.total or 0:.0f} {task.fields['counted']}")
            speed = f", {_rounded(task.speed)}/s" if task.speed else ""
            return Text(f"{_rounded(task.completed)} of {_rounded(task.total or 0)}{speed}")

    return Progress(
        TextColumn("{task.description}", markup=False, table_column=whole()),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f}%", markup=False, table_column=whole()),
        Amounts(table_column=whole()),
        TimeRemainingColumn(compact=True, table_column=whole()),
        console=Console(file=sys.stderr, highlight=False, markup=False, emoji=False),
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        expand=True,
    )


def _shortened(step: str) -> str:
    """So that the line fits a terminal of 80 characters: a line that is folded can't be taken away again."""
    return step if len(step) <= _LONGEST_STEP else f"{step[: _LONGEST_STEP - 1]}…"


def _rounded(size: float) -> str:
    """A size that changes all the time, with three digits at the most: `1.5 GiB`, `310 MiB`."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    exponent = 0
    while size >= 1000 and exponent < len(units) - 1:
        size, exponent = size / 1024, exponent + 1
    return f"{size:.1f} {units[exponent]}" if exponent and size < 100 else f"{size:.0f} {units[exponent]}"
