"""Small real file systems and block devices for tests, gone again when the `with` block ends.

They need root, and the programs of the file system; without, the test fails and says what to do.
"""

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.wait import until

MIB = 1 << 20
GIB = 1 << 30
_BLOCK = 4096

FILE_SYSTEMS = ("tmpfs", "ext4", "xfs", "btrfs", "ramfs")
"""All kinds that `mounted` knows. ramfs can do nothing but read and write: no holes, no allocation."""

_PACKAGES = {
    "mount": "mount",
    "umount": "mount",
    "losetup": "mount",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "fincore": "util-linux",
    "strace": "strace",
    "chattr": "e2fsprogs",
}
_MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}
_SMALLEST = {"ext4": 16 * MIB, "xfs": 300 * MIB, "btrfs": 128 * MIB}


def program(name: str) -> str:
    """The path of a program that tests need; the test fails with the install command where there is none."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        pytest.fail(f"{name} is not installed: apt-get install {_PACKAGES[name]}", pytrace=False)
    return found


def run(name: str, *arguments: str | Path) -> str:
    """Run a program to its end, and return what it printed. It has two minutes, and fails the test if it fails."""
    command = [program(name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def loop_device(backing: Path, *, sector_size: int = 512, read_only: bool = False) -> Iterator[Path]:
    """A block device with `backing`'s bytes. A larger `backing` shows after `notice_growth`."""
    _require_root()
    flags = ["--read-only"] if read_only else []
    device = Path(
        run("losetup", "--find", "--show", "--sector-size", str(sector_size), *flags, backing).strip(),
    )
    try:
        yield device
    finally:
        run("losetup", "--detach", device)
        until(
            lambda: str(device) not in run("losetup", "--list", "--noheadings", "-O", "NAME").split(),
            what=f"{device} to be free",
        )


def notice_growth(device: Path) -> None:
    """Make a loop device as large as its backing file now is."""
    run("losetup", "--set-capacity", device)


@contextlib.contextmanager
def mounted(kind: str, directory: Path, *, size: int = 0, make_options: tuple[str, ...] = ()) -> Iterator[Path]:
    """A new, empty file system of one of FILE_SYSTEMS, mounted in a new directory below `directory`.

    `size` in bytes is raised to the least that the kind needs; the image is sparse. tmpfs gets exactly that, or 64 MiB.
    """
    _require_root()
    point = directory / f"{kind}-mounted"
    point.mkdir()
    with contextlib.ExitStack() as stack:
        if kind == "tmpfs":
            run("mount", "-t", "tmpfs", "-o", f"size={size or 64 * MIB},mode=0700", "nbdresize-test", point)
        elif kind == "ramfs":
            run("mount", "-t", "ramfs", "-o", "mode=0700", "nbdresize-test", point)
        else:
            image = directory / f"{kind}.image"
            with image.open("wb") as file:
                file.truncate(max(size, _SMALLEST[kind]))
            stack.callback(image.unlink)
            command, *options = _MAKE[kind]
            run(command, *options, *make_options, image)
            device = stack.enter_context(loop_device(image))
            run("mount", "-t", kind, device, point)
        stack.callback(point.rmdir)
        stack.callback(_unmount, point)
        yield point


@contextlib.contextmanager
def mounted_in_memory(kind: str, directory: Path, *, size: int = 0) -> Iterator[Path]:
    """As `mounted`, with the image in memory: for tests that fill or flush it, which on a busy disk takes minutes."""
    room = max(size, _SMALLEST.get(kind, 0)) + 64 * MIB
    with mounted("tmpfs", directory, size=room) as memory, mounted(kind, memory, size=size) as point:
        yield point


def fill(path: Path, leave: int = 0) -> None:
    """Make a file of all that is left on its file system, less `leave` bytes: reserved, as far as that goes."""
    with path.open("wb", buffering=0) as file:
        end = 0
        for size in (16 * MIB, MIB, _BLOCK):
            with _no_space():
                while True:
                    os.posix_fallocate(file.fileno(), end, size)
                    end += size
        file.seek(end)
        with _no_space():
            while True:
                file.write(bytes(_BLOCK))
        os.fsync(file.fileno())
        file.truncate(max(0, file.tell() - leave))
        os.fsync(file.fileno())


@contextlib.contextmanager
def _no_space() -> Iterator[None]:
    """The block ends by finding the file system full."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def _unmount(point: Path) -> None:
    """Unmount, or else detach it from the tree and fail: somebody still has a file open there."""
    done = subprocess.run([program("umount"), point], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        run("umount", "--lazy", point)
        raise AssertionError(f"{point} was still in use at the end of the test: {done.stderr}")


def _require_root() -> None:
    if os.geteuid() != 0:
        pytest.fail("Tests that mount file systems need root: run them with sudo", pytrace=False)
