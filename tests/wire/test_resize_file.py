"""RESIZE and the size export on a single file, which has no ledger and knows single bytes."""

import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.wait import until
from tests.wire.conftest import MAX_SIZE, SIZE, make_image
from tests.wire.layout import (
    EINVAL,
    ENOSPC,
    EPERM,
    EXTENDED,
    FIT,
    INFO_RESIZE,
    MIB,
    MODES,
    QUERY,
    READ,
    RESIZE,
    SHRINK,
    STRUCTURED,
    WRITE,
    WRITE_ZEROES,
)
from tests.wire.layout import SIZE as SIZE_FLAG
from tests.wire.peer import NativeServer, RawClient
from tests.wire.replies import Reply

pytestmark = pytest.mark.slow

modes = pytest.mark.parametrize("mode", MODES)
chunked = pytest.mark.parametrize("mode", [STRUCTURED, EXTENDED])


@dataclass(frozen=True)
class ServedFile:
    """A file of SIZE bytes behind a server of its own."""

    server: NativeServer
    path: Path

    @property
    def size(self) -> int:
        return self.path.stat().st_size


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedFile]:
    directory = tmp_path_factory.mktemp("native")
    image = make_image(directory)
    arguments = ("--file", image, "--max-size", str(MAX_SIZE), "--client-resize", "all")
    with NativeServer(*arguments, directory=directory) as server:
        yield ServedFile(server, image)


def is_free(file: int) -> bool:
    """Nobody holds the file's lock, by which a client proves that it has it attached."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(file, fcntl.LOCK_UN)
    return True


@pytest.fixture
def served(worker: ServedFile) -> Iterator[ServedFile]:
    """For one test the file is SIZE bytes long, and nobody has it attached."""
    with worker.path.open("r+b") as image:
        until(lambda: is_free(image.fileno()), what="earlier clients' leases to end")
        image.truncate(SIZE)
    yield worker
    worker.server.check()


@pytest.fixture
def client(served: ServedFile, mode: str) -> Iterator[RawClient]:
    with served.server.connect(mode=mode, infos=[INFO_RESIZE]) as client:
        yield client


def resize(client: RawClient, size: int, flags: int = 0) -> Reply:
    return client.call(RESIZE, size, 0, flags)


@modes
def test_any_number_of_bytes_will_do(served: ServedFile, client: RawClient) -> None:
    for size in (SIZE + 1, SIZE + 777, MAX_SIZE - 1, MAX_SIZE):
        assert resize(client, size).error == 0
        assert served.size == size
        assert client.read(size - 1, 1) == b"\0"
        assert client.call(WRITE, size - 1, payload=b"ab").error == ENOSPC


@modes
def test_max_size_is_the_budget(served: ServedFile, client: RawClient) -> None:
    reply = resize(client, MAX_SIZE + 1)
    assert reply.error == ENOSPC and served.size == SIZE
    assert "256 MiB" in reply.text or client.mode == "simple"
    assert resize(client, 2**64 - 1, FIT).error == 0
    assert served.size == MAX_SIZE


@modes
def test_the_sole_client_shrinks_a_file(served: ServedFile, client: RawClient) -> None:
    assert resize(client, SIZE - 1000).error == EPERM
    assert resize(client, SIZE - 1000, SHRINK).error == 0
    assert served.size == SIZE - 1000
    assert client.call(READ, SIZE - 1000, 1).error == ENOSPC
    assert client.call(WRITE_ZEROES, SIZE - 1, 1).error == ENOSPC
    assert resize(client, 1, SHRINK).error == 0
    assert client.read(0, 1) == b"\1"
    assert client.call(READ, 0, 2).error == ENOSPC
    assert resize(client, SIZE).error == 0
    assert client.read(0, MIB) == b"\1" + bytes(MIB - 1)
    with served.path.open("r+b") as image:
        image.write(bytes(range(1, 256)))


@modes
def test_a_second_client_of_the_file_keeps_it_long(served: ServedFile, client: RawClient) -> None:
    with served.server.connect() as other:
        assert resize(client, SIZE - 1, SHRINK).error == EPERM
        other.write(SIZE - 1, b"!")
    until(lambda: resize(client, SIZE - 1, SHRINK).error == 0, what="the other client's lease to end")
    assert served.size == SIZE - 1


@modes
def test_a_file_that_its_owner_made_longer_is_longer_at_once(served: ServedFile, client: RawClient) -> None:
    os.truncate(served.path, SIZE + 4096)
    client.write(SIZE, b"\xaa" * 4096)
    assert client.read(SIZE, 4096) == b"\xaa" * 4096
    if client.mode != "simple":
        assert resize(client, 0, QUERY).size.size == SIZE + 4096


@chunked
def test_granularity_is_one_byte(client: RawClient) -> None:
    _, granularity, minimum, maximum = struct.unpack(">HIQQ", client.infos[INFO_RESIZE])
    assert (granularity, minimum, maximum) == (1, 1, MAX_SIZE)
    assert resize(client, SIZE + 5, SIZE_FLAG).size.granularity == 1


def test_the_size_export_changes_the_size(served: ServedFile) -> None:
    with served.server.connect(b"@size") as client:
        before = client.read(0, 64)
        wish = struct.pack(">8sQH46x", b"NBDRESZQ", SIZE + 4096, 0)
        client.write(512, wish)
        assert served.size == SIZE + 4096
        after = client.read(0, 64)
        assert int.from_bytes(after[8:16], "big") == SIZE + 4096
        assert int.from_bytes(after[16:24], "big") > int.from_bytes(before[16:24], "big")


@modes
def test_the_size_export_takes_nothing_but_whole_requests(served: ServedFile, mode: str) -> None:
    wish = struct.pack(">8sQH46x", b"NBDRESZQ", SIZE + 4096, 0)
    with served.server.connect(b"@size", mode) as client:
        for offset, payload in (
            (0, wish),
            (511, wish),
            (513, wish),
            (1024, wish),
            (4032, wish),
            (4095, wish),
            (4096, wish),
            (2**64 - 1, wish),
            (512, wish[:-1]),
            (512, wish + b"\0"),
            (512, b"N"),
            (512, b"NBDRESZ1" + wish[8:]),
            (512, wish[:-1] + b"\1"),
            (512, struct.pack(">8sQH46x", b"NBDRESZQ", SIZE + 4096, 1 << 8)),
            (512, struct.pack(">8sQH46x", b"NBDRESZQ", 0, 0)),
            (512, struct.pack(">8sQH46x", b"NBDRESZQ", 2**64 - 1, 0)),
            (512, bytes(100_000)),
        ):
            assert client.call(WRITE, offset, payload=payload).error == EINVAL, (offset, payload[:20])
        for command, offset, length in (
            (READ, 4096, 1),
            (READ, 4095, 2),
            (READ, 0, 4097),
            (READ, 2**64 - 1, 1),
            (READ, 0, 0),
            (WRITE_ZEROES, 512, 64),
            (RESIZE, 8192, 0),
            (77, 0, 0),
        ):
            assert client.call(command, offset, length).error == EINVAL
        assert client.call(WRITE, 512, payload=struct.pack(">8sQH46x", b"NBDRESZQ", 1, 0)).error == EPERM
        assert client.call(WRITE, 512, payload=struct.pack(">8sQH46x", b"NBDRESZQ", MAX_SIZE + 1, 0)).error == ENOSPC
        assert client.read(0, 8) == b"NBDRESZ1"
    assert served.size == SIZE


@modes
def test_without_a_maximum_clients_grow_nothing(tmp_path: Path, mode: str) -> None:
    image = make_image(tmp_path)
    with NativeServer("--file", image, directory=tmp_path) as server, server.connect(mode=mode) as client:
        assert resize(client, SIZE + 1).error == EPERM
        assert client.call(WRITE, SIZE, flags=1 << 11, payload=b"!").error in (EPERM, ENOSPC)
        assert resize(client, SIZE).error == 0
        assert image.stat().st_size == SIZE
        server.check()
