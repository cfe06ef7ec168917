"""`nbdresize follow` and the same with nothing but Python, as far as they come without the kernel's client."""

import argparse
import configparser
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nbdresize.errors import EXIT_USAGE, InvalidArgument, ResourceNotFound
from nbdresize.guests.kernel.__main__ import _parser
from tests.peers import CHECKOUT, PROGRAM

SYSTEM_PYTHON = "/usr/bin/python3"
UNIT = CHECKOUT / "docs" / "nbdresize-follow@.service"
URI = "nbd://server/web1/disk0"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def bare(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """With the standard library only: without site-packages of any kind."""
    command = [SYSTEM_PYTHON, "-S", "-m", "nbdresize.guests.kernel", *arguments]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60)


def full(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([PROGRAM, "follow", *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("run", [bare, full])
def test_what_is_no_device_is_told_on_one_line(run: Run, tmp_path: Path) -> None:
    done = run(URI, "/dev/null")
    assert done.returncode == InvalidArgument.exit_code
    assert done.stdout == ""
    assert done.stderr == (
        "nbdresize: InvalidArgument: /dev/null is no device of the kernel's NBD client: give one such as /dev/nbd0\n"
    )
    told = json.loads(run(URI, "/dev/null", "--json").stderr)
    assert (told["error"], told["way_out"]) == ("InvalidArgument", "give one such as /dev/nbd0")
    assert "\\x1b" in run(URI, f"{tmp_path}/\x1b[31m").stderr


@pytest.mark.parametrize("run", [bare, full])
@pytest.mark.parametrize(
    "arguments",
    [(), (URI,), (URI, "/dev/nbd0", "more"), (URI, "/dev/nbd0", "--timeout", "nan"), (URI, "/dev/nbd0", "--no")],
)
def test_arguments_that_make_no_sense_are_refused(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (EXIT_USAGE, "")
    assert "Traceback" not in done.stderr


def test_the_unit_starts_what_there_is() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    assert unit.read(UNIT)
    service = unit["Service"]
    program, command, *arguments = service["ExecStart"].split()
    assert (Path(program).name, command, service["Type"]) == ("nbdresize", "follow", "notify")
    assert service["SuccessExitStatus"] == str(ResourceNotFound.exit_code)
    assert _parser().parse_args(arguments) == argparse.Namespace(
        uri="${URI}", device="/dev/%i", once=False, allow_shrink=False, timeout=10.0, json=False
    )


def test_nothing_is_imported_that_python_does_not_have() -> None:
    code = "import sys, nbdresize.guests.kernel.__main__; print({name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [SYSTEM_PYTHON, "-S", "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=True
    )
    imported = {name.strip("{}'\n ") for name in done.stdout.split(",")}
    assert imported - sys.stdlib_module_names <= {"__main__", "nbdresize"}
