"""The ledger's tables, as this release reads and writes them; `migrations` makes them. Sizes in bytes.

An intent is an unfinished change. Its disks stand in `disks` from the moment they are promised, so that the budget is
the sum over one table: a disk or VM that is being made or deleted is one that an intent of that kind names.
"""

import sqlalchemy as sql

metadata = sql.MetaData()

vms = sql.Table(
    "vms",
    metadata,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("name", sql.Text, nullable=False, unique=True),
    sql.Column("budget", sql.BigInteger, nullable=False),
    sql.Column("owner", sql.Text),
    sql.Column("client_resize", sql.Text),
)

disks = sql.Table(
    "disks",
    metadata,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("vm_id", sql.Integer, sql.ForeignKey("vms.id"), nullable=False),
    sql.Column("slot", sql.Integer, nullable=False),
    sql.Column("size", sql.BigInteger, nullable=False),
    sql.Column("generation", sql.BigInteger, nullable=False),
    sql.Column("volume", sql.Text, nullable=False, unique=True),
    sql.UniqueConstraint("vm_id", "slot"),
)

intents = sql.Table(
    "intents",
    metadata,
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
)

operations = sql.Table(
    "operations",
    metadata,
    sql.Column("operation", sql.Text, primary_key=True),
    sql.Column("arguments", sql.Text, nullable=False),
    sql.Column("outcome", sql.Text, nullable=False),
    sql.Column("finished", sql.BigInteger, nullable=False),
)
