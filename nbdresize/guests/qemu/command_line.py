"""What QEMU was started with: the only place that tells the options of a node that its monitor keeps to itself.

Source: qemu(1), `-blockdev` and `-drive`; the syntax of their arguments is that of QEMU's keyval.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from nbdresize.guests.qemu.options import export, nested, server
from nbdresize.protocol.constants import NBD_DEFAULT_PORT

_INHERITED_DISCARD = "unmap"
_DISCARDS = {"on": "unmap", "off": "ignore"}
_NUMBER = re.compile("[0-9]{1,18}")
_CHILD = "file"
_DEPTH = 8
_OLD_NAME = "nbd:"

ServedBy = Callable[[str, Mapping[str, Any]], bool]
"""Whether an export's name and a server's address are those of the disk."""


@dataclass(frozen=True)
class Described:
    """A node as the command line describes it. `options` are its own, `name` is empty where it gives none.

    `above` are the names and the drive ids of what it is described in.
    """

    name: str
    options: Mapping[str, Any]
    above: tuple[str, ...] = ()

    @property
    def discard(self) -> str:
        """A node described inside of another one lets discards through, where it doesn't say otherwise.

        In QMP's words, of which a legacy drive has others too.
        """
        given = str(self.options.get("discard", _INHERITED_DISCARD if self.above else "ignore"))
        return _DISCARDS.get(given, given)

    def carried(self, *keys: str) -> dict[str, Any]:
        """Those of its options, with numbers as numbers."""
        found = {key: self.options[key] for key in keys if key in self.options}
        return {key: int(value) if _NUMBER.fullmatch(str(value)) else value for key, value in found.items()}


def described(arguments: Sequence[str]) -> tuple[Described, ...]:
    """Every block node that these arguments of QEMU describe, as far as they do it in ways known here."""
    found: list[Described] = []
    for name, value in pairwise(arguments):
        option = name.lstrip("-") if name.startswith("-") else ""
        with suppress(RecursionError):  # nobody nests options so deep
            if option == "blockdev":
                found += tuple(_nodes(nested(_parsed(value, "driver")), ()))
            elif option == "drive":
                found += tuple(_drive(_parsed(value, "")))
    return tuple(found)


def of_process(pid: int | None) -> tuple[Described, ...]:
    """As `described`, of a running QEMU; nothing where its command line can't be read."""
    if pid is None:
        return ()
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ()
    return described([argument.decode(errors="surrogateescape") for argument in raw.split(b"\0")])


def find_nbd(nodes: Sequence[Described], name: str, same: ServedBy) -> Described | None:
    """The `nbd` node of the same export: the one of that name, else any, since after a grow the name is another."""
    matching = [
        node
        for node in nodes
        if node.options.get("driver") == "nbd" and same(export(node.options), server(node.options))
    ]
    return next((node for node in matching if node.name == name), next(iter(matching), None))


def find_above(nodes: Sequence[Described], name: str, driver: str, below: Described | None) -> Described | None:
    """The node of that name, else the one of that driver that `below` is described in, or that refers to it."""
    named = [node for node in nodes if node.name and node.name == name]
    around = [
        node
        for node in nodes
        if below is not None
        and node.options.get("driver") == driver
        and ((below.name and node.options.get(_CHILD) == below.name) or node.options.get(_CHILD) is below.options)
    ]
    return next(iter(named or around), None)


def _parsed(text: str, implied: str) -> dict[str, Any]:
    """The options of one argument: JSON, or `key=value` with commas between; a comma in a value is doubled."""
    if text.startswith("{"):
        with suppress(ValueError):
            options = json.loads(text)
            return options if isinstance(options, dict) else {}
        return {}
    options = {}
    for number, part in enumerate(text.replace(",,", "\0").split(",")):
        key, equals, value = part.replace("\0", ",").partition("=")
        if equals:
            options[key] = value
        elif number == 0 and implied:
            options[implied] = key
    return options


def _nodes(options: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[Described]:
    """The node with these options, and those described inside of it."""
    name = str(options.get("node-name", ""))
    yield Described(name, options, above)
    child = options.get(_CHILD)
    if isinstance(child, Mapping) and len(above) < _DEPTH:
        yield from _nodes(child, (*above, name))


def _drive(flat: Mapping[str, Any]) -> Iterator[Described]:
    """A legacy drive: without a format it is probed, which gives `raw`; its file may be a URI, with options beside."""
    uri = flat.get(_CHILD)
    options = nested({key: value for key, value in flat.items() if key != _CHILD})
    driver = options.get("driver") or options.get("format") or "raw"
    beside = options.get(_CHILD)
    child = {**(_from_uri(uri) if isinstance(uri, str) else {}), **(beside if isinstance(beside, Mapping) else {})}
    name = str(options.get("node-name", ""))
    if driver == "nbd":
        yield Described(name, {**child, **options, "driver": "nbd"})
        return
    drive = str(options.get("id", ""))
    yield Described(name, {**options, "driver": driver, _CHILD: child}, (drive,))
    yield from _nodes(child, (drive, name))


def _from_uri(uri: str) -> dict[str, Any]:
    """The options that an NBD URI stands for, as QEMU's nbd_parse_uri() reads it; none for another file name."""
    if uri.startswith("json:"):
        return nested(_parsed(uri.removeprefix("json:"), ""))
    if "://" not in uri:
        return _from_old_name(uri)
    with suppress(ValueError):
        parts = urlsplit(uri)
        if parts.scheme == "nbd+unix":
            address: dict[str, Any] = {"type": "unix", "path": _in_query(parts.query, "socket")}
        elif parts.scheme in ("nbd", "nbd+tcp"):
            address = {"type": "inet", "host": parts.hostname or "", "port": str(parts.port or NBD_DEFAULT_PORT)}
        else:
            return {}
        return {"driver": "nbd", "server": address, "export": unquote(parts.path.removeprefix("/"))}
    return {}


def _in_query(query: str, wanted: str) -> str:
    """The value of that name; a plus in it is one, as QEMU reads it."""
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if unquote(name) == wanted:
            return unquote(value)
    return ""


def _from_old_name(name: str) -> dict[str, Any]:
    """The options that `nbd:unix:PATH` and `nbd:HOST:PORT` stand for, each perhaps with `:exportname=EXPORT`."""
    if not name.startswith(_OLD_NAME):
        return {}
    place, _, export = name.removeprefix(_OLD_NAME).partition(":exportname=")
    if place.startswith("unix:"):
        return {"driver": "nbd", "server": {"type": "unix", "path": place.removeprefix("unix:")}, "export": export}
    host, _, port = place.rpartition(":")
    return {"driver": "nbd", "server": {"type": "inet", "host": host.strip("[]"), "port": port}, "export": export}
