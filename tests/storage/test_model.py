"""Any sequence of operations leaves a volume as it leaves an array of bytes: on every file system, and on devices."""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbdresize.storage.block import BlockVolume
from nbdresize.storage.handle import Handle, NotFast
from nbdresize.storage.volume import Volume
from tests.storage.conftest import DEVICE_SIZE, FileSystem, LoopDevice

MOST = 256 << 10
COUNTER = itertools.count()

EDGES = (0, 1, 511, 512, 513, 4095, 4096, 4097, 65_535, 65_536, MOST - 4096, MOST - 1, MOST)
PLACES = st.one_of(st.sampled_from(EDGES), st.integers(0, MOST))

model_settings = settings(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@dataclass
class Model:
    """A volume, an open handle on it, and the bytes that it should have."""

    volume: Volume
    handle: Handle
    content: bytearray
    steps: list[str] = field(default_factory=list)

    def write(self, start: int, end: int, seed: int) -> None:
        start, end = self._within(start, end)
        data = random.Random(seed).randbytes(end - start)
        self.handle.write(data, start, fua=bool(seed & 1))
        self.content[start:end] = data

    def trim(self, start: int, end: int, seed: int) -> None:
        """Each byte is zero afterwards or as it was."""
        start, end = self._within(start, end)
        self.handle.trim(start, end - start, fua=bool(seed & 1))
        found = self.handle.read(end - start, start)
        old = self.content[start:end]
        assert all(now in (0, then) for now, then in zip(found, old, strict=True))
        self.content[start:end] = found

    def zero(self, start: int, end: int, seed: int) -> None:
        start, end = self._within(start, end)
        try:
            self.handle.zero(start, end - start, may_trim=bool(seed & 1), fast=bool(seed & 2), fua=bool(seed & 4))
        except NotFast:
            assert seed & 2
            return
        self.content[start:end] = bytes(end - start)

    def resize(self, start: int, end: int, seed: int) -> None:
        size = (start + end) // 2
        if size < len(self.content):
            self.volume.shrink(size)
            del self.content[size:]
        else:
            self.volume.grow(size)
            self.content.extend(bytes(size - len(self.content)))

    def reopen(self, start: int, end: int, seed: int) -> None:
        self.handle.close()
        self.handle = self.volume.open()

    def flush(self, start: int, end: int, seed: int) -> None:
        self.handle.flush()

    def check(self, start: int, end: int) -> None:
        """All of the content, a part of it by the other way of reading, and what the extents say."""
        assert self.handle.read(len(self.content), 0) == self.content
        start, end = self._within(start, end)
        buffer = bytearray(end - start)
        self.handle.read_into(buffer, start)
        assert buffer == self.content[start:end]
        at = start
        for extent in self.handle.extents(start, end - start):
            assert extent.length > 0
            assert extent.zero or not extent.hole
            assert not extent.zero or not any(self.content[at : at + extent.length])
            at += extent.length
        assert at == end

    def _within(self, start: int, end: int) -> tuple[int, int]:
        start, end = sorted((min(start, len(self.content)), min(end, len(self.content))))
        return start, end


Step = Callable[[Model, int, int, int], None]
STEPS: tuple[Step, ...] = (
    Model.write,
    Model.write,
    Model.trim,
    Model.zero,
    Model.zero,
    Model.resize,
    Model.resize,
    Model.reopen,
    Model.flush,
)
sequences = st.lists(st.tuples(st.sampled_from(STEPS), PLACES, PLACES, st.integers(0, 255)), max_size=25)
Sequence = list[tuple[Step, int, int, int]]


def play(volume: Volume, size: int, sequence: Sequence) -> None:
    model = Model(volume, volume.open(), bytearray(size))
    try:
        for step, start, end, seed in sequence:
            step(model, start, end, seed)
            model.check(start, end)
    finally:
        model.handle.close()


@given(sequence=sequences, size=PLACES, preallocate=st.booleans())
@model_settings
def test_a_file_is_like_an_array_of_bytes(
    file_system: FileSystem, sequence: Sequence, size: int, preallocate: bool
) -> None:
    name = f"disk{next(COUNTER)}"
    volume = file_system.pool.create(name, size, preallocate=preallocate)
    try:
        play(volume, size, sequence)
        assert volume.size() == volume.path.stat().st_size
    finally:
        file_system.pool.delete(name)


@given(sequence=sequences, size=PLACES)
@model_settings
def test_a_device_is_like_an_array_of_bytes(device: LoopDevice, sequence: Sequence, size: int) -> None:
    with BlockVolume(device.path).open() as handle:
        handle.write(b"\xa5" * 2 * MOST, 0)  # stale bytes, of which none may be seen
        handle.zero(0, size)
        volume = BlockVolume(device.path, known_size=size)
        play(volume, size, sequence)
        assert volume.size() == DEVICE_SIZE
        assert handle.read(MOST, MOST) == b"\xa5" * MOST
