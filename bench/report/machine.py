"""On what a run was made: the machine, and the versions of what was measured and of what measured it."""

import os
import platform
import re
import subprocess
from pathlib import Path

import psutil

import nbdresize
from bench.cores import described, pair

_CHECKOUT = Path(__file__).parents[2]
_PROGRAMS = {
    "nbdkit": ("nbdkit", "--version"),
    "libnbd": ("nbdcopy", "--version"),
    "qemu-nbd": ("qemu-nbd", "--version"),
    "nbd-server": ("nbd-server", "--version"),
    "fio": ("fio", "--version"),
}
_NUMBER = re.compile(r"\d+(?:\.\d+)+\S*")
_SECONDS = 20
UNKNOWN = "unknown"


def machine() -> dict[str, str]:
    """The parts of it that decide how fast it is."""
    return {
        "processor": _processor(),
        "cores": str(cores()),
        "memory": f"{psutil.virtual_memory().total / (1 << 30):.1f} GiB",
        "cores used": described(),
        "kernel": platform.release(),
        "governor": _governor(),
        "virtualisation": _virtualisation(),
    }


def versions() -> dict[str, str]:
    """Of everything that takes part; `not installed` where it is not."""
    found = {name: _version(command) for name, command in _PROGRAMS.items()}
    return {"nbdresize": f"{nbdresize.__version__} ({commit()})", "Python": platform.python_version(), **found}


def _governor() -> str:
    """Of the frequency of the cores that are used; a virtual machine mostly has none of its own."""
    found = {_read(f"/sys/devices/system/cpu/cpu{each}/cpufreq/scaling_governor") for each in pair()}
    return ", ".join(sorted(found))


def cores() -> int:
    """That this process may use, which can be fewer than there are."""
    return len(os.sched_getaffinity(0))


def worries() -> list[str]:
    """What speaks against measuring here and now."""
    found = []
    if cores() < 2:
        found.append("one core for both, client and server: each slows down the other, and the ratios come out closer")
    elif "two threads" in described():
        found.append(f"{described()}: each slows down the other, and the ratios come out closer")
    busy = os.getloadavg()[0]
    if busy > 0.5 * cores():
        found.append(
            f"this machine is busy (load {busy:.1f} on {cores()} cores in the last minute): expect wide spreads"
        )
    return found


def commit() -> str:
    """Of the checkout, and whether it has changes that are not committed."""
    name = _said(("git", "-C", str(_CHECKOUT), "rev-parse", "--short=12", "HEAD"))
    if name is None:
        return "no checkout"
    # What earlier runs have written changes nothing that is measured.
    changed = _said(("git", "-C", str(_CHECKOUT), "status", "--porcelain", "--", ".", ":!bench/results", ":!README.md"))
    return f"commit {name.strip()}" + (", with changes" if changed is None or changed.strip() else "")


def _processor() -> str:
    match = re.search(r"^model name\s*: (.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return match[1].strip() if match else platform.machine()


def _virtualisation() -> str:
    """As systemd names it, or what the processor tells; a container on a virtual machine is both."""
    said = (_said(("systemd-detect-virt", "--vm")) or "").strip()
    if said in ("", "none"):
        said = (
            "a virtual machine"
            if re.search(r"^flags\b.*\bhypervisor\b", _read("/proc/cpuinfo"), re.MULTILINE)
            else "none"
        )
    inside = (_said(("systemd-detect-virt", "--container")) or "").strip()
    return f"{said}, in a container ({inside})" if inside not in ("", "none") else said


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return UNKNOWN


def _version(command: tuple[str, ...]) -> str:
    said = _said(command)
    if said is None:
        return "not installed"
    match = _NUMBER.search(said)
    return match[0] if match else UNKNOWN


def _said(command: tuple[str, ...]) -> str | None:
    """Both streams of it, whatever its exit code; None where it can't be run."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if command[0] == "git" and done.returncode:
        return None
    return done.stdout + done.stderr
