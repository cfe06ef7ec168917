"""On what a directory really lies: its file system, how that is mounted, and what is below it."""

import os
from dataclasses import dataclass
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_BLOCK = Path("/sys/dev/block")
_DEPTH = 8
"""Of devices upon devices; there is nobody who has as many."""


@dataclass(frozen=True)
class Mount:
    """Of a file system: its kind as mount(8) calls it, from what, and how."""

    kind: str
    source: str
    options: str
    number: str
    """Of its device, `MAJOR:MINOR`; of file systems without one the kernel makes it up."""


def mount_of(path: Path) -> Mount | None:
    """The mount that the file or directory is on; None where that can't be told."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        told = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
        [name] = [line.split()[1] for line in told.splitlines() if line.startswith("mnt_id:")]
        [line] = [line for line in _MOUNTS.read_text().splitlines() if line.split()[0] == name]
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)
    fields, _, rest = line.partition(" - ")
    kind, source, *more = rest.split()
    words = [*fields.split()[5].split(","), *(more[0].split(",") if more else [])]
    return Mount(kind, source, ",".join(dict.fromkeys(words)), fields.split()[2])


def described(path: Path) -> str:
    """Such as `ext4 (rw,relatime) on /dev/vda, a block device (virtio_blk)`."""
    return _described(path, _DEPTH)


def _described(path: Path, depth: int) -> str:
    mount = mount_of(path)
    if mount is None:
        return "what can't be told"
    device = _device(mount)
    where = "in memory" if mount.kind in ("tmpfs", "ramfs") else f"on {mount.source}"
    what = "" if device is None else f", {_below(device, depth)}"
    return f"{mount.kind} ({mount.options}) {where}{what}"


def _device(mount: Mount) -> Path | None:
    """What the kernel tells of its device: that of its number, or (btrfs) of the special file that was mounted."""
    number = mount.number
    try:
        if not (_BLOCK / number).exists():
            special = Path(mount.source).stat().st_rdev
            number = f"{os.major(special)}:{os.minor(special)}"
    except OSError:
        return None
    device = (_BLOCK / number).resolve()
    return device if device.is_dir() else None


def _below(device: Path, depth: int) -> str:
    """What kind of device it is."""
    whole = device.parent if (device / "partition").exists() else device
    image = _read(whole / "loop/backing_file")
    if image:
        how = "read and written directly" if _read(whole / "loop/dio") == "1" else "through the page cache"
        return f"a loop device, {how}" + (f", of an image on {_described(Path(image), depth - 1)}" if depth else "")
    name = _read(whole / "dm/name")
    if name:
        return f"a device of the device mapper ({name})"
    words = [word for word in (_read(whole / "device/model"), (whole / "device/driver").resolve().name) if word]
    return "a block device" + (f" ({', '.join(words)})" if (whole / "device").exists() else "")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
