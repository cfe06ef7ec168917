"""The verified run: it passes on honest servers, and finds a single wrong byte of a dishonest one."""

import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdresize.client import connect
from nbdresize.errors import Inconsistent, InvalidArgument, NotAuthorized, PeerFailed, StateUnusable
from nbdresize.loads.checking import _Run, check
from nbdresize.loads.model import Engine, Load, Operation
from tests.client import raw_server as raw
from tests.client.conftest import qemu_nbd, stock_nbdkit
from tests.client.raw_server import Honest, Peer, RawServer
from tests.loads.conftest import MIB, SIZE, batch
from tests.peers import Serve
from tests.wait import until

pytestmark = pytest.mark.slow

BLOCK = 4096


def shapes(operation: Operation) -> Iterator[Load]:
    for structured in (False, True):
        yield batch(operation, BLOCK, 16, connections=3, structured=structured)
        yield batch(operation, MIB, 4, random=False, structured=structured)
    yield Load(Engine.FIO, operation, 65536, 64)
    if operation is not Operation.MIXED:
        yield Load(Engine.NBDCOPY, operation, 65536, 4, connections=2)
        yield Load(Engine.NBDCOPY, operation, 65536, 4, sparse=True)


def test_reading_is_verified_by_a_plain_read_or_a_file(uri: str, image: Path) -> None:
    for load in shapes(Operation.READ):
        assert check(load, uri) == SIZE
        assert check(load, uri, reference=image) == SIZE


def test_writing_is_verified_and_is_what_the_disk_holds_then(uri: str, image: Path) -> None:
    for load in shapes(Operation.WRITE):
        before = image.read_bytes()
        rounds = 1 if load.engine is Engine.NBDCOPY else 2
        assert check(load, uri) == rounds * SIZE
        assert image.read_bytes() != before
        assert image.stat().st_size == SIZE


def test_what_is_written_has_to_be_in_the_file(tmp_path: Path) -> None:
    """nbdkit's cow filter keeps it, and answers from there, but writes none of it to the file."""
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    path = tmp_path / "cow.sock"
    command = ["nbdkit", "--foreground", f"--unix={path}", "--filter=cow", "file", str(image)]
    with subprocess.Popen(command) as server:
        try:
            until(path.exists, what="nbdkit")
            uri = f"nbd+unix:///?socket={path}"
            for load in (batch(Operation.WRITE, BLOCK, 4), Load(Engine.NBDCOPY, Operation.WRITE, 65536, 4)):
                assert check(load, uri) > 0
                with pytest.raises(Inconsistent, match="answers from somewhere else"):
                    check(load, uri, reference=image)
        finally:
            server.terminate()
            server.wait(30)


def test_half_of_random_blocks_lie_together_and_none_is_chosen_twice(native: str) -> None:
    """So that servers which do otherwise what is asked for again and again do so here."""
    with connect(native) as plain:
        offsets = _Run(batch(Operation.READ, BLOCK, 4), native, plain, 64 * BLOCK, 10)._offsets()
    assert len(set(offsets)) == len(offsets) == 64
    assert sum(offset < 64 * BLOCK for offset in offsets) == 32
    assert offsets != sorted(offsets)


def test_mixed_loads_are_verified(uri: str) -> None:
    for load in shapes(Operation.MIXED):
        assert check(load, uri) > 2 * SIZE  # what was read by the load is counted, too


def test_other_servers_are_verified(tmp_path: Path) -> None:
    with qemu_nbd(tmp_path) as server:
        for operation in Operation:
            assert check(batch(operation, connections=2, structured=True), server.uri("disk"), most=MIB) >= MIB
    with stock_nbdkit(tmp_path) as server:
        for operation in Operation:
            assert check(batch(operation, connections=2), server.uri(), most=MIB) >= MIB


def test_only_so_much_is_verified(native: str) -> None:
    assert check(batch(), native, most=10 * BLOCK + 1) == 10 * BLOCK
    assert check(batch(block=MIB), native, most=1) == MIB
    assert check(batch(block=3000), native) == SIZE // 3000 * 3000


# Wrong bytes


@pytest.mark.parametrize("engine", list(Engine))
def test_a_wrong_byte_of_what_is_read_is_found_and_named(
    native: str, image: Path, tmp_path: Path, engine: Engine
) -> None:
    wrong = SIZE - 12345
    reference = tmp_path / "reference"
    content = bytearray(image.read_bytes())
    content[wrong] ^= 0x40
    reference.write_bytes(content)
    load = Load(engine, Operation.READ, 65536, 8, random=False, connections=2)
    with pytest.raises(Inconsistent) as caught:
        check(load, native, reference=reference)
    assert f"Byte {wrong} of" in caught.value.problem
    assert f"should be {content[wrong]:#04x}; 1 of the " in caught.value.problem


class Forgetful:
    """A server in memory that does one thing wrong."""

    def __init__(self, wrong: str = "") -> None:
        self.content = bytearray(64 * BLOCK)
        self.wrong = wrong
        self.writes = 0

    def __call__(self, peer: Peer) -> None:
        while (request := peer.request()).command != raw.DISC:
            data = b""
            place = slice(request.offset, request.offset + request.length)
            if request.command == raw.WRITE:
                self._write(place, bytearray(peer.receive(request.length)))
            elif request.command == raw.READ:
                data = bytes(self.content[place])
            peer.send(raw.simple(request.cookie, data=data))

    def _write(self, place: slice, data: bytearray) -> None:
        self.writes += 1
        if self.wrong == "one byte" and self.writes == 30:
            data[1000] ^= 1
        if self.wrong == "elsewhere" and self.writes == 30:
            place = slice(0, BLOCK) if place.start else slice(BLOCK, 2 * BLOCK)
        if self.wrong == "second round" and self.writes > 64:
            return
        if self.wrong != "lost" or self.writes != 30:
            self.content[place] = data

    @property
    def script(self) -> raw.Script:
        return Honest(self, infos=(raw.export_info(size=len(self.content)),), structured=False)


@pytest.mark.parametrize("wrong", ["one byte", "elsewhere", "lost", "second round"])
@pytest.mark.parametrize("operation", [Operation.WRITE, Operation.MIXED])
def test_a_server_that_does_not_keep_what_is_written_is_found(tmp_path: Path, operation: Operation, wrong: str) -> None:
    with RawServer(tmp_path, Forgetful(wrong).script) as server, pytest.raises(Inconsistent, match="and should be"):
        check(batch(operation, BLOCK, 4), server.uri)


@pytest.mark.parametrize("operation", list(Operation))
def test_the_same_server_without_its_fault_passes(tmp_path: Path, operation: Operation) -> None:
    with RawServer(tmp_path, Forgetful().script) as server:
        assert check(batch(operation, BLOCK, 4), server.uri) >= 64 * BLOCK


def test_a_read_of_the_load_that_differs_from_a_plain_one(tmp_path: Path) -> None:
    """Only the load has several requests under way."""

    def script(peer: Peer) -> None:
        while (request := peer.request()).command != raw.DISC:
            alone = not raw_pending(peer)
            content = bytearray(request.length)
            if not alone and request.offset == 5 * BLOCK:
                content[77] = 1
            peer.send(raw.simple(request.cookie, data=bytes(content)))

    infos = (raw.export_info(size=64 * BLOCK),)
    load = batch(depth=64, random=False)
    with (
        RawServer(tmp_path, Honest(script, infos=infos, structured=False)) as server,
        pytest.raises(Inconsistent, match=f"Byte {5 * BLOCK + 77} of .* is 0x01 and should be 0x00"),
    ):
        check(load, server.uri)


def raw_pending(peer: Peer) -> bool:
    """Whether another request has come already."""
    return bool(select.select([peer.socket], [], [], 0)[0])


# What stands in the way


def test_what_can_not_be_verified(native: str, image: Path, tmp_path: Path) -> None:
    with pytest.raises(StateUnusable, match="can't be read"):
        check(batch(), native, reference=tmp_path / "none")
    with pytest.raises(InvalidArgument, match="A depth of 0"):
        check(batch(depth=0), native)
    with pytest.raises(InvalidArgument, match="less than one block"):
        check(batch(block=16 * MIB), native)
    with pytest.raises(PeerFailed):
        check(batch(), f"nbd+unix:///?socket={tmp_path}/none.sock")


def test_a_read_only_disk_is_verified_by_reading(image: Path, tmp_path: Path) -> None:
    with Serve("--file", image, "--read-only", directory=tmp_path, front="native") as server:
        with pytest.raises(NotAuthorized, match="read-only"):
            check(batch(Operation.WRITE), server.uri())
        assert check(batch(), server.uri()) == SIZE


def test_one_connection_that_is_lost_ends_them_all(tmp_path: Path) -> None:
    first: list[raw.Request] = []

    def script(peer: Peer) -> None:
        request = peer.request()
        if not first:
            first.append(request)
            return
        peer.receive(1 << 20)

    with RawServer(tmp_path, Honest(script, structured=False)) as server, pytest.raises(PeerFailed, match="was lost"):
        check(batch(connections=3), server.uri, patience=3600)
