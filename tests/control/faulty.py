"""A pool that fails where it is told to, for as long as it is told to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from nbdresize.errors import VolumeFailed
from nbdresize.storage.file import FilePool, FileVolume


class Fault:
    """Fails calls of these methods of volumes and pools, for the disks, or snapshots' disks, that `volumes` begin."""

    def __init__(self, methods: tuple[str, ...], volumes: tuple[str, ...]) -> None:
        self.methods = methods
        self.volumes = volumes
        self.met = 0

    def check(self, method: str, name: str) -> None:
        if method in self.methods and name.startswith(self.volumes or ""):
            self.met += 1
            raise VolumeFailed(f"{method} {name} failed (Input/output error)", "look for the cause")


@contextmanager
def failing(*methods: str, volumes: tuple[str, ...] = (), after: bool = False) -> Iterator[Fault]:
    """`grow`, `shrink`, `size` of volumes, `create`, `copy`, `delete` of the pool; `after`: grow has grown by then."""
    fault = Fault(methods, volumes)
    with pytest.MonkeyPatch.context() as patch:
        for method in ("grow", "shrink", "size"):
            patch.setattr(FileVolume, method, _of_volume(method, fault, after=after))
        for method in ("delete", "copy", "create"):
            patch.setattr(FilePool, method, _of_pool(method, fault))
        yield fault


def _of_volume(method: str, fault: Fault, *, after: bool) -> Callable[..., object]:
    real = getattr(FileVolume, method)

    def call(volume: FileVolume, *arguments: object, **named: object) -> object:
        if method == "grow" and after:
            real(volume, *arguments, **named)
        fault.check(method, volume.path.name)
        return real(volume, *arguments, **named)

    return call


def _of_pool(method: str, fault: Fault) -> Callable[..., object]:
    real = getattr(FilePool, method)

    def call(pool: FilePool, *arguments: object, **named: object) -> object:
        name = str(arguments[1] if method == "copy" else arguments[0])
        try:
            fault.check(method, name)
        except VolumeFailed:
            if method != "delete" and "delete" in fault.methods:
                (pool.directory / f"{name}.raw").touch()  # what it has begun can't be removed either
            raise
        return real(pool, *arguments, **named)

    return call
