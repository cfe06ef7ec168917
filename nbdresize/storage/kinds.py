"""Which kind of volume lies at a path."""

import stat
from pathlib import Path

from nbdresize.storage.block import BlockVolume
from nbdresize.storage.file import FileVolume
from nbdresize.storage.opening import kind_of, wrong_kind
from nbdresize.storage.volume import Volume


def open_volume(path: Path) -> Volume:
    """The file or block device at `path`. Raises VolumeFailed where there is none, or something else."""
    kind = kind_of(path)
    if kind == stat.S_IFREG:
        return FileVolume(path)
    if kind == stat.S_IFBLK:
        return BlockVolume(path)
    raise wrong_kind(path, kind, "a file or a block device")
