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


def _third(connection: sql.Connection) -> None:
    """Version 3: packages, images, snapshots, switches and settings; changes of several disks; operations to look at.

    What is unfinished in version 2 stays so, and is completed as it would have been. Of finished operations the kind
    and the VM are known from their arguments.
    """
    for statement in (
        "ALTER TABLE vms ADD COLUMN package_id INTEGER REFERENCES packages (id)",
        "ALTER TABLE vms ADD COLUMN image TEXT",
        "ALTER TABLE vms ADD COLUMN image_space BIGINT NOT NULL DEFAULT 0",
        "ALTER TABLE vms ADD COLUMN protected BOOLEAN NOT NULL DEFAULT 0",
        "ALTER TABLE disks ADD COLUMN image TEXT",
        "ALTER TABLE disks ADD COLUMN minimum BIGINT NOT NULL DEFAULT 0",
        "DROP INDEX intents_vm_id",
        "DROP INDEX operations_finished",
        "ALTER TABLE intents RENAME TO intents_2",
        "ALTER TABLE operations RENAME TO operations_2",
    ):
        connection.execute(sql.text(statement))
    tables = sql.MetaData()
    sql.Table("vms", tables, sql.Column("id", sql.Integer, primary_key=True))
    sql.Table("disks", tables, sql.Column("id", sql.Integer, primary_key=True))
    new = _packages_and_images(tables) + _snapshots(tables) + _switches_and_settings(tables) + _operations(tables)
    tables.create_all(connection, tables=new, checkfirst=False)
    for statement in _FROM_2_TO_3:
        connection.execute(sql.text(statement))


def _packages_and_images(tables: sql.MetaData) -> list[sql.Table]:
    return [
        sql.Table(
            "packages",
            tables,
            sql.Column("id", sql.Integer, primary_key=True),
            sql.Column("name", sql.Text, nullable=False, unique=True),
            sql.Column("disk_space", sql.BigInteger, nullable=False),
            sql.Column("flexible", sql.Boolean, nullable=False),
            sql.Column("default_disks", sql.Text, nullable=False),
            sql.Column("max_image", sql.BigInteger),
            sql.Column("snapshot_limit", sql.Integer, nullable=False),
            sqlite_autoincrement=True,
        ),
        sql.Table(
            "images",
            tables,
            sql.Column("id", sql.Integer, primary_key=True),
            sql.Column("name", sql.Text, nullable=False, unique=True),
            sql.Column("size", sql.BigInteger, nullable=False),
            sql.Column("original_size", sql.BigInteger, nullable=False),
            sql.Column("space", sql.BigInteger, nullable=False),
            sql.Column("volume", sql.Text, nullable=False, unique=True),
            sql.Column("created", sql.BigInteger, nullable=False),
            sqlite_autoincrement=True,
        ),
    ]


def _snapshots(tables: sql.MetaData) -> list[sql.Table]:
    return [
        sql.Table(
            "snapshots",
            tables,
            sql.Column("id", sql.Integer, primary_key=True),
            sql.Column("vm_id", sql.Integer, sql.ForeignKey("vms.id"), nullable=False),
            sql.Column("name", sql.Text, nullable=False),
            sql.Column("created", sql.BigInteger, nullable=False),
            sql.UniqueConstraint("vm_id", "name"),
            sqlite_autoincrement=True,
        ),
        sql.Table(
            "snapshot_disks",
            tables,
            sql.Column("id", sql.Integer, primary_key=True),
            sql.Column("snapshot_id", sql.Integer, sql.ForeignKey("snapshots.id"), nullable=False),
            sql.Column("disk_id", sql.Integer, nullable=False),
            sql.Column("slot", sql.Integer, nullable=False),
            sql.Column("size", sql.BigInteger, nullable=False),
            sql.Column("space", sql.BigInteger, nullable=False),
            sql.Column("volume", sql.Text, nullable=False, unique=True),
            sql.Column("image", sql.Text),
            sql.Column("minimum", sql.BigInteger, nullable=False),
            sql.Column("shared", sql.Boolean, nullable=False),
            sql.Column("preallocated", sql.Boolean, nullable=False),
            sql.Index("snapshot_disks_snapshot_id", "snapshot_id"),
            sqlite_autoincrement=True,
        ),
    ]


def _switches_and_settings(tables: sql.MetaData) -> list[sql.Table]:
    return [
        sql.Table(
            "switches",
            tables,
            sql.Column("feature", sql.Text, primary_key=True),
            sql.Column("scope", sql.Text, primary_key=True),
            sql.Column("subject", sql.Text, primary_key=True),
            sql.Column("value", sql.Text, nullable=False),
        ),
        sql.Table(
            "settings",
            tables,
            sql.Column("name", sql.Text, primary_key=True),
            sql.Column("value", sql.Text, nullable=False),
        ),
    ]


def _operations(tables: sql.MetaData) -> list[sql.Table]:
    return [
        sql.Table(
            "operations",
            tables,
            sql.Column("operation", sql.Text, primary_key=True),
            sql.Column("kind", sql.Text, nullable=False),
            sql.Column("subject", sql.Text, nullable=False),
            sql.Column("arguments", sql.Text, nullable=False),
            sql.Column("state", sql.Text, nullable=False),
            sql.Column("started", sql.Float, nullable=False),
            sql.Column("finished", sql.Float),
            sql.Column("outcome", sql.Text),
            sql.Column("error", sql.Text),
            sql.Column("stages", sql.Text),
            sql.Column("step", sql.Text),
            sql.Column("done", sql.BigInteger),
            sql.Column("total", sql.BigInteger),
            sql.Column("cancelling", sql.Boolean, nullable=False),
            sql.Column("pid", sql.Integer),
            sql.Index("operations_finished", "finished"),
            sql.Index("operations_started", "started"),
        ),
        sql.Table(
            "intents",
            tables,
            sql.Column("id", sql.Integer, primary_key=True),
            sql.Column("operation", sql.Text, sql.ForeignKey("operations.operation"), nullable=False, unique=True),
            sql.Column("kind", sql.Text, nullable=False),
            sql.Column("vm_id", sql.Integer, sql.ForeignKey("vms.id")),
            sql.Column("snapshot_id", sql.Integer, sql.ForeignKey("snapshots.id")),
            sql.Column("image_id", sql.Integer, sql.ForeignKey("images.id")),
            sql.Column("committed", sql.Boolean, nullable=False),
            sql.Index("intents_vm_id", "vm_id"),
            sqlite_autoincrement=True,
        ),
        sql.Table(
            "steps",
            tables,
            sql.Column("intent_id", sql.Integer, sql.ForeignKey("intents.id"), nullable=False),
            sql.Column("disk_id", sql.Integer, sql.ForeignKey("disks.id"), primary_key=True),
            sql.Column("action", sql.Text, nullable=False),
            sql.Column("old_size", sql.BigInteger, nullable=False),
            sql.Column("new_size", sql.BigInteger, nullable=False),
            sql.Column("cause", sql.Integer, nullable=False),
            sql.Column("staged", sql.Text),
            sql.Index("steps_intent_id", "intent_id"),
        ),
    ]


_FROM_2_TO_3 = (
    """
    INSERT INTO operations (operation, kind, subject, arguments, state, started, finished, outcome, cancelling)
    SELECT operation, coalesce(json_extract(arguments, '$.kind'), 'unknown'),
           coalesce(json_extract(arguments, '$.vm'), ''), arguments, 'done', finished, finished, outcome, 0
    FROM operations_2
    """,
    """
    INSERT INTO operations (operation, kind, subject, arguments, state, started, cancelling)
    SELECT i.operation, i.kind, v.name, i.arguments, 'running', i.started, 0
    FROM intents_2 i JOIN vms v ON v.id = i.vm_id
    """,
    """
    INSERT INTO intents (id, operation, kind, vm_id, committed)
    SELECT id, operation, kind, vm_id,
           kind IN ('delete_vm', 'delete_disk') OR (kind = 'resize_disk' AND new_size < old_size)
    FROM intents_2
    """,
    """
    INSERT INTO steps (intent_id, disk_id, action, old_size, new_size, cause)
    SELECT i.id, d.id,
           CASE WHEN i.kind = 'resize_disk' THEN 'resize' WHEN i.kind LIKE 'delete%' THEN 'remove' ELSE 'add' END,
           CASE WHEN i.kind = 'resize_disk' THEN i.old_size WHEN i.kind LIKE 'delete%' THEN d.size ELSE 0 END,
           CASE WHEN i.kind = 'resize_disk' THEN i.new_size WHEN i.kind LIKE 'delete%' THEN 0 ELSE d.size END,
           coalesce(i.cause, 1)
    FROM intents_2 i JOIN disks d ON d.id = i.disk_id OR (i.disk_id IS NULL AND d.vm_id = i.vm_id)
    """,
    """
    INSERT INTO switches (feature, scope, subject, value)
    SELECT 'client_resize', 'vm', CAST(id AS TEXT), client_resize FROM vms WHERE client_resize IS NOT NULL
    """,
    "ALTER TABLE vms DROP COLUMN client_resize",
    "DROP TABLE intents_2",
    "DROP TABLE operations_2",
)


def _fourth(connection: sql.Connection) -> None:
    """Version 4: the guests of VMs, and what they were told; what becomes of unfinished changes, and their copies."""
    tables = sql.MetaData()
    sql.Table("vms", tables, sql.Column("id", sql.Integer, primary_key=True))
    guests = sql.Table(
        "guests",
        tables,
        sql.Column("vm_id", sql.Integer, sql.ForeignKey("vms.id"), primary_key=True),
        sql.Column("qmp", sql.Text, nullable=False),
        sql.Column("agent", sql.Text),
        sql.Column("attached", sql.BigInteger, nullable=False),
        sql.Column("stages", sql.Text, nullable=False),
    )
    tables.create_all(connection, tables=[guests], checkfirst=False)
    for statement in _FROM_3_TO_4:
        connection.execute(sql.text(statement))


_FROM_3_TO_4 = (
    "ALTER TABLE intents ADD COLUMN forwards BOOLEAN NOT NULL DEFAULT FALSE",
    "ALTER TABLE intents ADD COLUMN pool_space BIGINT NOT NULL DEFAULT 0",
    """
    UPDATE intents SET forwards = TRUE
    WHERE id IN (SELECT intent_id FROM steps)
    AND id NOT IN (SELECT intent_id FROM steps WHERE action <> 'resize' OR new_size <= old_size)
    """,
)


STEPS: tuple[Callable[[sql.Connection], None], ...] = (_first, _second, _third, _fourth)
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
