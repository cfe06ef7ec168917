"""Cuts what a client sends while it negotiates into its flags and its options, and bounds it."""

from nbdresize.protocol.constants import NBD_MAX_STRING, NBD_OPT_EXPORT_NAME
from nbdresize.protocol.options import (
    CLIENT_FLAGS_LENGTH,
    OPTION_HEADER_LENGTH,
    parse_client_flags,
    parse_option_header,
)
from nbdresize.protocol.violation import ProtocolViolation

MAX_OPTIONS = 4096
"""How many options one client may send, those before TLS included: `nbdinfo --list` sends two for each export."""
MAX_OPTION_DATA = 65536
"""Longer data of an option, in bytes, is skipped; the option can be answered with NBD_REP_ERR_TOO_BIG."""
MAX_SKIPPED_DATA = 1 << 20
"""Still longer data ends the connection."""


class OptionReader:
    """Holds at most one option's data, and what was fed at once."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._options = 0
        self._skipping: tuple[int, int] | None = None

    def __bool__(self) -> bool:
        """Something has been received that is not taken yet."""
        return bool(self._received)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        self._received += data

    def rest(self) -> bytes:
        """Everything that is not taken yet."""
        return self._take(len(self._received))

    def client_flags(self) -> int | None:
        """The client's flags, or None while they have not arrived."""
        if len(self._received) < CLIENT_FLAGS_LENGTH:
            return None
        return parse_client_flags(self._take(CLIENT_FLAGS_LENGTH))

    def option(self) -> tuple[int, bytes | None] | None:
        """The next option and its data, or None while it has not arrived in full.

        Data that was longer than MAX_OPTION_DATA is gone, with None in its place. Raises ProtocolViolation for a
        wrong magic, for more than MAX_OPTIONS, and for a length that nobody could mean, before any of it is held.
        """
        if self._skipping is not None:
            return self._skip(*self._skipping)
        if len(self._received) < OPTION_HEADER_LENGTH:
            return None
        option, length = parse_option_header(bytes(self._received[:OPTION_HEADER_LENGTH]))
        if self._options == MAX_OPTIONS:
            raise ProtocolViolation(f"The client sent more than {MAX_OPTIONS} options", "connect anew")
        if length > MAX_SKIPPED_DATA:
            raise ProtocolViolation(f"Option {option} comes with {length} bytes", f"{MAX_OPTION_DATA} are plenty")
        if option == NBD_OPT_EXPORT_NAME and length > NBD_MAX_STRING:
            raise ProtocolViolation(f"An export name of {length} bytes", f"at most {NBD_MAX_STRING} are allowed")
        if length <= MAX_OPTION_DATA and len(self._received) < OPTION_HEADER_LENGTH + length:
            return None
        self._options += 1
        self._take(OPTION_HEADER_LENGTH)
        return self._skip(option, length) if length > MAX_OPTION_DATA else (option, self._take(length))

    def _skip(self, option: int, length: int) -> tuple[int, None] | None:
        skipped = len(self._take(min(length, len(self._received))))
        self._skipping = (option, length - skipped) if skipped < length else None
        return None if self._skipping else (option, None)

    def _take(self, length: int) -> bytes:
        taken = bytes(self._received[:length])
        del self._received[:length]
        return taken
