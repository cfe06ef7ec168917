"""Small reads by a file's mapping in the native server: always what the file holds, and no harm where it fails."""

import os
from collections.abc import Iterator
from pathlib import Path

import nbd
import pytest

from nbdresize.storage.page_cache import PageCache
from tests.filesystems import mounted
from tests.front.conftest import MIB, connect
from tests.peers import Serve
from tests.wait import until

SIZE = 8 * MIB
BLOCK = 4096
ENOUGH = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted("ext4", tmp_path_factory.mktemp("mapped"), size=96 * MIB) as directory:
        yield directory


@pytest.fixture
def disk(place: Path) -> Iterator[Path]:
    path = place / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    yield path
    path.unlink()


@pytest.fixture
def server(disk: Path, tmp_path: Path) -> Iterator[Serve]:
    with Serve("--file", disk, "--max-size", str(4 * SIZE), front="native", directory=tmp_path) as running:
        yield running


def is_mapped(server: Serve, disk: Path) -> bool:
    [worker] = server.workers()
    return str(disk) in Path(f"/proc/{worker}/maps").read_text()


def mapped(server: Serve, disk: Path, *, structured: bool = True) -> nbd.NBD:
    """A client whose small reads are done by the mapping, where the kernel tells what is in the page cache."""
    client = connect(server.uri(), structured=structured)
    read_again(client, SIZE)
    with disk.open("rb") as opened:
        assert is_mapped(server, disk) is PageCache(opened.fileno()).known
    return client


def read_again(client: nbd.NBD, size: int) -> None:
    """Read of each part of the disk so often that the next time it will be by the mapping."""
    for offset in range(0, size, MIB // 4):
        for _ in range(ENOUGH):
            client.pread(512, offset)


@pytest.mark.parametrize("structured", [False, True])
def test_what_is_read_is_what_the_file_holds(server: Serve, disk: Path, structured: bool) -> None:
    client, other = mapped(server, disk, structured=structured), connect(server.uri())
    for offset in (0, 1, BLOCK - 1, SIZE // 2 - 7, SIZE - BLOCK):
        assert client.pread(BLOCK, offset) == disk.read_bytes()[offset : offset + BLOCK]
    for number in range(50):
        data = os.urandom(BLOCK)
        (client if number % 2 else other).pwrite(data, number * BLOCK + 11)
        assert client.pread(BLOCK, number * BLOCK + 11) == data
    client.zero(BLOCK, 0)
    other.trim(BLOCK, BLOCK)
    assert client.pread(2 * BLOCK, 0) == bytes(2 * BLOCK)


def test_requests_under_way_at_once_are_each_answered_with_their_own_bytes(server: Serve, disk: Path) -> None:
    client, content = mapped(server, disk), disk.read_bytes()
    buffers = [(nbd.Buffer(BLOCK), number * 4093 % (SIZE - BLOCK)) for number in range(500)]
    cookies = [client.aio_pread(buffer, offset) for buffer, offset in buffers]
    waiting = set(cookies)
    while waiting:
        assert client.poll(30_000) == 1
        waiting.difference_update([cookie for cookie in waiting if client.aio_command_completed(cookie)])
    for buffer, offset in buffers:
        assert buffer.to_bytearray() == content[offset : offset + BLOCK]


def test_it_goes_on_while_the_disk_grows(server: Serve, disk: Path) -> None:
    client = mapped(server, disk)
    content = disk.read_bytes()
    os.truncate(disk, 2 * SIZE)
    grown = connect(server.uri())
    until(lambda: connect(server.uri()).get_size() == 2 * SIZE, what="the new size")
    grown.pwrite(b"x" * BLOCK, 2 * SIZE - BLOCK)
    read_again(grown, 2 * SIZE)
    assert grown.pread(BLOCK, 2 * SIZE - BLOCK) == b"x" * BLOCK
    assert grown.pread(BLOCK, SIZE) == bytes(BLOCK)
    assert client.pread(BLOCK, SIZE - BLOCK) == content[-BLOCK:]


def test_a_file_that_somebody_cuts_ends_a_connection_not_the_server(server: Serve, disk: Path) -> None:
    client, other = mapped(server, disk), connect(server.uri())
    with disk.open("r+b") as file:
        file.truncate(SIZE // 2)
        with pytest.raises(nbd.Error):
            client.pread(BLOCK, SIZE - BLOCK)
        assert len(other.pread(BLOCK, 0)) == BLOCK
        file.truncate(SIZE)
    assert connect(server.uri()).pread(BLOCK, SIZE - BLOCK) == bytes(BLOCK)


def test_nothing_stays_mapped_for_a_client_that_has_gone(server: Serve, disk: Path) -> None:
    mapped(server, disk).shutdown()
    until(lambda: not is_mapped(server, disk), what="the mapping's end")
