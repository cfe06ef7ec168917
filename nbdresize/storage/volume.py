"""The interface of a volume and of a pool, whatever their kind."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from nbdresize.storage.handle import Handle


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

    @abstractmethod
    def grow(self, size: int) -> None:
        """Make it `size` bytes long, durably; the new range reads as zeroes. Nothing changes if it already is.

        Raises InsufficientSpace where the pool is full, VolumeFailed where this kind can't grow; it is then as long
        as before.
        """

    @abstractmethod
    def shrink(self, size: int) -> None:
        """Cut it to `size` bytes, durably. Nothing changes if it already is."""


class Pool(ABC):
    """Where volumes live, each under a name that is unique in it."""

    @abstractmethod
    def create(self, name: str, size: int, *, preallocate: bool = False) -> Volume:
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
