"""Opening a volume's path, only ever as the kind that it should be."""

import os
import stat
from pathlib import Path

from nbdresize.errors import NbdresizeError, VolumeFailed
from nbdresize.storage.failures import failure

_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFBLK: "a block device",
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a character device",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


def kind_of(path: Path) -> int:
    """What lies at `path`, links followed: stat.S_IFREG, stat.S_IFBLK or another of these.

    Raises VolumeFailed where nothing does, or where that can't be seen.
    """
    return stat.S_IFMT(_stat(path).st_mode)


def stat_as(path: Path, kind: int) -> os.stat_result:
    """What is known of the file or block device at `path`. Raises VolumeFailed for anything else there."""
    found = _stat(path)
    if stat.S_IFMT(found.st_mode) != kind:
        raise wrong_kind(path, stat.S_IFMT(found.st_mode), _KINDS[kind])
    return found


def wrong_kind(path: Path, kind: int, wanted: str) -> VolumeFailed:
    """The error for a path that has something else than a volume."""
    return VolumeFailed(
        f"{path} is {_KINDS.get(kind, 'something strange')}, not {wanted}", f"give the path of {wanted}"
    )


def open_as(path: Path, kind: int, *, read_only: bool) -> int:
    """A descriptor of the file or block device at `path`. Raises VolumeFailed for anything else there.

    What lies there is looked at before it is opened, because opening a pipe waits for its other end, and opening a
    device can do anything; and again after, because it may have been replaced in between.
    """
    stat_as(path, kind)
    try:
        fd = os.open(path, os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR))
    except OSError as error:
        raise _cannot_open(path, error) from error
    if (found := stat.S_IFMT(os.fstat(fd).st_mode)) != kind:
        os.close(fd)
        raise wrong_kind(path, found, _KINDS[kind])
    return fd


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise _cannot_open(path, error) from error
    except ValueError as error:
        raise VolumeFailed(f"{str(path)!r} is not a path", "give a path without NUL bytes") from error


def _cannot_open(path: Path, error: OSError) -> NbdresizeError:
    if isinstance(error, FileNotFoundError):
        return VolumeFailed(f"There is no volume at {path}", "see whether it was moved or deleted")
    return failure("Opening", path, error)
