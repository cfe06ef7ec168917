"""What stands behind an export: a volume, its live size, and how clients may change it.

Two kinds: a disk of the ledger (`ledger_backing`), and a single file or device (`file_backing`).
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nbdresize.control.model import Cause, ClientResize
from nbdresize.errors import NotAuthorized
from nbdresize.export.hold import Hold
from nbdresize.export.live_size import LiveSize
from nbdresize.protocol.constants import (
    NBD_CMD_FLAG_QUERY,
    NBD_CMD_FLAG_SHRINK,
    NBD_RESIZE_ALL_THAT_REMAINS,
)
from nbdresize.protocol.size_record import FEATURE_NOTIFY, FEATURE_SHRINK, SizeRecord, check_resize
from nbdresize.storage.volume import Volume
from nbdresize.storage.write_map import WriteMap
from nbdresize.units import format_size, round_up

LEASE_WAIT = 10.0
"""Seconds that a connection waits for a shrink or a rollback of its disk to end."""


class HeldLease(Protocol):
    """Proof that somebody uses the disk, until it is released; it ends with the process, however that ends."""

    @property
    def held(self) -> bool: ...

    def release(self) -> None: ...


@dataclass(frozen=True)
class Resized:
    """What a resize has led to. Sizes in bytes."""

    size: int
    generation: int
    cause: Cause


class Backing(ABC):
    """One disk, shared by all connections of this process to it. Every method may be called from any thread."""

    name: str
    """The name of the export."""
    volume: Volume
    live: LiveSize
    granularity: int
    """Sizes are a multiple of these many bytes."""
    hold: Hold
    """Whether replies to its clients are held back."""
    write_map: WriteMap | None = None
    """Where whoever writes to the volume marks it, after the write and before the answer; loaded anew each time.

    Then nothing can be lost when a map appears: what was written before this was looked at, and found none, was
    written before a look that began after the map was there has ended (`refresh`), and so is in a copy begun later.
    """
    look_every: float = 1.0
    """Seconds after which whoever waits for a change looks for one that nobody told."""

    def __init__(self, policy: ClientResize) -> None:
        self.policy = policy
        self.hold = Hold()
        self._looking = threading.Lock()
        self._looks_begun = 0
        self._looks_ended = 0

    @abstractmethod
    def _look(self) -> None:
        """Find out the size, and take it over into `live`; one look at a time."""

    @abstractmethod
    def maximum(self) -> int:
        """The largest size in bytes that may be asked for now; at least the present one."""

    def expect_writes(self) -> None:
        """A client that may write is about to attach. Raises ResourceInUse where only another server may let it."""
        return

    @abstractmethod
    def take_lease(self) -> HeldLease:
        """A shared lease. Raises ResourceInUse where the disk is held exclusively for longer than LEASE_WAIT."""

    @abstractmethod
    def _change(
        self, size: int, flags: int, shrink: bool, lease: HeldLease | None, wanted: Callable[[], bool]
    ) -> Resized:
        """Change the size; the form, the policy and the present size are checked already, but may be outdated."""

    def refresh(self) -> None:
        """Look at the size once more: a change that was complete before this call is known after it.

        Callers that arrive while a look is under way share the next one, so that a flood of requests costs no more
        looks than can be done one after the other. Raises VolumeFailed where the disk is gone.
        """
        arrived = self._looks_begun
        with self._looking:
            if self._looks_ended > arrived:  # a look that began after this call did
                return
            self._looks_begun += 1
            look = self._looks_begun
            self._look()
            self._looks_ended = look

    @property
    @abstractmethod
    def description(self) -> str:
        """What people are told of it, with its size as it is now."""

    @property
    def may_shrink(self) -> bool:
        """Whether clients may make it smaller, where nobody else has it attached."""
        return self.policy is ClientResize.ALL

    def record(self, *, read_only: bool = False) -> SizeRecord:
        """The size record as it is now. Where `read_only`, it says that nothing may shrink. Raises as refresh()."""
        self.refresh()
        shrinks = self.may_shrink and not read_only
        most = self.maximum()
        size, generation = self.live.state
        return SizeRecord(
            size=size,
            generation=generation,
            minimum=min(self.granularity, size) if shrinks else size,
            maximum=max(size, most),
            granularity=self.granularity,
            features=FEATURE_NOTIFY | (FEATURE_SHRINK if shrinks else 0),
        )

    def resize(
        self, size: int, flags: int, *, lease: HeldLease | None = None, wanted: Callable[[], bool] = lambda: True
    ) -> Resized:
        """Change the size as a client asks, with the flags of the wire; what has become of it.

        `lease` is the caller's own on this disk: a shrink may then go ahead although the caller has it attached. It
        is shared again afterwards. Once it is not `wanted` any more, it waits for no other change to end. Raises
        InvalidArgument for the form, NotAuthorized and ResourceInUse where the
        policy or other clients forbid it, InsufficientSpace, VolumeFailed; in this order.
        """
        check_resize(size, flags)
        self.refresh()
        if not flags & NBD_CMD_FLAG_QUERY:
            self._check_policy_allows_change()
        present = self.live.state
        if flags & NBD_CMD_FLAG_QUERY:
            return Resized(*present, Cause.QUERY)
        rounded = size if size == NBD_RESIZE_ALL_THAT_REMAINS else round_up(size, self.granularity)
        if size == present.size or rounded == present.size:
            return Resized(*present, Cause.AS_REQUESTED if size == present.size else Cause.ROUNDED_UP)
        allows_shrink = bool(flags & NBD_CMD_FLAG_SHRINK)
        if rounded < present.size:
            self._check_shrink(size, present.size, allows_shrink)
        return self._change(size, flags, allows_shrink and self.policy is ClientResize.ALL, lease, wanted)

    def _check_policy_allows_change(self) -> None:
        if self.policy is ClientResize.OFF:
            raise NotAuthorized(f"Clients of {self.shown} may not change its size", self._how_to_allow("grow or all"))

    def _check_shrink(self, size: int, present: int, allowed: bool) -> None:
        if not allowed:
            raise NotAuthorized(
                f"{format_size(size)} is less than the {format_size(present)} that {self.shown} has",
                "a request that may lose data sets the SHRINK flag",
            )
        if self.policy is not ClientResize.ALL:
            raise NotAuthorized(f"Clients of {self.shown} may not shrink it", self._how_to_allow("all"))

    def _how_to_allow(self, policies: str) -> str:
        """The way out for a client whose policy forbids what these policies allow."""
        return f"serve it with --client-resize {policies}"

    @property
    def shown(self) -> str:
        """The name as messages show it; that of a single file may be empty."""
        return self.name or str(self.volume.path)
