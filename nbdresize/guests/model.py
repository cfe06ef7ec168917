"""What a guest is to learn."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DiskNews:
    """The committed size, in bytes, of a disk that a guest may have attached.

    `servers` are the URIs that the running servers of the state directory listen on: an export's name alone does not
    tell whose it is, where several state directories serve the same names.
    """

    vm: str
    disk: str
    export: str
    size: int
    generation: int
    servers: tuple[str, ...] = ()
