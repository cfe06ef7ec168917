"""NBD URIs of disks, and of the control exports that belong to them.

Source of the forms: the NBD project's `doc/uri.md`.
"""

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from nbdresize.errors import InvalidArgument
from nbdresize.protocol.size_record import SIZE_SUFFIX

SCHEMES = ("nbd", "nbds", "nbd+unix", "nbds+unix", "nbd+vsock", "nbds+vsock")

_LONGEST = 8192
_SHOWN = 200
_WAY_OUT = "give one such as nbd://localhost/web1/disk0 or nbd+unix:///web1/disk0?socket=/run/nbd.sock"


@dataclass(frozen=True)
class SizeUri:
    """Where the control export of a disk is: `uri` for libnbd. `disk` is the disk's export name, maybe empty."""

    uri: str
    disk: str

    @property
    def shown(self) -> str:
        """The disk as messages name it."""
        return self.disk or "the default export"


def size_uri(disk_uri: str) -> SizeUri:
    """The control export of the disk at `disk_uri`, which may name the control export itself.

    Raises InvalidArgument for what is no NBD URI.
    """
    if len(disk_uri) > _LONGEST:
        raise InvalidArgument(f"A URI of {len(disk_uri)} characters", f"give one of at most {_LONGEST}")
    if not (disk_uri.isascii() and disk_uri.isprintable()) or " " in disk_uri:
        raise InvalidArgument(f"{_quoted(disk_uri)} holds characters that a URI can't", "write them as %XX")
    try:
        parts = urlsplit(disk_uri)
    except ValueError as error:
        raise InvalidArgument(f"{_quoted(disk_uri)} is not a URI ({error})", _WAY_OUT) from None
    if parts.scheme not in SCHEMES:
        raise InvalidArgument(f"{_quoted(disk_uri)} is not an NBD URI", _WAY_OUT)
    name = unquote(parts.path.removeprefix("/"), errors="backslashreplace")
    if name.endswith(SIZE_SUFFIX):
        return SizeUri(disk_uri, name.removesuffix(SIZE_SUFFIX))
    before, after = _split_after_path(disk_uri)
    return SizeUri(before + ("" if parts.path else "/") + SIZE_SUFFIX + after, name)


def _split_after_path(uri: str) -> tuple[str, str]:
    """The text itself, cut where the query begins: urlunsplit would drop the `//` of an empty authority."""
    end = min((place for mark in "?#" if (place := uri.find(mark)) >= 0), default=len(uri))
    return uri[:end], uri[end:]


def _quoted(uri: str) -> str:
    return repr(uri if len(uri) <= _SHOWN else uri[:_SHOWN] + "…")
