"""A copy in which the kernel answers a system call with an error: it is told, and no copy is left."""

import os
from pathlib import Path

import pytest

from nbdresize.storage.file import FilePool
from tests.storage.test_faults import run_child

KIB = 1 << 10
MIB = 1 << 20

_COPY = """
pool = FilePool(directory)
print(outcome(lambda: pool.copy(directory / "disk.raw", "copy", share=SHARE)))
print(pool.names())
if "copy" in pool.names():
    print(pool.volume("copy").path.read_bytes() == volume.path.read_bytes())
"""


def copy_with(tmp_path: Path, injection: str, watched: str, *, share: bool = False) -> list[str]:
    """What becomes of a copy of a volume with data and holes, while calls on the `watched` path fail."""
    volume = FilePool(tmp_path).create("disk", 3 * MIB)
    with volume.open() as handle:
        handle.write(os.urandom(MIB + 4 * KIB), 0)
        handle.write(os.urandom(4 * KIB), 2 * MIB)
    return run_child(tmp_path, _COPY.replace("SHARE", str(share)), injection, watched=tmp_path / watched)


@pytest.mark.parametrize(
    ("watched", "call", "when", "problem"),
    [
        ("disk.raw", "openat", 1, "Opening"),
        ("disk.raw", "pread64", 1, "Reading 1048576 bytes at 0 of"),
        ("disk.raw", "pread64", 3, "Reading 4096 bytes at 2097152 of"),
        ("disk.raw", "lseek", 1, "Looking for holes in"),
        ("disk.raw", "lseek", 3, "Looking for holes in"),
        ("copy.raw", "openat", 1, "Creating"),
        ("copy.raw", "ftruncate", 1, "Making 3 MiB of"),
        ("copy.raw", "fsync", 1, "Making 3 MiB of"),
        ("copy.raw", "pwrite64", 1, "Writing 1048576 bytes at 0 of"),
        ("copy.raw", "pwrite64", 3, "Writing 4096 bytes at 2097152 of"),
        ("copy.raw", "fsync", 2, "Making 3 MiB of"),
        ("", "fsync", 1, "Syncing"),
    ],
)
def test_an_error_is_told_and_the_copy_is_gone(
    tmp_path: Path, watched: str, call: str, when: int, problem: str
) -> None:
    found = copy_with(tmp_path, f"{call}:error=EIO:when={when}", watched)
    assert found[0].startswith(f"VolumeFailed: {problem} ")
    assert found[0].endswith("(Input/output error): look for the cause in the kernel's log (dmesg)")
    assert str(tmp_path / watched) in found[0]
    assert found[1:] == ["['disk']"]


@pytest.mark.parametrize(("error", "problem"), [("EIO", "VolumeFailed"), ("ENOSPC", "InsufficientSpace")])
def test_so_is_one_of_sharing(tmp_path: Path, error: str, problem: str) -> None:
    outcome, names = copy_with(tmp_path, f"ioctl:error={error}:when=1", "copy.raw", share=True)
    assert outcome.startswith(f"{problem}: Copying {tmp_path}/disk.raw to {tmp_path}/copy.raw failed")
    assert names == "['disk']"


@pytest.mark.parametrize("error", ["EOPNOTSUPP", "ENOTTY", "EXDEV", "EINVAL", "ETXTBSY"])
def test_where_blocks_can_not_be_shared_the_data_is_copied(tmp_path: Path, error: str) -> None:
    found = copy_with(tmp_path, f"ioctl:error={error}:when=1", "copy.raw", share=True)
    assert found == ["done", "['copy', 'disk']", "True"]
    assert error in (tmp_path / "strace.log").read_text()


@pytest.mark.parametrize(
    ("watched", "call"),
    [
        ("disk.raw", "pread64"),
        ("copy.raw", "ftruncate"),
        ("copy.raw", "pwrite64"),
        ("copy.raw", "fsync"),
        ("copy.raw", "ioctl"),
        ("", "fsync"),
    ],
)
def test_a_call_that_a_signal_ended_is_made_again(tmp_path: Path, watched: str, call: str) -> None:
    found = copy_with(tmp_path, f"{call}:error=EINTR:when=1", watched, share=call == "ioctl")
    assert found == ["done", "['copy', 'disk']", "True"]
    assert "EINTR" in (tmp_path / "strace.log").read_text()


def test_measuring_names_the_volume_that_can_not_be_measured(tmp_path: Path) -> None:
    code = """
class Sharing(FilePool):
    def shares_copies(self):
        return True
print(outcome(lambda: Sharing(directory).spaces(["disk"])))
"""
    [outcome] = run_child(tmp_path, code, "ioctl:error=EIO:when=1")
    assert outcome.startswith(
        f"VolumeFailed: Looking for the blocks of {tmp_path}/disk.raw failed (Input/output error)"
    )
