"""The last stage of a grow: what lies on a disk is grown inside the guest, where its agent allows it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nbdresize.client.deadline import Deadline
from nbdresize.errors import PeerFailed
from nbdresize.guests.agent.by_hand import commands
from nbdresize.guests.agent.places import Place
from nbdresize.guests.agent.session import Agent, Finished, Refused, bounded
from nbdresize.units import format_size

SCRIPT = Path(__file__).with_name("nbdresize-grow")
"""What runs in the guest; its first lines say what it prints."""
GROW_TIME = 60.0
"""Seconds for it. A file system of many TiB may take longer; it goes on by itself then."""

_KINDS_IN_BETWEEN = ("partition", "pv", "lv")
_EXIT_CODES = (0, 1, 3)
_MOST_SHOWN = 8


@dataclass(frozen=True)
class FileSystems:
    """What became of what lies on a disk.

    `grown` names what has the disk's room now, such as `/dev/vda1 ext4 40 GiB`; `changed` says whether anything grew
    just now. `error` says what is still to do, and how; None where nothing is.
    """

    grown: tuple[str, ...]
    changed: bool
    error: PeerFailed | None = None


def grow_file_systems(agent: Agent, place: Place, size: int, timeout: float = GROW_TIME) -> FileSystems:
    """Grow what lies on the guest's disk at `place`, which has `size` bytes by now, within `timeout` seconds.

    Does nothing to what has its size already, so that it may be asked again. Raises PeerFailed where the agent does
    not answer, or the work takes longer than that.
    """
    deadline = Deadline(timeout)
    try:
        finished = agent.run("/bin/sh", ["-s", "--", *_arguments(place, size)], SCRIPT.read_bytes(), timeout)
    except Refused as refusal:  # guest-exec is disabled, or this guest has no shell
        return FileSystems((), False, PeerFailed(refusal.problem, commands(agent, place, deadline)))
    return _outcome(finished)


def _arguments(place: Place, size: int) -> Iterator[str]:
    if place.pci is not None:
        yield from ("--pci", place.pci)
    if place.unit is not None:
        yield from ("--unit", f"{place.unit[0]}:{place.unit[1]}")
    if place.serial is not None:
        yield from ("--serial", place.serial)
    yield from ("--size", str(size))


def _outcome(finished: Finished) -> FileSystems:
    """What the script's lines say. A line that is none of its own says that something else ran there."""
    lines = [bounded(line).split(" ", 2) for line in finished.output.splitlines()[: 8 * _MOST_SHOWN]]
    if finished.code not in _EXIT_CODES or not all(len(line) == 3 for line in lines):
        said = bounded(finished.errors or finished.output) or "nothing"
        return FileSystems(
            (), False, PeerFailed(f"The script in the guest ended with {finished.code} and said: {said}")
        )
    grown = [text for word, device, rest in lines if word in ("grown", "full") and (text := _shown(device, rest))]
    changed = any(word == "grown" for word, _, _ in lines)
    undone = [f"{device}: {rest}" for word, device, rest in lines if word in ("left", "failed")]
    error = _pending(undone) if undone or finished.code != 0 else None
    return FileSystems(tuple(grown[:_MOST_SHOWN]), changed, error)


def _pending(undone: Sequence[str]) -> PeerFailed:
    told = "; ".join(undone[:_MOST_SHOWN]) or "it does not say what"
    return PeerFailed(f"Not everything grew in the guest: {told}", "do that in the guest, or mend it and sync again")


def _shown(device: str, rest: str) -> str:
    """`ext4 OLD NEW` or `ext4 SIZE` of a device, for people; nothing of what is only on the way to a file system."""
    kind, *sizes = rest.split()
    if kind in _KINDS_IN_BETWEEN or not sizes or not sizes[-1].isdecimal() or len(sizes[-1]) > 20:
        return ""
    return f"{device} {kind} {format_size(int(sizes[-1]))}"
