"""The handshake of one connection: the protocol's state machine, driven over a stream within a time limit."""

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

from nbdresize.control.model import ClientResize
from nbdresize.errors import NbdresizeError, ResourceNotFound
from nbdresize.export.disk_export import DiskExport
from nbdresize.export.exports import Client, Export, Exports
from nbdresize.protocol.constants import (
    NBD_FLAG_CAN_MULTI_CONN,
    NBD_FLAG_READ_ONLY,
    NBD_FLAG_SEND_CACHE,
    NBD_FLAG_SEND_FAST_ZERO,
    NBD_FLAG_SEND_FLUSH,
    NBD_FLAG_SEND_FUA,
    NBD_FLAG_SEND_TRIM,
    NBD_FLAG_SEND_WRITE_ZEROES,
    NBD_META_BASE_ALLOCATION,
    NBD_REP_ERR_PLATFORM,
    NBD_REP_ERR_POLICY,
    NBD_REP_ERR_UNKNOWN,
    NBD_RESIZE_FEATURE_EXTEND,
    NBD_RESIZE_FEATURE_NOTIFY,
    NBD_RESIZE_FEATURE_SHRINK,
    NBD_RESIZE_FEATURE_SIZE_REPLIES,
)
from nbdresize.protocol.export_info import BlockSizes, ExportInfo, ResizeInfo
from nbdresize.protocol.negotiated import Negotiated
from nbdresize.protocol.option_replies import ExportEntry
from nbdresize.protocol.server_events import (
    Aborted,
    ContextsWanted,
    ExportWanted,
    HandshakeSettings,
    ListWanted,
    Send,
    StartTls,
)
from nbdresize.protocol.server_handshake import ServerHandshake, State
from nbdresize.protocol.violation import ProtocolViolation
from nbdresize.server.stream import PeerGone, Stream, TlsStream

HANDSHAKE_SECONDS = 10.0
_INTAKE = 16 << 10


@dataclass(frozen=True)
class Access:
    """What every connection of a server gets: its exports, and how."""

    exports: Exports
    settings: HandshakeSettings
    read_only: bool = False
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True)
class Agreed:
    """What a handshake has led to. `export` is open, and the caller's to close; `early`, the first requests."""

    stream: Stream
    export: Export
    negotiated: Negotiated
    early: bytes


class Handshaking:
    """One connection's handshake. `stream` is what the connection runs on now: it changes at STARTTLS."""

    def __init__(self, stream: Stream, access: Access, client: Client, on_tls: Callable[[Stream], None]) -> None:
        self._stream = stream
        self._access = access
        self._client = client
        self._on_tls = on_tls
        self._machine = ServerHandshake(access.settings)
        self._deadline = time.monotonic() + HANDSHAKE_SECONDS
        self._export: Export | None = None

    def run(self) -> Agreed | None:
        """Negotiate; None where the client left in good order. Raises PeerGone, ProtocolViolation."""
        try:
            agreed = self._negotiate()
        except BaseException:
            self._close_export()
            raise
        if agreed is None:
            self._close_export()
        return agreed

    def _negotiate(self) -> Agreed | None:
        self._stream.set_deadline(self._deadline)
        self._send(self._machine.greeting())
        intake = memoryview(bytearray(_INTAKE))
        while True:
            if time.monotonic() >= self._deadline:
                raise PeerGone(f"no handshake within {HANDSHAKE_SECONDS:g} s")
            self._stream.set_deadline(self._deadline)
            received = self._stream.recv_into(intake)
            if not received:
                return None
            for event in self._machine.feed(intake[:received]):
                match event:
                    case Send(data):
                        self._send(data)
                    case Aborted(data):
                        self._send(data)
                        return None
                    case StartTls(data):
                        self._send(data)
                        self._start_tls()
                    case ListWanted():
                        self._list()
                    case ContextsWanted():
                        self._contexts(event)
                    case ExportWanted():
                        self._describe(event)
            if self._machine.negotiated is not None:
                assert self._export is not None
                self._stream.set_deadline(None)
                return Agreed(self._stream, self._export, self._machine.negotiated, self._machine.trailing())
            if self._machine.state is State.ENDED:
                return None

    def _send(self, data: bytes) -> None:
        if time.monotonic() >= self._deadline:
            raise PeerGone(f"no handshake within {HANDSHAKE_SECONDS:g} s")
        self._stream.send_message((data,))

    def _start_tls(self) -> None:
        if self._access.tls is None:
            raise ProtocolViolation("TLS was asked for where there is none", "connect without")
        secured = TlsStream(self._stream, self._access.tls)
        self._on_tls(secured)
        self._stream = secured
        secured.handshake(self._deadline)
        self._machine.secured()

    def _list(self) -> None:
        try:
            entries = [ExportEntry(name, description) for name, description in self._access.exports.list()]
        except NbdresizeError as error:
            self._send(self._machine.refuse(NBD_REP_ERR_PLATFORM, str(error)))
        else:
            self._send(self._machine.answer_list(entries))

    def _contexts(self, wanted: ContextsWanted) -> None:
        try:
            export = self._open(wanted.name)
        except NbdresizeError as error:
            self._send(self._machine.refuse(_refusal(error), str(error)))
            return
        self._access.exports.close(export)
        available = (NBD_META_BASE_ALLOCATION,) if isinstance(export, DiskExport) else ()
        self._send(self._machine.answer_contexts(available))

    def _describe(self, wanted: ExportWanted) -> None:
        try:
            self._export = self._open(wanted.name)
            info = describe(self._export, wanted.name)
        except NbdresizeError as error:
            self._close_export()
            self._send(self._machine.refuse(_refusal(error), str(error)))
            return
        answer = self._machine.accept(info)
        if not wanted.enters:
            self._close_export()
        self._send(answer)

    def _open(self, name: str) -> Export:
        return self._access.exports.open(name, read_only=self._access.read_only, client=self._client)

    def _close_export(self) -> None:
        export, self._export = self._export, None
        if export is not None:
            self._access.exports.close(export)


def describe(export: Export, name: str) -> ExportInfo:
    """What a client is told of an export. Raises VolumeFailed, StateUnusable."""
    flags = NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | (NBD_FLAG_READ_ONLY if export.read_only else 0)
    name, description = name or export.name, export.description
    sizes = BlockSizes(export.block_size)
    if not isinstance(export, DiskExport):
        return ExportInfo(export.size, flags, name, description, sizes)
    flags |= (
        NBD_FLAG_SEND_TRIM
        | NBD_FLAG_SEND_WRITE_ZEROES
        | NBD_FLAG_SEND_FAST_ZERO
        | NBD_FLAG_SEND_CACHE
        | NBD_FLAG_CAN_MULTI_CONN
    )
    return ExportInfo(export.size, flags, name, description, sizes, _resize_info(export))


def _resize_info(disk: DiskExport) -> ResizeInfo | None:
    """What RESIZE can do here, of the features that the server has; the protocol takes away what a client lacks."""
    if disk.backing.policy is ClientResize.OFF:
        return None
    record = disk.backing.record(read_only=disk.read_only)
    features = NBD_RESIZE_FEATURE_SIZE_REPLIES | NBD_RESIZE_FEATURE_NOTIFY
    features |= record.features & NBD_RESIZE_FEATURE_SHRINK
    if not disk.read_only:
        features |= NBD_RESIZE_FEATURE_EXTEND
    return ResizeInfo(features, record.granularity, record.minimum, record.maximum)


def _refusal(error: NbdresizeError) -> int:
    if isinstance(error, ResourceNotFound):
        return NBD_REP_ERR_UNKNOWN
    return NBD_REP_ERR_POLICY if error.http_status < 500 else NBD_REP_ERR_PLATFORM
