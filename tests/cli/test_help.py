"""Every help begins with examples, fits a terminal, and its examples are commands that exist."""

import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

from nbdresize.cli.app import PROGRAM, build
from tests.cli.command import Command, Inside

pytestmark = pytest.mark.slow


def commands() -> Iterator[tuple[str, ...]]:
    """The words of each command and group, the program itself among them."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield words
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, (*words, name))

    yield from walk(typer.main.get_command(build()), ())


COMMANDS = list(commands())


def examples(text: str) -> list[str]:
    """The lines between `Examples:` and the next empty line."""
    _, _, rest = text.partition("Examples:\n")
    return [line.strip() for line in rest.split("\n\n")[0].splitlines()]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_begins_with_examples_that_parse(
    words: tuple[str, ...], inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = inside(*words, "--help").ok().out
    assert inside(*words, "-h").out == text
    lines = text.splitlines()
    assert lines[0].startswith(f"Usage: {' '.join((PROGRAM, *words))} ")
    after_usage = text.split("\n\n", 1)[1]
    assert after_usage.startswith("  Examples:\n    nbdresize ")
    assert max(map(len, lines)) <= 80
    for line in examples(text):
        assert line.startswith(" ".join((PROGRAM, *words))), line
        assert parses(line), line


def parses(line: str) -> bool:
    """Whether the arguments in a command line are taken, without running the command."""
    program, *arguments = shlex.split(line)
    root: Any = typer.main.get_command(build())
    ran: list[str] = []
    for name, leaf in leaves(root):
        leaf.callback = recorder(ran, name)
    root(args=arguments, prog_name=program, standalone_mode=False)
    return program == PROGRAM and len(ran) == 1 and line.startswith(f"{PROGRAM} {ran[0]}")


def recorder(ran: list[str], name: str) -> Callable[..., None]:
    def record(**_: object) -> None:
        ran.append(name)

    return record


def leaves(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield " ".join(words), command
        return
    for name, child in children.items():
        yield from leaves(child, (*words, name))


def test_an_example_that_does_not_parse_is_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        parses("nbdresize vm list --nonsense")


@pytest.mark.parametrize("words", [(), ("vm",), ("disk",)], ids=" ".join)
def test_a_group_alone_shows_its_help_and_fails(words: tuple[str, ...], nbdresize: Command) -> None:
    answer = nbdresize(*words)
    assert (answer.code, answer.err) == (2, "")
    assert answer.out == nbdresize(*words, "--help").out


def test_help_needs_neither_the_ledger_nor_rich(nbdresize: Command) -> None:
    """What takes long to import is imported by the commands that need it."""
    answer = nbdresize("--help", PYTHONPROFILEIMPORTTIME="1")
    imported = {line.rpartition("|")[2].strip() for line in answer.err.splitlines()}
    assert "nbdresize.cli.main" in imported
    assert not imported & {"sqlalchemy", "rich.console", "pydantic", "nbd", "psutil", "asyncio"}


def test_a_narrow_terminal_and_a_plain_encoding_are_enough(nbdresize: Command) -> None:
    for words in ((), ("serve",), ("disk", "resize"), ("size",)):
        nbdresize(*words, "--help", COLUMNS="40", LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0").ok()


def test_the_version(nbdresize: Command) -> None:
    from nbdresize import __version__

    assert nbdresize("--version").ok().out == f"nbdresize {__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_completes_commands_and_vm_names(shell: str, web1: Command) -> None:
    def complete(line: str) -> str:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split())), "_TYPER_COMPLETE_ARGS": line}
        return web1(_NBDRESIZE_COMPLETE=f"complete_{shell}", _TYPER_COMPLETE_FISH_ACTION="get-args", **words).ok().out

    assert "resize" in complete("nbdresize disk ")
    assert "web1" in complete("nbdresize disk list ")
    assert "disk3" in complete("nbdresize disk resize web1 ")


def test_shell_completion_without_a_ledger_is_quiet(nbdresize: Command) -> None:
    words = {"COMP_WORDS": "nbdresize disk list ", "COMP_CWORD": "3", "_TYPER_COMPLETE_ARGS": "nbdresize disk list "}
    answer = nbdresize(_NBDRESIZE_COMPLETE="complete_bash", **words)
    assert (answer.out.strip(), answer.err) == ("", "")
    assert not nbdresize.root.exists()
