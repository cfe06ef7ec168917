"""What an OSError on a volume means to whoever asked: its error, and the way out."""

import errno
import os
from pathlib import Path

from nbdresize.errors import InsufficientSpace, NbdresizeError, VolumeFailed

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_FREE_SPACE = "free space on the file system that it lies on"
_WAYS_OUT = {
    errno.EACCES: "give this user access to it, or use another user",
    errno.EPERM: "see whether it is immutable (lsattr), and give this user access to it",
    errno.EROFS: "open it for reading only, or remount its file system for writing",
    errno.EFBIG: "choose a smaller size, or use a file system that holds larger files, such as xfs; see ulimit -f too",
    errno.EINVAL: "choose a smaller size, or use a file system that holds larger files, such as xfs",
    errno.ENOENT: "restore it, or delete its disk",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files (sysctl fs.file-max)",
    errno.EBUSY: "end whatever uses it",
    errno.EBADF: "open it for writing",
    errno.ENXIO: "see whether its device is connected",
    errno.ENODEV: "see whether its device is connected",
}
_LOOK_AT_KERNEL = "look for the cause in the kernel's log (dmesg)"


def failure(what: str, path: Path, error: OSError) -> NbdresizeError:
    """The error to raise when `what` failed on the volume at `path`: InsufficientSpace or VolumeFailed.

    `what` is the beginning of a sentence: "Reading 4096 bytes at 0 of".
    """
    reason = os.strerror(error.errno or errno.EIO)
    problem = f"{what} {path} failed ({reason})"
    if error.errno in _NO_SPACE:
        return InsufficientSpace(problem, _FREE_SPACE)
    return VolumeFailed(problem, _WAYS_OUT.get(error.errno or errno.EIO, _LOOK_AT_KERNEL))
