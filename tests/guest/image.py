"""The kernel and the root image that guests boot: built once, kept outside the checkout, shared by all test processes.

The kernel is Debian's cloud kernel; what it needs around it are programs of this machine with the libraries that they
load, Python's standard library, and some packages that tests need in a guest but nobody on this machine: downloaded
and unpacked, never installed.
"""

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
GUEST_FILES = {"init": HERE / "init.py"}
"""What lies in the root directory of the image, from these files of ours."""

KERNEL = "linux-image-cloud-amd64"
PACKAGES = (
    *("cloud-guest-utils", "fdisk", "gdisk", "iproute2", "kmod", "libatm1", "lvm2"),
    *("nbd-client", "parted", "qemu-guest-agent", "udev"),
)
"""Debian packages that are in the image with all of their files, and with what they depend on."""
PROGRAMS = (
    # A shell, and what scripts call all the time.
    *(
        "sh",
        "bash",
        "python3",
        "env",
        "awk",
        "sed",
        "grep",
        "find",
        "xargs",
        "cat",
        "cp",
        "mv",
        "rm",
        "ln",
        "ls",
        "mkdir",
    ),
    *("rmdir", "touch", "chmod", "chown", "dd", "truncate", "stat", "head", "tail", "sort", "uniq", "wc", "tr", "cut"),
    *("tee", "printf", "test", "expr", "seq", "date", "sleep", "timeout", "true", "false", "id", "uname", "readlink"),
    *("realpath", "basename", "dirname", "mktemp", "od", "cmp", "sha256sum", "md5sum", "sync", "df", "du", "mknod"),
    *("kill", "ps", "pgrep", "pkill", "sysctl", "logger", "flock", "setsid", "nohup", "tar", "gzip"),
    # Disks and file systems.
    *("mount", "umount", "swapon", "swapoff", "mkswap", "blkid", "blockdev", "findmnt", "fstrim", "losetup", "lsblk"),
    *("partx", "wipefs", "dmesg", "mkfs", "fsck", "mke2fs", "mkfs.ext4", "e2fsck", "resize2fs", "dumpe2fs", "tune2fs"),
    *("mkfs.xfs", "xfs_growfs", "xfs_repair", "xfs_info", "xfs_io", "xfs_db", "xfs_spaceman", "mkfs.btrfs", "btrfs"),
)
"""Programs of this machine that are in the image."""
PYTHON = Path("/usr/lib/python3.11")
NOT_IN_PYTHON = ("test", "idlelib", "tkinter", "ensurepip", "lib2to3", "turtledemo", "pydoc_data", "dist-packages")
SEARCH = ("usr/sbin", "usr/bin", "sbin", "bin")
SECONDS = 300
"""How long one command may take."""
KEPT_SECONDS = 86400
"""How long an image that nobody uses any more is kept."""


class BuildFailed(Exception):
    """The image could not be built."""


@dataclass(frozen=True)
class GuestImage:
    """What QEMU boots. The root image is shared by many guests, which must not write to it."""

    kernel: Path
    root: Path


def guest_image() -> GuestImage:
    """The kernel and root image, built where they have not been built before: in half a minute."""
    directory = _cache() / _key()
    image = GuestImage(directory / "vmlinuz", directory / "root.img")
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with (directory.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not directory.exists():  # nobody has built it while this process waited
                _remove_unused(directory.parent)
                _build(directory)
    os.utime(directory)
    return image


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "nbdresize-tests"


@functools.cache
def _key() -> str:
    """Names all that goes into the image: the recipe, our files, the packages of this machine."""
    digest = hashlib.sha256()
    for file in (Path(__file__), *GUEST_FILES.values()):
        digest.update(file.read_bytes() + b"\0")
    digest.update(_run("dpkg-query", "--show").encode())
    return digest.hexdigest()[:16]


def _remove_unused(cache: Path) -> None:
    for directory in cache.glob("*/"):
        if time.time() - directory.stat().st_mtime > KEPT_SECONDS:
            shutil.rmtree(directory)


def _build(target: Path) -> None:
    """Make the directory `target` with both, or nothing."""
    with tempfile.TemporaryDirectory(prefix="building-", dir=target.parent) as name:
        work = Path(name)
        packages, root, done = work / "packages", work / "root", work / "done"
        done.mkdir()
        for archive in _download(work):
            _run("dpkg-deb", "--extract", archive, packages)
        (kernel,) = packages.glob("boot/vmlinuz-*")
        shutil.copy(kernel, done / "vmlinuz")
        _make_root(root, packages)
        _make_file_system(root, done / "root.img")
        done.rename(target)


# Packages


def _download(work: Path) -> list[Path]:
    """The archives of the kernel and of PACKAGES."""
    try:
        return [_download_kernel(work), *_download_packages(work)]
    except BuildFailed:  # it may be that what apt knows is old, or nothing
        _run("apt-get", "update")
        return [_download_kernel(work), *_download_packages(work)]


def _download_kernel(work: Path) -> Path:
    """The package with the newest kernel, which KERNEL depends on."""
    found = re.search(r"Depends: (linux-image-\S+)", _run("apt-cache", "depends", KERNEL))
    if found is None:
        raise BuildFailed(f"apt knows no kernel that {KERNEL} depends on")
    _run("apt-get", "-o", "APT::Sandbox::User=root", "download", found[1], directory=work)
    (archive,) = work.glob("linux-image-*.deb")
    return archive


def _download_packages(work: Path) -> list[Path]:
    """PACKAGES, and what they need and is not here, or not as new."""
    directory = work / "archives"
    (directory / "partial").mkdir(parents=True, exist_ok=True)
    options = {
        "Dir::Cache::archives": directory,
        "Debug::NoLocking": "1",  # nothing is installed, so it may run beside a set-up
        "APT::Sandbox::User": "root",
    }
    _run(
        *("apt-get", "install", "--yes", "--download-only", "--no-install-recommends", "--reinstall"),
        *(word for key, value in options.items() for word in ("-o", f"{key}={value}")),
        *PACKAGES,
    )
    return list(directory.glob("*.deb"))


# The tree


def _make_root(root: Path, packages: Path) -> None:
    for name in ("dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp", "var/tmp", "var/log", "usr/lib64"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib"):
        (root / "usr" / name).mkdir()
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    for directory in packages.glob("*/"):
        # `lib` of a package is `usr/lib` here: the link is followed.
        if directory.name not in ("boot", "usr"):
            _copy_tree(directory, root / directory.name)
    _copy_tree(packages / "usr", root / "usr", without=("share",))
    _copy_tree(PYTHON, root / PYTHON.relative_to("/"), without=NOT_IN_PYTHON)
    for file, where in _programs(packages):
        _copy_file(file, root / where)
    for library in _libraries(root, packages):
        _copy_file(library, root / "usr/lib/x86_64-linux-gnu" / library.name)
    _copy_file(Path("/lib64/ld-linux-x86-64.so.2"), root / "usr/lib64/ld-linux-x86-64.so.2")
    for name, file in GUEST_FILES.items():
        _copy_file(file, root / name)
        (root / name).chmod(0o755)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\ndisk:x:6:\n")
    (root / "etc/mtab").symlink_to("/proc/self/mounts")
    (version,) = (path.name for path in (root / "usr/lib/modules").iterdir())
    depmod = packages / "depmod"  # kmod is what its name says
    depmod.symlink_to("bin/kmod")
    _run(depmod, "--basedir", root, version)


def _programs(packages: Path) -> Iterator[tuple[Path, str]]:
    """PROGRAMS, and where each goes."""
    for name in PROGRAMS:
        found = [
            (top / folder / name, f"usr/{folder.removeprefix('usr/')}/{name}")
            for top in (packages, Path("/"))
            for folder in SEARCH
            if (top / folder / name).exists()
        ]
        if not found:
            raise BuildFailed(f"Guests need the program {name}, which is not here: scripts/setup --tests")
        yield found[0]


def _libraries(root: Path, packages: Path) -> set[Path]:
    """The shared libraries that the programs and extension modules in `root` load and `root` does not have."""
    own = [root / "usr/lib/x86_64-linux-gnu", root / "usr/lib/x86_64-linux-gnu/systemd", root / "usr/lib/systemd"]
    files = [file for file in root.rglob("*") if file.is_file() and not file.is_symlink() and _is_dynamic(file)]
    search = ":".join(str(directory) for directory in own if directory.exists())
    lines = _run("ldd", *files, LD_LIBRARY_PATH=search, check=False).splitlines()
    missing = {line.strip() for line in lines if "not found" in line}
    if missing:
        raise BuildFailed(f"No package of the guest's image brings these libraries: {missing}")
    found = {Path(match[1]) for line in lines if (match := re.search(r"=> (/\S+) \(", line))}
    return {library for library in found if not library.is_relative_to(root)}


def _is_dynamic(file: Path) -> bool:
    """Whether it is something that ldd can look at: not a kernel module or a static program."""
    if file.suffix == ".ko":
        return False
    with file.open("rb") as opened:
        head = opened.read(18)
    return head[:4] == b"\x7fELF" and head[16] in (2, 3)


def _copy_tree(source: Path, target: Path, without: Collection[str] = ()) -> None:
    """A copy of a folder, but not of those in it that are named in `without`."""
    ignore = lambda folder, names: without if folder == str(source) else ()  # noqa: E731
    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True, ignore=ignore)


def _copy_file(source: Path, target: Path) -> None:
    """A copy of a file, or of what a link points to."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _make_file_system(root: Path, image: Path) -> None:
    taken = int(_run("du", "--summarize", "--block-size=1M", "--apparent-size", root).split()[0])
    _run(
        *("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-E", "root_owner=0:0", "-L", "guest"),
        *("-N", "30000", "-d", root, image, f"{taken * 5 // 4 + 64}M"),
    )


def _run(*command: str | Path, directory: Path | None = None, check: bool = True, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "LC_ALL": "C", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    if check and done.returncode != 0:
        words = " ".join(map(str, command[:6]))
        raise BuildFailed(f"`{words} …` failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout
