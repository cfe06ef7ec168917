"""The interface of a volume and of a pool, whatever their kind."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nbdresize.storage.handle import Handle

Progress = Callable[[int, int], None]
"""Told again and again while something takes long: bytes done, and bytes in all.

It may raise in order to stop: whatever was being made is then removed, and its exception goes on.
"""


def no_progress(done: int, total: int) -> None:
    """For whoever does not want to know."""


@dataclass(frozen=True)
class Capacity:
    """Of a pool's file system, in bytes: `total`, and `available` to this user now."""

    total: int
    available: int


class Volume(ABC):
    """The bytes of one disk at rest. Every method raises VolumeFailed where the volume can't be used."""

    path: Path

    @abstractmethod
    def open(self, *, read_only: bool = False) -> Handle:
        """A handle for reading and writing; several may be open at once, in any number of processes."""

    @abstractmethod
    def size(self) -> int:
        """The size in bytes, looked at now."""

    @abstractmethod
    def allocated(self) -> int:
        """The bytes that it takes in its pool."""

    def preallocated(self) -> bool:
        """Whether its space was reserved when it was created, so that growing reserves too and trimming frees none."""
        return False

    @abstractmethod
    def grow(self, size: int, progress: Progress = no_progress) -> None:
        """Make it `size` bytes long, durably; the new range reads as zeroes. Nothing changes if it already is.

        `progress` is told where that has to reserve or to write space. Raises InsufficientSpace where the pool is
        full, VolumeFailed where this kind can't grow; it is then as long as before, as also when `progress` raises.
        """

    @abstractmethod
    def shrink(self, size: int) -> None:
        """Cut it to `size` bytes, durably. Nothing changes if it already is."""


class Pool(ABC):
    """Where volumes live, each under a name that is unique in it."""

    @abstractmethod
    def create(self, name: str, size: int, *, preallocate: bool = False, progress: Progress = no_progress) -> Volume:
        """A new volume of zeroes, durable when this returns. Raises InsufficientSpace, VolumeFailed if it exists."""

    @abstractmethod
    def volume(self, name: str) -> Volume:
        """The volume of that name, whether it is there or not."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove the volume, durably; nothing happens if it is not there."""

    @abstractmethod
    def names(self) -> list[str]:
        """All volumes in the pool."""

    @abstractmethod
    def capacity(self) -> Capacity:
        """How much the pool holds."""

    # Copies

    @abstractmethod
    def shares_copies(self) -> bool:
        """Whether a copy within the pool shares its source's blocks until one of the two is written.

        A volume whose space is reserved is copied in full even so.
        """

    @abstractmethod
    def copy(
        self,
        source: Path,
        name: str,
        *,
        size: int | None = None,
        share: bool = True,
        preallocate: bool = False,
        progress: Progress = no_progress,
    ) -> Volume:
        """A new volume with the bytes of the file or block device at `source`, durable when this returns.

        With `share` the two share blocks where that can be, and the copy is of one instant. Otherwise it takes as
        long as reading and writing the data, is of no one instant if the source is written meanwhile, and keeps its
        holes: of a range that reads as zeroes nothing is written. With `preallocate`, or where the source's own space
        is reserved, nothing is shared; `preallocate` also reserves the new volume's space.

        `size` in bytes, where given, is how long the copy gets; zeroes follow the source's bytes. Raises
        InvalidArgument where the source is longer than that, InsufficientSpace where the pool is full, VolumeFailed
        where the name is taken or the source can't be read. No copy is left then, nor when `progress` raises.
        """

    @abstractmethod
    def copy_ranges(
        self, source: Path, name: str, ranges: Iterable[tuple[int, int]], progress: Progress = no_progress
    ) -> None:
        """Copy these ranges (offset, length) of `source` into the volume `name`, which has the same or another size.

        Where the source has a hole, or ended, the volume reads as zeroes afterwards. What lies past the end of the
        volume is left out. Nothing is durable before `sync`; where this raises, any part may have been copied.
        """

    @abstractmethod
    def sync(self, name: str) -> None:
        """Put everything that was written to the volume on stable storage."""

    @abstractmethod
    def replace(self, name: str, by: str) -> None:
        """Make the volume `by` the volume `name`, atomically and durably; what `name` was is gone.

        Nothing happens if there is no `by`: it was done before. Whoever has the old volume open keeps that.
        """

    @abstractmethod
    def spaces(self, names: Sequence[str]) -> list[int]:
        """Of each of these volumes, the bytes of its blocks that none before it in the list has.

        The sum is what all of them take together. Blocks are told apart by where they lie, where the file system
        says that; what it does not say (compressed data, say) counts in full.
        """

    @abstractmethod
    def alone(self, names: Sequence[str]) -> list[int]:
        """Of each of these volumes, the bytes of its blocks that no other in the list has, counted as `spaces`.

        That is by how much the sum of `spaces` is less without it.
        """

    @abstractmethod
    def held(self, names: Sequence[str], but: Sequence[str]) -> int:
        """The bytes of the blocks that the volumes `names` have together and none of `but` has, counted as `spaces`.

        That is what deleting `names` gives back, if all others that may share with them are in `but`.
        """
