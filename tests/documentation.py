"""The documentation's examples, found and run.

What is written for readers is also what is run, each page from its top to its end in one shell, in an empty directory:

- A block marked `console` has commands after `$ ` (going on after `> `), and what they print, both streams. What is
  shown is checked: `…` stands for any text within a line, a line that is only `…` for any lines; how long things took,
  dates and the width of gaps don't matter. Where nothing is shown, any output will do.
- A command has to succeed, unless the last line shown is an error of nbdresize, `nbdresize: NAME: …`; then it has to
  exit with that error's code.
- A command that ends in `&` goes on in the background; the next one waits until what is shown has been printed.
- A block marked `sh` is a script, which has to succeed.
- A block after `<!-- run by tests/FILE -->` is run there instead.
"""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from nbdresize.errors import ERRORS
from tests.wait import until

CHECKOUT = Path(__file__).parents[1]
PAGES = sorted([CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")])

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\S*)$")
_ELSEWHERE = re.compile(r"^<!-- run by (?P<file>tests/\S+) -->$")
_ERROR = re.compile(r"^nbdresize: (?P<name>[A-Za-z]+): ")
_EXIT_CODES = {error.__name__: error.exit_code for error in ERRORS}
_SECONDS = 60.0


@dataclass(frozen=True)
class Block:
    """A fenced block. `line` is where it begins; `elsewhere` the file of tests that runs it."""

    page: Path
    line: int
    language: str
    text: str
    elsewhere: str | None = None


@dataclass
class Example:
    """A command and the lines shown of what it prints."""

    where: str
    command: str
    shown: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        match = _ERROR.match(self.shown[-1]) if self.shown else None
        return _EXIT_CODES[match["name"]] if match else 0

    @property
    def background(self) -> bool:
        return self.command.rstrip().endswith("&")

    def fits(self, printed: str) -> bool:
        if not self.shown:
            return True
        patterns = [_line_pattern(line) for line in _normal("\n".join(self.shown)).splitlines()]
        return re.fullmatch("".join(patterns), _normal(printed) + "\n") is not None


def _line_pattern(line: str) -> str:
    if line == "…":
        return r"(?:.*\n)*?"
    return ".*?".join(re.escape(part) for part in line.split("…")) + "\n"


def _normal(text: str) -> str:
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DATE", text)
    text = re.sub(r"\b\d+(\.\d+)? m?s\b", "TIME", text)
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())


def blocks(page: Path) -> Iterator[Block]:
    """All fenced blocks of a page."""
    lines = page.read_text().splitlines()
    number = 0
    while number < len(lines):
        start = _FENCE.match(lines[number])
        number += 1
        if start is None:
            continue
        first = number
        while lines[number].strip() != "```":
            number += 1
        before = _ELSEWHERE.match(lines[first - 2]) if first >= 2 else None
        text = "".join(f"{line.removeprefix(start['indent'])}\n" for line in lines[first:number])
        yield Block(page, first, start["language"], text, before["file"] if before else None)
        number += 1


def examples(block: Block) -> list[Example]:
    """The commands of a block, in order."""
    if block.language == "sh":
        return [Example(f"{block.page.name}:{block.line}", f"(set -e\n{block.text})")]
    found: list[Example] = []
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        if line.startswith("$ "):
            found.append(Example(f"{block.page.name}:{number}", line[2:]))
        elif line.startswith("> ") and found and not found[-1].shown:
            found[-1].command += f"\n{line[2:]}"
        elif found:
            found[-1].shown.append(line)
        else:
            raise AssertionError(f"{block.page.name}:{number}: output before the first command")
    return found


class Shell:
    """One bash for a whole page: variables, the directory and background jobs last from one command to the next."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._count = 0

    def __enter__(self) -> Self:
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=self._directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "HOME": str(self._directory)},
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End what still runs: politely where all went well."""
        try:
            if kind is None:
                self.run(Example("the end", "kill $(jobs -p) 2>/dev/null; wait"))
                assert self._bash.stdin is not None
                self._bash.stdin.close()
                self._bash.wait(_SECONDS)
        finally:
            if self._bash.poll() is None or kind is not None:
                os.killpg(self._bash.pid, signal.SIGKILL)
            self._bash.wait()

    def run(self, example: Example) -> None:
        """Run it, and check what it does. Raises AssertionError, which shows both sides."""
        self._count += 1
        output, status = (self._directory.parent / f"{self._count}.{kind}" for kind in ("output", "status"))
        assert self._bash.stdin is not None
        # The status appears whole: it is written elsewhere first.
        self._bash.stdin.write(
            f"{{ {example.command}\n}} </dev/null >'{output}' 2>&1\n"
            f"echo $? >'{status}.new'; mv '{status}.new' '{status}'\n"
        )
        self._bash.stdin.flush()
        until(status.exists, seconds=_SECONDS, what=f"{example.where}: {example.command}")
        code = int(status.read_text())
        if example.background:
            until(
                lambda: example.fits(output.read_text(errors="replace")),
                seconds=_SECONDS,
                what=f"{example.where}: {example.shown}",
            )
        printed = output.read_text(errors="replace")
        told = f"{example.where}: {example.command}\nexit code {code}, output:\n{printed}"
        assert code == example.exit_code, told
        assert example.fits(printed), f"{told}\nbut shown is:\n" + "\n".join(example.shown)
