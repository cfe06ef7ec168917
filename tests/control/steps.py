"""The steps of an operation: every call that changes something outside of the process, told apart as they happen.

Python tells a profile function of every call into C, before and after it. Each call into the operating system or into
SQLite that changes something is a step; of a transaction only its commit, since what comes in between is SQLite's to
undo. So no step is forgotten when the code changes, and the product has no test code in it.
"""

from collections.abc import Callable
from types import FrameType
from typing import Any

from nbdresize.storage import syscalls

Profile = Callable[[FrameType, str, Any], None]

_CALLS = {
    "posix": {
        *("open", "close", "mkdir", "rmdir", "unlink", "remove", "rename", "replace", "link", "symlink", "chmod"),
        *("ftruncate", "truncate", "posix_fallocate", "setxattr", "removexattr", "fsync", "fdatasync", "sync"),
        *("write", "writev", "pwrite", "pwritev", "sendfile", "copy_file_range", "splice"),
    },
    "fcntl": {"flock", "lockf", "ioctl"},
    "sqlite3": {"connect", "commit"},
    "socket": {"connect", "sendall", "sendmsg"},
    "mmap": {"flush", "write"},
}
"""By module of the function, or of the type of the object whose method it is."""

_PYTHON = {syscalls._fallocate.__code__: "fallocate"}
"""What ctypes calls is no call into C that is told of: so the functions around it."""


def step_of(frame: FrameType, event: str, called: Any, *, after: bool = False) -> str | None:
    """The name of the step that is about to be taken, or has just been taken; None for whatever is none."""
    if event == ("return" if after else "call"):
        return _PYTHON.get(frame.f_code)
    if event != ("c_return" if after else "c_call"):
        return None
    module = getattr(called, "__module__", None)
    if module is None:  # a method: of which object?
        module = type(getattr(called, "__self__", None)).__module__
    if called.__name__ not in _CALLS.get(module, ()):
        return None
    return str(getattr(called, "__qualname__", called.__name__))
