"""The commands of `nbdresize switch`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nbdresize.cli import options, output
from nbdresize.cli.output import Column

if TYPE_CHECKING:
    from nbdresize.control.switches import Switches

HELP = options.explained(
    "Switches: which features the site, an owner or a VM may use.",
    """
    nbdresize switch list
    nbdresize switch set client_resize off --owner alice
    nbdresize switch allow snapshots alice bob
    """,
    "Features are client_resize (off, grow, all: what clients may do to sizes), snapshots and flexible_disks (off,"
    " on). Of all that are set for a VM the strictest holds, from the next request on. A server may be stricter by"
    " itself: nbdresize serve --client-resize.",
)

_LIST = options.explained("List everything that is switched.", "nbdresize switch list\nnbdresize switch list --json")
_SET = options.explained(
    "Set a feature for a VM, an owner, or the whole site.",
    """
    nbdresize switch set client_resize grow
    nbdresize switch set snapshots off --owner alice
    nbdresize switch set flexible-disks off --vm web1
    """,
    "Without --vm and --owner it holds for every VM of the state directory. Clients that are attached notice it at"
    " their next request.",
)
_UNSET = options.explained(
    "Take a switch away again.",
    "nbdresize switch unset client_resize\nnbdresize switch unset snapshots --owner alice",
)
_ALLOW = options.explained(
    "Put owners on a feature's list: it is off for all others.",
    "nbdresize switch allow snapshots alice bob",
    "For trying a feature out with a few. A VM that belongs to nobody is on no list.",
)
_DISALLOW = options.explained(
    "Take owners off a feature's list.",
    "nbdresize switch disallow snapshots bob",
    "With the last of them the list is gone, and everybody may use the feature again.",
)

_NAMES = ("client_resize", "snapshots", "flexible_disks")


def _complete_feature(incomplete: str) -> list[str]:
    return [name for name in _NAMES if name.startswith(incomplete)]


_Feature = Annotated[
    str,
    typer.Argument(
        metavar="FEATURE", help=f"{', '.join(_NAMES)}.", autocompletion=_complete_feature, show_default=False
    ),
]
_Value = Annotated[str, typer.Argument(metavar="VALUE", help="off, on; off, grow, all.", show_default=False)]
_VM = Annotated[
    str | None,
    typer.Option("--vm", metavar="VM", help="For this VM.", autocompletion=options.complete_vm, show_default=False),
]
_Owner = Annotated[
    str | None, typer.Option("--owner", metavar="OWNER", help="For all VMs of this owner.", show_default=False)
]
_Owners = Annotated[list[str], typer.Argument(metavar="OWNER...", help="Owners of VMs.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands to the group."""
    app.command("list", **_LIST)(list_switches)
    app.command("set", **_SET)(set_switch)
    app.command("unset", **_UNSET)(unset)
    app.command("allow", **_ALLOW)(allow)
    app.command("disallow", **_DISALLOW)(disallow)


def list_switches(json: options.Json = False, root: options.Root = None) -> None:
    with options.control(root) as control:
        found = control.switches()
    _print(found, json=json)


def set_switch(
    feature: _Feature,
    value: _Value,
    vm: _VM = None,
    owner: _Owner = None,
    operation: options.Operation = None,
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    with options.control(root, create=True) as control:
        found = control.set_switch(feature, value, vm=vm, owner=owner, operation=operation)
    _print(found, json=json)


def unset(
    feature: _Feature,
    vm: _VM = None,
    owner: _Owner = None,
    operation: options.Operation = None,
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    with options.control(root) as control:
        found = control.unset_switch(feature, vm=vm, owner=owner, operation=operation)
    _print(found, json=json)


def allow(
    feature: _Feature,
    owners: _Owners,
    operation: options.Operation = None,
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    with options.control(root, create=True) as control:
        found = control.allow(feature, *owners, operation=operation)
    _print(found, json=json)


def disallow(
    feature: _Feature,
    owners: _Owners,
    operation: options.Operation = None,
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    with options.control(root) as control:
        found = control.disallow(feature, *owners, operation=operation)
    _print(found, json=json)


def switches_json(switches: "Switches") -> dict[str, Any]:
    """`vm` and `owner` are null where a switch does not hold for one; `allowed` has the features with a list."""
    return {
        "switches": [
            {
                "feature": each.feature.value,
                "value": each.value,
                "vm": each.subject if each.scope.value == "vm" else None,
                "owner": each.subject if each.scope.value == "owner" else None,
            }
            for each in switches.settings
        ],
        "allowed": {feature.value: list(owners) for feature, owners in switches.allowed.items()},
    }


def show_switches(switches: "Switches") -> None:
    """Print a table of all that is switched."""
    rows = [
        [each.feature.value, f"{each.scope.value} {each.subject}".strip(), each.value] for each in switches.settings
    ]
    for feature, owners in switches.allowed.items():
        rows.append([feature.value, f"all but {', '.join(owners)}", "off"])
    output.table([Column("FEATURE"), Column("FOR"), Column("VALUE")], rows)


def _print(switches: "Switches", *, json: bool) -> None:
    if json:
        output.document(switches_json(switches))
    elif switches.settings or switches.allowed:
        show_switches(switches)
    else:
        output.line("Nothing is switched: every VM may use every feature.")
