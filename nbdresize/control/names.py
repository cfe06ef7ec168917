"""Names of VMs, disks and operations: what is accepted, and how a refused one is shown."""

import re
import secrets
from collections.abc import Container

from nbdresize.control.model import MAX_DISKS
from nbdresize.errors import InvalidArgument

_VM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)
_DISK = re.compile(rf"disk([0-{MAX_DISKS - 1}])", re.ASCII)
_OPERATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}", re.ASCII)
_OWNER = re.compile(r"[^\x00-\x1f\x7f]{1,255}")
_LONGEST_SHOWN = 80

UNNAMED = "auto-"
"""How the id of an operation begins that its caller gave none."""

_MADE_UP = re.compile(UNNAMED + "[0-9a-f]{16}", re.ASCII)


def shown(text: object) -> str:
    """`text` as an error message quotes it: control characters escaped, at most about 80 characters."""
    whole = text if isinstance(text, str) else repr(text)
    return ascii_repr(whole if len(whole) <= _LONGEST_SHOWN else whole[:_LONGEST_SHOWN] + "…")


def ascii_repr(text: str) -> str:
    """repr() that can always be printed: lone surrogates (undecodable bytes of a command line) are escaped too."""
    return repr(text).encode("utf-8", "backslashreplace").decode("utf-8")


def is_vm_name(name: str) -> bool:
    return isinstance(name, str) and _VM.fullmatch(name) is not None


def check_vm_name(name: str) -> str:
    """`name`, where a VM may have it. Raises InvalidArgument."""
    return check_name(name, "a VM")


def check_name(name: str, of: str) -> str:
    """`name`, where a package, an image or a snapshot (`of`) may have it: as a VM. Raises InvalidArgument."""
    if not is_vm_name(name):
        raise InvalidArgument(
            f"{shown(name)} can't be the name of {of}",
            "use 1 to 63 letters, digits, '_', '.' and '-', the first a letter or digit",
        )
    return name


def disk_slot(name: str) -> int:
    """The slot that `name`, `disk0` … `disk7`, stands for. Raises InvalidArgument."""
    match = _DISK.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise InvalidArgument(f"{shown(name)} is not the name of a disk", f"disks are disk0 to disk{MAX_DISKS - 1}")
    return int(match[1])


def check_owner(owner: str | None) -> str | None:
    """`owner`, where a VM may have that owner. Raises InvalidArgument."""
    if owner is None or (isinstance(owner, str) and _OWNER.fullmatch(owner) and owner.isprintable()):
        return owner
    raise InvalidArgument(f"{shown(owner)} can't be an owner", "use 1 to 255 printable characters")


def operation_id(given: str | None) -> str:
    """The caller's id of an operation, else a fresh one. Raises InvalidArgument."""
    if given is None:
        return UNNAMED + secrets.token_hex(8)
    if not isinstance(given, str) or not _OPERATION.fullmatch(given):
        raise InvalidArgument(
            f"{shown(given)} can't be the id of an operation",
            "use 1 to 128 letters, digits, '_', '.', ':' and '-', the first a letter or digit",
        )
    if given.startswith(UNNAMED) and not _MADE_UP.fullmatch(given):
        raise InvalidArgument(
            f"{shown(given)} can't be the id of an operation: those begin so that nobody chose",
            f"they are forgotten earlier: choose one that does not begin with {UNNAMED}",
        )
    return given


def new_volume_name(prefix: str, taken: Container[str]) -> str:
    """A name for a new volume that no other has: it is recorded before the volume is made."""
    while (name := f"{prefix}-{secrets.token_hex(4)}") in taken:
        pass
    return name
