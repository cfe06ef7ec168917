"""What a request costs the native server in instructions and system calls: numbers that repeat on a noisy machine.

The server runs under callgrind, and under strace, and gets requests in batches of the depth, each batch whole; the
difference of two runs that differ in the number of requests alone is what the requests cost. Instructions are those in
user space, which is the interpreter and what this project runs in it; the kernel's part is not among them. Under
callgrind cachestat(2) is not to be had, so its place is taken by another call that costs as much in user space.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bench.counting import Callgrind, Counting, Strace, per_request
from bench.lockstep import Case
from bench.model import Figure, Section
from bench.options import Options
from nbdresize.errors import ProgramMissing
from nbdresize.loads.model import Operation
from nbdresize.protocol.negotiated import Mode

_KIB = 1 << 10
_REQUESTS = 256
_REPEATS = 2
_FILE_SIZE = 16 << 20
_LOADS = (
    (Operation.READ, 4 * _KIB),
    (Operation.WRITE, 4 * _KIB),
    (Operation.READ, 64 * _KIB),
    (Operation.WRITE, 256 * _KIB),
)
_DEPTHS = (1, 16, 64)
_QUICK_BLOCK, _QUICK_DEPTH = 4 * _KIB, 16
_TOOLS: tuple[type[Counting], ...] = (Callgrind, Strace)


def run(options: Options, tell: Callable[[str], None], *, requests: int = _REQUESTS) -> Section:
    """Raises ProgramMissing for a tool, after what can be had without it, and ServerFailed."""
    section = Section("instructions", "Instructions and system calls of the native server")
    options.keep(section)
    missing: list[ProgramMissing] = []
    with tempfile.TemporaryDirectory(prefix="nbdresize-bench-", dir=options.directory) as temporary:
        file = Path(temporary) / "disk.img"
        file.write_bytes(os.urandom(_FILE_SIZE))
        for tool in _TOOLS:
            wanted = list(cases(options, tool))
            if not wanted:
                continue
            try:
                with tool.started(file, Path(temporary)) as counter:
                    _count(counter, wanted, requests, section, tell)
            except ProgramMissing as error:
                missing.append(error)
                section.remarks.append(f"Not counted, {tool.unit}: {error}")
    if missing:
        raise missing[0]
    return section


def names(options: Options) -> list[str]:
    """The rows of such a run."""
    return [_name(case, tool) for tool in _TOOLS for case in cases(options, tool)]


def cases(options: Options, tool: type[Counting]) -> Iterator[Case]:
    """What this run is to count with that tool."""
    for operation, block in _LOADS:
        for depth in _DEPTHS:
            for mode in Mode:
                case = Case(operation, block, depth, mode)
                if options.wants(_name(case, tool), quick=block == _QUICK_BLOCK and depth == _QUICK_DEPTH):
                    yield case


def _name(case: Case, tool: type[Counting]) -> str:
    size = f"{case.block // _KIB} KiB {case.operation.value}"
    return f"{tool.what}: {size}, depth {case.depth}, {case.mode.value} replies"


def _count(
    counter: Counting, wanted: Iterable[Case], requests: int, section: Section, tell: Callable[[str], None]
) -> None:
    for case in wanted:
        found = [per_request(counter, case, requests) for _ in range(_REPEATS)]
        name = _name(case, type(counter))
        figure = Figure.of(name, counter.unit, [sum(each.values()) for each in found], counted=True)
        section.figures.append(figure)
        parts = ", ".join(f"{kind} {count:.2f}" for kind, count in sorted(found[0].items()) if round(count, 2))
        tell(f"{name}: {figure.value.median:,.2f}" + (f" ({parts})" if len(found[0]) > 1 else ""))
        if len(found[0]) > 1:
            section.remarks.append(f"{name}: {parts}.")
