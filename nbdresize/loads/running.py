"""Any load on any NBD server, by whichever engine puts it on."""

import math

from nbdresize.client import connect
from nbdresize.errors import InvalidArgument
from nbdresize.loads import batch, copying, fio
from nbdresize.loads.batch import PATIENCE, Order
from nbdresize.loads.limits import check_disk, check_load
from nbdresize.loads.model import Engine, Load, Measured

_LONGEST = 86400.0


def run(
    load: Load,
    uri: str,
    seconds: float,
    *,
    core: int | None = None,
    warm_up: float = 0.0,
    patience: float = PATIENCE,
) -> Measured:
    """Put the load on for so many seconds, after a warm-up that is not counted; nbdcopy copies once instead.

    What is asked is answered before this returns, and counted. All connections of BATCH begin together, each in a
    process of its own; with `core`, everything runs on that one. It ends in bounded time whatever the server does,
    which may be silent for `patience` seconds.

    Raises InvalidArgument for a load that makes no sense or that the disk is too small for, NotAuthorized where the
    disk may not be written, ProgramMissing, and what the server's failures and refusals are: PeerFailed and others.
    """
    check_load(load)
    if not (math.isfinite(seconds) and 0 < seconds <= _LONGEST and 0 <= warm_up <= _LONGEST):
        raise InvalidArgument(f"A load of {seconds:g} s", f"give more than 0 and at most {_LONGEST:.0f} seconds")
    if load.engine is Engine.BATCH:
        return batch.run(Order(load, uri, seconds, warm_up, core, patience))
    with connect(uri, patience) as connection:
        check_disk(load, connection.negotiated.export, connection.target.shown)
        size = connection.negotiated.export.size
    if load.engine is Engine.FIO:
        return fio.run(load, uri, size, seconds, core=core, warm_up=warm_up, patience=patience)
    return copying.run(load, uri, size, core=core, patience=patience)
