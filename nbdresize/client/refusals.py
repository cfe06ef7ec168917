"""What a server says no with, as errors of the table: the errors of the wire and of options mapped back."""

import errno
import os
from collections.abc import Mapping

from nbdresize.errors import (
    InsufficientSpace,
    InvalidArgument,
    NbdresizeError,
    NotAuthorized,
    PeerFailed,
    ResourceNotFound,
    VolumeFailed,
)
from nbdresize.protocol.constants import (
    NBD_EINVAL,
    NBD_EIO,
    NBD_ENOSPC,
    NBD_ENOTSUP,
    NBD_EOVERFLOW,
    NBD_EPERM,
    NBD_ESHUTDOWN,
    NBD_REP_ERR_POLICY,
    NBD_REP_ERR_TLS_REQD,
    NBD_REP_ERR_UNKNOWN,
)
from nbdresize.protocol.reply_check import ReplyError

UNEXPLAINED = "see what the server lets its clients do"
"""The way out of NotAuthorized where the server gives no reason."""
_LONGEST_TEXT = 600

_KINDS: Mapping[int, tuple[type[NbdresizeError], str]] = {
    NBD_EPERM: (NotAuthorized, UNEXPLAINED),
    NBD_EIO: (VolumeFailed, "see the server's log"),
    NBD_EINVAL: (InvalidArgument, "ask for something else"),
    NBD_ENOSPC: (InsufficientSpace, "ask for less, or free some space"),
    NBD_EOVERFLOW: (InvalidArgument, "ask for less at once"),
    NBD_ENOTSUP: (InvalidArgument, "do without"),
    NBD_ESHUTDOWN: (PeerFailed, "connect again once it is back"),
}
"""NBD's errors; any other is PeerFailed."""


def refusal(error: ReplyError, what: str) -> NbdresizeError:
    """The error for a request that the server answered with one; `what` it was asked: `resize web1/disk0`."""
    kind, way_out = _KINDS.get(error.errno, (PeerFailed, "see the server's log"))
    text = _text(error.message) or _meaning(error.errno)
    problem, separator, its_way_out = text.rpartition(": ")
    if separator:
        text, way_out = problem, its_way_out
    return kind(f"The server refused to {what}: {text}", way_out)


def option_refusal(error: int, message: str, shown: str, export: str) -> NbdresizeError:
    """The error for an export that the server at `shown` does not let this client use."""
    text = _text(message)
    if error == NBD_REP_ERR_UNKNOWN:
        name = f"no export {export!r}" if export else "no default export"
        return ResourceNotFound(f"The server at {shown} has {name}", "'nbdinfo --list' shows what it has, its log why")
    if error == NBD_REP_ERR_TLS_REQD:
        return PeerFailed(
            f"The server at {shown} takes clients with TLS only", "use an nbds:// or nbds+unix:// URI with certificates"
        )
    if error == NBD_REP_ERR_POLICY:
        return NotAuthorized(f"The server at {shown} does not give the export ({text})", "see the server's log")
    return PeerFailed(f"The server at {shown} does not give the export ({text})", "see the server's log")


def _text(message: str) -> str:
    """The server's words, bounded; what they may contain has been seen to."""
    return message if len(message) <= _LONGEST_TEXT else message[:_LONGEST_TEXT] + "…"


def _meaning(number: int) -> str:
    name = errno.errorcode.get(number)
    return f"{os.strerror(number)} ({name})" if name else f"error {number}"
