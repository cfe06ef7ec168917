"""What the kernel can answer to a request: no space, an I/O error, a signal, a size limit. The answers are real ones.

Where no file system here gives the answer, strace has the kernel give it.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from nbdresize.errors import InsufficientSpace, VolumeFailed
from nbdresize.storage.file import FilePool
from nbdresize.storage.kinds import open_volume
from tests.filesystems import loop_device, mounted, program

KIB = 1 << 10
MIB = 1 << 20

_CHILD = """
import os, resource, sys
from pathlib import Path
from nbdresize.errors import InsufficientSpace, NbdresizeError, VolumeFailed
from nbdresize.storage.file import FilePool
from nbdresize.storage.kinds import open_volume

def outcome(action):
    try:
        action()
    except NbdresizeError as error:
        return type(error).__name__ + ": " + str(error)
    return "done"

directory = Path(sys.argv[1])
volume = open_volume(directory / "disk.raw")
"""


def run_child(directory: Path, code: str, *inject: str, watched: Path | None = None) -> list[str]:
    """What `code` prints, in a process whose system calls on the volume fail as `inject` says (see strace(1)).

    With `watched`, those on that path instead.
    """
    path = directory / "disk.raw"
    if not path.exists():
        FilePool(directory).create("disk", MIB)
    command = [sys.executable, "-c", _CHILD + code, str(directory)]
    if inject:
        options = [option for injection in inject for option in ("-e", f"inject={injection}")]
        calls = ",".join(injection.partition(":")[0] for injection in inject)
        strace = [
            program("strace"),
            "-f",
            "-qq",
            "-o",
            directory / "strace.log",
            "-e",
            f"trace={calls}",
            "-P",
            watched or path,
        ]
        command = [*map(str, strace), *options, *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


class TestInterrupted:
    @pytest.mark.parametrize(
        ("call", "action"),
        [
            ("pread64", "handle.read(4096, 0)"),
            ("preadv2", "handle.read_into(bytearray(4096), 0)"),
            ("pwrite64", "handle.write(bytes(4096), 0)"),
            ("pwritev2", "handle.write(bytes(4096), 0, fua=True)"),
            ("fdatasync", "handle.flush()"),
            ("fallocate", "handle.trim(0, 4096)"),
            ("fallocate", "handle.zero(0, 4096)"),
            ("ftruncate", "volume.grow(2 << 20)"),
            ("fsync", "volume.grow(2 << 20)"),
        ],
    )
    def test_a_call_that_a_signal_ended_is_made_again(self, tmp_path: Path, call: str, action: str) -> None:
        code = f"with volume.open() as handle: print(outcome(lambda: {action}))"
        assert run_child(tmp_path, code, f"{call}:error=EINTR:when=1") == ["done"]
        assert (tmp_path / "strace.log").read_text().count(f"{call}(") == 2

    def test_so_is_one_to_a_device(self, tmp_path: Path) -> None:
        backing = tmp_path / "image"
        backing.write_bytes(bytes(MIB))
        with loop_device(backing) as device:
            (tmp_path / "disk.raw").symlink_to(device)
            code = """
with volume.open() as handle:
    print(outcome(lambda: handle.trim(0, 4096)), outcome(lambda: handle.zero(0, 4096)), handle.size())
"""
            for first in (1, 2, 3, 4):
                injection = f"ioctl:error=EINTR:when={first}"
                assert run_child(tmp_path, code, injection) == [f"done done {MIB}"]


class TestInputOutputErrors:
    @pytest.mark.parametrize(
        ("call", "action", "expected"),
        [
            ("pread64", "handle.read(4096, 512)", "Reading 4096 bytes at 512 of"),
            ("preadv2", "handle.read_into(bytearray(4096), 512)", "Reading 4096 bytes at 512 of"),
            ("pwrite64", "handle.write(bytes(4096), 512)", "Writing 4096 bytes at 512 of"),
            ("pwritev2", "handle.write(bytes(4096), 512, fua=True)", "Writing 4096 bytes at 512 of"),
            ("fdatasync", "handle.flush()", "Flushing"),
            ("fallocate", "handle.trim(512, 4096)", "Trimming 4096 bytes at 512 of"),
            ("fallocate", "handle.zero(512, 4096)", "Zeroing 4096 bytes at 512 of"),
            ("lseek", "handle.extents(512, 4096)", "Looking for holes in 4096 bytes at 512 of"),
            ("fadvise64", "handle.cache(512, 4096)", "Reading ahead 4096 bytes at 512 of"),
            ("ftruncate", "volume.grow(2 << 20)", "Making 2 MiB of"),
            ("fsync", "volume.grow(2 << 20)", "Making 2 MiB of"),
            ("fsync", "volume.shrink(4096)", "Making 4 KiB of"),
        ],
    )
    def test_they_name_the_volume_and_what_was_done(
        self, tmp_path: Path, call: str, action: str, expected: str
    ) -> None:
        code = f"""
with volume.open() as handle: print(outcome(lambda: {action}))
print(volume.size())
"""
        [problem, size] = run_child(tmp_path, code, f"{call}:error=EIO:when=1")
        assert problem == (
            f"VolumeFailed: {expected} {tmp_path}/disk.raw failed (Input/output error): "
            "look for the cause in the kernel's log (dmesg)"
        )
        assert int(size) == (4096 if "shrink" in action else MIB)  # a failed grow leaves it as it was

    @pytest.mark.parametrize("first", ["handle.flush()", "handle.write(b'x', 0, fua=True)"])
    def test_a_flush_that_failed_once_fails_for_ever(self, tmp_path: Path, first: str) -> None:
        code = f"""
with volume.open() as handle:
    print(outcome(lambda: {first}))
    for _ in range(2):
        print(outcome(handle.flush))
    print(outcome(lambda: handle.write(b"x", 0, fua=True)))
    print(outcome(lambda: handle.zero(0, 4096, fua=True)))
    print(outcome(lambda: handle.write(b"y", 0)))
with volume.open() as handle:
    print(outcome(handle.flush))
"""
        injections = ("fdatasync:error=EIO:when=1", "pwritev2:error=EIO:when=1")
        found = run_child(tmp_path, code, injections["fua" in first])
        assert "Input/output error" in found[0]
        for line in found[1:5]:
            assert line.startswith(f"VolumeFailed: An earlier flush of {tmp_path}/disk.raw failed (Input/output error)")
        assert found[5:] == ["done", "done"]

    def test_data_that_the_kernel_dropped_is_never_called_stored(self, tmp_path: Path) -> None:
        """A device that runs out of space below the page cache, which then forgets what it could not write."""
        with mounted("tmpfs", tmp_path, size=2 * MIB) as path:
            backing = path / "image"
            with backing.open("wb") as file:
                file.truncate(16 * MIB)
            with loop_device(backing) as device, open_volume(device).open() as handle:
                handle.write(b"x" * 8 * MIB, 0)
                with pytest.raises((VolumeFailed, InsufficientSpace)):
                    handle.flush()
                handle.trim(0, 16 * MIB)  # there is room again, and fdatasync(2) itself would succeed
                with pytest.raises(VolumeFailed, match="An earlier flush"):
                    handle.flush()
                with pytest.raises(VolumeFailed, match="An earlier flush"):
                    handle.write(b"x", 0, fua=True)
                with open_volume(device).open() as fresh:
                    fresh.write(b"x", 0, fua=True)
                    fresh.flush()


class TestNoSpace:
    @pytest.mark.parametrize("fua", [False, True])
    @pytest.mark.parametrize("kind", ["tmpfs", "ext4", "xfs", "btrfs"])
    def test_a_full_file_system_is_told_and_writing_goes_on_when_there_is_room(
        self, tmp_path: Path, kind: str, fua: bool
    ) -> None:
        with mounted(kind, tmp_path, size=64 * MIB) as path:
            pool = FilePool(path)
            pool.create("ballast", pool.capacity().available - 16 * MIB, preallocate=True)
            size = 64 * MIB
            with pool.create("disk", size).open() as handle:
                with pytest.raises(
                    InsufficientSpace, match=r"Writing .*No space left on device.*: free space"
                ) as caught:
                    for offset in range(0, size, 4 * MIB):
                        handle.write(b"x" * 4 * MIB, offset, fua=fua)
                assert caught.value.nbd_errno == 28
                handle.trim(0, size)
                handle.flush()
                handle.write(b"y" * MIB, 0, fua=fua)
                handle.flush()
                assert handle.read(MIB, 0) == b"y" * MIB

    def test_a_write_past_the_limit_of_the_process_says_so(self, tmp_path: Path) -> None:
        code = """
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
with volume.open() as handle:
    print(outcome(lambda: handle.write(b"x" * 200_000, 400_000)))
    print(handle.read(200_000, 400_000) == b"x" * 100_000 + bytes(100_000))
    print(outcome(lambda: handle.write(b"x" * 8192, 600_000, fua=True)))
    print(outcome(lambda: handle.flush()))
print(outcome(lambda: volume.grow(2 << 20)))
print(volume.size())
"""
        found = run_child(tmp_path, code)
        assert "File too large" in found[0]
        assert "ulimit -f" in found[0]
        assert found[1] == "True"  # the write was short, and then failed
        assert "File too large" in found[2]
        assert found[3] == "done"
        assert "File too large" in found[4]
        assert found[5] == str(MIB)

    def test_a_volume_that_could_not_be_made_leaves_nothing(self, tmp_path: Path) -> None:
        code = """
pool = FilePool(directory)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
for preallocate in (False, True):
    print(outcome(lambda: pool.create("other", 1 << 20, preallocate=preallocate)))
print(pool.names())
"""
        sparse, reserved, names = run_child(tmp_path, code)
        assert "File too large" in sparse
        assert "File too large" in reserved
        assert names == "['disk']"
