"""The specification of the RESIZE extension says what the code does: its numbers, and the tests that it names."""

import ast
import re
from pathlib import Path

import pytest

from nbdresize.protocol import constants

CHECKOUT = Path(__file__).parents[2]
SPECIFICATION = (CHECKOUT / "docs/resize-extension.md").read_text()

BITS = re.findall(r"^- bit (\d+), `(NBD_(?:FLAG|CMD_FLAG)_[A-Z_]+)`", SPECIFICATION, re.MULTILINE)
FEATURES = re.findall(r"^ {2}- bit (\d+), `(NBD_RESIZE_FEATURE_[A-Z_]+)`", SPECIFICATION, re.MULTILINE)
TYPES = re.findall(r"^\* `(NBD_[A-Z_]+)` \((\d+)\)", SPECIFICATION, re.MULTILINE)
TESTS = SPECIFICATION[SPECIFICATION.index("## Rules and their tests") :]


def named_tests() -> list[tuple[str, str]]:
    """Every test that the specification names, with its file; `::test` alone means the file before it."""
    named: list[tuple[str, str]] = []
    for file, test in re.findall(r"`(tests/[a-z_/]+\.py)?::([a-z0-9_]+)`", TESTS):
        named.append((file or named[-1][0], test))
    return named


@pytest.mark.parametrize(("bit", "name"), [*BITS, *FEATURES])
def test_a_bit_has_the_number_that_the_specification_gives(bit: str, name: str) -> None:
    assert getattr(constants, name) == 1 << int(bit)


@pytest.mark.parametrize(("name", "number"), TYPES)
def test_a_type_has_the_number_that_the_specification_gives(name: str, number: str) -> None:
    assert getattr(constants, name) == int(number)


def test_the_specification_numbers_everything_of_the_extension() -> None:
    numbered = {name for _, name in [*BITS, *FEATURES]} | {name for name, _ in TYPES}
    ours = {name for name in vars(constants) if name.startswith("NBD_RESIZE_FEATURE_")}
    ours |= {
        name for name in vars(constants) if name.startswith("NBD_CMD_FLAG_") and getattr(constants, name) >= 1 << 6
    }
    assert numbered == ours | {"NBD_FLAG_SEND_RESIZE", "NBD_INFO_RESIZE", "NBD_CMD_RESIZE", "NBD_REPLY_TYPE_SIZE"}


@pytest.mark.parametrize(("file", "test"), named_tests())
def test_a_rule_names_a_test_that_exists(file: str, test: str) -> None:
    tree = ast.parse((CHECKOUT / file).read_text())
    assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_link_inside_the_specification_leads_somewhere() -> None:
    headings = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", SPECIFICATION, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", SPECIFICATION)) <= headings
