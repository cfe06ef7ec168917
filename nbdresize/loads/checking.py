"""The verified run of a load: every byte that it writes or reads is compared with what another, plain way gives.

The plain way is nbdresize.client, one request at a time; it shares no code with the load's own loop but the handshake.
"""

import hashlib
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from nbdresize.client import Connection, connect
from nbdresize.client.deadline import Deadline
from nbdresize.client.stream import Stream
from nbdresize.errors import Inconsistent, PeerFailed, StateUnusable
from nbdresize.loads import copying
from nbdresize.loads.batch import PATIENCE, Order
from nbdresize.loads.channel import channel
from nbdresize.loads.limits import check_disk, check_load
from nbdresize.loads.model import Engine, Load, Operation
from nbdresize.loads.pipeline import Pipeline, replies_for
from nbdresize.loads.requests import READ_SHARE, RequestTable
from nbdresize.loads.team import opened, part
from nbdresize.protocol.constants import NBD_FLAG_SEND_FLUSH
from nbdresize.protocol.export_info import BlockSizes
from nbdresize.protocol.negotiated import Mode

VERIFIED = 64 << 20
"""How much of a disk is verified in one run, unless somebody says otherwise, in bytes; nbdcopy always copies all."""
MOST_BLOCKS = 65536
"""Of blocks so small that more of them would be as much, only so many are verified."""

_OWN_SECONDS = 300.0
_ANSWERS_IN_ALL = 10
_READ_SECONDS = 0.1
"""A verified run may take as long as the server may take for so many answers, _OWN_SECONDS, and _READ_SECONDS for each
block twice: most are read one at a time, from servers that may be far away."""
_PIECE = 1 << 20
_KEEPS = "the server, or what lies below it, does not keep what it is given"
_ANSWERS = "the server answers from somewhere else than the file that it is meant to serve"
_GIVES = "the server gives different bytes by different ways, or somebody writes to the disk meanwhile"

Truth = Callable[[int, int], bytes]
"""What these many bytes at that offset have to be."""


def check(
    load: Load, uri: str, *, reference: Path | None = None, most: int = VERIFIED, patience: float = PATIENCE
) -> int:
    """Run the load once over up to `most` bytes of the disk and verify each of them; how many bytes that were.

    What a load writes is derived from its offset, a round and a number that is new each time; two rounds are written,
    flushed, and read back plainly, and from `reference` too, if that is given: the file with the disk's content. What
    it reads is compared with `reference`, or with a plain read. A mixed load reads blocks that were written before it,
    beside those that it writes.

    The loads of fio are run in the same shape by our own client, with structured replies where the server has them, as
    libnbd asks for them.

    The server may take `patience` seconds for each answer, and a limit holds for all of the run, whatever it does.
    Raises Inconsistent for the first byte that is wrong, and what `running.run` raises.
    """
    check_load(load)
    with connect(uri, patience) as plain:
        if load.engine is Engine.FIO:
            load = replace(load, engine=Engine.BATCH, structured=plain.negotiated.mode is Mode.STRUCTURED)
        check_disk(load, plain.negotiated.export, plain.target.shown)
        limit = Deadline(_longest(load, plain.size, patience))
        run = _Run(load, uri, plain, most, patience, limit)
        try:
            if load.engine is Engine.NBDCOPY:
                return run.copied_to(reference) if load.writes else run.copied_from(reference)
            return run.written(reference) if load.writes else run.read(reference)
        except TimeoutError:
            raise PeerFailed(
                f"A load on {plain.target.shown} could not be verified within {limit.seconds:g} s",
                "check the server, or give it more with --timeout",
            ) from None


def blocks(load: Load, size: int, most: int = VERIFIED) -> int:
    """How many blocks of a disk of `size` bytes are verified, by any engine but nbdcopy."""
    return min(size // load.block, max(most // load.block, 1), MOST_BLOCKS)


def coarse(load: Load, size: int) -> bool:
    """Whether the blocks are so small that less of the disk is verified than of others."""
    return load.engine is not Engine.NBDCOPY and blocks(load, size) < min(size, VERIFIED) // load.block


def _longest(load: Load, size: int, patience: float) -> float:
    """Seconds for all of a verified run. What nbdcopy has copied is then compared, in as much time again."""
    copies = 2 * copying.longest(size, patience) if load.engine is Engine.NBDCOPY else 0.0
    reads = 0.0 if copies else 2 * blocks(load, size) * _READ_SECONDS
    return min(_OWN_SECONDS + _ANSWERS_IN_ALL * patience + copies + reads, copying.LONGEST)


@dataclass
class _Run:
    """One verified run; `plain` is the connection for the plain way.

    Everything raises TimeoutError once `limit` has passed.
    """

    load: Load
    uri: str
    plain: Connection
    most: int
    patience: float
    limit: Deadline

    def read(self, reference: Path | None) -> int:
        offsets = self._offsets()
        kept = self._once(self.load, offsets, b"\1" * len(offsets), _nothing)
        kept.sort(key=lambda pair: pair[0])
        with self._truth(reference) as truth:
            for (offset, found), right in zip(kept, self._each(truth, sorted(offsets)), strict=True):
                self._equal(found, right, offset, _GIVES)
        return len(kept) * self.load.block

    def written(self, reference: Path | None) -> int:
        offsets, key = self._offsets(), os.urandom(16)
        block, verified = self.load.block, 0
        mixed = self.load.operation is Operation.MIXED
        writing = replace(self.load, operation=Operation.WRITE)
        for number in range(2):
            before, now = (_pattern(key, each) for each in (number - 1, number))
            reads = bytes(mixed and number > 0 and random.random() < READ_SHARE for _ in offsets)
            shape = self.load if any(reads) else writing
            kept = self._once(shape, offsets, reads, lambda offset, now=now: now(block, offset))  # type: ignore[misc]
            for offset, found in kept:
                self._equal(found, before(block, offset), offset, _KEEPS)
            self._flush()
            places = sorted(zip(offsets, reads, strict=True))
            with self._truth(reference) as held:
                for (offset, was_read), found in zip(places, self._each(self._plain, sorted(offsets)), strict=True):
                    truth = (before if was_read else now)(block, offset)
                    self._equal(found, truth, offset, _KEEPS)
                    if reference is not None:
                        self._equal(held(block, offset), truth, offset, _ANSWERS)
            verified += (len(kept) + len(offsets)) * block
        return verified

    def _flush(self) -> None:
        if self.plain.negotiated.export.flags & NBD_FLAG_SEND_FLUSH:
            self.plain.flush()

    def copied_from(self, reference: Path | None) -> int:
        size = self.plain.size
        with copying.room_for(size) as directory, self._truth(reference) as truth:
            path = directory / "copy"
            copying.copy(self.load, self.uri, str(path), size, patience=self.patience)
            with _file(path) as copied:
                for offset, length in _pieces(size):
                    self._equal(copied(length, offset), truth(length, offset), offset, _GIVES)
        return size

    def copied_to(self, reference: Path | None) -> int:
        size = self.plain.size
        with copying.source(size, sparse=self.load.sparse) as path, _file(path) as truth:
            copying.copy(self.load, str(path), self.uri, size, patience=self.patience)
            self._flush()
            with self._truth(reference) as held:
                for offset, length in _pieces(size):
                    expected = truth(length, offset)
                    self._equal(self._plain(length, offset), expected, offset, _KEEPS)
                    if reference is not None:
                        self._equal(held(length, offset), expected, offset, _ANSWERS)
        return size

    def _offsets(self) -> list[int]:
        """Those of the blocks to verify, none of them twice.

        Of random ones, half lie close together at the beginning of the disk, since a server may do what it is asked
        for again and again in another way than the rest.
        """
        block = self.load.block
        there, count = self.plain.size // block, blocks(self.load, self.plain.size, self.most)
        chosen = list(range(count))
        if self.load.random:
            far = min(count // 2, there - count)
            chosen = random.sample(range(count), count - far) + random.sample(range(count, there), far)
            random.shuffle(chosen)
        return [number * block for number in chosen]

    def _once(
        self, shape: Load, offsets: Sequence[int], reads: bytes, content: Callable[[int], bytes]
    ) -> list[tuple[int, memoryview]]:
        """Every request once, all connections at the same time; the offsets that were read, and what came."""
        parts = [slice(number, None, shape.connections) for number in range(shape.connections)]
        shares = [_Share(shape, offsets[part], reads[part], content) for part in parts if offsets[part]]
        with _connected(replace(shape, connections=len(shares)), self) as streams:
            steps = [_runner(share, stream, self) for share, stream in zip(shares, streams, strict=True)]
            _together(steps, streams, self.limit)
            for stream in streams:
                part(stream)
        return [pair for share in shares for pair in share.found()]

    def _plain(self, length: int, offset: int) -> bytes:
        """These bytes, one request at a time."""
        sizes = self.plain.negotiated.export.block_sizes or BlockSizes()
        longest = max(min(_PIECE, sizes.maximum) // sizes.minimum, 1) * sizes.minimum
        pieces = []
        for at in range(0, length, longest):
            self.limit.remaining()
            pieces.append(self.plain.read(min(longest, length - at), offset + at))
        return b"".join(pieces)

    def _each(self, truth: Truth, offsets: Sequence[int]) -> Iterator[memoryview]:
        """The block at each of these offsets, which are in order; blocks side by side are got together."""
        block, first = self.load.block, 0
        while first < len(offsets):
            behind = first + 1
            while behind < len(offsets) and offsets[behind] == offsets[behind - 1] + block:
                if (behind - first + 1) * block > _PIECE:
                    break
                behind += 1
            run = memoryview(truth((behind - first) * block, offsets[first]))
            yield from (run[at : at + block] for at in range(0, len(run), block))
            first = behind

    def _equal(self, found: bytes | memoryview, truth: bytes | memoryview, offset: int, way_out: str) -> None:
        if found == truth:
            return
        wrong = [at for at in range(len(truth)) if found[at] != truth[at]]
        raise Inconsistent(
            f"Byte {offset + wrong[0]} of {self.plain.target.shown} is {found[wrong[0]]:#04x} and should be"
            f" {truth[wrong[0]]:#04x}; {len(wrong)} of the {len(truth)} bytes from {offset} on are wrong",
            way_out,
        )

    @contextmanager
    def _truth(self, reference: Path | None) -> Iterator[Truth]:
        if reference is None:
            yield self._plain
        else:
            with _file(reference) as truth:
                yield truth


class _Share:
    """What one connection does of a verified run."""

    def __init__(self, shape: Load, offsets: Sequence[int], reads: bytes, content: Callable[[int], bytes]) -> None:
        self._offsets, self._reads, self._block = offsets, reads, shape.block
        self.table = RequestTable.once(shape, offsets, reads, lambda number: content(offsets[number]))
        self._places = {number: place for place, number in enumerate(n for n, read in enumerate(reads) if read)}
        self._kept = memoryview(bytearray(len(self._places) * shape.block))

    def deliver(self, number: int, at: int, data: memoryview | None, length: int) -> None:
        """Keep what was read; zeroes are there already."""
        if data is not None:
            begin = self._places[number] * self._block + at
            self._kept[begin : begin + length] = data

    def found(self) -> Iterator[tuple[int, memoryview]]:
        for number, place in self._places.items():
            yield self._offsets[number], self._kept[place * self._block : (place + 1) * self._block]


def _runner(share: _Share, stream: Stream, run: _Run) -> Callable[[], object]:
    replies = replies_for(share.table, structured=run.load.structured, deliver=share.deliver)
    through = channel(stream, run.patience)
    return Pipeline(through, share.table, replies, run.plain.target.shown, run.patience).once


@contextmanager
def _connected(load: Load, run: _Run) -> Iterator[list[Stream]]:
    streams: list[Stream] = []
    try:
        while len(streams) < load.connections:
            run.limit.remaining()
            streams.append(opened(Order(load, run.uri, 1.0, patience=run.patience))[0])
        yield streams
    finally:
        for stream in streams:
            stream.close()


def _together(steps: Sequence[Callable[[], object]], streams: Sequence[Stream], limit: Deadline) -> None:
    """Run all of them at the same time. Raises what the first one that fails raises; the others end then.

    Raises TimeoutError at the limit, where they are ended.
    """
    failures: list[BaseException] = []

    def run(step: Callable[[], object]) -> None:
        try:
            step()
        except BaseException as error:  # noqa: BLE001  raised below, by whoever waits
            failures.append(error)
            _hang_up(streams)

    threads = [threading.Thread(target=run, args=(step,), daemon=True) for step in steps]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(limit.remaining())
    except BaseException:
        _hang_up(streams)
        for thread in threads:
            thread.join()
        raise
    if failures:
        raise failures[0]


def _hang_up(streams: Sequence[Stream]) -> None:
    for stream in streams:
        try:
            socket.socket.shutdown(stream.socket, socket.SHUT_RDWR)
        except OSError:
            continue  # that one has ended already


def _pattern(key: bytes, number: int) -> Truth:
    """What round `number` writes: different at every offset, in every round and in every run."""
    return lambda length, offset: hashlib.shake_128(b"%b %d %d" % (key, number, offset)).digest(length)


def _nothing(offset: int) -> bytes:
    return b""


def _pieces(size: int) -> Iterator[tuple[int, int]]:
    for offset in range(0, size, _PIECE):
        yield offset, min(_PIECE, size - offset)


@contextmanager
def _file(path: Path) -> Iterator[Truth]:
    """What a file holds. Raises StateUnusable where it can't be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StateUnusable(f"{path} can't be read: {error.strerror}", "give another file") from error
    try:
        yield lambda length, offset: os.pread(descriptor, length, offset).ljust(length, b"\0")
    finally:
        os.close(descriptor)
