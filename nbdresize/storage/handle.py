"""The one I/O handle of everything that has a file descriptor: files and block devices.

Offsets and lengths are in bytes. The hot path is one system call per request; whatever is rare (a short transfer, an
error, a file system without an operation) has its own function. Ranges are the caller's to check, against a size that
only the export knows; still, nothing but `write` could ever make a file longer.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from nbdresize.errors import NbdresizeError, VolumeFailed
from nbdresize.storage.failures import failure
from nbdresize.storage.space import DeviceSpace, FileSpace, Space
from nbdresize.storage.syscalls import NOT_SUPPORTED

_ZEROES = memoryview(bytes(1 << 20))
_SURE_FOR = 64
"""Reads for which a file is taken to be without holes, once it was."""


class NotFast(OSError):
    """A fast zero that could only have been done by writing zeroes. Nothing was changed."""

    def __init__(self) -> None:
        super().__init__(errno.ENOTSUP, "This range can only be zeroed by writing")


@dataclass(frozen=True)
class Extent:
    """`length` bytes that are alike. `hole`: no space backs them. `zero`: they read as zeroes."""

    length: int
    hole: bool
    zero: bool


class Handle:
    """A volume, opened. Several threads may use it at once; none may while it is closed.

    `block_size` is the device's logical sector (512 or 4096), and 1 for a file: any offset and length may be read and
    written, but on a device other ones cost a read and a write of the whole sector.

    Every method raises VolumeFailed where the volume fails, and those that need space InsufficientSpace.
    """

    __slots__ = ("_dsync", "_fd", "_lost", "_reads_as_dense", "_space", "block_size", "path", "read_only")

    def __init__(self, fd: int, path: Path, *, read_only: bool = False, keeps_allocation: bool = False) -> None:
        """Takes over `fd`. With `keeps_allocation`, neither trim nor zero ever gives a file's space back."""
        self._fd = fd
        self.path = path
        self.read_only = read_only
        self._space: Space = (
            DeviceSpace(fd) if stat.S_ISBLK(os.fstat(fd).st_mode) else FileSpace(keeps_allocation=keeps_allocation)
        )
        self.block_size = self._space.block_size
        self._dsync = os.RWF_DSYNC
        self._lost: OSError | None = None
        self._reads_as_dense = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        """Give the descriptor back; what was written and not flushed may be lost. Nothing happens the second time."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def size(self) -> int:
        """The size, looked at now."""
        try:
            return self._space.size(self._fd)
        except OSError as error:
            raise failure("Asking for the size of", self.path, error) from error

    # Reading

    def read(self, length: int, offset: int) -> bytes:
        """All `length` bytes at `offset`. Raises VolumeFailed where the volume ends before that."""
        try:
            data = os.pread(self._fd, length, offset)
        except OSError as error:
            raise self._failed("Reading", length, offset, error) from error
        if len(data) == length:
            return data
        whole = bytearray(length)
        whole[: len(data)] = data
        self._read_rest(memoryview(whole), offset, len(data))
        return bytes(whole)

    def read_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        """Fill `buffer` (of bytes) from `offset` on. Raises VolumeFailed where the volume ends before that."""
        try:
            done = os.preadv(self._fd, (buffer,), offset)
        except OSError as error:
            raise self._failed("Reading", len(buffer), offset, error) from error
        if done != len(buffer):
            self._read_rest(memoryview(buffer), offset, done)

    def _read_rest(self, buffer: memoryview, offset: int, done: int) -> None:
        """What a short read left: it was cut by a signal, by the kernel's 2 GiB limit, or by the volume's end."""
        length = len(buffer)
        while done < length:
            try:
                more = os.preadv(self._fd, (buffer[done:],), offset + done)
            except OSError as error:
                raise self._failed("Reading", length, offset, error) from error
            if more == 0:
                raise VolumeFailed(
                    f"{self.path} ended at {offset + done}, within a read of {length} bytes at {offset}",
                    "see what made it shorter",
                )
            done += more

    # Writing

    def write(self, data: bytes | bytearray | memoryview, offset: int, *, fua: bool = False) -> None:
        """Put all of `data` at `offset`; with `fua` it is on stable storage when this returns, as by `flush`.

        Where it raises, any part of the range may have been written.
        """
        if fua:
            self._write_through(data, offset)
            return
        try:
            done = os.pwrite(self._fd, data, offset)
        except OSError as error:
            raise self._failed("Writing", len(data), offset, error) from error
        if done != len(data):
            self._write_rest(memoryview(data), offset, done)

    def _write_rest(self, data: memoryview, offset: int, done: int) -> None:
        length = len(data)
        while done < length:
            try:
                done += os.pwrite(self._fd, data[done:], offset + done)
            except OSError as error:
                raise self._failed("Writing", length, offset, error) from error

    def _write_through(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """By RWF_DSYNC, which costs one call and waits for this range only; else by a write and a flush."""
        if self._dsync and self._lost is None:
            try:
                if os.pwritev(self._fd, (data,), offset, self._dsync) == len(data):
                    return
            except OSError as error:
                if error.errno in NOT_SUPPORTED:
                    self._dsync = 0
                else:
                    self._tell_write_from_sync(data, offset, error)
        self.write(data, offset)
        self.flush()

    def _tell_write_from_sync(self, data: bytes | bytearray | memoryview, offset: int, error: OSError) -> None:
        """Raise for a write-through that failed, and find out whether anything can be believed after it.

        The kernel reports a failed write-back once to each descriptor. Had the write itself failed (no space), it
        would fail again now; if it does not, the report was about write-back, and later flushes must fail too.
        """
        try:
            os.pwrite(self._fd, data, offset)
        except OSError as again:
            raise self._failed("Writing", len(data), offset, again) from error
        self._lost = error
        raise self._failed("Writing", len(data), offset, error) from error

    def flush(self) -> None:
        """Put everything that was written before on stable storage, through this and every other handle (fdatasync).

        It survives a crash of the machine when this returns. Once it has failed, it fails for ever on this handle: the
        kernel forgets the pages that it could not write, so a second success would be a lie.
        """
        if self._lost is None:
            try:
                os.fdatasync(self._fd)
            except ValueError as error:  # closed: unlike its kin, fdatasync looks at the number first
                raise failure("Flushing", self.path, OSError(errno.EBADF, os.strerror(errno.EBADF))) from error
            except OSError as error:
                self._lost = error
                raise failure("Flushing", self.path, error) from error
            return
        raise VolumeFailed(
            f"An earlier flush of {self.path} failed ({self._lost.strerror}), so data may be lost",
            "connect again once the cause is gone, and check the file system on the disk",
        ) from self._lost

    # Giving space back, and zeroes

    def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        """Give the range's space back, as far as the volume can; it may read as anything afterwards.

        Of a device, only the whole sectors within. Not an error where the file system or the device can't.
        """
        self._reads_as_dense = 0
        start, end = self._whole_blocks(offset, length)
        if end > start:
            with self._failing("Trimming", length, offset):
                self._space.trim(self._fd, start, end - start)
        if fua:
            self.flush()

    def zero(self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False) -> None:
        """Make the range read as zeroes. Unless `may_trim`, space backs it afterwards.

        `fast`: raises NotFast, with nothing changed, where zeroes would have to be written; those on the edges of a
        device's sectors do not count.
        """
        self._reads_as_dense = 0
        start, end = self._whole_blocks(offset, length)
        if end <= start:
            self._write_zeroes(offset, length)
        else:
            with self._failing("Zeroing", length, offset):
                done = self._space.zero(self._fd, start, end - start, may_trim=may_trim, fast=fast)
            if not done:
                self._write_where_needed(start, end - start, may_trim=may_trim, fast=fast)
            self._write_zeroes(offset, start - offset)
            self._write_zeroes(end, offset + length - end)
        if fua:
            self.flush()

    def _whole_blocks(self, offset: int, length: int) -> tuple[int, int]:
        """Start and end of the whole blocks within a range."""
        block = self.block_size
        return -(-offset // block) * block, (offset + length) // block * block

    def _write_where_needed(self, offset: int, length: int, *, may_trim: bool, fast: bool) -> None:
        """Zero by writing, but leave holes alone if they may stay holes."""
        holes_stay = may_trim and not self._space.keeps_allocation
        extents = self.extents(offset, length) if holes_stay else [Extent(length, hole=False, zero=False)]
        if fast and not all(extent.zero for extent in extents):
            raise NotFast
        for extent in extents:
            if not (holes_stay and extent.zero):
                self._write_zeroes(offset, extent.length)
            offset += extent.length

    def _write_zeroes(self, offset: int, length: int) -> None:
        end = min(offset + length, self.size()) if length > 0 else offset
        while offset < end:
            count = min(end - offset, len(_ZEROES))
            self.write(_ZEROES[:count], offset)
            offset += count

    # Looking

    def extents(self, offset: int, length: int, *, limit: int | None = None) -> list[Extent]:
        """What lies in the range, merged where alike, and covering exactly it; past the end of a file lies a hole.

        With `limit`, no more than so many, which then cover the beginning of the range. A block device, and a file
        system that can't tell, answer with data.
        """
        found: list[Extent] = []
        end = offset + length
        hole = Extent(0, hole=not self._space.keeps_allocation, zero=True)
        data = Extent(0, hole=False, zero=False)
        with self._failing("Looking for holes in", length, offset):
            while offset < end and (limit is None or len(found) < limit):
                kind, until = hole, self._seek(os.SEEK_DATA, offset, end, otherwise=offset)
                if until <= offset:
                    kind, until = data, self._seek(os.SEEK_HOLE, offset, end, otherwise=end)
                if until <= offset:  # trimmed between the two looks
                    continue
                if found and found[-1].zero == kind.zero:  # written between two looks
                    found[-1] = replace(kind, length=found[-1].length + until - offset)
                else:
                    found.append(replace(kind, length=until - offset))
                offset = until
        return found

    def holds_only_data(self, offset: int, length: int) -> bool:
        """Whether there is no hole in the range, at little cost; False too where that can't be told.

        A file with blocks for all of its size has none, or none that is worth looking for. That is asked first, since
        tmpfs looks for a hole page by page, which in a large file takes milliseconds; and not each time, since holes
        that others make are only of interest, not of importance.
        """
        if self._reads_as_dense > 0:  # a trim in another thread may come between this and the next line
            self._reads_as_dense -= 1
            return True
        try:
            status = os.fstat(self._fd)
            if status.st_blocks * 512 >= status.st_size:  # a block device has neither
                self._reads_as_dense = _SURE_FOR
                return True
            return os.lseek(self._fd, offset, os.SEEK_HOLE) >= offset + length
        except OSError:
            return False

    def _seek(self, whence: int, offset: int, end: int, *, otherwise: int) -> int:
        """Where data or a hole begins, at most `end`, which also means none; `otherwise` where that can't be told.

        The descriptor's position is used by nobody, so any number of threads may move it.
        """
        try:
            return min(os.lseek(self._fd, offset, whence), end)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return end
            if error.errno == errno.EINVAL or error.errno in NOT_SUPPORTED:  # a block device
                return otherwise
            raise

    def cache(self, offset: int, length: int) -> None:
        """Have the range read into the page cache, without waiting for it."""
        if length > 0:  # to the kernel, 0 means everything up to the end
            with self._failing("Reading ahead", length, offset):
                os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    # Errors

    def _failed(self, doing: str, length: int, offset: int, error: OSError) -> NbdresizeError:
        return failure(f"{doing} {length} bytes at {offset} of", self.path, error)

    @contextlib.contextmanager
    def _failing(self, doing: str, length: int, offset: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._failed(doing, length, offset, error) from error
