"""The ledger's tables, as this release reads and writes them; `migrations` makes them. Sizes in bytes.

An intent is an unfinished change, its steps the disks that it changes. Those disks stand in `disks` from the moment
they are promised; so do snapshots and images that are just being made, in their tables.
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
    sql.Column("package_id", sql.Integer, sql.ForeignKey("packages.id")),
    sql.Column("image", sql.Text),
    sql.Column("image_space", sql.BigInteger, nullable=False),
    sql.Column("protected", sql.Boolean, nullable=False),
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
    sql.Column("image", sql.Text),
    sql.Column("minimum", sql.BigInteger, nullable=False),
    sql.UniqueConstraint("vm_id", "slot"),
)

packages = sql.Table(
    "packages",
    metadata,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("name", sql.Text, nullable=False, unique=True),
    sql.Column("disk_space", sql.BigInteger, nullable=False),
    sql.Column("flexible", sql.Boolean, nullable=False),
    sql.Column("default_disks", sql.Text, nullable=False),
    sql.Column("max_image", sql.BigInteger),
    sql.Column("snapshot_limit", sql.Integer, nullable=False),
)

images = sql.Table(
    "images",
    metadata,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("name", sql.Text, nullable=False, unique=True),
    sql.Column("size", sql.BigInteger, nullable=False),
    sql.Column("original_size", sql.BigInteger, nullable=False),
    sql.Column("space", sql.BigInteger, nullable=False),
    sql.Column("volume", sql.Text, nullable=False, unique=True),
    sql.Column("created", sql.BigInteger, nullable=False),
)

snapshots = sql.Table(
    "snapshots",
    metadata,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("vm_id", sql.Integer, sql.ForeignKey("vms.id"), nullable=False),
    sql.Column("name", sql.Text, nullable=False),
    sql.Column("created", sql.BigInteger, nullable=False),
    sql.UniqueConstraint("vm_id", "name"),
)

snapshot_disks = sql.Table(
    "snapshot_disks",
    metadata,
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
)
"""`disk_id` is no reference: the disk may have been deleted since."""

switches = sql.Table(
    "switches",
    metadata,
    sql.Column("feature", sql.Text, primary_key=True),
    sql.Column("scope", sql.Text, primary_key=True),
    sql.Column("subject", sql.Text, primary_key=True),
    sql.Column("value", sql.Text, nullable=False),
)
"""`scope` is site, owner, vm or allowed; `subject` is empty, an owner, the id of a VM, or an owner."""

settings = sql.Table(
    "settings",
    metadata,
    sql.Column("name", sql.Text, primary_key=True),
    sql.Column("value", sql.Text, nullable=False),
)

guests = sql.Table(
    "guests",
    metadata,
    sql.Column("vm_id", sql.Integer, sql.ForeignKey("vms.id"), primary_key=True),
    sql.Column("qmp", sql.Text, nullable=False),
    sql.Column("agent", sql.Text),
    sql.Column("attached", sql.BigInteger, nullable=False),
    sql.Column("stages", sql.Text, nullable=False),
)
"""`stages` is what the guest was told of each disk, as `guest_records` writes it."""

intents = sql.Table(
    "intents",
    metadata,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("operation", sql.Text, sql.ForeignKey("operations.operation"), nullable=False, unique=True),
    sql.Column("kind", sql.Text, nullable=False),
    sql.Column("vm_id", sql.Integer, sql.ForeignKey("vms.id")),
    sql.Column("snapshot_id", sql.Integer, sql.ForeignKey("snapshots.id")),
    sql.Column("image_id", sql.Integer, sql.ForeignKey("images.id")),
    sql.Column("committed", sql.Boolean, nullable=False),
    sql.Column("forwards", sql.Boolean, nullable=False),
    sql.Column("pool_space", sql.BigInteger, nullable=False),
)
"""`forwards`: whoever finds it uncommitted finishes it, instead of undoing it. `pool_space`: what it takes in the pool,
besides what budgets and images are promised, until it is closed."""

steps = sql.Table(
    "steps",
    metadata,
    sql.Column("intent_id", sql.Integer, sql.ForeignKey("intents.id"), nullable=False),
    sql.Column("disk_id", sql.Integer, sql.ForeignKey("disks.id"), primary_key=True),
    sql.Column("action", sql.Text, nullable=False),
    sql.Column("old_size", sql.BigInteger, nullable=False),
    sql.Column("new_size", sql.BigInteger, nullable=False),
    sql.Column("cause", sql.Integer, nullable=False),
    sql.Column("staged", sql.Text),
)

operations = sql.Table(
    "operations",
    metadata,
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
)
