"""The commands of `nbdresize pool`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nbdresize.cli import options, output
from nbdresize.cli.failures import Misuse
from nbdresize.cli.output import Column
from nbdresize.units import parse_size

if TYPE_CHECKING:
    from nbdresize.control.model import Pool

HELP = options.explained(
    "The pool: how much space there is for all VMs, and how much of it is promised.",
    """
    nbdresize pool show
    nbdresize pool update --overcommit 1.5
    """,
    "Promised are the budgets of all VMs, used or not, and what images take. Unless it is allowed to, a pool promises"
    " no more than it holds: whatever a VM may use is there.",
)

_SHOW = options.explained(
    "Show what the pool holds and has promised.", "nbdresize pool show\nnbdresize pool show --json"
)
_UPDATE = options.explained(
    "Change how much the pool may promise.",
    """
    nbdresize pool update --overcommit 1.5
    nbdresize pool update --overcommit unlimited
    nbdresize pool update --capacity 10T
    nbdresize pool update --capacity 0
    """,
    "What is promised already stays so; where that is more than is allowed, only more is refused.",
)


def register(app: typer.Typer) -> None:
    """Add the commands to the group."""
    app.command("show", **_SHOW)(show)
    app.command("update", **_UPDATE)(update)


def show(json: options.Json = False, exact: options.Bytes = False, root: options.Root = None) -> None:
    with options.control(root) as control:
        pool = control.pool()
    _print(pool, json=json, exact=exact)


def update(
    capacity: Annotated[
        str | None,
        typer.Option(
            "--capacity", metavar="SIZE", help="What it holds; 0 for what its file system does.", show_default=False
        ),
    ] = None,
    overcommit: Annotated[
        str | None,
        typer.Option(
            "--overcommit",
            metavar="RATIO",
            help="How many times it may be promised: 1, 1.5, unlimited.",
            show_default=False,
        ),
    ] = None,
    operation: options.Operation = None,
    json: options.Json = False,
    exact: options.Bytes = False,
    root: options.Root = None,
) -> None:
    if capacity is None and overcommit is None:
        raise Misuse("Nothing to change was given", "give --capacity, --overcommit, or both")
    held = None if capacity is None else 0 if capacity.strip() == "0" else parse_size(capacity)
    with options.control(root, create=True) as control:
        pool = control.update_pool(capacity=held, overcommit=overcommit, operation=operation)
    _print(pool, json=json, exact=exact)


def pool_json(pool: "Pool") -> dict[str, Any]:
    """In bytes. null stands for no limit: of `capacity`, of `overcommit`, of what may be promised in all and still."""
    from nbdresize.control.pool import terms_of

    terms = terms_of(pool)
    return {
        "capacity": pool.capacity or None,
        "available": pool.available,
        "budgets": pool.budgets,
        "images": pool.images,
        "rollbacks": pool.rollbacks,
        "promised": pool.promised,
        "overcommit": None if pool.overcommit is None else float(pool.overcommit),
        "limit": terms.limit,
        "free": terms.free,
    }


def pool_line(pool: "Pool", *, exact: bool) -> str:
    """`Pool: 70 GiB of 100 GiB promised, 30 GiB left to promise; its file system has 55 GiB left now`."""
    return (
        f"Pool: {_size(pool.promised, exact)} of {_times(pool)}{_capacity(pool, exact)} promised, "
        f"{_free(pool, exact)} left to promise; its file system has {_available(pool, exact)} left now"
    )


def _print(pool: "Pool", *, json: bool, exact: bool) -> None:
    if json:
        output.document(pool_json(pool))
        return
    rows = [
        ["capacity", _capacity(pool, exact)],
        ["may be promised", f"{_ratio(pool)} times"],
        ["promised to VMs", _size(pool.budgets, exact)],
        ["taken by images", _size(pool.images, exact)],
        *([["taken by rollbacks", _size(pool.rollbacks, exact)]] if pool.rollbacks else []),
        ["left to promise", _free(pool, exact)],
        ["available now", _available(pool, exact)],
    ]
    output.table([Column(""), Column("", right=True)], rows)


def _size(size: int, exact: bool) -> str:
    return output.about(size, exact=exact)


def _capacity(pool: "Pool", exact: bool) -> str:
    return _size(pool.capacity, exact) if pool.capacity else "no limit"


def _available(pool: "Pool", exact: bool) -> str:
    """A file system without a limit says 0 of 0; one that is full has a capacity."""
    return _size(pool.available, exact) if pool.available or pool.capacity else "no limit"


def _free(pool: "Pool", exact: bool) -> str:
    from nbdresize.control.pool import terms_of

    free = terms_of(pool).free
    return "any amount" if free is None else _size(free, exact)


def _ratio(pool: "Pool") -> str:
    from nbdresize.control.pool_terms import shown_ratio

    return "any number of" if pool.overcommit is None else shown_ratio(pool.overcommit)


def _times(pool: "Pool") -> str:
    """`1.5 times `, where that is not once."""
    return "" if pool.overcommit == 1 or not pool.capacity else f"{_ratio(pool)} times "
