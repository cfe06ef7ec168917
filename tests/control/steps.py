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
        *("open", "mkdir", "rmdir", "unlink", "remove", "rename", "replace", "link", "symlink", "chmod"),
        *("ftruncate", "truncate", "posix_fallocate", "setxattr", "removexattr", "fsync", "fdatasync", "sync"),
        *("write", "writev", "pwrite", "pwritev", "sendfile", "copy_file_range", "splice"),
    },
    "fcntl": {"flock", "lockf", "ioctl"},
    "sqlite3": {"connect", "commit"},
    "socket": {"connect", "sendall", "sendmsg"},
    "mmap": {"flush", "write"},
}
"""By module of the function, or of the type of the object whose method it is. Not close: it changes no file, and is no
more to a lock than the end of the process."""

_NAMES = frozenset(name for names in _CALLS.values() for name in names)

_PYTHON = {syscalls._fallocate.__code__: "fallocate"}
"""What ctypes calls is no call into C that is told of: so the functions around it."""


def counting(take: Callable[[str], None], *, after: bool = False) -> Profile:
    """A profile function that calls `take` with the name of each step that is about to be taken, or has been taken."""
    call, c_call = ("return", "c_return") if after else ("call", "c_call")

    def profile(frame: FrameType, event: str, called: Any) -> None:
        if event == c_call:
            if called.__name__ in _NAMES and called.__name__ in _CALLS.get(_module(called), ()):
                take(str(getattr(called, "__qualname__", called.__name__)))
        elif event == call and frame.f_code in _PYTHON:
            take(_PYTHON[frame.f_code])

    return profile


def _module(called: Any) -> str:
    module = called.__module__
    return str(module or type(called.__self__).__module__)  # a method has that of its object
