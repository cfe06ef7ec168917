"""A disk as one connection uses it: its lease, its handle, and requests checked against the live size."""

from collections.abc import Callable

from nbdresize.errors import InsufficientSpace, InvalidArgument, NbdresizeError, NotAuthorized, VolumeFailed
from nbdresize.export.backing import Backing, HeldLease, Resized
from nbdresize.export.gate import Gate
from nbdresize.export.live_size import LiveSize, SizeState
from nbdresize.protocol.constants import NBD_CMD_FLAG_QUERY, NBD_CMD_FLAG_SHRINK
from nbdresize.protocol.size_record import check_resize
from nbdresize.storage.handle import Extent, Handle

_SHRINK_WAIT = 10.0


class DiskExport:
    """One per connection; several threads may call it at once, none while or after it is closed.

    Offsets and lengths are in bytes and the peer's: each request is checked in one place, `_outside` for those that
    reach past the live size. Before one fails as out of range the size is looked at once more, so a lost notification
    of a grow costs nothing. A range that was cut off by a shrink since this connection first saw it gives ENOSPC, for
    reads too; one that never was gives EINVAL, or ENOSPC where it would have to be written.

    A write is inside the gate from its check to its end, and a shrink by this connection closes it first; a shrink by
    anybody else waits for the lease. So nothing ever makes a file longer that was just cut.

    `requests`, `bytes_read` and `bytes_written` are counted without a lock: with requests in parallel, one may be lost.
    """

    def __init__(self, backing: Backing, *, read_only: bool = False, alive: Callable[[], bool] = lambda: True) -> None:
        """Takes a lease and opens the volume. Raises ResourceInUse, VolumeFailed; nothing is held then.

        `alive` tells whether the connection still stands: for one that does not, no resize waits for another.
        """
        self.name = backing.name
        self.read_only = read_only
        self.requests = 0
        self.bytes_read = 0
        self.bytes_written = 0
        self._backing = backing
        self._alive = alive
        self._live = backing.live
        self._gate = Gate()
        self._lease, self._handle = _attach(backing, read_only)
        self._largest = self._live.watch(self._see).size

    def close(self) -> None:
        """Give handle and lease back; nothing happens the second time."""
        if self._handle.fileno() < 0:
            return
        self._backing.live.unwatch(self._see)
        self._handle.close()
        self._lease.release()

    @property
    def size(self) -> int:
        """The live size in bytes."""
        return self._live.size

    @property
    def description(self) -> str:
        return self._backing.description

    @property
    def state(self) -> SizeState:
        return self._live.state

    @property
    def backing(self) -> Backing:
        return self._backing

    @property
    def handle(self) -> Handle:
        """The volume itself, for a front's own way of moving bytes; within ranges that `check` has let pass."""
        return self._handle

    @property
    def block_size(self) -> int:
        """A device's logical sector in bytes, else 1; other offsets and lengths work too."""
        return self._handle.block_size

    # Requests

    def check(self, length: int, offset: int, past_end: type[NbdresizeError] = InvalidArgument) -> None:
        """Let a request's range pass, or raise: `past_end` where it reaches further than the disk ever did."""
        if not 0 <= offset <= offset + length <= self._live.size:
            self._outside(length, offset, past_end)

    def read(self, length: int, offset: int) -> bytes:
        """The `length` bytes at `offset`."""
        self.check(length, offset)
        try:
            data = self._handle.read(length, offset)
        except VolumeFailed:
            self._recheck(length, offset)
            raise
        self.requests += 1
        self.bytes_read += length
        return data

    def read_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        """Fill `buffer`, of bytes, from `offset` on."""
        length = len(buffer)
        self.check(length, offset)
        try:
            self._handle.read_into(buffer, offset)
        except VolumeFailed:
            self._recheck(length, offset)
            raise
        self.requests += 1
        self.bytes_read += length

    def write(self, data: bytes | bytearray | memoryview, offset: int, *, fua: bool = False) -> None:
        """Put `data` at `offset`; with `fua` it is on stable storage when this returns."""
        length = len(data)
        self._enter(length, offset, InsufficientSpace)
        try:
            self._handle.write(data, offset, fua=fua)
        finally:
            self.mark(length, offset)
            self._gate.leave()
        self.requests += 1
        self.bytes_written += length

    def mark(self, length: int, offset: int) -> None:
        """Tell whoever copies the disk that the range may have changed, in full or in part, before that is answered.

        A front that writes through `handle` has to; everything else here does it by itself.
        """
        write_map = self._backing.write_map
        if write_map is not None:
            write_map.mark(offset, length)

    def flush(self) -> None:
        """All writes that were answered before are on stable storage when this returns."""
        if not self.read_only:
            self._handle.flush()
        self.requests += 1

    def trim(self, length: int, offset: int, *, fua: bool = False) -> None:
        """The range may read as anything, and its space is given back where it can be."""
        self._enter(length, offset, InvalidArgument)
        try:
            self._handle.trim(offset, length, fua=fua)
        finally:
            self.mark(length, offset)
            self._gate.leave()
        self.requests += 1

    def zero(self, length: int, offset: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False) -> None:
        """The range reads as zeroes. `fast`: raises OSError ENOTSUP where that would take writing them."""
        self._enter(length, offset, InsufficientSpace)
        try:
            self._handle.zero(offset, length, may_trim=may_trim, fast=fast, fua=fua)
        finally:
            self.mark(length, offset)
            self._gate.leave()
        self.requests += 1

    def extents(self, length: int, offset: int, *, limit: int | None = None) -> list[Extent]:
        """What lies in the range, or with `limit` in its beginning; see Handle.extents."""
        self.check(length, offset)
        found = self._handle.extents(offset, length, limit=limit)
        self.requests += 1
        return found

    def cache(self, length: int, offset: int) -> None:
        """Read the range ahead."""
        self.check(length, offset)
        self._handle.cache(offset, length)
        self.requests += 1

    def resize(self, size: int, flags: int) -> Resized:
        """Change the size as this connection's client asks, with the flags of the wire. Raises as Backing.resize.

        A shrink goes ahead where this is the sole connection, and waits for the requests that it has in flight.
        """
        self.requests += 1
        if not flags & NBD_CMD_FLAG_QUERY:
            check_resize(size, flags)
            self._check_writable()
        if not flags & NBD_CMD_FLAG_SHRINK:
            return self._backing.resize(size, flags, wanted=self._alive)
        with self._gate.closed(_SHRINK_WAIT):
            try:
                return self._backing.resize(size, flags, lease=self._lease, wanted=self._alive)
            finally:
                if not self._lease.held:  # then somebody may cut the volume any time: nothing lies inside any more
                    self._live = LiveSize(0, 0)

    # The one check

    def _enter(self, length: int, offset: int, past_end: type[NbdresizeError]) -> None:
        """Go in through the gate with a range that stays good as long as one is inside; leaving is the caller's.

        The size is never looked at from inside: a look may wait for a shrink, and that for the gate.
        """
        self._check_writable()
        while True:
            self._gate.enter()
            if 0 <= offset <= offset + length <= self._live.size:
                return
            self._gate.leave()
            self._outside(length, offset, past_end)

    def _outside(self, length: int, offset: int, past_end: type[NbdresizeError]) -> None:
        """Look at the size once more, and raise unless the range lies inside it now."""
        if length < 0 or offset < 0:
            raise InvalidArgument(f"A request for {length} bytes at {offset}", "neither may be negative")
        if not self._lease.held:
            raise VolumeFailed(f"The lease on {self._backing.shown} was lost", "connect again")
        self._backing.refresh()
        size = self._live.size
        if offset + length <= size:
            return
        asked = f"{length} bytes at {offset} reach past the end of {self._backing.shown}, which has {size}"
        if offset + length <= self._largest:
            raise InsufficientSpace(f"{asked} since it was shrunk", "stay within its size")
        raise past_end(asked, "stay within its size, or grow it first")

    def _check_writable(self) -> None:
        if self.read_only:
            raise NotAuthorized(f"{self._backing.shown} is served read-only", "connect to a server that may write")

    def _recheck(self, length: int, offset: int) -> None:
        """A read that failed may have lain in what was cut off meanwhile; that then is what its client hears."""
        self._backing.refresh()
        self.check(length, offset)

    def _see(self, state: SizeState) -> None:
        self._largest = max(self._largest, state.size)


def _attach(backing: Backing, read_only: bool) -> tuple[HeldLease, Handle]:
    """A lease and a handle; the size is looked at once the lease is there, which may have waited for a shrink."""
    lease = backing.take_lease()
    try:
        if not read_only:
            backing.expect_writes()
        backing.refresh()
        return lease, backing.volume.open(read_only=read_only)
    except BaseException:
        lease.release()
        raise
