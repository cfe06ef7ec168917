"""Volumes that are files, and the pool that is a directory of them."""

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from nbdresize.errors import InvalidArgument, NbdresizeError, VolumeFailed
from nbdresize.storage import sharing
from nbdresize.storage.copying import clone, copy_data, copy_over, open_source, share_blocks
from nbdresize.storage.failures import failure
from nbdresize.storage.fiemap import blocks_of
from nbdresize.storage.handle import Handle
from nbdresize.storage.opening import open_as, stat_as
from nbdresize.storage.reserving import capacity_of, is_preallocated, mark_preallocated, reserve, set_size
from nbdresize.storage.sharing import Blocks
from nbdresize.storage.volume import Capacity, Pool, Progress, Volume, no_progress
from nbdresize.units import format_size

SUFFIX = ".raw"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}", re.ASCII)


class FileVolume(Volume):
    """A raw file: sparse, or with all its space reserved."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, *, read_only: bool = False) -> Handle:
        fd = open_as(self.path, stat.S_IFREG, read_only=read_only)
        return Handle(fd, self.path, read_only=read_only, keeps_allocation=is_preallocated(fd))

    def size(self) -> int:
        return stat_as(self.path, stat.S_IFREG).st_size

    def allocated(self) -> int:
        return stat_as(self.path, stat.S_IFREG).st_blocks * 512

    def preallocated(self) -> bool:
        """Whether its space was reserved when it was created. If so, growing reserves too, and trimming frees nothing.

        A file system without extended attributes forgets it: what was reserved stays, what comes later is sparse.
        """
        with self._opened(read_only=True) as fd:
            return is_preallocated(fd)

    def grow(self, size: int, progress: Progress = no_progress) -> None:
        """See Volume. Of a preallocated file, the space is reserved before the size changes, so both or neither."""
        with self._opened() as fd:
            old = os.fstat(fd).st_size
            if size < old:
                raise VolumeFailed(f"{self.path} is {old} bytes long already, more than {size}", "shrink it instead")
            try:
                if size > old and is_preallocated(fd):
                    reserve(fd, self.path, old, size, progress)
                set_size(fd, self.path, size)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, old)  # also frees what was reserved past the end
                raise

    def shrink(self, size: int) -> None:
        with self._opened() as fd:
            old = os.fstat(fd).st_size
            if size > old:
                raise VolumeFailed(f"{self.path} is only {old} bytes long, less than {size}", "grow it instead")
            set_size(fd, self.path, size)

    @contextlib.contextmanager
    def _opened(self, *, read_only: bool = False) -> Iterator[int]:
        fd = open_as(self.path, stat.S_IFREG, read_only=read_only)
        try:
            yield fd
        finally:
            os.close(fd)


class FilePool(Pool):
    """A directory with one file per volume, `NAME.raw`. It has to exist.

    Names are letters, digits, `_`, `-` and `.`, at most 200, and begin with a letter or a digit: never a path.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._shares: bool | None = None

    def create(
        self, name: str, size: int, *, preallocate: bool = False, progress: Progress = no_progress
    ) -> FileVolume:
        """See Pool. Killed on the way, it leaves a file that `delete` removes."""
        with self._making(name) as new:
            if preallocate:
                mark_preallocated(new.fileno())
                reserve(new.fileno(), new.path, 0, size, progress)
            set_size(new.fileno(), new.path, size)
        return FileVolume(new.path)

    def volume(self, name: str) -> FileVolume:
        return FileVolume(self._path(name))

    def delete(self, name: str) -> None:
        path = self._path(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise failure("Deleting", path, error) from error
        self._sync_directory()

    def names(self) -> list[str]:
        try:
            with os.scandir(self.directory) as entries:
                found = [entry.name.removesuffix(SUFFIX) for entry in entries if entry.name.endswith(SUFFIX)]
        except OSError as error:
            raise failure("Listing", self.directory, error) from error
        return sorted(name for name in found if _NAME.fullmatch(name))

    def capacity(self) -> Capacity:
        try:
            return capacity_of(self.directory)
        except OSError as error:
            raise failure("Asking for the capacity of", self.directory, error) from error

    # Copies

    def shares_copies(self) -> bool:
        """See Pool. Found out by trying it with two files that have no name, once."""
        if self._shares is None:
            self._shares = self._try_sharing()
        return self._shares

    def copy(
        self,
        source: Path,
        name: str,
        *,
        size: int | None = None,
        share: bool = True,
        preallocate: bool = False,
        progress: Progress = no_progress,
    ) -> FileVolume:
        """See Pool. Killed on the way, it leaves a file that `delete` removes."""
        with open_source(source) as original, self._making(name) as new:
            shared = share and not preallocate and share_blocks(original, new)
            length = (new if shared else original).size()  # a source that grows is shared with the size it has then
            whole = length if size is None else size
            if whole < length:
                raise InvalidArgument(
                    f"{source} has {format_size(length)}, which {format_size(whole)} can't hold",
                    f"ask for at least {format_size(length)}",
                )
            if preallocate:
                mark_preallocated(new.fileno())
                reserve(new.fileno(), new.path, 0, whole, lambda _done, _total: progress(0, length))
            if not shared:
                set_size(new.fileno(), new.path, whole)
                copy_data(original, new, length, progress)
            set_size(new.fileno(), new.path, whole)
            progress(length, length)
        return FileVolume(new.path)

    def copy_ranges(
        self, source: Path, name: str, ranges: Iterable[tuple[int, int]], progress: Progress = no_progress
    ) -> None:
        with open_source(source) as original, self.volume(name).open() as target:
            size = target.size()
            clipped = [(offset, min(length, size - offset)) for offset, length in ranges if offset < size]
            total, done = sum(length for _, length in clipped), 0
            for offset, length in clipped:
                for piece in copy_over(original, target, offset, length):
                    done += piece
                    progress(done, total)

    def sync(self, name: str) -> None:
        with self.volume(name).open() as handle:
            handle.flush()

    def replace(self, name: str, by: str) -> None:
        path = self._path(name)
        try:
            self._path(by).replace(path)
        except FileNotFoundError:
            pass  # renamed by somebody who may have died before it was durable
        except OSError as error:
            raise failure("Replacing", path, error) from error
        self._sync_directory()

    def spaces(self, names: Sequence[str]) -> list[int]:
        return sharing.spaces(self._blocks(name) for name in names)

    def alone(self, names: Sequence[str]) -> list[int]:
        return sharing.alone([self._blocks(name) for name in names])

    def held(self, names: Sequence[str], but: Sequence[str]) -> int:
        wanted = [self._blocks(name) for name in names if name not in but]
        return sharing.held(wanted, (self._blocks(name) for name in but))

    def _blocks(self, name: str) -> Blocks:
        """What the volume takes. Where the file system says nothing of places, its blocks are its own."""
        volume = self.volume(name)
        if self._may_share():
            with volume.open(read_only=True) as handle:
                try:
                    found = blocks_of(handle.fileno())
                except OSError as error:
                    raise failure("Looking for the blocks of", volume.path, error) from error
            if found is not None:
                return found
        return Blocks(alone=volume.allocated())

    def _may_share(self) -> bool:
        """As `shares_copies`; also where that can't be tried, for want of space or of permission to write."""
        try:
            return self.shares_copies()
        except NbdresizeError:
            return True

    def _try_sharing(self) -> bool:
        try:
            with self._nameless() as source, self._nameless() as target:
                os.ftruncate(source.fileno(), 4096)
                return clone(source.fileno(), target.fileno())
        except OSError as error:
            raise failure("Trying to share blocks in", self.directory, error) from error

    def _nameless(self) -> IO[bytes]:
        """A file that is gone when it is closed, or its process dies; where there must be a name, it is no volume's."""
        return tempfile.TemporaryFile(dir=self.directory, prefix=".")

    @contextlib.contextmanager
    def _making(self, name: str) -> Iterator[Handle]:
        """A new, empty file; it and its name are durable afterwards, or it is gone if the block raises anything."""
        path = self._path(name)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError as error:
            raise VolumeFailed(f"A volume {name} exists already in {self.directory}", "choose another name") from error
        except OSError as error:
            raise failure("Creating", path, error) from error
        try:
            with Handle(fd, path) as handle:
                yield handle
            self._sync_directory()
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise

    def _path(self, name: str) -> Path:
        if _NAME.fullmatch(name) is None:
            raise InvalidArgument(f"{name[:40]!r} is not the name of a volume", "use letters, digits, '_', '-' and '.'")
        return self.directory / (name + SUFFIX)

    def _sync_directory(self) -> None:
        """Make creations and deletions in it survive a crash."""
        try:
            fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise failure("Syncing", self.directory, error) from error
