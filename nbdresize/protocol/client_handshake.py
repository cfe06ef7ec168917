"""Fixed newstyle negotiation from the client's side: bytes in, events out, options as bytes to send.

    handshake = ClientHandshake()
    for event in handshake.feed(receive()):
        match event:
            case Greeted(data): send(data + handshake.structured_replies())
            case Answered(option=option, error=0): send(handshake.go("web1/disk0"))
            ...

One option is asked at a time. What a server can make this hold is bounded: MAX_ANSWER bytes for one option, and what
the caller fed at once. A server that breaks the protocol gets ProtocolViolation raised at the caller, who drops the
connection. Source: the NBD protocol document, "Handshake", "TLS support" and "Option types".
"""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
    NBD_REP_FLAG_ERROR,
    NBD_REP_INFO,
    NBD_REP_META_CONTEXT,
    NBD_REP_SERVER,
)
from nbdresize.protocol.export_info import (
    EXPORT_NAME_REPLY_LENGTH,
    EXPORT_NAME_ZEROES_LENGTH,
    ExportInfo,
    parse_export_name_reply,
    parse_info_type,
    parse_infos,
)
from nbdresize.protocol.negotiated import MetaContext, Mode, Negotiated
from nbdresize.protocol.option_replies import (
    GREETING_LENGTH,
    REPLY_HEADER_LENGTH,
    ExportEntry,
    parse_error,
    parse_export_entry,
    parse_greeting,
    parse_meta_context,
    parse_reply_header,
)
from nbdresize.protocol.options import ExportQuery, MetaContextQuery, pack_client_flags, pack_option
from nbdresize.protocol.strings import pack_string
from nbdresize.protocol.violation import ProtocolViolation

MAX_ANSWER = 16 << 20
"""The longest answer to one option, all its replies together, in bytes."""


class State(enum.Enum):
    """Where the handshake stands."""

    GREETING = "the server's greeting is awaited"
    READY = "an option may be sent"
    WAITING = "the answer to an option is awaited"
    TLS = "TLS is being set up"
    TRANSMISSION = "the handshake is over and requests follow"
    ENDED = "the connection is to be closed"


class Step(enum.Enum):
    """What leads from one state to another."""

    GREETED = "the server's greeting"
    ASK = "an option"
    ANSWERED = "the last reply to an option"
    START_TLS = "an accepted NBD_OPT_STARTTLS"
    SECURE = "TLS set up"
    ENTER = "an accepted export"
    END = "the end"


TRANSITIONS: dict[tuple[State, Step], State] = {
    (State.GREETING, Step.GREETED): State.READY,
    (State.READY, Step.ASK): State.WAITING,
    (State.WAITING, Step.ANSWERED): State.READY,
    (State.WAITING, Step.START_TLS): State.TLS,
    (State.WAITING, Step.ENTER): State.TRANSMISSION,
    (State.TLS, Step.SECURE): State.READY,
    **{(state, Step.END): State.ENDED for state in State},
}
"""All that may happen; anything else is the caller's mistake, and raises RuntimeError."""

_FINAL_STEPS = {NBD_OPT_GO: Step.ENTER, NBD_OPT_STARTTLS: Step.START_TLS, NBD_OPT_ABORT: Step.END}
"""What an acknowledged option leads to, where that is not just the next one."""
_REPLY_TYPES = {
    NBD_OPT_LIST: NBD_REP_SERVER,
    NBD_OPT_INFO: NBD_REP_INFO,
    NBD_OPT_GO: NBD_REP_INFO,
    NBD_OPT_LIST_META_CONTEXT: NBD_REP_META_CONTEXT,
    NBD_OPT_SET_META_CONTEXT: NBD_REP_META_CONTEXT,
}
"""The one type of reply that may come before the last one."""


@dataclass(frozen=True)
class Greeted:
    """The server has greeted: send `data`, then options. Without `fixed` it knows none but NBD_OPT_EXPORT_NAME."""

    data: bytes
    fixed: bool


@dataclass(frozen=True)
class Answered:
    """An option is answered. `error` is 0, or NBD_REP_ERR_… with its `message`, and nothing else is set then.

    After a successful NBD_OPT_STARTTLS set up TLS and call `secured`; after NBD_OPT_GO and NBD_OPT_EXPORT_NAME the
    handshake is over, and `negotiated` is set.
    """

    option: int
    error: int = 0
    message: str = ""
    exports: tuple[ExportEntry, ...] = ()
    export: ExportInfo | None = None
    contexts: tuple[MetaContext, ...] = ()


Event = Greeted | Answered


class ClientHandshake:
    """One connection's negotiation."""

    def __init__(self) -> None:
        self.state = State.GREETING
        self.tls = False
        """TLS is on."""
        self.negotiated: Negotiated | None = None
        """Set once `state` is TRANSMISSION."""
        self._received = bytearray()
        self._fixed = self._zeroes = False
        self._option = 0
        self._name = ""
        self._forget()

    def _forget(self) -> None:
        self.mode = Mode.SIMPLE
        """What the server has agreed to so far."""
        self._contexts: tuple[MetaContext, ...] = ()
        self._contexts_export: str | None = None

    # What the caller asks; each returns the bytes to send

    def structured_replies(self) -> bytes:
        return self._ask(NBD_OPT_STRUCTURED_REPLY)

    def extended_headers(self) -> bytes:
        return self._ask(NBD_OPT_EXTENDED_HEADERS)

    def start_tls(self) -> bytes:
        """Ask for TLS; best first of all, since everything negotiated before is forgotten."""
        if self.tls:
            raise RuntimeError("TLS is on already")
        return self._ask(NBD_OPT_STARTTLS)

    def list_exports(self) -> bytes:
        return self._ask(NBD_OPT_LIST)

    def info(self, name: str, infos: Sequence[int] = ()) -> bytes:
        """Ask about an export: its size and flags, and the NBD_INFO_… in `infos`."""
        return self._ask(NBD_OPT_INFO, ExportQuery(name, tuple(infos)).pack(), name)

    def go(self, name: str, infos: Sequence[int] = ()) -> bytes:
        """Ask to use an export; see `info`."""
        return self._ask(NBD_OPT_GO, ExportQuery(name, tuple(infos)).pack(), name)

    def export_name(self, name: str) -> bytes:
        """Ask to use an export of a server that does not know NBD_OPT_GO; a refusal is a closed connection."""
        if self.mode is Mode.EXTENDED:
            raise RuntimeError("After extended headers only NBD_OPT_GO may be sent")
        return self._ask(NBD_OPT_EXPORT_NAME, pack_string(name, "An export name"), name)

    def list_contexts(self, name: str, queries: Sequence[str] = ()) -> bytes:
        return self._ask(NBD_OPT_LIST_META_CONTEXT, MetaContextQuery(name, tuple(queries)).pack(), name)

    def set_contexts(self, name: str, queries: Sequence[str]) -> bytes:
        """Select metadata contexts of the export; replaces what was selected before, even where it is refused."""
        data = MetaContextQuery(name, tuple(queries)).pack()
        asked = self._ask(NBD_OPT_SET_META_CONTEXT, data, name)
        self._contexts, self._contexts_export = (), None
        return asked

    def abort(self) -> bytes:
        """Leave in good order; the server may close the connection without a reply."""
        return self._ask(NBD_OPT_ABORT)

    def secured(self) -> None:
        """TLS is set up; the handshake goes on inside, from the start."""
        self._move(Step.SECURE)
        self.tls = True
        self._forget()

    # What the server sends

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Event]:
        """Take in what was received; the events that follow from it. Raises ProtocolViolation, and is over then."""
        if self.state in (State.TLS, State.TRANSMISSION, State.ENDED):
            raise RuntimeError(f"Nothing can be received here: {self.state.value}")
        self._received += data
        return self._events()

    def _events(self) -> Iterator[Event]:
        try:
            if self.state is State.GREETING and (greeted := self._greeting()) is not None:
                if self._received:
                    raise ProtocolViolation("The server sent more than its greeting", "nothing was asked yet")
                yield greeted
            if self.state is State.WAITING and (answered := self._answer()) is not None:
                if self._received:
                    raise ProtocolViolation("The server sent more than its answer", "nothing else was asked")
                yield answered
            elif self._received and self.state not in (State.GREETING, State.WAITING):
                raise ProtocolViolation("The server sent something without being asked", "it must not")
        except ProtocolViolation:
            self._received.clear()
            self._move(Step.END)
            raise

    def _greeting(self) -> Greeted | None:
        if len(self._received) < GREETING_LENGTH:
            return None
        flags = parse_greeting(self._take(GREETING_LENGTH))
        self._fixed = bool(flags & NBD_FLAG_FIXED_NEWSTYLE)
        self._zeroes = not flags & NBD_FLAG_NO_ZEROES
        self._move(Step.GREETED)
        answer = (NBD_FLAG_C_FIXED_NEWSTYLE if self._fixed else 0) | (0 if self._zeroes else NBD_FLAG_C_NO_ZEROES)
        return Greeted(pack_client_flags(answer), self._fixed)

    def _answer(self) -> Answered | None:
        """The whole answer to the option that was asked, or None while it has not arrived."""
        if self._option == NBD_OPT_EXPORT_NAME:
            return self._export_name_answer()
        while (reply := self._take_reply()) is not None:
            kind, data = reply
            if kind == NBD_REP_ACK or kind & NBD_REP_FLAG_ERROR:
                return self._conclude(kind, data)
            if kind != _REPLY_TYPES.get(self._option):
                raise ProtocolViolation(f"The server answered option {self._option} with {kind}", "that is none")
            self._gathered.append(data)
        return None

    def _take_reply(self) -> tuple[int, bytes] | None:
        if len(self._received) < REPLY_HEADER_LENGTH:
            return None
        kind, length = parse_reply_header(bytes(self._received[:REPLY_HEADER_LENGTH]), self._option)
        if len(self._received) < REPLY_HEADER_LENGTH + length:
            return None
        self._left -= REPLY_HEADER_LENGTH + length
        if self._left < 0:
            raise ProtocolViolation(f"The server's answer is longer than {MAX_ANSWER} bytes", "ask for less")
        return kind, self._take(REPLY_HEADER_LENGTH + length)[REPLY_HEADER_LENGTH:]

    def _conclude(self, kind: int, data: bytes) -> Answered:
        option = self._option
        if kind != NBD_REP_ACK:
            self._move(Step.ANSWERED)
            return Answered(option, kind, parse_error(kind, data))
        if data:
            raise ProtocolViolation("The server's NBD_REP_ACK has data", "it has none")
        exports: tuple[ExportEntry, ...] = ()
        contexts: tuple[MetaContext, ...] = ()
        export = None
        if option == NBD_OPT_LIST:
            exports = tuple(parse_export_entry(entry) for entry in self._gathered)
        elif option in (NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT):
            contexts = self._gathered_contexts()
        elif option in (NBD_OPT_INFO, NBD_OPT_GO):
            export = self._gathered_info()
        elif option == NBD_OPT_STRUCTURED_REPLY:
            self.mode = Mode.STRUCTURED
        elif option == NBD_OPT_EXTENDED_HEADERS:
            self.mode = Mode.EXTENDED
        if option == NBD_OPT_GO and export is not None:
            self._enter(export)
        else:
            self._move(_FINAL_STEPS.get(option, Step.ANSWERED))
        return Answered(option, exports=exports, export=export, contexts=contexts)

    def _export_name_answer(self) -> Answered | None:
        length = EXPORT_NAME_REPLY_LENGTH + (EXPORT_NAME_ZEROES_LENGTH if self._zeroes else 0)
        if len(self._received) < length:
            return None
        export = parse_export_name_reply(self._take(length)[:EXPORT_NAME_REPLY_LENGTH])
        self._enter(export)
        return Answered(NBD_OPT_EXPORT_NAME, export=export)

    def _enter(self, export: ExportInfo) -> None:
        contexts = self._contexts if self._contexts_export == self._name else ()
        self.negotiated = Negotiated(self._name, export, self.mode, contexts, self.tls)
        self._move(Step.ENTER)

    def _gathered_info(self) -> ExportInfo:
        payloads: dict[int, bytes] = {}
        for payload in self._gathered:
            if payloads.setdefault(parse_info_type(payload), payload) is not payload:
                raise ProtocolViolation("The server told the same information twice", "once is enough")
        return parse_infos(payloads)

    def _gathered_contexts(self) -> tuple[MetaContext, ...]:
        contexts = tuple(parse_meta_context(data) for data in self._gathered)
        if self._option == NBD_OPT_SET_META_CONTEXT:
            if len({context.id for context in contexts}) != len(contexts):
                raise ProtocolViolation("The server gave two metadata contexts one number", "each has its own")
            self._contexts, self._contexts_export = contexts, self._name
        return contexts

    def _ask(self, option: int, data: bytes = b"", name: str = "") -> bytes:
        if option != NBD_OPT_EXPORT_NAME and self.state is State.READY and not self._fixed:
            raise RuntimeError("The server knows no option but NBD_OPT_EXPORT_NAME")
        self._move(Step.ASK)
        self._option, self._name = option, name
        self._gathered: list[bytes] = []
        self._left = MAX_ANSWER
        return pack_option(option, data)

    def _take(self, length: int) -> bytes:
        taken = bytes(self._received[:length])
        del self._received[:length]
        return taken

    def _move(self, step: Step) -> None:
        following = TRANSITIONS.get((self.state, step))
        if following is None:
            raise RuntimeError(f"{step.value} can't come now: {self.state.value}")
        self.state = following
