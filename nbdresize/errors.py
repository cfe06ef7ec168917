"""Every error that a user, a client on the wire or an HTTP caller can meet, in one table.

An error says what was asked, what there is, and the way out. Each class carries the three numbers it turns into:
its HTTP status, the errno that an NBD client gets (only those that the NBD protocol defines), and the exit code of
the command line. `docs/errors.md` lists them for users.
"""

import errno
from typing import ClassVar

EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class NbdresizeError(Exception):
    """The base of all errors below; raised only through them.

    `problem` is one sentence without its full stop: what was asked and what there is. `way_out` says what to do.
    """

    http_status: ClassVar[int]
    nbd_errno: ClassVar[int]
    exit_code: ClassVar[int]

    def __init__(self, problem: str, way_out: str = "") -> None:
        super().__init__(problem, way_out)
        self.problem = problem
        self.way_out = way_out

    def __str__(self) -> str:
        return f"{self.problem}: {self.way_out}" if self.way_out else self.problem

    @property
    def name(self) -> str:
        """The name of the error in messages and JSON: that of its class."""
        return type(self).__name__


class InvalidArgument(NbdresizeError):
    """What was asked for makes no sense, whatever the state."""

    http_status, nbd_errno, exit_code = 400, errno.EINVAL, 3


class InsufficientSpace(NbdresizeError):
    """The budget or the pool does not hold what was asked for."""

    http_status, nbd_errno, exit_code = 409, errno.ENOSPC, 4


class ResourceNotFound(NbdresizeError):
    """No VM, disk or export has that name."""

    http_status, nbd_errno, exit_code = 404, errno.EINVAL, 5


class ResourceInUse(NbdresizeError):
    """Somebody uses the thing, or a name is taken."""

    http_status, nbd_errno, exit_code = 409, errno.EPERM, 6


class DeletionProtected(NbdresizeError):
    """The VM is protected from losing data."""

    http_status, nbd_errno, exit_code = 409, errno.EPERM, 7


class NotAuthorized(NbdresizeError):
    """The configuration does not allow it to whoever asked."""

    http_status, nbd_errno, exit_code = 403, errno.EPERM, 8


class LimitExceeded(NbdresizeError):
    """A count is at its limit: disks of a VM, connections of a server."""

    http_status, nbd_errno, exit_code = 409, errno.ENOSPC, 9


class VolumeFailed(NbdresizeError):
    """The volume of a disk could not be read, written or changed."""

    http_status, nbd_errno, exit_code = 500, errno.EIO, 10


class StateUnusable(NbdresizeError):
    """The state directory can't be used: not writable, from a newer version, on a full file system."""

    http_status, nbd_errno, exit_code = 500, errno.EIO, 11


class ProgramMissing(NbdresizeError):
    """A program that is needed is not installed."""

    http_status, nbd_errno, exit_code = 500, errno.EIO, 12


class ServerFailed(NbdresizeError):
    """A server of ours did not start, or does not stay up."""

    http_status, nbd_errno, exit_code = 500, errno.EIO, 13


class PeerFailed(NbdresizeError):
    """An NBD server can't be reached, or answers with an error or with nonsense."""

    http_status, nbd_errno, exit_code = 502, errno.EIO, 14


class OperationCancelled(NbdresizeError):
    """Somebody cancelled the operation; everything is as it was before."""

    http_status, nbd_errno, exit_code = 409, errno.EIO, 15


class Inconsistent(NbdresizeError):
    """Ledger, volumes and servers don't agree: what `nbdresize check` has found, and could not mend."""

    http_status, nbd_errno, exit_code = 500, errno.EIO, 16


ERRORS: tuple[type[NbdresizeError], ...] = (
    InvalidArgument,
    InsufficientSpace,
    ResourceNotFound,
    ResourceInUse,
    DeletionProtected,
    NotAuthorized,
    LimitExceeded,
    VolumeFailed,
    StateUnusable,
    ProgramMissing,
    ServerFailed,
    PeerFailed,
    OperationCancelled,
    Inconsistent,
)
"""All of them, in the order of their exit codes."""
