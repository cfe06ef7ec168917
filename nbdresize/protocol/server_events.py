"""How a server's handshake is set up, and what it tells its caller: the vocabulary of `server_handshake`."""

import enum
from dataclasses import dataclass

from nbdresize.protocol.constants import NBD_OPT_INFO


class Tls(enum.Enum):
    """OFF: no TLS. OPTIONAL: for clients that ask. REQUIRED: nothing is told or served without it."""

    OFF = "off"
    OPTIONAL = "optional"
    REQUIRED = "require"


@dataclass(frozen=True)
class HandshakeSettings:
    """What this server offers. A server that does not offer something answers as if it did not know it."""

    tls: Tls = Tls.OFF
    structured: bool = True
    extended: bool = True


@dataclass(frozen=True)
class Send:
    """Send these bytes."""

    data: bytes


@dataclass(frozen=True)
class StartTls:
    """Send `data`, set up TLS on the connection, call `secured`, then feed what comes out of it."""

    data: bytes


@dataclass(frozen=True)
class Aborted:
    """The client has ended the negotiation in good order: send `data`, and close the connection."""

    data: bytes


@dataclass(frozen=True)
class ListWanted:
    """The client asks which exports there are: `answer_list` or `refuse`."""


@dataclass(frozen=True)
class ExportWanted:
    """The client asks about the export `name`, or (`enters`) wants to use it: `accept` or `refuse`."""

    option: int
    name: str
    infos: tuple[int, ...] = ()

    @property
    def enters(self) -> bool:
        return self.option != NBD_OPT_INFO


@dataclass(frozen=True)
class ContextsWanted:
    """The client asks for metadata contexts of the export `name`: `answer_contexts` or `refuse`."""

    option: int
    name: str
    queries: tuple[str, ...]


Question = ListWanted | ExportWanted | ContextsWanted
Event = Send | StartTls | Aborted | Question
