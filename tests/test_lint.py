"""Style and types, as scripts/lint checks them."""

import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]


@pytest.mark.timeout(300)
def test_style_and_types_are_clean() -> None:
    result = subprocess.run([CHECKOUT / "scripts/lint"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    "script",
    sorted((*(each for each in (CHECKOUT / "scripts").iterdir() if each.is_file()), CHECKOUT / ".ci/run")),
    ids=lambda path: path.name,
)
def test_scripts_are_executable_shell_that_stops_at_failures(script: Path) -> None:
    assert script.stat().st_mode & 0o111
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n#")
    assert "\nset -euo pipefail\n" in text
    subprocess.run(["bash", "-n", script], check=True)
