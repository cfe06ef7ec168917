"""Whether a load makes sense, by itself and on a disk."""

from nbdresize.errors import InvalidArgument, NotAuthorized
from nbdresize.loads.model import Engine, Load
from nbdresize.protocol.constants import NBD_FLAG_READ_ONLY, NBD_MAX_PAYLOAD
from nbdresize.protocol.export_info import BlockSizes, ExportInfo
from nbdresize.units import format_size

MOST_CONNECTIONS = 256
MOST_DEPTH = 4096
_LEAST_COPIED = 4096


def check_load(load: Load) -> None:
    """Raises InvalidArgument for a load that makes sense on no disk."""
    if not 1 <= load.depth <= MOST_DEPTH:
        raise InvalidArgument(f"A depth of {load.depth}", f"between 1 and {MOST_DEPTH} requests can be under way")
    if not 1 <= load.connections <= MOST_CONNECTIONS:
        raise InvalidArgument(f"{load.connections} connections", f"give between 1 and {MOST_CONNECTIONS}")
    if not 1 <= load.block <= NBD_MAX_PAYLOAD:
        raise InvalidArgument(
            f"Requests of {format_size(load.block)}", f"one has between 1 byte and {format_size(NBD_MAX_PAYLOAD)}"
        )
    if load.engine is Engine.NBDCOPY and (load.block < _LEAST_COPIED or load.block & (load.block - 1)):
        raise InvalidArgument(
            f"nbdcopy with requests of {format_size(load.block)}", f"give a power of two from {_LEAST_COPIED} bytes on"
        )


def check_disk(load: Load, export: ExportInfo, shown: str) -> None:
    """Raises InvalidArgument where the disk does not fit the load, NotAuthorized where it may not be written."""
    if load.writes and export.flags & NBD_FLAG_READ_ONLY:
        raise NotAuthorized(f"{shown} is served read-only", "put a reading load on it, or serve it writable")
    if load.engine is Engine.NBDCOPY:
        return
    if export.size < load.block:
        raise InvalidArgument(
            f"The disk at {shown} has {format_size(export.size)}, less than one block of {format_size(load.block)}",
            "give a smaller --block, or use a larger disk",
        )
    sizes = export.block_sizes or BlockSizes()
    if load.block % sizes.minimum or load.block > max(sizes.maximum, sizes.minimum):
        raise InvalidArgument(
            f"The server at {shown} takes no requests of {format_size(load.block)}",
            f"give a multiple of {sizes.minimum} bytes, at most {format_size(sizes.maximum)}",
        )
