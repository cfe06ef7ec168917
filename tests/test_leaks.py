"""The check for what tests leave behind finds what it looks for."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.leaks import VARIABLE, TestSession

CHECKOUT = Path(__file__).parents[1]
PLANTED = """
import subprocess, tempfile

def test_that_leaves_a_process_behind():
    subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

def test_that_leaves_a_file_behind():
    tempfile.mkdtemp(prefix="planted-")

def test_that_cleans_up(tmp_path):
    (tmp_path / "file").touch()
"""


def run_pytest(tests: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (tests / "pytest.ini").write_text("[pytest]\n")
    (tests / "conftest.py").write_text("from tests.conftest import *\n")
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTEST_ADDOPTS": "", "TMPDIR": str(tests)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments, str(tests)]
    return subprocess.run(command, cwd=tests, env=environment, capture_output=True, text=True, timeout=100)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_session_that_leaves_something_behind_fails_and_names_it(tmp_path: Path, workers: str) -> None:
    (tmp_path / "test_planted.py").write_text(PLANTED)
    result = run_pytest(tmp_path, "-n", workers)
    lines = [line.split() for line in result.stdout.splitlines()]
    sleepers = {int(words[1].rstrip(":")) for words in lines if words[:1] == ["process"] and "sleep" in words}
    for pid in sleepers:
        os.kill(pid, signal.SIGKILL)
    assert result.returncode == 1, result.stdout
    assert len(sleepers) == 1, result.stdout
    assert any(words[:2] == ["temporary", "file"] and "/planted-" in words[2] for words in lines), result.stdout
    assert "3 passed, 1 error" in result.stdout


def test_a_session_that_cleans_up_passes_and_removes_its_directory(tmp_path: Path) -> None:
    (tmp_path / "test_clean.py").write_text("def test_clean(tmp_path):\n    print('directory', tmp_path)\n")
    result = run_pytest(tmp_path, "-n", "0", "-s")
    assert result.returncode == 0, result.stdout
    directory = Path(result.stdout.partition("directory ")[2].split()[0])
    assert directory.parent.parent.name.startswith("nbdr-")
    assert not directory.parent.parent.exists()


def test_loop_devices_and_mounts_of_a_session_are_found(tmp_path: Path) -> None:
    session = TestSession(tmp_path)
    session.temporary.mkdir()
    image, mounted = tmp_path / "image", tmp_path / "mounted"
    image.write_bytes(bytes(1 << 20))
    mounted.mkdir()
    device = subprocess.check_output(["losetup", "--find", "--show", image], text=True).strip()
    try:
        assert session.left_behind(0) == [f"loop device {device} on {image}"]
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", mounted], check=True)
    try:
        assert f"mount at {mounted}" in session.left_behind(0)
    finally:
        subprocess.run(["umount", mounted], check=True)
    assert session.left_behind(30) == []


def test_this_session_is_marked() -> None:
    assert os.environ[VARIABLE]
