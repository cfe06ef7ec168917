"""`nbdresize status`: running servers, their clients, what goes on, and what the VMs and their pool have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from nbdresize.cli import operation_views, options, output, views
from nbdresize.cli.output import Column
from nbdresize.cli.pool import pool_json, pool_line
from nbdresize.cli.switch import show_switches, switches_json
from nbdresize.errors import ServerFailed, VolumeFailed

if TYPE_CHECKING:
    from pathlib import Path

    from nbdresize.config import StateDirectory
    from nbdresize.control.control import Control
    from nbdresize.control.model import VM, Guest, Operation, Pool
    from nbdresize.control.switches import Switches

_STATUS = options.explained(
    "Show the running servers, their clients, the pool, and the VMs with their budgets.",
    """
    nbdresize status
    nbdresize status --json
    """,
    "Every server of the state directory is asked; one that does not answer within two seconds is shown as such."
    " Operations that run are shown, guests that are attached with what they are still to learn, and everything that is"
    " switched.",
)

_Json = dict[str, Any]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("status", **_STATUS)(status)


@dataclass(frozen=True)
class _Ledger:
    """What the state directory itself tells. The pool is None where it can't be seen, for the reason in `problem`."""

    vms: "list[VM]"
    operations: "list[Operation]"
    guests: "list[Guest]"
    switches: "Switches"
    pool: "Pool | None"
    problem: str


def status(json: options.Json = False, exact: options.Bytes = False, root: options.Root = None) -> None:
    from nbdresize.config import state_directory

    state = state_directory(root)
    with options.control(root) as control:
        known = _known(control)
    servers = _servers(state)
    if json:
        document = {
            "root": str(state.root),
            "servers": servers,
            "pool": {"problem": known.problem} if known.pool is None else {**pool_json(known.pool), "problem": None},
            "operations": [operation_views.operation_json(each) for each in known.operations],
            "guests": [views.guest_json(guest) for guest in known.guests],
            **switches_json(known.switches),
            "vms": [views.vm_json(vm) for vm in known.vms],
        }
        output.document(document)
    else:
        _show(state, servers, known, exact=exact)


def _known(control: "Control") -> _Ledger:
    pool, problem = None, ""
    try:
        pool = control.pool()
    except VolumeFailed as error:
        problem = error.problem
    running = control.operations(running=True)
    return _Ledger(control.vms(), running, control.guests(), control.switches(), pool, problem)


def _servers(state: "StateDirectory") -> list[_Json]:
    """What every server says of itself; `problem` says why one did not."""
    from nbdresize.control import admin_client

    clients = admin_client.ask_all(state, {"command": "clients"})
    servers = []
    for answer in clients:
        reply = answer.reply or {}
        about = _dict(reply.get("server"))
        servers.append(
            {
                "socket": str(answer.path),
                "pid": about.get("pid"),
                "front": about.get("front"),
                "uris": _list(about.get("uris")),
                "started": about.get("started"),
                "clients": [client for client in _list(reply.get("clients")) if isinstance(client, dict)],
                "counters": {} if answer.reply is None else _counters(answer.path),
                "problem": answer.problem or reply.get("error"),
            }
        )
    return servers


def _counters(path: "Path") -> _Json:
    """The counters of a server that has just answered; none where it has ended since."""
    from nbdresize.control import admin_client

    try:
        return _dict(admin_client.ask(path, {"command": "counters"}).get("counters"))
    except ServerFailed:
        return {}


def _dict(value: object) -> _Json:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _show(state: "StateDirectory", servers: Sequence[_Json], known: _Ledger, *, exact: bool) -> None:
    output.line(f"State directory {state.root}")
    output.line()
    _show_servers(servers)
    output.line()
    _show_clients(servers, exact=exact)
    if known.operations:
        operation_views.show_operations(known.operations)
        output.line()
    if known.guests:
        views.show_guests(known.guests)
        output.line()
    if known.switches.settings or known.switches.allowed:
        show_switches(known.switches)
        output.line()
    if known.pool is None:
        output.line(f"Pool: can't be seen: {known.problem}")
    else:
        output.line(pool_line(known.pool, exact=exact))
    output.line()
    if known.vms:
        views.show_vms(known.vms, exact=exact)
    else:
        output.line("No VMs yet: nbdresize vm create NAME --disk-space SIZE makes one.")


def _show_servers(servers: Sequence[_Json]) -> None:
    if not servers:
        output.line("No server runs here: nbdresize serve starts one.")
        return
    columns = [
        Column("SERVER", right=True),
        Column("FRONT"),
        Column("CLIENTS", right=True),
        Column("SINCE (UTC)"),
        Column("URI"),
    ]
    rows = []
    for server in servers:
        if server["problem"]:
            rows.append(["?", "?", "?", "?", f"{server['socket']}: {server['problem']}"])
            continue
        first, *others = [str(uri) for uri in server["uris"]] or ["-"]
        rows.append(
            [str(server["pid"]), str(server["front"]), str(len(server["clients"])), _time(server["started"]), first]
        )
        rows.extend(["", "", "", "", uri] for uri in others)
    output.table(columns, rows)


def _show_clients(servers: Sequence[_Json], *, exact: bool) -> None:
    columns = [
        Column("CLIENT OF"),
        Column("SERVER", right=True),
        Column("MODE"),
        Column("SINCE (UTC)"),
        Column("REQUESTS", right=True),
        Column("READ", right=True),
        Column("WRITTEN", right=True),
        Column("PEER"),
    ]
    rows = [
        [
            str(client.get("export")),
            str(server["pid"]),
            "read-only" if client.get("read_only") else "read-write",
            _time(client.get("since")),
            str(client.get("requests", "-")),
            _bytes(client.get("bytes_read"), exact=exact),
            _bytes(client.get("bytes_written"), exact=exact),
            str(client.get("peer") or "-"),
        ]
        for server in servers
        for client in server["clients"]
    ]
    if rows:
        output.table(columns, rows)
        output.line()


def _bytes(value: object, *, exact: bool) -> str:
    return output.size(value, exact=exact) if isinstance(value, int) else "-"


def _time(value: object) -> str:
    """A moment as the servers tell it, ISO 8601 in UTC, to the second."""
    return str(value)[:19].replace("T", " ") if value else "-"
