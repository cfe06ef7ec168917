"""Strings on the wire: UTF-8 without NUL and without an end mark, at most 4096 bytes long.

Source: the NBD protocol document, "Conventions".
"""

from nbdresize.errors import InvalidArgument
from nbdresize.protocol.constants import NBD_MAX_STRING


def parse_string(data: bytes, what: str) -> str:
    """The string in `data`; `what` names it in the error. Raises InvalidArgument where it breaks the rules above."""
    if len(data) > NBD_MAX_STRING:
        raise InvalidArgument(f"{what} of {len(data)} bytes", f"at most {NBD_MAX_STRING} bytes are allowed")
    if 0 in data:
        raise InvalidArgument(f"{what} holds a NUL", "strings of NBD hold none")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidArgument(f"{what} is not UTF-8", "strings of NBD are") from None


def pack_string(text: str, what: str) -> bytes:
    """`text` for the wire. Raises InvalidArgument where the rules above do not allow it."""
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidArgument(f"{what} can't be written as UTF-8", "strings of NBD are UTF-8") from None
    parse_string(data, what)
    return data


def pack_message(text: str) -> bytes:
    """`text` as the message of an error, which never fails: cut to 4096 bytes, what can't be sent becomes `?`."""
    data = text.replace("\0", "?").encode("utf-8", "replace")[:NBD_MAX_STRING]
    return data.decode("utf-8", "ignore").encode("utf-8")


def parse_message(data: bytes) -> str:
    """The message of an error as the peer sent it, for people: never fails, control characters become spaces."""
    text = data[:NBD_MAX_STRING].decode("utf-8", "replace")
    return "".join(character if character.isprintable() else " " for character in text).strip()
