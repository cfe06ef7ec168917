"""`nbdresize bench`: loads on any NBD server, measured or verified."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nbdresize.cli import options, output, progress
from nbdresize.cli.failures import Misuse
from nbdresize.cli.output import Column
from nbdresize.errors import InvalidArgument, NotAuthorized

if TYPE_CHECKING:
    from nbdresize.loads.model import Latency, Load, Measured

_BENCH = options.explained(
    "Put loads on any NBD server, and tell how fast it answers.",
    """
    nbdresize bench --uri nbd://localhost/web1/disk0
    nbdresize bench --uri nbd://localhost/web1/disk0 --json
    nbdresize bench --uri nbd://localhost --block 4K --depth 64 --seconds 5
    nbdresize bench --uri nbd://localhost/scratch --operation write --write
    nbdresize bench --uri nbd://localhost/scratch --verify --write
    nbdresize bench --list
    """,
    "Without more it reads only, in all the shapes that --list tells, which takes about a minute."
    "\n\nWARNING: --write adds loads that write, and DESTROYS WHAT IS ON THE DISK."
    "\n\n--block, --depth, --connections, --pattern or --operation ask for one load of your own. --verify runs each"
    " load once and compares every byte, instead of measuring: what is read with what a plain read gives, what is"
    " written with what it has to be. The engine 'batch' is our own client; 'fio' is fio's nbd engine, and 'nbdcopy'"
    " reads, or with --write overwrites, all of the disk once. Latencies of 'batch' are of every 16th request where"
    " requests are small and many.",
)


class EngineName(StrEnum):
    """Those of nbdresize.loads.model, which is imported only to run them."""

    BATCH = "batch"
    FIO = "fio"
    NBDCOPY = "nbdcopy"


class OperationName(StrEnum):
    READ = "read"
    WRITE = "write"
    MIXED = "mixed"


class Pattern(StrEnum):
    RANDOM = "random"
    SEQUENTIAL = "sequential"


_Uri = Annotated[str | None, typer.Option("--uri", metavar="URI", help="The disk, as clients attach it.")]
_Seconds = Annotated[
    float, typer.Option("--seconds", metavar="SECONDS", callback=options.finite, help="How long each load goes on.")
]
_Size = Annotated[str | None, typer.Option("--block", metavar="SIZE", help="Of each request: 4K, 1M.")]
_Depth = Annotated[int | None, typer.Option("--depth", metavar="N", help="Requests under way on a connection.")]
_Connections = Annotated[int | None, typer.Option("--connections", metavar="N", help="Connections at once.")]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("bench", **_BENCH)(bench)


def bench(
    uri: _Uri = None,
    write: Annotated[bool, typer.Option("--write", help="Write, too: DESTROYS WHAT IS ON THE DISK.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every byte instead of measuring.")] = False,
    seconds: _Seconds = 2.0,
    engine: Annotated[EngineName, typer.Option("--engine", help="Who puts the load on.")] = EngineName.BATCH,
    block: _Size = None,
    depth: _Depth = None,
    connections: _Connections = None,
    pattern: Annotated[Pattern | None, typer.Option("--pattern", help="In which order.")] = None,
    operation: Annotated[OperationName | None, typer.Option("--operation", help="What requests do.")] = None,
    timeout: options.Timeout = 30.0,
    listing: Annotated[bool, typer.Option("--list", help="Print the loads, and do nothing.")] = False,
    json: options.Json = False,
) -> None:
    from nbdresize.loads import standard
    from nbdresize.loads.limits import check_load
    from nbdresize.loads.model import Engine

    own = _own_load(engine, block, depth, connections, pattern, operation, write=write)
    chosen = [own] if own is not None else standard.loads(Engine(engine.value), writes=write)
    for load in chosen:
        check_load(load)
    if listing:
        _list(chosen, json=json)
        return
    if uri is None:
        raise Misuse("There is no URI", "give the server's: --uri nbd://localhost/web1/disk0")
    chosen, left_out, size = _fitting(chosen, uri, timeout, write=write)
    results: list[Measured | int] = []
    for number in (signal.SIGTERM, signal.SIGHUP):  # what was started ends as with Ctrl-C
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        _run(chosen, _step(uri, seconds, timeout, verify=verify), results, json=json)
    except BaseException:
        if results and not json:
            _show(chosen[: len(results)], results)
        raise
    if json:
        rows = [_row_json(load, result) for load, result in zip(chosen, results, strict=True)]
        names = [standard.name(load) for load in left_out]
        output.document({"uri": uri, "size": size, "loads": rows, "left_out": names})
        return
    _show(chosen, results)
    if verify:
        _tell_coarse(chosen, size)
    if left_out:
        output.line(f"{output.counted(len(left_out), 'load')} left out: their blocks don't suit this disk")


def _own_load(
    engine: EngineName,
    block: str | None,
    depth: int | None,
    connections: int | None,
    pattern: Pattern | None,
    operation: OperationName | None,
    *,
    write: bool,
) -> "Load | None":
    """The one load that the options ask for; None where they ask for none."""
    from nbdresize.loads.model import Engine, Load, Operation
    from nbdresize.units import parse_size

    if all(option is None for option in (block, depth, connections, pattern, operation)):
        return None
    copies = engine is EngineName.NBDCOPY
    if copies and pattern is Pattern.RANDOM:
        raise Misuse("nbdcopy does not copy at random", "leave --pattern out")
    if copies and operation is OperationName.MIXED:
        raise Misuse("nbdcopy does not read and write at once", "give --operation read or write")
    load = Load(
        Engine(engine.value),
        Operation((operation or OperationName.READ).value),
        parse_size(block) if block is not None else (256 << 10 if copies else 4096),
        16 if depth is None else depth,
        not copies and pattern is not Pattern.SEQUENTIAL,
        1 if connections is None else connections,
    )
    if load.writes and not write:
        raise Misuse(f"--operation {load.operation.value} destroys what is on the disk", "add --write if that may be")
    return load


def _fitting(loads: "Sequence[Load]", uri: str, timeout: float, *, write: bool) -> "tuple[list[Load], list[Load], int]":
    """Those that the disk is large enough for, the others, and its size. Raises where it suits none."""
    from nbdresize.client import connect
    from nbdresize.loads.limits import check_disk

    fitting: list[Load] = []
    left_out: list[Load] = []
    with connect(uri, timeout) as connection:
        if write and connection.read_only:
            raise NotAuthorized(f"{connection.target.shown} is served read-only", "leave --write out")
        for load in loads:
            try:
                check_disk(load, connection.negotiated.export, connection.target.shown)
            except InvalidArgument:
                if len(loads) == 1:
                    raise
                left_out.append(load)
            else:
                fitting.append(load)
        if not fitting:
            check_disk(loads[0], connection.negotiated.export, connection.target.shown)
        return fitting, left_out, connection.size


def _step(uri: str, seconds: float, timeout: float, *, verify: bool) -> "Callable[[Load], Measured | int]":
    """What is done with each load: measured, or verified."""
    from nbdresize.loads.checking import check
    from nbdresize.loads.running import run

    if verify:
        return lambda load: check(load, uri, patience=timeout)
    return lambda load: run(load, uri, seconds, patience=timeout)


def _run(
    loads: "Sequence[Load]", step: "Callable[[Load], Measured | int]", results: "list[Measured | int]", *, json: bool
) -> None:
    """Each of them in turn; what is there when one fails is in `results`."""
    from nbdresize.control.model import Progress
    from nbdresize.loads.standard import name

    with progress.shown(json=json) as listener:
        for number, load in enumerate(loads):
            listener(Progress(name(load), number, len(loads), "loads"))
            results.append(step(load))


def _list(loads: "Sequence[Load]", *, json: bool) -> None:
    from nbdresize.loads.standard import name

    if json:
        output.document([_load_json(load) for load in loads])
        return
    for load in loads:
        output.line(name(load))


def _show(loads: "Sequence[Load]", results: "Sequence[Measured | int]") -> None:
    from nbdresize.loads.standard import name

    rows = []
    verified = 0
    for load, result in zip(loads, results, strict=True):
        if isinstance(result, int):
            verified += result
            rows.append([name(load), output.about(result)])
        else:
            speed = f"{result.throughput / (1 << 20):,.0f} MiB/s"
            rows.append([name(load), f"{result.rate:,.0f}", speed, *_latency_cells(result.latency)])
    titles = ["requests/s", "throughput", "median", "99 %", "99.9 %", "slowest"]
    if len(rows[0]) == 2:
        titles = ["verified"]
    output.table([Column("load"), *(Column(title, right=True) for title in titles)], rows)
    if verified:
        output.line(f"Every byte was right: {output.about(verified)}")


def _tell_coarse(loads: "Sequence[Load]", size: int) -> None:
    """Say where less was verified than of other loads."""
    from nbdresize.loads.checking import MOST_BLOCKS, coarse

    if any(coarse(load, size) for load in loads):
        output.line(f"Small blocks: no more than {MOST_BLOCKS} of a load are verified; a larger --block covers more")


def _latency_cells(latency: "Latency | None") -> list[str]:
    if latency is None:
        return ["", "", "", ""]
    return [_short_time(value) for value in (latency.median, latency.p99, latency.p999, latency.slowest)]


def _short_time(seconds: float) -> str:
    """With three digits: `8.25 µs`, `1.20 ms`, `2.00 s`."""
    micro = "µs" if output.can_show("µ") else "us"
    for unit, factor in ((micro, 1e6), ("ms", 1e3)):
        value = seconds * factor
        if value < 999.5:
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return f"{seconds:.2f} s"


def _load_json(load: "Load") -> dict[str, Any]:
    from nbdresize.loads.standard import name

    return {
        "name": name(load),
        **asdict(load),
        "engine": load.engine.value,
        "operation": load.operation.value,
    }


def _row_json(load: "Load", result: "Measured | int") -> dict[str, Any]:
    if isinstance(result, int):
        return {**_load_json(load), "verified": result}
    return {**_load_json(load), **asdict(result), "rate": result.rate, "throughput": result.throughput}
