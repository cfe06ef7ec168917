"""A single file or block device behind an export: no ledger, no budget but `--max-size`."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from nbdresize.control.model import Cause, ClientResize
from nbdresize.errors import InsufficientSpace, NotAuthorized, VolumeFailed
from nbdresize.export.backing import LEASE_WAIT, Backing, HeldLease, Resized
from nbdresize.export.file_lease import FileLease, changing_size, lock_size
from nbdresize.export.live_size import LiveSize
from nbdresize.protocol.constants import NBD_CMD_FLAG_FIT
from nbdresize.storage.block import BlockVolume
from nbdresize.storage.kinds import open_volume
from nbdresize.units import MAX_SIZE, format_size, round_down

_CHANGE_WAIT = 10.0
_FENCE_WAIT = 1.0  # for a client that has just left: its server may still be closing


class FileBacking(Backing):
    """The size is that of the file, of any number of bytes; the generation counts the changes that this server saw.

    Clients may grow a file up to `max_size`, in bytes; where none is given, they may not. A device can't be changed
    from here. Once its owner has made it larger, this zeroes what is new, which may hold anything, and then offers it.
    Only one server may know which of its bytes were offered before, or the second would zero what clients of the first
    have written: so one process at a time lets clients write to a device, and only that one notices its growth. What
    a device holds when its server starts is taken as it is.
    """

    look_every = 0.1  # nobody tells: there is no ledger, whose operations tell every server

    def __init__(self, path: Path, policy: ClientResize, max_size: int | None = None, name: str = "") -> None:
        """Raises VolumeFailed where the path is neither a file nor a device, or can't be read."""
        super().__init__(policy)
        self.name = name
        self.volume = open_volume(path)
        with self.volume.open(read_only=True) as handle:
            self.granularity = handle.block_size
        self.is_device = path.is_block_device()
        self.live = LiveSize(self.volume.size(), 1)
        self._path = path
        self._max_size = max_size
        self._writing = threading.Lock()
        self._sole_writer: int | None = None

    @property
    def description(self) -> str:
        return f"{self._path.name}, {format_size(self.live.size)}"

    def _look(self) -> None:
        size = self.volume.size()
        if self.is_device and size > self.live.size:
            if self._sole_writer is None:
                return
            BlockVolume(self._path, known_size=self.live.size).grow(size)
        self.live.observe(size)

    def expect_writes(self) -> None:
        with self._writing:
            if self.is_device and self._sole_writer is None:
                self._sole_writer = lock_size(self._path, _CHANGE_WAIT)

    def close(self) -> None:
        """Let another server have a device's writers; a server that ends does so anyway. Nobody may be attached."""
        with self._writing:
            if self._sole_writer is not None:
                os.close(self._sole_writer)
                self._sole_writer = None

    @property
    def may_shrink(self) -> bool:
        return super().may_shrink and not self.is_device

    def maximum(self) -> int:
        if self.is_device or self._max_size is None:
            return self.live.size
        return max(self.live.size, round_down(self._max_size, self.granularity))

    def take_lease(self) -> FileLease:
        lease = FileLease(self._path)
        try:
            return lease.share(LEASE_WAIT)
        except BaseException:
            lease.release()
            raise

    def _change(
        self, size: int, flags: int, shrink: bool, lease: HeldLease | None, _wanted: Callable[[], bool]
    ) -> Resized:
        if self.is_device:
            raise VolumeFailed(
                f"{self._path} is a device, which its clients can't resize", "resize the device itself; they will see"
            )
        with changing_size(self._path, _CHANGE_WAIT):
            self.refresh()
            present = self.live.size
            if size > present:
                return self._grow(size, bool(flags & NBD_CMD_FLAG_FIT))
            if size < present:
                if not shrink:
                    self._check_shrink(size, present, False)
                self._shrink(size, lease)
        return Resized(*self.live.state, Cause.AS_REQUESTED)

    def _grow(self, size: int, fit: bool) -> Resized:
        if self._max_size is None:
            raise NotAuthorized(f"Clients may not grow {self._path}", "serve it with --max-size")
        most = min(self.maximum(), MAX_SIZE)
        if size > most and not fit:
            raise InsufficientSpace(
                f"{self._path} can't have {format_size(size)}: --max-size is {format_size(self._max_size)}",
                "ask for less, set the FIT flag, or serve it with a larger --max-size",
            )
        target = min(size, most)
        if target > self.live.size:
            self.volume.grow(target)
            self.refresh()
        return Resized(*self.live.state, Cause.AS_REQUESTED if target == size else Cause.FITTED)

    def _shrink(self, size: int, lease: HeldLease | None) -> None:
        """Fence, publish, truncate: no connection uses what is cut off, and no look sees it once that is known."""
        fence = lease if isinstance(lease, FileLease) else FileLease(self._path)
        try:
            fence.exclude(_FENCE_WAIT)
            with self._looking:
                self.live.observe(size)
                try:
                    self.volume.shrink(size)
                finally:
                    with suppress(VolumeFailed):
                        self._look()
        finally:
            if fence is lease:
                fence.share_again(LEASE_WAIT)
            else:
                fence.release()
