"""Imports point downwards only, as docs/development.md draws it: read from the source, also inside functions."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PACKAGE = "nbdresize"
GROUND = {"errors", "units", "config"}

# Each folder and what it may import besides itself and the ground.
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "units": {"errors"},
    "config": {"errors", "units"},
    "storage": set(),
    "protocol": set(),
    "client": {"protocol"},
    "loads": {"client", "protocol"},
    "control": {"storage"},
    "export": {"control", "storage", "protocol"},
    "serving": {"control"},
    "server": {"export", "control", "storage", "protocol", "serving"},
    "guests": {"control", "client", "protocol", "storage"},
    "cli": {"guests", "server", "serving", "loads", "client", "export", "control", "storage", "protocol"},
    "plugins": {"export", "control"},
}
# Of a folder below, only these modules.
ONLY = {("serving", "control"): {"admin_client"}}
# Each folder and what it may import from outside of the standard library.
OUTSIDE = {
    "control": {"sqlalchemy", "pydantic"},
    "guests": {"qemu"},
    "cli": {"typer", "rich", "click"},
    "plugins": {"nbdkit", "plugins"},
}
# The protocol is bytes in, values out.
FORBIDDEN = {"protocol": {"socket", "selectors", "asyncio", "threading", "subprocess", "os", "io", "pathlib"}}


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    """Every source file with the layer it belongs to."""
    for path in sorted((root / PACKAGE).rglob("*.py")):
        first = path.relative_to(root / PACKAGE).parts[0]
        if first != "__init__.py":
            yield first.removesuffix(".py"), path
    for path in sorted((root / "plugins").glob("*.py")):
        yield "plugins", path


def imports(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything that a file imports, wherever in the file it does."""
    here = path.relative_to(root).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            start = [*here[: len(here) - node.level]] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {"import_module", "__import__"}:
            argument = node.args[0] if node.args else None
            yield node.lineno, str(argument.value) if isinstance(argument, ast.Constant) else f"{PACKAGE}.<computed>"


def violations(root: Path) -> list[str]:
    """Every import that the tables above don't allow, as `file:line: layer imports name`."""
    return [
        f"{path.relative_to(root)}:{line}: {layer} imports {name}"
        for layer, path in modules(root)
        for line, name in imports(path, root)
        if not allowed(layer, name)
    ]


def allowed(layer: str, name: str) -> bool:
    top, *rest = name.split(".")
    if top != PACKAGE:
        if top in FORBIDDEN.get(layer, ()):
            return False
        return top in sys.stdlib_module_names or top in OUTSIDE.get(layer, ())
    target, module = (rest[0] if rest else ""), (rest[1] if len(rest) > 1 else "")
    if target == "__version__" or target == layer:
        return True
    if layer not in GROUND and target in GROUND:
        return True
    return target in BELOW.get(layer, ()) and module in ONLY.get((layer, target), {module})


def test_imports_point_downwards_only() -> None:
    assert violations(CHECKOUT) == []


def test_every_folder_has_its_place() -> None:
    found = {layer for layer, _ in modules(CHECKOUT)}
    assert found <= set(BELOW)
    assert {"errors", "storage", "protocol", "control", "export"} <= found


def test_the_table_itself_has_no_circle() -> None:
    placed = set(GROUND)
    waiting = set(BELOW) - GROUND
    while ready := {layer for layer in waiting if placed >= BELOW[layer]}:
        placed |= ready
        waiting -= ready
    assert not waiting


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("nbdresize/storage/file.py", "from nbdresize.control import control"),
        ("nbdresize/storage/file.py", "def f():\n    import nbdresize.control.control"),
        ("nbdresize/storage/file.py", "from ..control.control import Control"),
        ("nbdresize/storage/file.py", "from .. import control"),
        ("nbdresize/storage/file.py", "import importlib\nimportlib.import_module('nbdresize.export.exports')"),
        ("nbdresize/storage/file.py", "def f(name):\n    return __import__(name)"),
        ("nbdresize/storage/file.py", "if TYPE_CHECKING:\n    from nbdresize.export.exports import Exports"),
        ("nbdresize/units.py", "from nbdresize.config import StateDirectory"),
        ("nbdresize/client/connection.py", "from nbdresize.storage.file import FileVolume"),
        ("nbdresize/serving/worker.py", "from nbdresize.control.control import Control"),
        ("nbdresize/serving/worker.py", "from nbdresize.control import ledger"),
        ("nbdresize/control/control.py", "import typer"),
        ("nbdresize/control/control.py", "def f():\n    from nbdresize.guests.model import DiskNews"),
        ("nbdresize/guests/model.py", "from nbdresize.server.server import Server"),
        ("nbdresize/protocol/options.py", "import socket"),
        ("nbdresize/export/exports.py", "from nbdresize.cli import main"),
        ("nbdresize/unheard/of.py", "from nbdresize.storage import file"),
        ("plugins/nbdresize.py", "from nbdresize.cli import main"),
    ],
)
def test_an_import_in_a_wrong_direction_is_found(tmp_path: Path, file: str, source: str) -> None:
    planted = tmp_path / file
    planted.parent.mkdir(parents=True)
    planted.write_text(source)
    assert [line.partition(":")[0] for line in violations(tmp_path)] == [file]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "nbdresize/storage/file.py",
            "import os\nfrom nbdresize.errors import VolumeFailed\nfrom .handle import Handle",
        ),
        ("nbdresize/serving/worker.py", "from nbdresize.control import admin_client"),
        ("nbdresize/serving/worker.py", "from nbdresize.control.admin_client import ask"),
        ("nbdresize/cli/main.py", "from nbdresize import __version__\nimport typer"),
        ("plugins/nbdresize.py", "import nbdkit\nfrom nbdresize.export.exports import Exports"),
    ],
)
def test_an_import_downwards_is_fine(tmp_path: Path, file: str, source: str) -> None:
    module = tmp_path / file
    module.parent.mkdir(parents=True)
    module.write_text(source)
    assert violations(tmp_path) == []
