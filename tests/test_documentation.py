"""The documentation does not lie: its examples are run, its tables compared, its links followed."""

import re
from pathlib import Path

import pytest

from nbdresize.errors import ERRORS, EXIT_BUG, EXIT_INTERRUPTED, EXIT_USAGE
from tests.documentation import CHECKOUT, PAGES, Block, Example, Shell, blocks, examples

WRITTEN = [*PAGES, CHECKOUT / "CHANGELOG.md"]


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow, id=page.name) for page in PAGES],
)
def test_every_example_of_a_page_works_in_the_order_of_the_page(page: Path, tmp_path: Path) -> None:
    place = tmp_path / "d"
    place.mkdir()
    for name in (".venv", "plugins", "scripts"):
        (place / name).symlink_to(CHECKOUT / name)
    with Shell(place) as shell:
        for block in blocks(page):
            if block.language in ("console", "sh") and block.elsewhere is None:
                for example in examples(block):
                    shell.run(example)


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_every_block_says_what_it_is(page: Path) -> None:
    for block in blocks(page):
        assert block.language in ("console", "sh", "text", "json"), f"{page.name}:{block.line}"
        if block.language in ("text", "json"):
            assert not re.search(r"^\s*[$#] |nbdresize (vm|disk|serve|size|grow|status)", block.text, re.MULTILINE), (
                f"{page.name}:{block.line} has commands that nothing runs"
            )


READERS = {
    "docs/kernel-client.md": "tests/guest/test_kernel_follow.py",
    "docs/bench.md": "tests/bench/test_main.py",
}
"""Pages whose blocks are run elsewhere by tests that read them."""


def test_blocks_that_are_run_elsewhere_are_run_there() -> None:
    elsewhere = {
        example.command: block.elsewhere
        for page in PAGES
        for block in blocks(page)
        if block.elsewhere and block.elsewhere != READERS.get(str(page.relative_to(CHECKOUT)))
        for example in examples(block)
    }
    scripts = "tests/test_scripts.py"
    assert elsewhere == {
        "scripts/serve": scripts,
        "scripts/test": scripts,
        "scripts/test --fast": scripts,
        "scripts/test --fast tests/test_leaks.py": scripts,
        "scripts/lint": "tests/test_lint.py",
        "scripts/bench": "tests/bench/test_main.py",
    }
    for name, reader in READERS.items():
        assert Path(name).name in (CHECKOUT / reader).read_text()


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", page.read_text()):
        if target and not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def test_the_readme_starts_with_the_main_job_and_two_commands() -> None:
    first_screen = (CHECKOUT / "README.md").read_text().splitlines()[:40]
    assert [line for line in first_screen if line.startswith("$ scripts/")] == ["$ scripts/serve", "$ scripts/test"]


# docs/errors.md


def table_rows(page: str) -> list[list[str]]:
    lines = (CHECKOUT / "docs" / page).read_text().splitlines()
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in rows if not set("".join(row)) <= set("- ")]


def test_the_table_of_errors_is_that_of_the_code() -> None:
    import errno

    header, *rows = table_rows("errors.md")
    assert header[:4] == ["name", "exit code", "HTTP status", "NBD errno"]
    written = [row[:4] for row in rows if row[2] != "-"]
    assert written == [
        [error.__name__, str(error.exit_code), str(error.http_status), errno.errorcode[error.nbd_errno]]
        for error in ERRORS
    ]
    others = {int(row[1]) for row in rows if row[2] == "-"}
    assert others == {0, EXIT_BUG, EXIT_USAGE, EXIT_INTERRUPTED}


# The check itself


def example_of(text: str) -> list[Example]:
    return examples(Block(Path("page.md"), 1, "console", text))


def test_commands_and_what_they_print_are_told_apart() -> None:
    found = example_of("$ one \\\n> more\nprinted\n$ two\n")
    assert [(example.command, example.shown) for example in found] == [("one \\\nmore", ["printed"]), ("two", [])]


@pytest.mark.parametrize(
    ("shown", "printed", "fits"),
    [
        ("a   b", "a b\n", True),
        ("took 8 ms", "took 0.7 ms", True),
        ("at 2026-01-01 00:00:00", "at 2027-12-31 23:59:59", True),
        ("a … c", "a b b c", True),
        ("a\n…\nz", "a\nb\nc\nz", True),
        ("a\n…\nz", "a\nz", True),
        ("…\nz", "a\nz", True),
        ("a\n…", "a\nb", True),
        ("a", "b", False),
        ("a", "a\nb", False),
        ("a\nb", "a", False),
        ("a … c", "a b\nc", False),
        ("a.c", "abc", False),
        ("5 GiB", "6 GiB", False),
    ],
)
def test_shown_output_is_compared(shown: str, printed: str, fits: bool) -> None:
    assert Example("here", "command", shown.splitlines()).fits(printed) is fits


@pytest.mark.parametrize(
    "text",
    [
        "$ false\n",
        "$ echo one\ntwo\n",
        "$ true\nnbdresize: InsufficientSpace: …\n",
        "$ (echo 'nbdresize: InsufficientSpace: x'; exit 3)\nnbdresize: InsufficientSpace: x\n",
        "$ [ -e gone ]\n",
    ],
)
def test_an_example_that_does_not_do_what_it_shows_fails(text: str, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with Shell(tmp_path / "d") as shell, pytest.raises(AssertionError):
        shell.run(example_of(text)[0])


def test_variables_and_jobs_last_and_errors_have_their_exit_codes(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    text = (
        "$ x=5; cd /\n$ echo $x; pwd\n5\n/\n$ (echo ready; exec sleep 600) &\nready\n$ kill %1\n"
        "$ (echo 'nbdresize: InsufficientSpace: x'; exit 4)\nnbdresize: InsufficientSpace: …\n$ (exec sleep 600) &\n"
    )
    with Shell(tmp_path / "d") as shell:
        for example in example_of(text):
            shell.run(example)
