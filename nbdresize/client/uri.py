"""NBD URIs: where a server is, how it is spoken to, and which of its exports is meant.

Source of the forms: the NBD project's `doc/uri.md`; for what that leaves to the client, nbd_connect_uri(3).
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from nbdresize.errors import InvalidArgument
from nbdresize.protocol.constants import NBD_DEFAULT_PORT
from nbdresize.protocol.size_record import SIZE_SUFFIX
from nbdresize.protocol.strings import pack_string

_LONGEST = 8192
_SHOWN = 200
_WAY_OUT = "give one such as nbd://localhost/web1/disk0 or nbd+unix:///web1/disk0?socket=/run/nbd.sock"
_PARAMETERS = frozenset(
    {"socket", "tls-certificates", "tls-hostname", "tls-verify-peer", "tls-type", "tls-psk-file", "tls-username"}
)
_TRUTHS = {"1": True, "true": True, "0": False, "false": False}


class Transport(enum.Enum):
    """What carries the connection."""

    TCP = "nbd"
    UNIX = "nbd+unix"
    VSOCK = "nbd+vsock"


@dataclass(frozen=True)
class Tls:
    """How to set up TLS. `certificates`: a directory with ca-cert.pem, client-cert.pem and client-key.pem.

    `hostname` is what the server's certificate must be made out to; None where any of that authority will do.
    """

    certificates: Path | None
    hostname: str | None
    verify: bool = True


@dataclass(frozen=True)
class Target:
    """An export somewhere. `host` and `port` for TCP and vsock, `socket` (a path, or NUL and a name) for UNIX."""

    shown: str
    transport: Transport
    export: str
    host: str = ""
    port: int = NBD_DEFAULT_PORT
    socket: str = ""
    tls: Tls | None = None

    @property
    def disk(self) -> str:
        """The export's name, or where it is a control export, that of the disk that it belongs to."""
        return self.export.removesuffix(SIZE_SUFFIX)

    @property
    def names_size_export(self) -> bool:
        return self.export.endswith(SIZE_SUFFIX)


def parse_uri(uri: str) -> Target:
    """What `uri` means. Raises InvalidArgument for what is no NBD URI, or asks for what this client can't do."""
    parts = _split(uri)
    scheme, secure = _scheme(parts, uri)
    query = _query(parts.query, uri)
    export = _export(parts.path, uri)
    host, port = _authority(parts, uri)
    if (scheme is Transport.UNIX) != ("socket" in query):
        needed = "needs ?socket=PATH" if scheme is Transport.UNIX else "has no socket parameter"
        raise InvalidArgument(f"{_quoted(uri)}: {scheme.value} {needed}", _WAY_OUT)
    if scheme is Transport.VSOCK and not host.isdigit():
        raise InvalidArgument(f"{_quoted(uri)} names no vsock address", "give its number, as in nbd+vsock://2/web1")
    socket = unquote(query.get("socket", ""), errors="surrogateescape")
    if scheme is Transport.UNIX and (not socket or "\0" in socket[1:]):
        raise InvalidArgument(f"{_quoted(uri)} names no socket", _WAY_OUT)
    tls = _tls(query, host if scheme is Transport.TCP else None, uri) if secure else None
    return Target(shown(uri), scheme, export, host, port, socket, tls)


def shown(uri: str) -> str:
    """`uri` as messages show it: bounded in length."""
    return uri if len(uri) <= _SHOWN else uri[:_SHOWN] + "…"


def _split(uri: str) -> SplitResult:
    if len(uri) > _LONGEST:
        raise InvalidArgument(f"A URI of {len(uri)} characters", f"give one of at most {_LONGEST}")
    if not (uri.isascii() and uri.isprintable()) or " " in uri:
        raise InvalidArgument(f"{_quoted(uri)} holds characters that a URI can't", "write them as %XX")
    try:
        return urlsplit(uri)
    except ValueError as error:
        raise InvalidArgument(f"{_quoted(uri)} is not a URI ({error})", _WAY_OUT) from None


def _scheme(parts: SplitResult, uri: str) -> tuple[Transport, bool]:
    """The transport, and whether TLS is required."""
    secure = parts.scheme == "nbds" or parts.scheme.startswith("nbds+")
    plain = parts.scheme.replace("nbds", "nbd", 1)
    if plain not in (transport.value for transport in Transport) or "://" not in uri:
        raise InvalidArgument(f"{_quoted(uri)} is not an NBD URI", _WAY_OUT)
    return Transport(plain), secure


def _query(text: str, uri: str) -> dict[str, str]:
    """The parameters, values still percent-encoded; the first of a name counts. `+` is a plus sign, as in a path."""
    found: dict[str, str] = {}
    for parameter in filter(None, text.replace(";", "&").split("&")):
        name, _, value = parameter.partition("=")
        name = unquote(name, errors="backslashreplace")
        if name not in _PARAMETERS and not name.startswith("x-"):
            raise InvalidArgument(f"{_quoted(uri)} has an unknown parameter {name[:_SHOWN]!r}", "leave it out")
        found.setdefault(name, value)
    return found


def _export(path: str, uri: str) -> str:
    try:
        name = unquote(path.removeprefix("/"), errors="strict")
    except UnicodeDecodeError:
        raise InvalidArgument(f"The export name in {_quoted(uri)} is not UTF-8", "names of exports are") from None
    pack_string(name, "An export name")
    return name


def _authority(parts: SplitResult, uri: str) -> tuple[str, int]:
    try:
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise InvalidArgument(f"{_quoted(uri)} is not a URI ({error})", _WAY_OUT) from None
    if port == 0:
        raise InvalidArgument(f"{_quoted(uri)} names port 0", "give the port that the server listens on")
    return unquote(host) or "localhost", NBD_DEFAULT_PORT if port is None else port


def _tls(query: Mapping[str, str], host: str | None, uri: str) -> Tls:
    if "tls-psk-file" in query or query.get("tls-type", "x509") == "psk":
        raise InvalidArgument(
            f"{_quoted(uri)} asks for TLS with a pre-shared key, which Python's TLS can't do",
            "serve with certificates (--tls DIR) and give ?tls-certificates=DIR, or use nbdsh or nbdinfo of libnbd,"
            " or 'nbdresize disk resize' on the server's machine",
        )
    if query.get("tls-type", "x509") != "x509":
        raise InvalidArgument(f"{_quoted(uri)} asks for TLS without certificates", "only tls-type=x509 can be used")
    verify = _TRUTHS.get(query.get("tls-verify-peer", "1"))
    if verify is None:
        raise InvalidArgument(f"tls-verify-peer in {_quoted(uri)} is neither 0 nor 1", "give one of them")
    directory = unquote(query.get("tls-certificates", ""), errors="surrogateescape")
    if "\0" in directory or ("tls-certificates" in query and not directory):
        raise InvalidArgument(f"{_quoted(uri)} names no directory of certificates", "give tls-certificates=DIR")
    hostname = unquote(query.get("tls-hostname", "")) or host
    return Tls(Path(directory) if directory else None, hostname, verify)


def _quoted(uri: str) -> str:
    return repr(shown(uri))
