"""What is printed reaches the reader whole, whatever the terminal, the encoding and the reader do."""

import os
import subprocess
from pathlib import Path

import pytest

from nbdresize.cli import output
from tests.cli.command import PROGRAM, SECONDS, Command
from tests.cli.terminal import Terminal

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("web1", "web1"),
        ("größe → 20 GiB", "größe → 20 GiB"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\u2028", "\\u2028"),
        ("\udcff", "\\udcff"),
        ("", ""),
    ],
)
def test_what_does_not_print_is_escaped(text: str, shown: str) -> None:
    assert output.shown(text) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.00021, "0.2 ms"), (0.003, "3 ms"), (0.0999, "100 ms"), (0.4, "0.4 s"), (12.34, "12.3 s")]
)
def test_times(seconds: float, shown: str) -> None:
    assert output.duration(seconds) == shown


def test_an_encoding_without_arrows_is_enough(web1: Command) -> None:
    plain = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    answer = web1("disk", "resize", "web1", "disk0", "30G", **plain).ok()
    assert answer.out.startswith("web1/disk0: 20 GiB -> 30 GiB\n")
    web1("vm", "create", "web2", "--disk-space", "1G", "--owner", "Zoë").ok()
    for command in (("vm", "list"), ("status",), ("vm", "show", "web2")):
        assert "Zo\\xeb" in web1(*command, **plain).ok().out
    web1("vm", "show", "Zoë", **plain).failed(3, "InvalidArgument")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_stops_reading_ends_it_quietly(unbuffered: str, web1: Command) -> None:
    """As `nbdresize vm list | head -1` does; here the reader has gone before the first byte."""
    for command in (("vm", "list"), ("vm", "list", "--json"), ("status",), ("size", "--help")):
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "wb") as pipe:
            done = subprocess.run(
                [PROGRAM, *command],
                stdout=pipe,
                stderr=subprocess.PIPE,
                env=web1.environment(PYTHONUNBUFFERED=unbuffered),
                timeout=SECONDS,
            )
        assert (done.returncode, done.stderr) == (1 if "--help" in command else 141, b"")  # typer itself prints help


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_the_output_is_told(unbuffered: str, web1: Command) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [PROGRAM, "vm", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            env=web1.environment(PYTHONUNBUFFERED=unbuffered),
            timeout=SECONDS,
        )
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        "nbdresize: OutputFailed: The output can't be written: No space left on device"
    ]


def test_closed_standard_streams_do_no_harm(web1: Command) -> None:
    for redirection, code in ((">&-", 0), ("2>&-", 0), ("<&- >&- 2>&-", 0)):
        done = subprocess.run(
            ["/bin/sh", "-c", f'exec "$0" vm list {redirection}', PROGRAM],
            capture_output=True,
            env=web1.environment(),
            timeout=SECONDS,
        )
        assert done.returncode == code
        assert b"Traceback" not in done.stderr
    for redirection in ("2>&-", "2>/dev/full", ">&- 2>&-"):
        done = subprocess.run(
            ["/bin/sh", "-c", f'exec "$0" vm show nobody {redirection}', PROGRAM],
            capture_output=True,
            env=web1.environment(),
            timeout=SECONDS,
        )
        assert done.returncode == 5


@pytest.mark.parametrize(("typed", "code", "disks"), [("y\n", 0, 1), ("n\n", 130, 2), ("\n", 130, 2), ("\x04", 130, 2)])
def test_deleting_on_a_terminal_asks_first(typed: str, code: int, disks: int, web1: Command) -> None:
    terminal = Terminal(web1, "disk", "delete", "web1", "disk1")
    terminal.expect("Delete web1/disk1 (5 GiB) for good? [y/N]")
    terminal.type(typed)
    assert terminal.end() == code, terminal.text
    assert "Traceback" not in terminal.text
    assert len(web1("disk", "list", "web1", "--json").ok().json["disks"]) == disks


def test_deleting_what_is_not_there_asks_nothing(web1: Command) -> None:
    terminal = Terminal(web1, "vm", "delete", "web2")
    assert terminal.end() == 5
    assert "[y/N]" not in terminal.text


def test_deleting_without_a_terminal_needs_yes(web1: Command) -> None:
    for command in (("vm", "delete", "web1"), ("disk", "delete", "web1", "disk1")):
        assert "--yes" in web1(*command).failed(2, "UsageError")
    assert len(web1("disk", "list", "web1", "--json").ok().json["disks"]) == 2
    web1("vm", "delete", "web1", "-y").ok()


def test_a_terminal_gets_a_table_without_escape_codes_in_its_text(web1: Command) -> None:
    terminal = Terminal(web1, "vm", "list")
    assert terminal.end() == 0
    assert "web1" in terminal.text
    assert "\x1b[31" not in terminal.text


def test_control_c_at_the_question_changes_nothing(web1: Command) -> None:
    terminal = Terminal(web1, "vm", "delete", "web1")
    terminal.expect("[y/N]")
    terminal.interrupt()
    assert terminal.end() == 130
    assert "Traceback" not in terminal.text
    web1("vm", "show", "web1").ok()
