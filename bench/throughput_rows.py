"""The rows of the throughput suite: what the design asks for, and each dimension varied around two centres.

The centres are 4 KiB at random and 256 KiB in sequence, both at depth 16, on one connection over a unix socket, with
the file in the page cache. The load is our own client's; fio's rows beside it show how much of a server's speed fio
hides, since it costs more per request than a fast server does.

All servers are compared in the rows of our own client over a unix socket on ext4. The plain plugin, the limit of Python
glue, is left out elsewhere, and nbd-server of fio's rows: what they do there follows, and the whole run is to end.
"""

from dataclasses import replace

from bench.model import Medium, Row, Setting, Target, Transport
from bench.options import Options
from bench.peers import SERVERS
from nbdresize.loads.model import Engine, Load, Operation

KIB = 1 << 10

_READ, _WRITE, _MIXED = Operation.READ, Operation.WRITE, Operation.MIXED
_FEW = ("native", "nbdkit front", "nbdkit file")
_WORDS = {_READ: "read", _WRITE: "write", _MIXED: "mixed"}
_COPIES = {_READ: "read by nbdcopy", _WRITE: "write by nbdcopy"}


def rows(options: Options) -> list[Row]:
    """Those that this run has, in the order in which they are told. The quick run compares all servers in some."""
    found = [row for row in ROWS if options.wants(row.name, quick=row.quick)]
    return found if options.full else [row if row.name in _WIDE else replace(row, servers=_FEW) for row in found]


def _row(setting: Setting, *targets: Target, quick: bool = False) -> Row:
    return Row(_name(setting), setting, tuple(name for name in SERVERS if _takes_part(name, setting)), targets, quick)


def _takes_part(server: str, setting: Setting) -> bool:
    """Whether it is compared in that row, if it can do it at all."""
    if server == "nbd-server":
        return setting.load.engine is not Engine.FIO
    usual = setting.medium is Medium.EXT4 and setting.transport is Transport.UNIX and not setting.cold
    return server != "nbdkit python" or (usual and setting.load.engine is Engine.BATCH)


def _name(setting: Setting) -> str:
    load = setting.load
    size = f"{load.block // KIB} KiB" if load.block < 1 << 20 else f"{load.block >> 20} MiB"
    if load.engine is Engine.NBDCOPY:
        what = f"{size} {_COPIES[load.operation]}, {'the data of a sparse disk' if load.sparse else 'full'}"
    else:
        what = f"{size} {'random' if load.random else 'sequential'} {_WORDS[load.operation]}"
    ways = [
        f"depth {load.depth}",
        "by fio" if load.engine is Engine.FIO else "",
        f"{load.connections} connections" if load.connections > 1 else "",
        f"{setting.workers} workers" if setting.workers > 1 else "",
        setting.medium.value if setting.medium is not Medium.EXT4 else "",
        {Transport.UNIX: "", Transport.TCP: "TCP", Transport.TLS: "TLS"}[setting.transport],
        "cold cache" if setting.cold else "",
    ]
    return ", ".join([what, *filter(None, ways)])


def _setting(
    operation: Operation,
    block: int,
    depth: int = 16,
    *,
    engine: Engine = Engine.BATCH,
    random: bool | None = None,
    connections: int = 1,
    sparse: bool = False,
    medium: Medium = Medium.EXT4,
    transport: Transport = Transport.UNIX,
    cold: bool = False,
    workers: int = 1,
) -> Setting:
    """`block` in KiB; unless told otherwise, small requests are at random and large ones in sequence."""
    at_random = block < 64 if random is None else random
    load = Load(engine, operation, block * KIB, depth, at_random, connections, sparse)
    return Setting(load, medium, transport, cold, workers)


def _native(throughput: float | None = None, processor: float | None = None, latency: float | None = None) -> Target:
    return Target("native", throughput, processor, latency)


def _front(throughput: float) -> Target:
    return Target("nbdkit front", throughput)


ROWS = (
    # What the design asks for.
    _row(_setting(_READ, 4), _native(1.8, 0.6), _front(0.5), quick=True),
    _row(_setting(_READ, 4, engine=Engine.FIO), _native(1.8, 0.6), _front(0.5), quick=True),
    _row(_setting(_READ, 4, 64), _native(1.8, 0.6), quick=True),
    _row(_setting(_READ, 4, 64, engine=Engine.FIO), _native(1.8, 0.6)),
    _row(_setting(_WRITE, 4), _native(1.4, 0.65), _front(0.5), quick=True),
    _row(_setting(_WRITE, 4, engine=Engine.FIO), _native(1.4, 0.65), _front(0.5)),
    _row(_setting(_WRITE, 4, 64), _native(1.4, 0.65), quick=True),
    _row(_setting(_WRITE, 4, 64, engine=Engine.FIO), _native(1.4, 0.65)),
    _row(_setting(_WRITE, 4, medium=Medium.XFS), _native(1.4, 0.65), quick=True),
    _row(_setting(_READ, 64), _native(1.4, 0.4), quick=True),
    _row(_setting(_READ, 256), _native(1.4, 0.4), _front(0.9), quick=True),
    _row(_setting(_READ, 1024), _native(1.4, 0.4), quick=True),
    _row(_setting(_WRITE, 256), _native(1.3, 0.75), _front(0.9), quick=True),
    _row(_setting(_WRITE, 1024), _native(1.6, 0.75), quick=True),
    _row(_setting(_READ, 4, 1), _native(latency=1.1), quick=True),
    _row(_setting(_READ, 4, 32, cold=True), _native(1.0), quick=True),
    _row(_setting(_READ, 4, connections=4, workers=4), _native(1.2), quick=True),
    _row(_setting(_READ, 256, transport=Transport.TLS), _native(1.0), quick=True),
    # Around 4 KiB at random.
    _row(_setting(_READ, 4, 4)),
    _row(_setting(_WRITE, 4, 1)),
    _row(_setting(_MIXED, 4)),
    _row(_setting(_READ, 4, random=False)),
    _row(_setting(_READ, 16)),
    _row(_setting(_READ, 4, connections=4)),
    _row(_setting(_WRITE, 4, connections=4, workers=4)),
    _row(_setting(_READ, 4, transport=Transport.TCP)),
    _row(_setting(_READ, 4, transport=Transport.TLS)),
    _row(_setting(_WRITE, 4, transport=Transport.TCP)),
    _row(_setting(_WRITE, 4, transport=Transport.TLS)),
    _row(_setting(_READ, 4, medium=Medium.XFS)),
    _row(_setting(_READ, 4, medium=Medium.TMPFS)),
    _row(_setting(_WRITE, 4, medium=Medium.TMPFS)),
    _row(_setting(_READ, 4, 1, engine=Engine.FIO)),
    _row(_setting(_READ, 4, 4, engine=Engine.FIO)),
    _row(_setting(_MIXED, 4, engine=Engine.FIO)),
    _row(_setting(_READ, 4, engine=Engine.FIO, random=False)),
    _row(_setting(_READ, 4, engine=Engine.FIO, connections=4, workers=4)),
    # Around 256 KiB in sequence.
    _row(_setting(_READ, 256, random=True)),
    _row(_setting(_MIXED, 256)),
    _row(_setting(_READ, 256, 1)),
    _row(_setting(_READ, 256, 64)),
    _row(_setting(_READ, 256, engine=Engine.FIO)),
    _row(_setting(_WRITE, 256, engine=Engine.FIO)),
    _row(_setting(_READ, 1024, engine=Engine.FIO)),
    _row(_setting(_WRITE, 1024, engine=Engine.FIO)),
    _row(_setting(_READ, 256, transport=Transport.TCP)),
    _row(_setting(_WRITE, 256, transport=Transport.TCP)),
    _row(_setting(_WRITE, 256, transport=Transport.TLS)),
    _row(_setting(_READ, 256, medium=Medium.TMPFS)),
    _row(_setting(_WRITE, 256, medium=Medium.XFS)),
    _row(_setting(_READ, 256, cold=True)),
    # Copies of whole disks.
    _row(_setting(_READ, 256, engine=Engine.NBDCOPY)),
    _row(_setting(_READ, 256, engine=Engine.NBDCOPY, sparse=True)),
    _row(_setting(_READ, 256, engine=Engine.NBDCOPY, transport=Transport.TLS)),
    _row(_setting(_WRITE, 256, engine=Engine.NBDCOPY)),
    _row(_setting(_WRITE, 256, engine=Engine.NBDCOPY, sparse=True)),
)
"""All rows, those with targets first."""

_WIDE = {_name(setting) for setting in (_setting(_READ, 4), _setting(_WRITE, 4), _setting(_READ, 256))}
"""Where the quick run too has all servers."""
