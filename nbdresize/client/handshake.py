"""Negotiation with a server, driven over a stream to its end within one time limit."""

from collections.abc import Callable

from nbdresize.client.deadline import Deadline
from nbdresize.client.refusals import option_refusal
from nbdresize.client.stream import ServerGone, Stream
from nbdresize.client.tls import client_context
from nbdresize.client.uri import Target
from nbdresize.errors import PeerFailed, ResourceNotFound
from nbdresize.protocol.client_handshake import Answered, ClientHandshake, Event, Greeted
from nbdresize.protocol.constants import (
    NBD_INFO_BLOCK_SIZE,
    NBD_INFO_RESIZE,
    NBD_META_BASE_ALLOCATION,
    NBD_OPT_INFO,
    NBD_REP_ERR_UNKNOWN,
    NBD_REP_ERR_UNSUP,
    NBD_RESIZE_FEATURE_NOTIFY,
    NBD_RESIZE_FEATURE_SIZE_REPLIES,
)
from nbdresize.protocol.export_info import ExportInfo
from nbdresize.protocol.negotiated import Mode, Negotiated
from nbdresize.protocol.size_record import SIZE_SUFFIX
from nbdresize.protocol.violation import ProtocolViolation

NO_SIZE_EXPORT = "only a server of nbdresize has size exports; 'nbdinfo --size URI' asks any other"
"""The way out where there is none."""
_LONGEST_ANSWER = 1 << 20
"""Of the options that are asked here, which does not include NBD_OPT_LIST, in bytes."""
_INFOS = (NBD_INFO_BLOCK_SIZE, NBD_INFO_RESIZE)

Chooser = Callable[["Negotiation"], Negotiated]
"""Picks the export to use, by asking about and entering it."""


class Negotiation:
    """One handshake. Everything raises OSError and ProtocolViolation as they come, and errors of the table."""

    def __init__(self, stream: Stream, target: Target, deadline: Deadline) -> None:
        self.target = target
        self._stream = stream
        self._deadline = deadline
        self._machine = ClientHandshake()
        self._fixed = False

    def begin(self, best: Mode = Mode.EXTENDED) -> None:
        """Greet, set up TLS, and agree on the best form of replies that the server has, up to `best`."""
        greeted = self._receive()
        assert isinstance(greeted, Greeted)
        self._fixed = greeted.fixed
        self._stream.send(greeted.data, self._deadline)
        if self.target.tls is not None:
            self._start_tls()
        if not self._fixed or best is Mode.SIMPLE:
            return
        if best is Mode.STRUCTURED or self._ask(self._machine.extended_headers()).error:
            self._ask(self._machine.structured_replies())

    def about(self, export: str) -> Answered:
        """What the server tells of an export, or an error of NBD_OPT_INFO."""
        if not self._fixed:
            return Answered(NBD_OPT_INFO, NBD_REP_ERR_UNSUP)
        return self._ask(self._machine.info(export, _INFOS))

    def enter(self, export: str, *, block_status: bool) -> Negotiated:
        """Use an export, which ends the handshake; with `block_status`, where its extents can be asked for."""
        if not self._fixed:
            return self._enter_by_name(export)
        if block_status and self._machine.mode is not Mode.SIMPLE:
            self._ask(self._machine.set_contexts(export, [NBD_META_BASE_ALLOCATION]))
        answered = self._ask(self._machine.go(export, _INFOS))
        if answered.error == NBD_REP_ERR_UNSUP and self._machine.mode is not Mode.EXTENDED:
            return self._enter_by_name(export)
        if answered.error:
            raise option_refusal(answered.error, answered.message, self.target.shown, export)
        return self._negotiated()

    def _enter_by_name(self, export: str) -> Negotiated:
        """By the option that servers had at first, which can't be refused but by ending the connection."""
        try:
            self._ask(self._machine.export_name(export))
        except ServerGone:
            raise PeerFailed(
                f"The server at {self.target.shown} ended the connection when asked for {export!r}",
                "it may have no such export; its log says why",
            ) from None
        return self._negotiated()

    def _start_tls(self) -> None:
        tls, shown = self.target.tls, self.target.shown
        assert tls is not None
        context = client_context(tls)
        answered = self._ask(self._machine.start_tls()) if self._fixed else None
        if answered is None or answered.error:
            reason = f" ({answered.message})" if answered is not None else ""
            raise PeerFailed(f"The server at {shown} has no TLS{reason}", "serve with --tls DIR, or use an nbd:// URI")
        self._stream.start_tls(context, tls.hostname, self._deadline)
        self._machine.secured()

    def _ask(self, option: bytes) -> Answered:
        self._stream.send(option, self._deadline)
        answered = self._receive()
        assert isinstance(answered, Answered)
        return answered

    def _receive(self) -> Event:
        received = 0
        while received < _LONGEST_ANSWER:
            data = self._stream.receive(self._deadline)
            received += len(data)
            for event in self._machine.feed(data):
                return event
        raise ProtocolViolation(f"The answer to an option is longer than {_LONGEST_ANSWER} bytes", "none has to be")

    def _negotiated(self) -> Negotiated:
        negotiated = self._machine.negotiated
        assert negotiated is not None
        return negotiated


def the_export(negotiation: Negotiation) -> Negotiated:
    """Use the export that the URI names."""
    return negotiation.enter(negotiation.target.export, block_status=True)


def where_it_can_be_resized(negotiation: Negotiation) -> Negotiated:
    """Use the export that the URI names if the RESIZE command is all there, else the `@size` export beside it.

    Raises PeerFailed where the server has neither, and what it says of the export where it does not give that.
    """
    target = negotiation.target
    if target.names_size_export:
        return negotiation.enter(target.export, block_status=False)
    about = negotiation.about(target.export)
    if about.error == NBD_REP_ERR_UNKNOWN:
        raise option_refusal(about.error, about.message, target.shown, target.export)
    if about.export is not None and tells_sizes(about.export):
        return negotiation.enter(target.export, block_status=False)
    try:
        return negotiation.enter(target.export + SIZE_SUFFIX, block_status=False)
    except ResourceNotFound:
        if about.error not in (0, NBD_REP_ERR_UNSUP):
            raise option_refusal(about.error, about.message, target.shown, target.export) from None
        raise PeerFailed(
            f"The server at {target.shown} offers no resizing: neither the RESIZE command nor a size export",
            NO_SIZE_EXPORT,
        ) from None


def where_it_is_watched(negotiation: Negotiation) -> Negotiated:
    """Use the `@size` export beside the one that the URI names, which is no use of the disk; the export itself where
    the server has only the RESIZE command.

    Raises as where_it_can_be_resized.
    """
    target = negotiation.target
    try:
        return negotiation.enter(target.disk + SIZE_SUFFIX, block_status=False)
    except ResourceNotFound:
        return where_it_can_be_resized(negotiation)


def tells_sizes(export: ExportInfo) -> bool:
    """Whether the RESIZE command is offered with all that asking for sizes and following them takes."""
    needed = NBD_RESIZE_FEATURE_SIZE_REPLIES | NBD_RESIZE_FEATURE_NOTIFY
    return export.resize is not None and export.resize.features & needed == needed
