"""The ledger's schema, version by version.

Each step brings the ledger from one version to the next, within the one transaction of `migrate`. A step is never
changed once released, so it has tables of its own; `schema` holds the newest shape, and a test compares the two.
"""

from collections.abc import Callable

import sqlalchemy as sql

from nbdresize.errors import StateUnusable


def _first(connection: sql.Connection) -> None:
    """Version 1: VMs, their disks, unfinished changes, and changes that have been done."""
    tables = sql.MetaData()
    sql.Table("meta", tables, sql.Column("version", sql.Integer, nullable=False))
    sql.Table(
        "vms",
        tables,
        sql.Column("id", sql.Integer, primary_key=True),
        sql.Column("name", sql.Text, nullable=False, unique=True),
        sql.Column("budget", sql.BigInteger, nullable=False),
        sql.Column("owner", sql.Text),
        sqlite_autoincrement=True,
    )
    sql.Table(
        "disks",
        tables,
        sql.Column("id", sql.Integer, primary_key=True),
        sql.Column("vm_id", sql.Integer, sql.ForeignKey("vms.id"), nullable=False),
        sql.Column("slot", sql.Integer, nullable=False),
        sql.Column("size", sql.BigInteger, nullable=False),
        sql.Column("generation", sql.BigInteger, nullable=False),
        sql.Column("volume", sql.Text, nullable=False, unique=True),
        sql.UniqueConstraint("vm_id", "slot"),
        sqlite_autoincrement=True,
    )
    sql.Table(
        "intents",
        tables,
        sql.Column("id", sql.Integer, primary_key=True),
        sql.Column("operation", sql.Text, nullable=False, unique=True),
        sql.Column("kind", sql.Text, nullable=False),
        sql.Column("vm_id", sql.Integer, sql.ForeignKey("vms.id"), nullable=False),
        sql.Column("disk_id", sql.Integer, sql.ForeignKey("disks.id"), unique=True),
        sql.Column("old_size", sql.BigInteger),
        sql.Column("new_size", sql.BigInteger),
        sql.Column("cause", sql.Integer),
        sql.Column("arguments", sql.Text, nullable=False),
        sql.Column("started", sql.BigInteger, nullable=False),
        sql.Index("intents_vm_id", "vm_id"),
        sqlite_autoincrement=True,
    )
    sql.Table(
        "operations",
        tables,
        sql.Column("operation", sql.Text, primary_key=True),
        sql.Column("arguments", sql.Text, nullable=False),
        sql.Column("outcome", sql.Text, nullable=False),
        sql.Column("finished", sql.BigInteger, nullable=False),
        sql.Index("operations_finished", "finished"),
    )
    tables.create_all(connection, checkfirst=False)
    connection.execute(sql.text("INSERT INTO meta (version) VALUES (0)"))


def _second(connection: sql.Connection) -> None:
    """Version 2: what a VM's clients may do to sizes."""
    connection.execute(sql.text("ALTER TABLE vms ADD COLUMN client_resize TEXT"))


STEPS: tuple[Callable[[sql.Connection], None], ...] = (_first, _second)
"""The step to version 1, the step to version 2, …"""

VERSION = len(STEPS)
"""The version that this release works with."""


def version_of(connection: sql.Connection, where: str) -> int:
    """The version of the ledger: 0 for an empty database.

    Raises StateUnusable for a newer version, and for a database that is no ledger of ours.
    """
    found = set(connection.scalars(sql.text("SELECT name FROM sqlite_master WHERE type = 'table'")))
    if not found:
        return 0
    columns = set(connection.scalars(sql.text("SELECT name FROM pragma_table_info('meta')")))
    rows = list(connection.scalars(sql.text("SELECT version FROM meta"))) if "version" in columns else []
    version = rows[0] if len(rows) == 1 else None
    if not isinstance(version, int) or version < 1:
        raise StateUnusable(f"{where} is a database, but not one of nbdresize", "choose another --root")
    if version > VERSION:
        raise StateUnusable(
            f"{where} was written by a newer nbdresize (schema {version}, this one knows {VERSION})",
            "use that release, or another --root",
        )
    return version


def migrate(connection: sql.Connection, where: str) -> None:
    """Bring the ledger to VERSION, in the transaction of `connection`."""
    version = version_of(connection, where)
    for step in STEPS[version:]:
        step(connection)
    if version < VERSION:
        connection.execute(sql.text("UPDATE meta SET version = :version"), {"version": VERSION})
