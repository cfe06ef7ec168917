"""What to type in a guest whose agent may not run programs, as exactly as the agent still tells what there is."""

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from nbdresize.client.deadline import Deadline
from nbdresize.errors import PeerFailed
from nbdresize.guests.agent.places import Place
from nbdresize.guests.agent.session import STEP_TIME, Agent

_PAGE = "docs/guest-scripts.md"
_LONGEST_NAME = 200
_PARTITION = re.compile(r"(?P<disk>/dev/\S*\d)p\d+|(?P<letters>/dev/\S*[a-z])\d+")


def commands(agent: Agent, place: Place, deadline: Deadline) -> str:
    """The way out: commands for the guest's root, or the page that has them where the agent doesn't tell the disk.

    What the agent has not told by `deadline` is not waited for.
    """
    if _asked(agent, "guest-get-osinfo", dict, deadline).get("id") == "mswindows":
        return f"run Grow-Disk.ps1 in the guest, which is Windows ({_PAGE})"
    found = [disk for disk in _objects(_asked(agent, "guest-get-disks", list, deadline)) if _is_at(disk, place)]
    if len(found) != 1 or not _is_name(found[0].get("name")):
        return f"run nbdresize-grow DISK in the guest, as root ({_PAGE})"
    disk: str = found[0]["name"]
    mounted = [each for each in _objects(_asked(agent, "guest-get-fsinfo", list, deadline)) if _lies_on(each, disk)]
    steps = list(_steps(disk, mounted[0])) if len(mounted) == 1 else []
    return f"run in the guest, as root: {' && '.join(steps) or f'nbdresize-grow {shlex.quote(disk)}'} ({_PAGE})"


def _steps(disk: str, file_system: Mapping[str, Any]) -> Iterator[str]:
    """The commands for the one file system of a disk; none for what is not known."""
    device, kind, point = f"/dev/{file_system.get('name')}", file_system.get("type"), file_system.get("mountpoint")
    if not _is_name(device) or not _is_name(point):
        return
    grow = {
        **dict.fromkeys(("ext2", "ext3", "ext4"), f"resize2fs {shlex.quote(device)}"),
        "xfs": f"xfs_growfs {shlex.quote(str(point))}",
        "btrfs": f"btrfs filesystem resize max {shlex.quote(str(point))}",
    }.get(str(kind))
    if grow is None or disk not in (device, _disk_of(device)):
        return
    if device != disk:
        yield f"growpart {shlex.quote(disk)} {device.removeprefix(disk).removeprefix('p')}"
    yield grow


def _is_at(disk: Mapping[str, Any], place: Place) -> bool:
    address = disk.get("address")
    if disk.get("partition") is not False or not isinstance(address, dict):
        return False
    if place.unit is not None and address.get("unit") != place.unit[1]:  # of targets, the agent tells 0 for every one
        return False
    if place.pci is not None:
        return _pci(address.get("pci-controller")) == place.pci
    return place.serial is not None and address.get("serial") == place.serial


def _pci(told: Any) -> str | None:
    """The controller of an address, as Linux writes it; the agent says -1 for what it does not know."""
    parts = [told.get(name) for name in ("domain", "bus", "slot", "function")] if isinstance(told, dict) else [None]
    if not all(isinstance(part, int) and 0 <= part < 1 << 32 for part in parts):
        return None
    return "{:04x}:{:02x}:{:02x}.{:x}".format(*parts)


def _lies_on(file_system: Mapping[str, Any], disk: str) -> bool:
    """Whether a mounted file system is on this disk; what is on others too, nobody grows without looking."""
    devices = [each.get("dev") for each in _objects(file_system.get("disk"))]
    return bool(devices) and all(device == disk or _disk_of(device) == disk for device in devices)


def _disk_of(device: object) -> str | None:
    """The disk that a partition lies on, by their names; None for what is no partition."""
    found = _PARTITION.fullmatch(device) if isinstance(device, str) else None
    return found["disk"] or found["letters"] if found else None


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value.startswith("/") and value.isprintable() and len(value) < _LONGEST_NAME


def _objects(told: object) -> list[Mapping[str, Any]]:
    return [each for each in told if isinstance(each, dict)] if isinstance(told, list) else []


def _asked(agent: Agent, command: str, kind: type[Any], deadline: Deadline) -> Any:
    """What the agent tells, where it may and tells something of this kind; else nothing."""
    try:
        told = agent.execute(command, timeout=min(STEP_TIME, deadline.remaining()))
    except (PeerFailed, TimeoutError):  # refused, or the session is over: the commands are told without
        return kind()
    return told if isinstance(told, kind) else kind()
