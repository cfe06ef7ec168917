"""The requests of a load, packed once before it begins, so that sending many costs no more than a slice."""

import os
import random
import struct
from collections.abc import Callable, Sequence
from itertools import compress, repeat

from nbdresize.loads.model import Load, Operation
from nbdresize.protocol.constants import NBD_CMD_READ, NBD_CMD_WRITE, NBD_REQUEST_MAGIC
from nbdresize.protocol.negotiated import Mode
from nbdresize.protocol.transmission import Request

MOST = 131072
"""Different requests at most, which come again in the same order: 512 MiB of blocks of 4 KiB."""
READ_SHARE = 0.7
"""Of a mixed load."""

_LEAST = 1024
_HEADER = 28
_PIECE = 4096
_READ_MAGIC, _WRITE_MAGIC = (NBD_REQUEST_MAGIC << 32 | command for command in (NBD_CMD_READ, NBD_CMD_WRITE))

Buffer = bytes | memoryview
Payload = Callable[[int], Buffer]
"""What request number N of a table writes."""


class RequestTable:
    """`len` requests; the number of each is its cookie.

    A random table has every block of the disk once, in random order, or MOST of them.
    """

    def __init__(self, load: Load, size: int, payload: Payload | None = None) -> None:
        """For a disk of `size` bytes; writes write the same random bytes, or what `payload` says."""
        self.load = load
        blocks = size // load.block
        self._offsets = _offsets(load, blocks, max(min(blocks, MOST), _LEAST, 4 * load.depth))
        self._reads = _reads(load.operation, len(self._offsets))
        self._packed = memoryview(_packed(self._offsets, self._reads, load.block))
        self._payload = payload
        self._random = os.urandom(load.block) if load.writes and payload is None else b""

    @classmethod
    def once(cls, load: Load, offsets: Sequence[int], reads: bytes, payload: Payload) -> "RequestTable":
        """A table of just these: 1 in `reads` for each request that reads, 0 for each that writes."""
        table = cls.__new__(cls)
        table.load, table._offsets, table._reads = load, list(offsets), reads
        table._packed = memoryview(_packed(table._offsets, reads, load.block))
        table._payload, table._random = payload, b""
        return table

    def __len__(self) -> int:
        return len(self._offsets)

    def reads(self, number: int) -> bool:
        return bool(self._reads[number])

    def offset(self, number: int) -> int:
        return self._offsets[number]

    def parts(self, first: int, behind: int) -> Sequence[Buffer]:
        """What to send for the requests from `first` up to `behind`, without it; at least one."""
        count = behind - first
        headers = self._packed[_HEADER * first : _HEADER * behind]
        if self.load.operation is Operation.READ:
            return (headers,)
        reads = self._reads[first:behind]
        reading = sum(reads)
        if reading == count:
            return (headers,)
        parts: list[Buffer] = [b""] * (2 * count)
        parts[::2] = struct.unpack("28s" * count, headers)
        parts[1::2] = repeat(self._random, count) if self._payload is None else map(self._payload, range(first, behind))
        if not reading:
            return parts
        keep = bytearray(b"\1") * (2 * count)
        keep[1::2] = bytes(1 - each for each in reads)
        return list(compress(parts, keep))

    def share(self, number: int, of: int) -> int:
        """Where connection `number` of so many begins, so that all are at work on different parts."""
        return len(self) * number // of


def _offsets(load: Load, blocks: int, count: int) -> list[int]:
    if load.random:
        chosen: Sequence[int] = random.sample(range(blocks), min(blocks, count))
    else:
        chosen = range(min(blocks, count))
    block, there = load.block, len(chosen)
    return [chosen[number % there] * block for number in range(count)]


def _reads(operation: Operation, count: int) -> bytes:
    if operation is Operation.MIXED:
        return bytes(random.random() < READ_SHARE for _ in range(count))
    return bytes([operation is Operation.READ]) * count


def _packed(offsets: Sequence[int], reads: bytes, block: int) -> bytes:
    """All the headers, one after another; see Request.pack, whose layout is taken here as QQQI, many at once."""
    assert Request(0, NBD_CMD_WRITE, 1, 2, 3).pack(Mode.SIMPLE) == struct.pack(">QQQI", _WRITE_MAGIC, 1, 2, 3)
    packed = bytearray()
    for first in range(0, len(offsets), _PIECE):
        numbers = range(first, min(first + _PIECE, len(offsets)))
        fields = [0] * (4 * len(numbers))
        fields[::4] = [_READ_MAGIC if reads[number] else _WRITE_MAGIC for number in numbers]
        fields[1::4] = numbers
        fields[2::4] = offsets[numbers.start : numbers.stop]
        fields[3::4] = repeat(block, len(numbers))
        packed += struct.pack(">" + "QQQI" * len(numbers), *fields)
    return bytes(packed)
