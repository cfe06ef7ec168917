"""Every way in which bytes can arrive: whole, byte by byte, with the next message attached, cut anywhere."""

from collections.abc import Iterator, Sequence

from nbdresize.errors import ResourceNotFound
from nbdresize.protocol.constants import NBD_REP_ERR_UNKNOWN
from nbdresize.protocol.export_info import ExportInfo
from nbdresize.protocol.option_replies import ExportEntry
from nbdresize.protocol.server_events import (
    Aborted,
    ContextsWanted,
    Event,
    ExportWanted,
    HandshakeSettings,
    ListWanted,
    Send,
    StartTls,
)
from nbdresize.protocol.server_handshake import ServerHandshake, State

GREETING = b"NBDMAGIC" + b"IHAVEOPT" + b"\x00\x03"
FIXED = b"\x00\x00\x00\x01"
FIXED_NO_ZEROES = b"\x00\x00\x00\x03"


def raw(text: str) -> bytes:
    """Bytes written out in hexadecimal, spaces and line ends aside; 'quoted' parts stand for themselves."""
    parts = text.split("'")
    return b"".join(part.encode() if at % 2 else bytes.fromhex(part) for at, part in enumerate(parts))


def ways(messages: Sequence[bytes]) -> Iterator[list[bytes]]:
    """The messages one by one, all attached to each other, byte by byte, and in two parts cut at every offset."""
    whole = b"".join(messages)
    yield list(messages)
    yield [whole]
    yield [whole[at : at + 1] for at in range(len(whole))]
    for cut in range(1, len(whole)):
        yield [whole[:cut], whole[cut:]]


class Server:
    """A server's handshake with the exports given by name, and all that it has sent since its greeting."""

    def __init__(
        self,
        settings: HandshakeSettings | None = None,
        exports: dict[str, ExportInfo] | None = None,
        contexts: Sequence[str] = ("base:allocation",),
    ) -> None:
        self.handshake = ServerHandshake(settings or HandshakeSettings())
        self.exports = exports or {}
        self.contexts = contexts
        self.sent = b""
        self.events: list[Event] = []
        assert self.handshake.greeting() == GREETING

    def feed(self, data: bytes) -> None:
        """What a server does with received bytes; those after the handshake stay where they are."""
        for event in self.handshake.feed(data):
            self.events.append(event)
            self.sent += self._reaction(event)

    def feed_all(self, chunks: Sequence[bytes]) -> "Server":
        for chunk in chunks:
            if self.handshake.state in (State.TRANSMISSION, State.ENDED):
                break
            self.feed(chunk)
        return self

    def _reaction(self, event: Event) -> bytes:
        match event:
            case Send(data) | Aborted(data):
                return data
            case StartTls(data):
                self.handshake.secured()
                return data
            case ListWanted():
                entries = [ExportEntry(name, info.description or "") for name, info in self.exports.items()]
                return self.handshake.answer_list(entries)
            case ContextsWanted(name=name):
                if name not in self.exports:
                    return self.handshake.refuse(NBD_REP_ERR_UNKNOWN)
                return self.handshake.answer_contexts(self.contexts)
            case ExportWanted(name=name):
                if name not in self.exports:
                    return self.handshake.refuse(NBD_REP_ERR_UNKNOWN, str(ResourceNotFound(name)))
                return self.handshake.accept(self.exports[name])
