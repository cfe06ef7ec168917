from pathlib import Path

import pytest

from tests.cli.command import Command, Inside


@pytest.fixture
def nbdresize(tmp_path: Path) -> Command:
    """The command, with a state directory that is not there yet."""
    return Command(tmp_path / "state")


@pytest.fixture
def web1(nbdresize: Command) -> Command:
    """The command, with a VM web1: budget 100 GiB, disk0 of 20 GiB, disk1 of 5 GiB."""
    nbdresize("vm", "create", "web1", "--disk-space", "100G", "--disk", "20G", "--disk", "5G").ok()
    return nbdresize


@pytest.fixture
def inside(nbdresize: Command, capsys: pytest.CaptureFixture[str]) -> Inside:
    """The same without a process of its own."""
    return Inside(nbdresize.root, capsys)
