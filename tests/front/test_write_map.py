"""Whatever a client writes while a disk is copied is marked when it is answered, on both fronts."""

import os
from collections.abc import Iterator
from pathlib import Path

import nbd
import pytest

from nbdresize.config import StateDirectory
from nbdresize.control import admin_client
from nbdresize.storage.write_map import WriteMap
from tests.front.conftest import MIB, SIZE, connect, make_ledger
from tests.peers import Serve
from tests.tls_keys import make_certificates

pytestmark = pytest.mark.slow

FUA = nbd.CMD_FLAG_FUA
LENGTHS = (1, 4096, 5000, 32 << 10, 256 << 10, 3 * MIB + 7)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_ledger(tmp_path, SIZE)


@pytest.fixture(params=["plain", "TLS"])
def server(request: pytest.FixtureRequest, front: str, root: Path, tmp_path: Path) -> Iterator[Serve]:
    tls = ("--tls", make_certificates(tmp_path / "pki")) if request.param == "TLS" else ()
    with Serve(*tls, "--workers", "2", front=front, directory=tmp_path, root=root) as server:
        yield server


@pytest.fixture
def write_map(root: Path) -> WriteMap:
    [volume] = (root / "volumes").iterdir()
    return WriteMap.create(StateDirectory(root).write_map(volume.stem), SIZE)


def blocks(offset: int, length: int) -> list[tuple[int, int]]:
    """The whole blocks that the range touches."""
    first, end = offset // 4096 * 4096, -(-(offset + length) // 4096) * 4096
    return [(first, end - first)]


def written(client: nbd.NBD, length: int, offset: int) -> Iterator[str]:
    """Write to the range in every way, one after the other."""
    data = os.urandom(length)
    yield f"{client.pwrite(data, offset)} write"
    yield f"{client.pwrite(data, offset, FUA)} write, FUA"
    yield f"{client.zero(length, offset)} zero"
    yield f"{client.zero(length, offset, FUA)} zero, FUA"
    yield f"{client.zero(length, offset, nbd.CMD_FLAG_NO_HOLE)} zero, no hole"
    yield f"{client.trim(length, offset)} trim"


def test_all_that_is_written_is_marked_when_it_is_answered(server: Serve, root: Path, write_map: WriteMap) -> None:
    clients = [connect(server.uri("web1/disk0")) for _ in range(4)]  # whichever worker they have got to
    answers = admin_client.ask_all(StateDirectory(root), {"command": "sizes", "exports": ["web1/disk0"]})
    assert all(answer.reply is not None and answer.reply["unmarked"] == [] for answer in answers)
    for number, client in enumerate(clients):
        offset = number * 8 * MIB + 4000
        for length in LENGTHS:
            for how in written(client, length, offset):
                assert write_map.take() == blocks(offset, length), how
        client.pread(MIB, 0)
        client.flush()
        client.cache(MIB, 0)
        assert write_map.take() == []
        client.shutdown()
