"""The processes of a load: one for each connection, forked from one that has made everything ready.

The parent of them all reads an order from its standard input, and prints what came of it, one line of JSON. It ends
when its standard input does, and its children with it.
"""

import json
import multiprocessing
import os
import sys
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from typing import Any

from nbdresize.client.deadline import Deadline
from nbdresize.client.opening import open_export
from nbdresize.client.stream import Stream
from nbdresize.client.uri import parse_uri
from nbdresize.errors import ERRORS, NbdresizeError, PeerFailed
from nbdresize.loads.batch import Order
from nbdresize.loads.channel import channel
from nbdresize.loads.latencies import Latencies
from nbdresize.loads.limits import check_disk
from nbdresize.loads.pipeline import Counted, Pipeline, replies_for
from nbdresize.loads.requests import RequestTable
from nbdresize.protocol.constants import NBD_CMD_DISC
from nbdresize.protocol.negotiated import Mode, Negotiated
from nbdresize.protocol.transmission import Request

_PARTING_SECONDS = 1.0
_HEAD_START = 0.005
"""From the word to begin until the beginning, in seconds for each connection: all have heard it then."""

_processes = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class _Member:
    """A child, from its parent's side."""

    process: Any
    pipe: Pipe


def main() -> int:
    """Do what the order on standard input says."""
    order = Order.from_json(sys.stdin.buffer.readline())
    try:
        answer = _lead(order)
    except NbdresizeError as error:
        answer = _error_json(error)
    except EOFError:
        return 1  # whoever gave the order has gone
    print(json.dumps(answer), flush=True)
    return 0


def opened(order: Order) -> tuple[Stream, Negotiated]:
    """A connection to the disk in the form that the load is to have, checked to be fit for it."""
    target = parse_uri(order.uri)
    best = Mode.STRUCTURED if order.load.structured else Mode.SIMPLE
    stream, negotiated = open_export(target, order.patience, best=best)
    try:
        check_disk(order.load, negotiated.export, target.shown)
        if order.load.structured and negotiated.mode is not Mode.STRUCTURED:
            raise PeerFailed(f"The server at {target.shown} has no structured replies", "do without --structured")
    except BaseException:
        stream.close()
        raise
    return stream, negotiated


def part(stream: Stream) -> None:
    """Take leave of the server."""
    stream.part(Request(0, NBD_CMD_DISC, 0, 0, 0).pack(Mode.SIMPLE), Deadline(_PARTING_SECONDS))


def _lead(order: Order) -> dict[str, Any]:
    if order.core is not None:
        os.sched_setaffinity(0, {order.core})
    stream, negotiated = opened(order)
    table = RequestTable(order.load, negotiated.export.size)
    members = [
        _started(order, table, number, stream if number == 0 else None) for number in range(order.load.connections)
    ]
    stream.close()
    try:
        _gathered(members)
        begin = time.monotonic() + _HEAD_START * len(members)
        for member in members:
            member.pipe.send(begin)
        results = _gathered(members)
        for member in members:
            member.process.join(2 * _PARTING_SECONDS)
        return _together(order, results)
    finally:
        for member in members:
            member.process.kill()
            member.process.join()


def _started(order: Order, table: RequestTable, number: int, stream: Stream | None) -> _Member:
    ours, theirs = _processes.Pipe()
    process = _processes.Process(target=_work, args=(order, table, number, stream, theirs), daemon=True)
    process.start()
    theirs.close()
    return _Member(process, ours)


def _work(order: Order, table: RequestTable, number: int, stream: Stream | None, pipe: Pipe) -> None:
    """One connection's part, in a process of its own."""
    try:
        if stream is None:
            stream, _ = opened(order)
        pipeline = Pipeline(
            channel(stream, order.patience),
            table,
            replies_for(table, structured=order.load.structured),
            parse_uri(order.uri).shown,
            order.patience,
            table.share(number, order.load.connections),
        )
        pipe.send({})
        counted = pipeline.run(pipe.recv(), order.warm_up, order.seconds)
        pipe.send(counted)
        part(stream)
    except NbdresizeError as error:
        pipe.send(error)


def _gathered(members: list[_Member]) -> list[Any]:
    """What each child says next. Raises what any of them fails with, and EOFError where nobody waits any more."""
    said: dict[int, Any] = {}
    while len(said) < len(members):
        silent = {member.pipe: number for number, member in enumerate(members) if number not in said}
        for ready in wait([*silent, sys.stdin.fileno()]):
            if not isinstance(ready, Pipe):
                raise EOFError
            message = ready.recv()
            if isinstance(message, NbdresizeError):
                raise message
            said[silent[ready]] = message
    return [said[number] for number in range(len(members))]


def _together(order: Order, results: list[Counted]) -> dict[str, Any]:
    """What all connections came to."""
    latencies = Latencies()
    for result in results:
        latencies.merge(result.latencies)
    latency = latencies.summary()
    requests = sum(result.requests for result in results)
    return {
        "requests": requests,
        "payload": requests * order.load.block,
        "seconds": max(result.ended for result in results) - min(result.begun for result in results),
        "latency": None if latency is None else asdict(latency),
    }


def _error_json(error: NbdresizeError) -> dict[str, str]:
    kind = next(kind for kind in ERRORS if isinstance(error, kind))
    return {"error": kind.__name__, "problem": error.problem, "way_out": error.way_out}
