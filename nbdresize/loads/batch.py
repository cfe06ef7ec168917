"""Our own load: a process for each connection, all of which begin and end together.

The processes are children of one (`python -m nbdresize.loads`), which is started here and does the counting together,
so that whatever happens, ending that one's group ends them all.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from nbdresize.client.deadline import Deadline
from nbdresize.errors import ERRORS, PeerFailed
from nbdresize.loads.model import Engine, Latency, Load, Measured, Operation

PATIENCE = 30.0
"""How long a server may be silent, and how long it has at the end to answer what is still under way, in seconds."""

_MODULE = "nbdresize.loads"
_SETUP_SECONDS = 60.0
_LONGEST_RESULT = 1 << 20
_SHOWN_STDERR = 2000


@dataclass(frozen=True)
class Order:
    """What the processes are to do. `core` is the processor's that they all run on, None for any."""

    load: Load
    uri: str
    seconds: float
    warm_up: float = 0.0
    core: int | None = None
    patience: float = PATIENCE

    @property
    def longest(self) -> float:
        """Seconds after which it has ended, whatever the server does."""
        return _SETUP_SECONDS + self.warm_up + self.seconds + 3 * self.patience

    def to_json(self) -> str:
        values = asdict(self)
        values["load"]["engine"] = self.load.engine.value
        values["load"]["operation"] = self.load.operation.value
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        values: dict[str, Any] = json.loads(text)
        load = values.pop("load")
        load["engine"], load["operation"] = Engine(load["engine"]), Operation(load["operation"])
        return cls(Load(**load), **values)


def run(order: Order) -> Measured:
    """Put the load on. Raises what connecting and the server's answers raise; see client.Connection."""
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            [sys.executable, "-m", _MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=_environment(),
            start_new_session=True,
        )
        try:
            answer = _result(process, order)
        finally:
            _end(process)
        if not answer:
            complaints.seek(0)
            told = complaints.read().decode(errors="replace")[-_SHOWN_STDERR:]
            raise RuntimeError(f"the load's process ended with {process.returncode}: {told}")
    return _measured(json.loads(answer))


def _result(process: "subprocess.Popen[bytes]", order: Order) -> bytes:
    """The line that it prints; its standard input stays open meanwhile, since it ends with that."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # it has failed, as is told below
        process.stdin.write(order.to_json().encode() + b"\n")
        process.stdin.flush()
    deadline = Deadline(order.longest)
    answer = b""
    try:
        while select.select([process.stdout], [], [], deadline.remaining())[0]:
            data = os.read(process.stdout.fileno(), _LONGEST_RESULT)
            if not data:
                break
            answer += data
    except TimeoutError:
        raise PeerFailed(f"The load on {order.uri} has not ended in {order.longest:g} s", "check the server") from None
    return answer


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End it and all its children, if they have not ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _measured(answer: dict[str, Any]) -> Measured:
    if "error" in answer:
        kind = next(error for error in ERRORS if error.__name__ == answer["error"])
        raise kind(answer["problem"], answer["way_out"])
    latency = answer.pop("latency")
    return Measured(latency=None if latency is None else Latency(**latency), **answer)


def _environment() -> dict[str, str]:
    """This process's own, with our package and its libraries to be found."""
    library = sysconfig.get_paths()
    paths = [str(Path(__file__).parents[2]), library["purelib"], library["platlib"]]
    inherited = os.environ.get("PYTHONPATH")
    variables = dict(os.environ)
    variables["PYTHONPATH"] = os.pathsep.join([*dict.fromkeys(paths), *([inherited] if inherited else [])])
    variables["PYTHONSAFEPATH"] = "1"
    return variables
