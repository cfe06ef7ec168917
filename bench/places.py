"""Where a served file lies: its file system, what it holds, and whether it is in memory.

A medium is the directory's own file system where that is of its kind; else an image mounted through a loop device,
which takes root. The loop device reads and writes its image directly, so that only one page cache stands above it.
"""

import ctypes
import errno
import mmap
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.model import Medium
from bench.mounts import mount_of
from nbdresize.errors import InsufficientSpace, ProgramMissing, VolumeFailed
from nbdresize.units import format_size

MIB = 1 << 20
SETUP = "scripts/setup --bench installs what the benchmarks need"

_SECONDS = 120.0
_PAGE = mmap.PAGESIZE
_MEMORY = Path("/dev/shm")
_MAKE = {
    Medium.EXT4: ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    Medium.XFS: ("mkfs.xfs", "-q", "-f"),
}
_ROOM = 300 * MIB
"""What a file system of an image takes for itself, and the least that xfs is made with."""
_DATA, _EVERY = 64 << 10, 2 * MIB
"""Of a sparse disk: so much data in each such stretch."""

_libc = ctypes.CDLL(None, use_errno=True)


class NoPlace(VolumeFailed):
    """That medium can't be had here: it takes root, or a loop device."""


@contextmanager
def placed(medium: Medium, directory: Path, size: int = 0) -> Iterator[Path]:
    """A new directory on a file system of that kind, with room for `size` bytes; all is gone after the block.

    Raises NoPlace where that takes what there is not, ProgramMissing, and InsufficientSpace.
    """
    with ExitStack() as stack:
        own = _own(medium, directory, size)
        if own is None:
            own = stack.enter_context(_mounted(medium, directory, size))
        _check_room(own, size)
        yield Path(stack.enter_context(_temporary(own)))


def _own(medium: Medium, directory: Path, size: int) -> Path | None:
    """Where such a file system is at hand."""
    if kind_of(directory) == medium.value:
        return directory
    if medium is Medium.TMPFS and kind_of(_MEMORY) == medium.value and _free(_MEMORY) >= size:
        return _MEMORY
    return None


def kind_of(directory: Path) -> str:
    """The kind of the file system below a directory, as mount(8) calls it; empty if there is no telling."""
    mount = mount_of(directory)
    return "" if mount is None else mount.kind


# A file system of its own


@contextmanager
def _mounted(medium: Medium, directory: Path, size: int) -> Iterator[Path]:
    if os.geteuid() != 0:
        raise NoPlace(
            f"{directory} is not on {medium.value}, and mounting one takes root",
            f"run this as root, or give a --directory on {medium.value}",
        )
    with _temporary(directory) as name, ExitStack() as stack:
        point = Path(name) / "mounted"
        point.mkdir()
        with _uninterrupted():
            if medium is Medium.TMPFS:
                _run("mount", "-t", "tmpfs", "-o", f"size={size + _ROOM},mode=0700", "nbdresize-bench", str(point))
            else:
                _mount_image(medium, Path(name) / "image", size + _ROOM, point)
            stack.callback(_unmount, point)
        yield point


def _mount_image(medium: Medium, image: Path, size: int, point: Path) -> None:
    """The loop device lasts as long as the mount: detaching it right away takes effect when that ends."""
    _check_room(image.parent, size)
    with image.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    _run(*_MAKE[medium], str(image))
    device = _attached(image)
    try:
        _run("mount", "-t", medium.value, device, str(point))
    finally:
        _run("losetup", "--detach", device)


def _attached(image: Path) -> str:
    try:
        return _run("losetup", "--find", "--show", "--direct-io=on", str(image)).strip()
    except VolumeFailed as error:
        raise NoPlace(error.problem, "give a --directory on such a file system") from error


def _unmount(point: Path) -> None:
    """Unmount, or if somebody still has a file open there, from the tree at once and all else when they close it."""
    deadline = time.monotonic() + 5
    pause = threading.Event()
    with _uninterrupted():
        while time.monotonic() < deadline:
            try:
                _run("umount", str(point))
                return
            except VolumeFailed:
                pause.wait(0.05)
        _run("umount", "--lazy", str(point))


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until what takes turns has been done or undone."""
    numbers = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _temporary(directory: Path) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="nbdresize-bench-", dir=directory, ignore_cleanup_errors=True) as name:
        yield name


def _run(name: str, *arguments: str, cwd: Path | None = None) -> str:
    """What a program prints; a Ctrl-C at the terminal does not reach it. Raises VolumeFailed with its last words."""
    program = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        raise ProgramMissing(f"{name} is not installed", SETUP)
    done = subprocess.run(
        [program, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        start_new_session=True,
        cwd=cwd,
        check=False,
    )
    if done.returncode != 0:
        raise VolumeFailed(f"{name} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def _check_room(directory: Path, size: int) -> None:
    if _free(directory) < size:
        raise InsufficientSpace(
            f"{directory} has {format_size(_free(directory))} free, and this takes {format_size(size)}",
            "give another --directory or a smaller --size",
        )


def _free(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


# The disk


def make_disk(directory: Path, size: int, *, sparse: bool = False, name: str = "disk.img") -> Path:
    """A file of `size` bytes that don't compress, on the disk when this returns.

    `sparse`: only one part in 32 is data, the rest are holes.
    """
    path = directory / name
    every, data = (_EVERY, _DATA) if sparse else (MIB, MIB)
    with path.open("wb", buffering=0) as file:
        file.truncate(size)
        for offset in range(0, size, every):
            file.seek(offset)
            file.write(os.urandom(min(data, size - offset)))
        os.fsync(file.fileno())
    return path


def settle(path: Path) -> None:
    """Have all that was written to the file on its disk, so that nothing of it is written while others are measured."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def drop_from_page_cache(path: Path) -> None:
    """Have nothing of the file in memory. Raises VolumeFailed where more than a hundredth of it stays there.

    Memory of the host that a virtual machine runs on, or of the disk itself, may well still hold it.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    stays, size = cached(path), path.stat().st_size
    if stays > size // 100:
        raise VolumeFailed(
            f"{format_size(stays)} of {path} stay in the page cache", "on tmpfs all of it does: choose another medium"
        )


@contextmanager
def kept_warm(path: Path) -> Iterator[None]:
    """All of the file is in the page cache, and stays there for as long as this lasts.

    It is mapped, and each of its pages looked at. Pages that no process has mapped may be taken out of the page cache
    any time although there is room (by DAMON, which reclaims what seems unused): reads of servers would then be cold
    now and then, those of slow servers most of all.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        mapped.madvise(mmap.MADV_WILLNEED)
        for offset in range(0, len(mapped), _PAGE):
            mapped[offset]
        yield


def cached(path: Path) -> int:
    """How many bytes of the file the page cache holds, in whole pages."""
    size = path.stat().st_size
    if size == 0:
        return 0
    pages = -(-size // _PAGE)
    held = (ctypes.c_ubyte * pages)()
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        begin = ctypes.c_char.from_buffer(mapped)
        done = _libc.mincore(ctypes.c_void_p(ctypes.addressof(begin)), ctypes.c_size_t(size), held)
        number = ctypes.get_errno()
        del begin  # mapped can't be closed while it is pointed at
    if done != 0:
        raise VolumeFailed(f"mincore: {os.strerror(number or errno.EIO)}")
    return sum(each & 1 for each in bytes(held)) * _PAGE


def data_bytes(path: Path) -> int:
    """How many bytes of the file are no holes."""
    found = end = 0
    with path.open("rb") as file:
        while True:
            try:
                begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return found
                raise
            end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            found += end - begin


# TLS


def make_certificates(directory: Path) -> Path:
    """An authority, and certificates for server and client, valid for ten days, in a new directory; the directory.

    Clients show theirs to every server: nbd-server takes none without.
    """
    directory.mkdir()
    names = {
        "ca": "ca\ncert_signing_key\n",
        "server": "tls_www_server\nsigning_key\nencryption_key\n",
        "client": "tls_www_client\nsigning_key\nencryption_key\n",
    }
    for name, usage in names.items():
        (directory / f"{name}.info").write_text(
            f'cn = "localhost"\ndns_name = "localhost"\nexpiration_days = 10\n{usage}'
        )
        key = f"{name}-key.pem"
        _run("certtool", "--generate-privkey", "--key-type=ecdsa", "--curve=secp256r1", "--outfile", key, cwd=directory)
        signed = ["--generate-self-signed"]
        if name != "ca":
            signed = ["--generate-certificate", "--load-ca-certificate=ca-cert.pem", "--load-ca-privkey=ca-key.pem"]
        rest = [f"--load-privkey={key}", f"--template={name}.info", f"--outfile={name}-cert.pem"]
        _run("certtool", *signed, *rest, cwd=directory)
    return directory
