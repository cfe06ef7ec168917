"""The loads that `nbdresize bench` puts on a server where nobody asks for another."""

from nbdresize.loads.model import Engine, Load, Operation

_KIB, _MIB = 1 << 10, 1 << 20

_SMALL_TO_LARGE = (4 * _KIB, 64 * _KIB, 256 * _KIB, _MIB)
_READS = (
    *((4 * _KIB, depth, True, 1) for depth in (1, 4, 16, 64)),
    *((64 * _KIB, depth, True, 1) for depth in (1, 16, 64)),
    *((256 * _KIB, depth, True, 1) for depth in (1, 16, 64)),
    *((_MIB, depth, True, 1) for depth in (1, 16)),
    *((block, 16, False, 1) for block in _SMALL_TO_LARGE),
    *((4 * _KIB, depth, True, 4) for depth in (16, 64)),
    *((block, 16, True, 4) for block in (64 * _KIB, 256 * _KIB)),
)
"""Block, depth, whether at random, connections."""
_WRITES = (
    *((4 * _KIB, depth, True, 1) for depth in (1, 16, 64)),
    *((block, 16, False, 1) for block in _SMALL_TO_LARGE),
    (4 * _KIB, 16, True, 4),
)
_MIXED = ((4 * _KIB, 16, True, 1), (64 * _KIB, 16, True, 1))
_COPIES = ((False, 1), (False, 4), (True, 1))
"""Whether holes are skipped, connections."""


def loads(engine: Engine, *, writes: bool = False) -> list[Load]:
    """Reading ones, and with `writes` also those that write, in the order in which they are told."""
    if engine is Engine.NBDCOPY:
        return [
            Load(engine, operation, 256 * _KIB, 64, random=False, connections=connections, sparse=sparse)
            for operation in (Operation.READ, *([Operation.WRITE] if writes else []))
            for sparse, connections in _COPIES
        ]
    shapes = [(Operation.READ, _READS)]
    if writes:
        shapes += [(Operation.WRITE, _WRITES), (Operation.MIXED, _MIXED)]
    return [
        Load(engine, operation, block, depth, random, connections)
        for operation, group in shapes
        for block, depth, random, connections in group
    ]


def name(load: Load) -> str:
    """`4K random read, depth 16`; `256K copy from, depth 64, 4 connections`."""
    if load.engine is Engine.NBDCOPY:
        what = f"{'sparse ' if load.sparse else ''}copy {'to' if load.writes else 'from'}"
    else:
        what = f"{'random' if load.random else 'sequential'} {load.operation.value}"
    connections = f", {load.connections} connections" if load.connections > 1 else ""
    return f"{_short(load.block)} {what}, depth {load.depth}{connections}"


def _short(size: int) -> str:
    for unit, suffix in ((_MIB, "M"), (_KIB, "K")):
        if size % unit == 0:
            return f"{size // unit}{suffix}"
    return str(size)
