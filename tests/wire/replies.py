"""What the server answers, taken apart."""

import struct
from dataclasses import dataclass, field

from tests.wire import layout


@dataclass(frozen=True)
class Chunk:
    """A simple reply (its `kind` is None), or one chunk of a structured or extended one."""

    cookie: int
    kind: int | None
    done: bool
    payload: bytes
    error: int = 0
    text: str = ""
    offset: int | None = None


@dataclass
class Reply:
    """All that answered one request."""

    chunks: list[Chunk] = field(default_factory=list)

    @property
    def error(self) -> int:
        return next((chunk.error for chunk in self.chunks if chunk.error), 0)

    @property
    def text(self) -> str:
        return next((chunk.text for chunk in self.chunks if chunk.error), "")

    @property
    def kinds(self) -> list[int | None]:
        return [chunk.kind for chunk in self.chunks]

    def data(self, offset: int, length: int) -> bytes:
        """The bytes that a read of this range has got, every one of them exactly once."""
        if self.kinds == [None]:
            return self.chunks[0].payload
        content, covered = bytearray(length), 0
        for chunk in sorted(self.chunks, key=lambda chunk: chunk.payload[:8]):
            at = int.from_bytes(chunk.payload[:8], "big")
            assert at == offset + covered
            if chunk.kind == layout.OFFSET_HOLE:
                assert len(chunk.payload) == 12
                covered += int.from_bytes(chunk.payload[8:], "big")
            else:
                assert chunk.kind == layout.OFFSET_DATA
                content[covered : covered + len(chunk.payload) - 8] = chunk.payload[8:]
                covered += len(chunk.payload) - 8
        assert covered == length
        return bytes(content)

    @property
    def size(self) -> "Size":
        """The one SIZE chunk that it consists of."""
        [chunk] = self.chunks
        return Size.of(chunk)


@dataclass(frozen=True)
class Size:
    """What a SIZE chunk tells."""

    size: int
    generation: int
    maximum: int
    granularity: int
    cause: int

    @classmethod
    def of(cls, chunk: Chunk) -> "Size":
        assert chunk.kind == layout.SIZE_CHUNK, chunk
        return cls(*struct.unpack(">QQQII", chunk.payload))
