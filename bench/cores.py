"""Which core is the client's and which the server's: two that share as little as this machine has."""

import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")


def pair(cpus: Path = _CPUS) -> tuple[int, int]:
    """The client's and the server's, both of those that this process may use; the same one where there is only one.

    Of two threads of one core, each takes from the other what it uses, so the server's is of another core where one is
    to be had; of the same processor rather than another one, since between two memory and caches are further away.
    """
    usable = sorted(os.sched_getaffinity(0))
    client = usable[0]
    others = [each for each in usable if each != client]
    if not others:
        return client, client
    elsewhere = [each for each in others if each not in siblings(client, cpus)]
    near = [each for each in elsewhere if _processor(each, cpus) == _processor(client, cpus)]
    return client, (near or elsewhere or others)[0]


def siblings(number: int, cpus: Path = _CPUS) -> set[int]:
    """The threads of the core that this one is of, itself among them; as far as the kernel tells."""
    for name in ("core_cpus_list", "thread_siblings_list"):
        try:
            return {number} | _numbers((cpus / f"cpu{number}/topology" / name).read_text())
        except (OSError, ValueError):
            continue
    return {number}


def described(cpus: Path = _CPUS) -> str:
    """The pair in words, for the report."""
    client, server = pair(cpus)
    if client == server:
        return f"client and server share core {client}"
    what = "two threads of one core" if server in siblings(client, cpus) else "a core each"
    return f"client on {client}, server on {server}: {what}"


def _processor(number: int, cpus: Path) -> str:
    try:
        return (cpus / f"cpu{number}/topology/physical_package_id").read_text().strip()
    except OSError:
        return ""


def _numbers(text: str) -> set[int]:
    """Of a list as the kernel writes it, such as `0-1,4`. Raises ValueError."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found
