"""Fixed newstyle negotiation from the server's side: bytes in, events out, answers as bytes to send.

    handshake = ServerHandshake(HandshakeSettings())
    send(handshake.greeting())
    for event in handshake.feed(receive()):
        match event:
            case Send(data): send(data)
            case ExportWanted(name=name): send(handshake.accept(describe(name)))
            ...

An event that is a question waits for its answer before anything else is looked at. A client that breaks the protocol
gets ProtocolViolation raised at the caller, who drops the connection. What a client can make this hold is bounded: one
option's data (64 KiB) and what the caller fed at once.

Source: the NBD protocol document, "Handshake", "TLS support" and "Option types".
"""

import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from nbdresize.errors import InvalidArgument
from nbdresize.protocol.constants import (
    NBD_FLAG_C_FIXED_NEWSTYLE,
    NBD_FLAG_C_NO_ZEROES,
    NBD_FLAG_FIXED_NEWSTYLE,
    NBD_FLAG_NO_ZEROES,
    NBD_OPT_ABORT,
    NBD_OPT_EXPORT_NAME,
    NBD_OPT_EXTENDED_HEADERS,
    NBD_OPT_GO,
    NBD_OPT_INFO,
    NBD_OPT_LIST,
    NBD_OPT_LIST_META_CONTEXT,
    NBD_OPT_SET_META_CONTEXT,
    NBD_OPT_STARTTLS,
    NBD_OPT_STRUCTURED_REPLY,
    NBD_REP_ACK,
    NBD_REP_ERR_EXT_HEADER_REQD,
    NBD_REP_ERR_INVALID,
    NBD_REP_ERR_POLICY,
    NBD_REP_ERR_TLS_REQD,
    NBD_REP_ERR_TOO_BIG,
    NBD_REP_ERR_UNSUP,
    NBD_REP_INFO,
)
from nbdresize.protocol.export_info import ExportInfo
from nbdresize.protocol.negotiated import MetaContext, Mode, Negotiated
from nbdresize.protocol.option_reader import MAX_OPTION_DATA, OptionReader
from nbdresize.protocol.option_replies import (
    ExportEntry,
    pack_error,
    pack_export_entry,
    pack_greeting,
    pack_meta_context,
    pack_reply,
)
from nbdresize.protocol.options import (
    parse_export_name,
    parse_export_query,
    parse_meta_context_query,
    select_contexts,
)
from nbdresize.protocol.server_events import (
    Aborted,
    ContextsWanted,
    Event,
    ExportWanted,
    HandshakeSettings,
    ListWanted,
    Question,
    Send,
    StartTls,
    Tls,
)
from nbdresize.protocol.violation import ProtocolViolation

Q = TypeVar("Q")


class State(enum.Enum):
    """Where the handshake stands."""

    NEW = "the greeting is to be sent"
    CLIENT_FLAGS = "the client's flags are awaited"
    OPTION = "an option is awaited"
    QUESTION = "an option waits for its answer"
    TLS = "TLS is being set up"
    TRANSMISSION = "the handshake is over and requests follow"
    ENDED = "the connection is to be closed"


class Step(enum.Enum):
    """What leads from one state to another."""

    GREET = "the greeting"
    AGREE = "the client's flags"
    ASK = "an option that the caller must answer"
    ANSWER = "an answer after which options go on"
    START_TLS = "an accepted NBD_OPT_STARTTLS"
    SECURE = "TLS set up"
    ENTER = "an accepted export"
    END = "the end"


TRANSITIONS: dict[tuple[State, Step], State] = {
    (State.NEW, Step.GREET): State.CLIENT_FLAGS,
    (State.CLIENT_FLAGS, Step.AGREE): State.OPTION,
    (State.CLIENT_FLAGS, Step.END): State.ENDED,
    (State.OPTION, Step.ASK): State.QUESTION,
    (State.OPTION, Step.START_TLS): State.TLS,
    (State.OPTION, Step.END): State.ENDED,
    (State.QUESTION, Step.ANSWER): State.OPTION,
    (State.QUESTION, Step.ENTER): State.TRANSMISSION,
    (State.QUESTION, Step.END): State.ENDED,
    (State.TLS, Step.SECURE): State.OPTION,
}
"""All that may happen; anything else is the caller's mistake, and raises RuntimeError."""


class ServerHandshake:
    """One connection's negotiation."""

    def __init__(self, settings: HandshakeSettings) -> None:
        self.state = State.NEW
        self.tls = False
        """TLS is on."""
        self.negotiated: Negotiated | None = None
        """Set once `state` is TRANSMISSION."""
        self._settings = settings
        self._received = OptionReader()
        self._fixed = self._zeroes = False
        self._question: tuple[int, Question] | None = None
        self._forget()

    def _forget(self) -> None:
        """Back to what holds before the first option: nothing learnt in plaintext outlasts NBD_OPT_STARTTLS."""
        self._mode = Mode.SIMPLE
        self._contexts: tuple[MetaContext, ...] = ()
        self._contexts_export: str | None = None

    # What the caller tells

    def greeting(self) -> bytes:
        """The first bytes to send."""
        self._move(Step.GREET)
        return pack_greeting(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Event]:
        """Take in what was received; the events that follow from it, one after the other.

        After an event that is a question, it is to be answered before the next one is asked for. Raises
        ProtocolViolation where the client broke the protocol; nothing can be fed after that.
        """
        if self.state not in (State.CLIENT_FLAGS, State.OPTION):
            raise RuntimeError(f"Nothing can be received here: {self.state.value}")
        self._received.feed(data)
        return self._events()

    def secured(self) -> None:
        """TLS is set up; the handshake goes on inside, from the start."""
        self._move(Step.SECURE)
        self.tls = True
        self._forget()

    def trailing(self) -> bytes:
        """What the client sent after the handshake's end: its first requests. To be asked for once."""
        if self.state is not State.TRANSMISSION:
            raise RuntimeError(f"There are no requests yet: {self.state.value}")
        return self._received.rest()

    def answer_list(self, exports: Iterable[ExportEntry]) -> bytes:
        """What to send to a client that asked for the list of exports."""
        option, _ = self._asked(ListWanted)
        replies = [pack_export_entry(option, entry) for entry in exports]
        self._move(Step.ANSWER)
        return b"".join([*replies, pack_reply(option, NBD_REP_ACK)])

    def answer_contexts(self, available: Sequence[str]) -> bytes:
        """What to send to a client that asked for metadata contexts of an export that has those `available`.

        Where it selects some, BLOCK_STATUS numbers them from 1, in the order of `available`.
        """
        option, question = self._asked(ContextsWanted)
        listing = option == NBD_OPT_LIST_META_CONTEXT
        chosen = select_contexts(available, question.queries, listing=listing)
        contexts = tuple(MetaContext(0 if listing else 1 + available.index(name), name) for name in chosen)
        if not listing:
            self._contexts, self._contexts_export = contexts, question.name
        self._move(Step.ANSWER)
        replies = [pack_meta_context(option, context) for context in contexts]
        return b"".join([*replies, pack_reply(option, NBD_REP_ACK)])

    def accept(self, export: ExportInfo) -> bytes:
        """What to send to a client that may use, or hear about, the export that it asked for.

        Where it wanted to use it, this ends the handshake, and `negotiated` tells with what.
        """
        option, question = self._asked(ExportWanted)
        offered = export.offered(chunks=self._mode is not Mode.SIMPLE)
        if option == NBD_OPT_EXPORT_NAME:
            answer = offered.pack_export_name_reply(zeroes=self._zeroes)
        else:
            infos = [pack_reply(option, NBD_REP_INFO, info) for info in offered.pack_infos(question.infos)]
            answer = b"".join([*infos, pack_reply(option, NBD_REP_ACK)])
        if not question.enters:
            self._move(Step.ANSWER)
            return answer
        contexts = self._contexts if self._contexts_export == question.name else ()
        self.negotiated = Negotiated(question.name, offered, self._mode, contexts, self.tls)
        self._move(Step.ENTER)
        return answer

    def refuse(self, error: int, message: str = "") -> bytes:
        """What to send to a client that does not get what it asked for; `error` is one of NBD_REP_ERR_….

        NBD_OPT_EXPORT_NAME has no error reply: nothing is to be sent, and the connection ends.
        """
        option, _ = self._asked(object)
        if option == NBD_OPT_EXPORT_NAME:
            self._move(Step.END)
            return b""
        self._move(Step.ANSWER)
        return pack_error(option, error, message)

    # What the client sends

    def _events(self) -> Iterator[Event]:
        try:
            if self.state is State.CLIENT_FLAGS:
                self._take_client_flags()
            while self.state is State.OPTION:
                option = self._received.option()
                if option is None:
                    return
                yield self._handle(*option)
        except ProtocolViolation:
            self._received.rest()
            self._move(Step.END)
            raise
        if self.state is State.QUESTION:
            raise RuntimeError("The last event is a question, and must be answered before the next one")

    def _take_client_flags(self) -> None:
        flags = self._received.client_flags()
        if flags is None:
            return
        if flags & ~(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES):
            raise ProtocolViolation(f"The client's flags are {flags:#x}", "only bits 0 and 1 are known")
        self._fixed = bool(flags & NBD_FLAG_C_FIXED_NEWSTYLE)
        self._zeroes = not flags & NBD_FLAG_C_NO_ZEROES
        self._move(Step.AGREE)

    def _handle(self, option: int, data: bytes | None) -> Event:
        """What a whole option leads to: an answer, or a question to the caller. Data that was too long is None."""
        if option == NBD_OPT_EXPORT_NAME:
            self._check_export_name_may_come()
        elif not self._fixed:
            raise ProtocolViolation(f"Option {option} without fixed newstyle negotiation", "set client flag bit 0")
        if option == NBD_OPT_ABORT:
            return self._on_abort()
        if self._demands_tls() and option != NBD_OPT_STARTTLS:
            return self._error(option, NBD_REP_ERR_TLS_REQD, "this server demands TLS")
        if option == NBD_OPT_SET_META_CONTEXT:  # replaces what was selected before even where it fails
            self._contexts, self._contexts_export = (), None
        if data is None:
            return self._error(option, NBD_REP_ERR_TOO_BIG, f"at most {MAX_OPTION_DATA} bytes of data are taken")
        handler = _HANDLERS.get(option)
        if handler is None:
            return self._error(option, NBD_REP_ERR_UNSUP)
        if data and option in _WITHOUT_DATA:
            return self._error(option, NBD_REP_ERR_INVALID, "this option comes without data")
        try:
            return handler(self, data)
        except InvalidArgument as error:
            if option == NBD_OPT_EXPORT_NAME:
                raise ProtocolViolation(error.problem, error.way_out) from None
            return self._error(option, NBD_REP_ERR_INVALID, str(error))

    def _check_export_name_may_come(self) -> None:
        """NBD_OPT_EXPORT_NAME has no error reply; where it may not come, the connection ends."""
        if self._demands_tls():
            raise ProtocolViolation("NBD_OPT_EXPORT_NAME without TLS", "this server demands TLS")
        if self._mode is Mode.EXTENDED:
            raise ProtocolViolation("NBD_OPT_EXPORT_NAME after extended headers", "use NBD_OPT_GO")

    # One method for each option

    def _on_abort(self) -> Event:
        self._move(Step.END)
        return Aborted(pack_reply(NBD_OPT_ABORT, NBD_REP_ACK))

    def _on_list(self, _data: bytes) -> Event:
        return self._ask(NBD_OPT_LIST, ListWanted())

    def _on_starttls(self, _data: bytes) -> Event:
        if self.tls:
            return self._error(NBD_OPT_STARTTLS, NBD_REP_ERR_INVALID, "TLS is on already")
        if self._settings.tls is Tls.OFF:
            return self._error(NBD_OPT_STARTTLS, NBD_REP_ERR_POLICY, "this server has TLS switched off")
        if self._received:  # whoever put these bytes there hopes that they count as sent through TLS
            raise ProtocolViolation("The client sent something after NBD_OPT_STARTTLS", "it must await the reply")
        self._move(Step.START_TLS)
        return StartTls(pack_reply(NBD_OPT_STARTTLS, NBD_REP_ACK))

    def _on_export_name(self, data: bytes) -> Event:
        return self._ask(NBD_OPT_EXPORT_NAME, ExportWanted(NBD_OPT_EXPORT_NAME, parse_export_name(data)))

    def _on_info(self, data: bytes) -> Event:
        query = parse_export_query(data)
        return self._ask(NBD_OPT_INFO, ExportWanted(NBD_OPT_INFO, query.name, query.infos))

    def _on_go(self, data: bytes) -> Event:
        query = parse_export_query(data)
        return self._ask(NBD_OPT_GO, ExportWanted(NBD_OPT_GO, query.name, query.infos))

    def _on_structured_reply(self, _data: bytes) -> Event:
        if self._mode is Mode.EXTENDED:
            message = "extended headers are agreed on, and go further"
            return self._error(NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_EXT_HEADER_REQD, message)
        if not self._settings.structured:
            return self._error(NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_UNSUP)
        self._mode = Mode.STRUCTURED
        return Send(pack_reply(NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK))

    def _on_extended_headers(self, _data: bytes) -> Event:
        if not self._settings.extended:
            return self._error(NBD_OPT_EXTENDED_HEADERS, NBD_REP_ERR_UNSUP)
        self._mode = Mode.EXTENDED
        return Send(pack_reply(NBD_OPT_EXTENDED_HEADERS, NBD_REP_ACK))

    def _on_list_meta_context(self, data: bytes) -> Event:
        return self._ask_contexts(NBD_OPT_LIST_META_CONTEXT, data)

    def _on_set_meta_context(self, data: bytes) -> Event:
        return self._ask_contexts(NBD_OPT_SET_META_CONTEXT, data)

    def _ask_contexts(self, option: int, data: bytes) -> Event:
        if self._mode is Mode.SIMPLE:
            return self._error(option, NBD_REP_ERR_INVALID, "negotiate structured replies first")
        query = parse_meta_context_query(data)
        return self._ask(option, ContextsWanted(option, query.name, query.queries))

    # Small steps

    def _demands_tls(self) -> bool:
        return self._settings.tls is Tls.REQUIRED and not self.tls

    def _error(self, option: int, reply: int, message: str = "") -> Event:
        return Send(pack_error(option, reply, message))

    def _ask(self, option: int, question: Question) -> Event:
        self._move(Step.ASK)
        self._question = (option, question)
        return question

    def _asked(self, kind: type[Q]) -> tuple[int, Q]:
        """The option and the question that wait for an answer of this kind."""
        if self._question is None or not isinstance(self._question[1], kind):
            raise RuntimeError(f"No {kind.__name__} waits for an answer")
        option, question = self._question
        assert isinstance(question, kind)
        return option, question

    def _move(self, step: Step) -> None:
        following = TRANSITIONS.get((self.state, step))
        if following is None:
            raise RuntimeError(f"{step.value} can't come now: {self.state.value}")
        if self.state is State.QUESTION:
            self._question = None
        self.state = following


_HANDLERS: dict[int, Callable[[ServerHandshake, bytes], Event]] = {
    NBD_OPT_EXPORT_NAME: ServerHandshake._on_export_name,
    NBD_OPT_LIST: ServerHandshake._on_list,
    NBD_OPT_STARTTLS: ServerHandshake._on_starttls,
    NBD_OPT_INFO: ServerHandshake._on_info,
    NBD_OPT_GO: ServerHandshake._on_go,
    NBD_OPT_STRUCTURED_REPLY: ServerHandshake._on_structured_reply,
    NBD_OPT_LIST_META_CONTEXT: ServerHandshake._on_list_meta_context,
    NBD_OPT_SET_META_CONTEXT: ServerHandshake._on_set_meta_context,
    NBD_OPT_EXTENDED_HEADERS: ServerHandshake._on_extended_headers,
}
_WITHOUT_DATA = frozenset({NBD_OPT_LIST, NBD_OPT_STARTTLS, NBD_OPT_STRUCTURED_REPLY, NBD_OPT_EXTENDED_HEADERS})
