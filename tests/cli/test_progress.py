"""The progress bar: where it is shown, what it says, and that it leaves nothing behind."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr

import pytest

from nbdresize.cli import progress
from nbdresize.control.model import Progress

MIB = 1 << 20


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(progress, "DELAY", 0.0)
    return Terminal()


@contextmanager
def bar(stream: io.StringIO, *, json: bool = False) -> Iterator[Callable[[Progress], None]]:
    with redirect_stderr(stream), progress.shown(json=json) as listener:
        yield listener


def test_a_bar_shows_the_step_its_bytes_and_its_share(terminal: Terminal) -> None:
    with bar(terminal) as listener:
        listener(Progress("copying image debian", 256 * MIB, 1024 * MIB))
        seen = terminal.getvalue()
    assert "copying image debian" in seen
    assert "25%" in seen
    assert "256 MiB of 1.0 GiB" in seen


def test_a_bar_is_gone_afterwards_and_the_cursor_back(terminal: Terminal) -> None:
    with pytest.raises(KeyboardInterrupt), bar(terminal) as listener:
        listener(Progress("copying", 1, 100))
        raise KeyboardInterrupt
    assert terminal.getvalue().endswith("\x1b[2K"), "the last thing is to erase the line"
    assert terminal.getvalue().rfind("\x1b[?25h") > terminal.getvalue().rfind("\x1b[?25l"), "the cursor is shown"


def test_the_next_step_takes_the_place_of_the_one_before(terminal: Terminal) -> None:
    with bar(terminal) as listener:
        listener(Progress("copying disk0", 50, 100))
        before = len(terminal.getvalue())
        listener(Progress("copying disk1", 10, 100))
        after = terminal.getvalue()[before:]
    assert "disk1" in after
    assert "disk0" not in after


def test_what_a_step_is_called_can_not_write_to_the_terminal(terminal: Terminal) -> None:
    with bar(terminal) as listener:
        listener(Progress("copying \x1b]0;title\x07 [red]", 1, 2))
    assert "\x1b]0" not in terminal.getvalue()
    assert "[red]" in terminal.getvalue()


def test_what_is_done_at_the_first_report_shows_nothing(terminal: Terminal) -> None:
    with bar(terminal) as listener:
        listener(Progress("copying", 100, 100))
    assert terminal.getvalue() == ""


def test_what_takes_a_moment_shows_nothing(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 60.0)
    with bar(terminal) as listener:
        listener(Progress("copying", 1, 100))
    assert terminal.getvalue() == ""


def test_json_shows_nothing(terminal: Terminal) -> None:
    with bar(terminal, json=True) as listener:
        listener(Progress("copying", 1, 100))
    assert terminal.getvalue() == ""


def test_no_terminal_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    stream = io.StringIO()
    with bar(stream) as listener:
        listener(Progress("copying", 1, 100))
    assert stream.getvalue() == ""


def test_a_bar_stays_on_one_line_of_a_small_terminal(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with bar(terminal) as listener:
        listener(Progress(f"copying {'x' * 100}", 999 * MIB, 2000 * MIB))
        listener(Progress(f"copying {'x' * 100}", 1000 * MIB, 2000 * MIB))
        seen = terminal.getvalue()
    assert "\n" not in seen
    assert "1000 MiB of 2.0 GiB" in seen or "1.0 GiB of 2.0 GiB" in seen


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 KiB"), (1536 * 2**20, "1.5 GiB"), (310 * 2**20, "310 MiB")],
)
def test_amounts_are_short(size: int, text: str) -> None:
    assert progress._rounded(size) == text
