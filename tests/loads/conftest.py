"""Servers to put loads on: our own on a small file, over every transport, and nbdkit, which counts what it is asked."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdresize.loads.batch import Order
from nbdresize.loads.channel import channel
from nbdresize.loads.model import Engine, Load, Operation
from nbdresize.loads.pipeline import Counted, Pipeline, replies_for
from nbdresize.loads.requests import RequestTable
from nbdresize.loads.team import opened, part
from tests.client.conftest import Listening
from tests.peers import Serve
from tests.tls_keys import make_certificates

MIB = 1 << 20
SIZE = 8 * MIB


def batch(
    operation: Operation = Operation.READ,
    block: int = 4096,
    depth: int = 16,
    *,
    random: bool = True,
    connections: int = 1,
    structured: bool = False,
) -> Load:
    return Load(Engine.BATCH, operation, block, depth, random, connections, structured=structured)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file of SIZE random bytes, with a hole of a quarter of it."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.write(os.urandom(SIZE // 2))
        file.seek(SIZE // 4 * 3)
        file.write(os.urandom(SIZE // 4))
    return path


@pytest.fixture(params=["unix", "tcp", "tls"])
def uri(request: pytest.FixtureRequest, image: Path, tmp_path: Path) -> Iterator[str]:
    """Our native front, reached by each transport."""
    options: list[str | Path] = ["--file", image]
    if request.param == "tls":
        options += ["--tls", make_certificates(tmp_path / "keys")]
    with Serve(*options, directory=tmp_path, front="native", tcp=True) as server:
        yield server.uri(number=1 if request.param == "tcp" else 0)


@pytest.fixture
def native(image: Path, tmp_path: Path) -> Iterator[str]:
    """Our native front on a unix socket."""
    with Serve("--file", image, directory=tmp_path, front="native") as server:
        yield server.uri()


class Counting(Listening):
    """nbdkit with a disk in memory; `counts`, once it has ended, says what it was asked."""

    def __init__(self, directory: Path, size: int = SIZE) -> None:
        self._statistics = directory / "statistics"
        super().__init__(
            directory,
            *("nbdkit", "--foreground", "--unix", "SOCKET", "--filter=stats", "memory", str(size)),
            f"statsfile={self._statistics}",
        )

    def counts(self) -> dict[str, int]:
        """How many requests of each kind there were."""
        found = re.findall(r"^(\w+): (\d+) ops", self._statistics.read_text(), re.MULTILINE)
        return {kind: int(number) for kind, number in found if kind != "total"}


@pytest.fixture
def counting(tmp_path: Path) -> Counting:
    return Counting(tmp_path)


def directly(load: Load, uri: str, seconds: float, patience: float = 60.0) -> Counted:
    """A load of one connection, run by the test's own process: for many runs, where each its own would be a waste."""
    order = Order(load, uri, seconds, patience=patience)
    stream, negotiated = opened(order)
    try:
        table = RequestTable(load, negotiated.export.size)
        replies = replies_for(table, structured=load.structured)
        counted = Pipeline(channel(stream, patience), table, replies, uri, patience).run(0.0, 0.0, seconds)
        part(stream)
        return counted
    finally:
        stream.close()
