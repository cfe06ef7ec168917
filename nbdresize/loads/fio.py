"""fio with its nbd engine as a load. It speaks by libnbd, and is good for about 200,000 requests a second of a core."""

import json
from typing import Any

from nbdresize.client.uri import parse_uri
from nbdresize.errors import InvalidArgument, PeerFailed
from nbdresize.loads import programs
from nbdresize.loads.batch import PATIENCE
from nbdresize.loads.model import Latency, Load, Measured, Operation

_MOST_MAPPED = 1 << 24
"""fio remembers which of the blocks of a random load it has had; of more than these that takes too much memory."""
_PERCENTILES = ("50.000000", "99.000000", "99.900000")


def run(
    load: Load,
    uri: str,
    size: int,
    seconds: float,
    *,
    core: int | None = None,
    warm_up: float = 0.0,
    patience: float = PATIENCE,
) -> Measured:
    """Put the load on a disk of `size` bytes. Raises InvalidArgument for TLS, ProgramMissing, PeerFailed."""
    if parse_uri(uri).tls is not None:
        raise InvalidArgument("fio's nbd engine takes no certificates", "use --engine batch, or nbdcopy")
    limit = programs.STARTING_SECONDS + warm_up + seconds + patience
    finished = programs.run(command(load, uri, size, seconds, warm_up), "fio", limit, core)
    try:
        job = json.loads(finished.output[finished.output.index("{") :])["jobs"][0]
        return _measured(job["mixed"], load.block)
    except (ValueError, LookupError, TypeError) as error:
        raise PeerFailed(f"What fio reports makes no sense ({error!r})", "version 3.33 is known") from error


def command(load: Load, uri: str, size: int, seconds: float, warm_up: float = 0.0) -> list[str]:
    """The command line of fio."""
    side = {Operation.READ: "read", Operation.WRITE: "write", Operation.MIXED: "rw"}[load.operation]
    whole = size // load.block * load.block
    share = max(whole // load.connections // load.block * load.block, load.block)
    apart = not load.random and load.connections > 1
    words = [
        *("fio", "--name=load", "--ioengine=nbd", f"--uri={uri}", f"--rw={'rand' if load.random else ''}{side}"),
        *(f"--bs={load.block}", f"--iodepth={load.depth}", f"--size={share if apart else whole}", "--time_based"),
        *(f"--runtime={round(seconds * 1000)}ms", f"--ramp_time={round(warm_up * 1000)}ms", "--thread"),
        *(f"--numjobs={load.connections}", "--group_reporting", "--randrepeat=0", "--rwmixread=70"),
        *("--unified_rw_reporting=mixed", "--percentile_list=50:99:99.9", "--output-format=json"),
    ]
    if apart:
        words.append(f"--offset_increment={share}")
    if load.random and whole // load.block > _MOST_MAPPED:
        words.append("--norandommap")
    return words


def _measured(side: dict[str, Any], block: int) -> Measured:
    requests = int(side["total_ios"])
    if not requests:
        raise PeerFailed("fio got no answer to any request", "give it more --seconds, and check the server")
    percentiles = side["clat_ns"]["percentile"]
    median, p99, p999 = (percentiles[name] / 1e9 for name in _PERCENTILES)
    latency = Latency(median, p99, p999, side["clat_ns"]["max"] / 1e9)
    return Measured(requests, requests * block, side["runtime"] / 1000, latency)
