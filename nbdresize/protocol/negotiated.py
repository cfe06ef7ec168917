"""What a handshake has led to; the same on both sides of the connection."""

import enum
from dataclasses import dataclass

from nbdresize.protocol.export_info import ExportInfo


class Mode(enum.Enum):
    """How requests and replies of a connection look.

    SIMPLE: requests of 28 bytes, simple replies of 16. STRUCTURED: the same requests; a READ is answered by chunks,
    and everything else may be. EXTENDED: requests and chunks have headers of 32 bytes with 64-bit lengths, and every
    reply is made of chunks.
    """

    SIMPLE = "simple"
    STRUCTURED = "structured"
    EXTENDED = "extended"


@dataclass(frozen=True)
class MetaContext:
    """A metadata context selected by NBD_OPT_SET_META_CONTEXT: BLOCK_STATUS replies carry its `id`."""

    id: int
    name: str


@dataclass(frozen=True)
class Negotiated:
    """The outcome of a handshake that ended in transmission.

    `name` is the export as the client asked for it, empty for the default export; `export` is what the server told
    of it. `contexts` hold for this export.
    """

    name: str
    export: ExportInfo
    mode: Mode
    contexts: tuple[MetaContext, ...]
    tls: bool
