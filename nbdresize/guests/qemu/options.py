"""The options of a node, as far as QEMU tells them.

The file name of a node is a short one where QEMU can make one: `nbd+unix:///web1/disk0?socket=/run/nbd.sock`. It is
not escaped, and leaves out TLS. A node that has no short name shows `json:` and all options, its own and those of
the nodes below it, that decide which bytes it has: address, export, TLS, the throttle group, but neither
`reconnect-delay` nor `discard`. Source: bdrv_refresh_filename() and the `strong_runtime_opts` in QEMU's block drivers.
"""

import json
from collections.abc import Mapping
from typing import Any

_JSON = "json:"
_BOOLEANS = frozenset({"ipv4", "ipv6", "keep-alive", "numeric", "mptcp", "abstract", "tight"})
_TRUTHS = {"on": True, "yes": True, "true": True, "y": True, "off": False, "no": False, "false": False, "n": False}


def told(filename: str) -> dict[str, Any] | None:
    """The options in a node's file name, nested as QMP takes them; None where it is a short name, or cut short."""
    if not filename.startswith(_JSON):
        return None
    try:
        options = json.loads(filename.removeprefix(_JSON))
        return nested(options) if isinstance(options, dict) else None
    except (ValueError, RecursionError):  # QEMU cuts it after 4095 bytes
        return None


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """`{"server.path": …}` as `{"server": {"path": …}}`, at every level."""
    result: dict[str, Any] = {}
    for key, value in options.items():
        *outer, last = key.split(".")
        place = result
        for part in outer:
            inner = place.setdefault(part, {})
            place = inner if isinstance(inner, dict) else {}
        if isinstance(value, Mapping):
            known = place.get(last)
            place[last] = {**(known if isinstance(known, dict) else {}), **nested(value)}
        else:
            place[last] = value
    return result


def server(options: Mapping[str, Any]) -> dict[str, Any]:
    """The address in an nbd node's options, as QMP's SocketAddress; also from the older `path`, `host` and `port`."""
    given = options.get("server")
    if isinstance(given, Mapping):
        return {key: _truth(value) if key in _BOOLEANS else value for key, value in given.items()}
    if "path" in options:
        return {"type": "unix", "path": options["path"]}
    return {"type": "inet", "host": options.get("host", ""), "port": str(options.get("port", 10809))}


def _truth(value: object) -> object:
    return _TRUTHS.get(value, value) if isinstance(value, str) else value


def short(filename: str, export: str) -> dict[str, Any] | None:
    """The options behind an nbd node's short name, where it is of that export; None where it is not.

    The short name is not escaped: what stands where in it can be told only by who knows the export.
    """
    unix, tcp = f"nbd+unix:///{export}?socket=", "nbd://"
    if filename.startswith(unix):
        address: dict[str, Any] = {"type": "unix", "path": filename.removeprefix(unix)}
    elif filename.startswith(tcp) and filename.endswith(f"/{export}"):
        host, _, port = filename.removeprefix(tcp).removesuffix(f"/{export}").rpartition(":")
        address = {"type": "inet", "host": host, "port": port}
    else:
        return None
    return {"driver": "nbd", "server": address, "export": export}


def export(options: Mapping[str, Any]) -> str:
    return str(options.get("export", ""))
