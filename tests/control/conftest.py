"""A state directory of its own for each test, and its Control; its pool promises more than this machine holds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path / "state")


@pytest.fixture
def control(state: StateDirectory) -> Iterator[Control]:
    with Control.open(state) as control:
        control.update_pool(overcommit="unlimited")
        yield control
