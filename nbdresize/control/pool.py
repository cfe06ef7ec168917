"""The pool of a site: what it holds, what is promised of it, and how far it may be promised more than once."""

import re
from dataclasses import dataclass
from fractions import Fraction

import sqlalchemy as sql

from nbdresize.control import names, operations, records, schema
from nbdresize.control.model import Pool
from nbdresize.control.pool_terms import PoolTerms
from nbdresize.control.records import Kind
from nbdresize.control.site import Site
from nbdresize.errors import InvalidArgument
from nbdresize.units import MAX_SIZE

_CAPACITY = "pool_capacity"
_OVERCOMMIT = "pool_overcommit"
_UNLIMITED = "unlimited"
_LARGEST_RATIO = 10**6
_RATIO = re.compile(r"[0-9]{1,10}(\.[0-9]{1,10})?(/[0-9]{1,10})?")
"""Of what Fraction takes, only this: it would write out 1e999999999."""


@dataclass(frozen=True)
class Measured:
    """What the pool's file system says of itself: looked at before a transaction, not within."""

    total: int
    available: int


def measured(site: Site) -> Measured:
    """Look at the pool. Raises VolumeFailed where it can't be seen."""
    found = site.pool.capacity()
    return Measured(found.total, found.available)


def parse_overcommit(text: str) -> Fraction | None:
    """`1`, `1.5`, `unlimited` (None). Raises InvalidArgument for anything else, and for less than 0.01."""
    if text.strip().lower() == _UNLIMITED:
        return None
    try:
        ratio = Fraction(text.strip()) if _RATIO.fullmatch(text.strip()) else Fraction(0)
    except (ValueError, ZeroDivisionError):
        ratio = Fraction(0)
    if not Fraction(1, 100) <= ratio <= _LARGEST_RATIO:
        raise InvalidArgument(
            f"{text[:20]!r} is no ratio for overcommitting", "give a number such as 1, 1.5 or 3, or 'unlimited'"
        )
    return ratio


def terms_of(pool: Pool) -> PoolTerms:
    """What the pool may promise still."""
    return PoolTerms(pool.capacity, pool.promised, pool.overcommit)


def check_room(connection: sql.Connection, found: Measured, what: str, more: int) -> None:
    """Raises InsufficientSpace where the pool does not allow `more` bytes to be promised to `what`."""
    terms_of(_read(connection, found)).check(what, more)


def read_pool(site: Site) -> Pool:
    """The pool as it is now."""
    found = measured(site)
    with site.ledger.reading() as connection:
        return _read(connection, found)


def update_pool(site: Site, *, capacity: int | None, overcommit: str | None, operation: str | None = None) -> Pool:
    """Change what the pool may promise. See Control.update_pool."""
    if capacity is not None and not 0 <= capacity <= MAX_SIZE:
        raise InvalidArgument(f"{capacity} bytes is no capacity", "give a size such as 1T, or 0 for what there is")
    ratio = None if overcommit is None else parse_overcommit(overcommit)
    arguments = records.arguments_of(Kind.UPDATE_POOL, capacity=capacity, overcommit=overcommit)
    request = operations.Request(names.operation_id(operation), Kind.UPDATE_POOL.value, "the pool", arguments)
    found = measured(site)
    with site.ledger.deciding() as connection:
        if operations.outcome_of(connection, request) is None:
            if capacity is not None:
                _put(connection, _CAPACITY, str(capacity) if capacity else None)
            if overcommit is not None:
                _put(connection, _OVERCOMMIT, _UNLIMITED if ratio is None else str(ratio))
            operations.remember(connection, request, {})
        return _read(connection, found)


def _read(connection: sql.Connection, found: Measured) -> Pool:
    rows = connection.execute(sql.select(schema.settings.c.name, schema.settings.c.value)).tuples()
    settings: dict[str, str] = dict(rows.all())
    ratio = settings.get(_OVERCOMMIT, "1")
    return Pool(
        capacity=int(settings.get(_CAPACITY, found.total)),
        available=found.available,
        budgets=sum(connection.scalars(sql.select(schema.vms.c.budget))),  # here: SQLite's sum ends at 2^63
        images=sum(connection.scalars(sql.select(schema.images.c.space))),
        overcommit=None if ratio == _UNLIMITED else Fraction(ratio),
        rollbacks=sum(connection.scalars(sql.select(schema.intents.c.pool_space))),
    )


def _put(connection: sql.Connection, name: str, value: str | None) -> None:
    connection.execute(sql.delete(schema.settings).where(schema.settings.c.name == name))
    if value is not None:
        connection.execute(sql.insert(schema.settings).values(name=name, value=value))
