"""A file by nbdkit's Python plugin, as its manual has one: the limit of what Python glue reaches without more effort.

    nbdkit python bench/plain_plugin.py file=disk.img

It sets no thread model, as the manual's does not: nbdkit then runs one request at a time.
"""

import os

API_VERSION = 2
_file = ""


def config(key: str, value: str) -> None:
    global _file
    if key != "file":
        raise ValueError(f"there is no parameter {key}")
    _file = os.path.realpath(value)


def open(readonly: bool) -> int:
    return os.open(_file, os.O_RDONLY if readonly else os.O_RDWR)


def close(h: int) -> None:
    os.close(h)


def get_size(h: int) -> int:
    return os.fstat(h).st_size


def pread(h: int, buf: memoryview, offset: int, flags: int) -> None:
    if os.preadv(h, [buf], offset) != len(buf):
        raise OSError("short read")


def pwrite(h: int, buf: memoryview, offset: int, flags: int) -> None:
    if os.pwritev(h, [buf], offset) != len(buf):
        raise OSError("short write")


def flush(h: int, flags: int) -> None:
    os.fdatasync(h)
