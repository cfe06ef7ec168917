"""A disk of the ledger behind an export."""

from collections.abc import Callable

from nbdresize.control.control import Control
from nbdresize.control.leases import Lease
from nbdresize.control.model import Cause, ClientResize, Disk, ResizeOptions
from nbdresize.errors import InsufficientSpace, NbdresizeError, ResourceNotFound, VolumeFailed
from nbdresize.export.backing import LEASE_WAIT, Backing, HeldLease, Resized
from nbdresize.export.live_size import LiveSize
from nbdresize.protocol.constants import NBD_CMD_FLAG_FIT
from nbdresize.storage.file import FilePool
from nbdresize.storage.write_map import WriteMap
from nbdresize.units import GRANULARITY, MAX_SIZE, REMAINING, SizeRequest, format_size


def describe(disk: Disk, size: int) -> str:
    """A disk of `size` bytes for people: `disk0 of web1, 20 GiB, boots`."""
    return f"{disk.name} of {disk.vm}, {format_size(size)}" + (", boots" if disk.boot else "")


class LedgerBacking(Backing):
    """The size is the ledger's: what control has committed, whoever asked for it.

    Clients may do to it what both the server's `policy` and all switches of the VM allow, as it is when they ask; to
    the size of a disk that is fixed, by the VM's package or by a switch, nothing.
    """

    def __init__(self, control: Control, disk: Disk, policy: ClientResize) -> None:
        super().__init__(policy)
        self._server_policy = policy
        self._fixed = False
        self.name = disk.export_name
        self.volume = FilePool(control.state.volumes).volume(disk.volume)
        self.live = LiveSize(disk.size, disk.generation)
        self.granularity = GRANULARITY
        self._control = control
        self._disk = disk
        self._map_path = control.state.write_map(disk.volume)

    @property
    def description(self) -> str:
        return describe(self._disk, self.live.size)

    def _look(self) -> None:
        self._look_for_map()
        try:
            vm = self._control.vm(self._disk.vm)
        except ResourceNotFound as error:
            raise self._gone() from error
        disk = next((disk for disk in vm.disks if disk.volume == self._disk.volume), None)
        if disk is None:
            raise self._gone()
        self.policy = self._server_policy.within(vm.allowed.client_resize)
        self._fixed = not (vm.flexible and vm.allowed.flexible_disks)
        self.live.update(disk.size, disk.generation)

    def _look_for_map(self) -> None:
        """Begin or end to mark what is written, as whoever copies the disk has made a map or removed it.

        A map that can't be used is none: the copy is told so (Exports.refresh), while the disk goes on. One that was
        used up to now is let go rather than closed, since some thread may be marking in it.
        """
        try:
            found = self._map_path.stat()
            if self.write_map is None or self.write_map.identity != (found.st_dev, found.st_ino):
                self.write_map = WriteMap.open(self._map_path)
        except (NbdresizeError, OSError, ValueError):
            self.write_map = None

    def _gone(self) -> VolumeFailed:
        """Also where there is a new disk of the same name: that is another one."""
        return VolumeFailed(f"{self.name} has been deleted", "connect to a disk that exists")

    @property
    def may_shrink(self) -> bool:
        return super().may_shrink and not self._fixed

    def maximum(self) -> int:
        try:
            return max(self.live.size, self._control.maximum(self._disk.vm, self._disk.name))
        except ResourceNotFound as error:
            raise self._gone() from error

    def _how_to_allow(self, policies: str) -> str:
        if self.policy is self._server_policy:
            return super()._how_to_allow(policies)
        return "an operator sees with nbdresize switch list what forbids it"

    def take_lease(self) -> Lease:
        try:
            disk, lease = self._control.take_lease(self._disk.vm, self._disk.name, LEASE_WAIT)
        except ResourceNotFound as error:
            raise self._gone() from error
        if disk.volume != self._disk.volume:
            lease.release()
            raise self._gone()
        return lease

    def _change(
        self, size: int, flags: int, shrink: bool, lease: HeldLease | None, wanted: Callable[[], bool]
    ) -> Resized:
        fit = bool(flags & NBD_CMD_FLAG_FIT)
        everything = size > MAX_SIZE
        if everything and not fit and not self._fixed:  # of a fixed one, control says that it is
            raise InsufficientSpace(
                f"{self.name} can't have {format_size(size)}: there is room for {format_size(self.maximum())}",
                "ask for less, or set the FIT flag",
            )
        if everything and not self._fixed and self.maximum() == self.live.size:
            return Resized(*self.live.state, Cause.FITTED)
        outcome = self._control.resize_disk(
            self._disk.vm,
            self._disk.name,
            REMAINING if everything else SizeRequest(exact=size),
            ResizeOptions(shrink=shrink, fit=fit, round_up=True, wanted=wanted),
            holding=lease if isinstance(lease, Lease) else None,
        )
        self.live.update(outcome.size, outcome.generation)
        return Resized(outcome.size, outcome.generation, Cause.FITTED if everything else outcome.cause)
