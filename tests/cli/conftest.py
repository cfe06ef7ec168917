from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.units import SizeRequest
from tests.cli.command import Command, Inside

GIB = 2**30


@pytest.fixture
def nbdresize(tmp_path: Path) -> Command:
    """The command, with a state directory that is not there yet."""
    return Command(tmp_path / "state")


@pytest.fixture
def web1(nbdresize: Command) -> Command:
    """The command, with a VM web1: budget 100 GiB, disk0 of 20 GiB, disk1 of 5 GiB."""
    with Control.open(StateDirectory(nbdresize.root)) as control:
        control.update_pool(overcommit="unlimited")
        control.create_vm("web1", 100 * GIB, [SizeRequest(exact=20 * GIB), SizeRequest(exact=5 * GIB)])
    return nbdresize


@pytest.fixture
def inside(nbdresize: Command, capsys: pytest.CaptureFixture[str]) -> Inside:
    """The same without a process of its own, in a pool that promises whatever this machine's disk holds."""
    with Control.open(StateDirectory(nbdresize.root)) as control:
        control.update_pool(overcommit="unlimited")
    return Inside(nbdresize.root, capsys)
