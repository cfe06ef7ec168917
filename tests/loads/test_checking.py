"""The verified run: it passes on honest servers, and finds a single wrong byte of a dishonest one."""

import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdresize.client import connect
from nbdresize.client.deadline import Deadline
from nbdresize.errors import Inconsistent, InvalidArgument, NotAuthorized, PeerFailed, StateUnusable
from nbdresize.loads import checking
from nbdresize.loads.checking import _Run, blocks, check, coarse
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
        offsets = _Run(batch(Operation.READ, BLOCK, 4), native, plain, 64 * BLOCK, 10, Deadline(60))._offsets()
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


def test_of_blocks_that_are_too_small_only_so_many_are_verified(native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert blocks(batch(block=3), 1 << 40) == checking.MOST_BLOCKS < 100_000
    assert blocks(batch(block=BLOCK), 1 << 40) == checking.VERIFIED // BLOCK
    assert [coarse(batch(block=block), 1 << 40) for block in (3, 512, BLOCK, MIB)] == [True, True, False, False]
    assert not coarse(batch(block=3), 1000)
    monkeypatch.setattr(checking, "MOST_BLOCKS", 1000)
    for operation in (Operation.READ, Operation.WRITE):
        rounds = 1 if operation is Operation.READ else 2
        assert check(batch(operation, 3), native) == rounds * 1000 * 3


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


@pytest.mark.parametrize("structured", [False, True])
def test_bytes_that_come_after_the_answer_do_not_mend_it(tmp_path: Path, structured: bool) -> None:
    """A wrong reply, and with it the beginning of a second one that brings the right bytes."""
    load = batch(depth=1, structured=structured)

    def script(peer: Peer) -> None:
        while (request := peer.request()).command != raw.DISC:
            wrong, right = b"x" * request.length, bytes(request.length)
            if request.length != BLOCK:  # a plain read, of all that lies side by side
                peer.send(raw.data(request.cookie, request.offset, right) if structured else answer(request, right))
            elif structured:
                second = raw.data(request.cookie, request.offset, right, flags=0)
                peer.send(raw.data(request.cookie, request.offset, wrong), second)
            else:
                peer.send(answer(request, wrong), answer(request, right + b"y")[:-1])

    def answer(request: raw.Request, data: bytes) -> bytes:
        return raw.simple(request.cookie, data=data)

    infos = (raw.export_info(size=8 * BLOCK),)
    with RawServer(tmp_path, Honest(script, infos=infos, structured=structured)) as server, pytest.raises(PeerFailed):
        check(load, server.uri)


# How long it takes


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_server_that_drips_is_given_up(tmp_path: Path, blocks: int) -> None:
    """It is never silent, and after some seconds it would even be right. At the end of a load, and before."""

    peers: list[Peer] = []

    def script(peer: Peer) -> None:
        peers.append(peer)
        dripping = 0 if peer is peers[0] else 300  # the first one is the plain client
        while (request := peer.request()).command != raw.DISC:
            reply = raw.simple(request.cookie, data=bytes(request.length))
            for at in range(dripping):
                peer.send(reply[at : at + 1])
                time.sleep(0.01)
            peer.send(reply[dripping:])
            dripping = 0

    infos = (raw.export_info(size=blocks * BLOCK),)
    with (
        RawServer(tmp_path, Honest(script, infos=infos, structured=False)) as server,
        pytest.raises(PeerFailed, match=r"did not answer within 0.5 s"),
    ):
        check(batch(depth=1), server.uri, patience=0.5)


@pytest.mark.parametrize("slow", ["load", "plain"])
def test_a_server_that_is_slow_with_each_answer_has_a_limit_for_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    monkeypatch.setattr(checking, "_OWN_SECONDS", 0.5)
    monkeypatch.setattr(checking, "_ANSWERS_IN_ALL", 0)
    monkeypatch.setattr(checking, "_READ_SECONDS", 0.0)
    peers: list[Peer] = []
    answered: list[raw.Request] = []

    def script(peer: Peer) -> None:
        peers.append(peer)
        while (request := peer.request()).command != raw.DISC:
            if (peer is peers[0]) == (slow == "plain"):
                time.sleep(0.02)
                answered.append(request)
            peer.send(raw.simple(request.cookie, data=bytes(request.length)))

    infos = (raw.export_info(size=64 * MIB),)
    with (
        RawServer(tmp_path, Honest(script, infos=infos, structured=False)) as server,
        pytest.raises(PeerFailed, match=r"could not be verified within 0.5 s: .*--timeout"),
    ):
        check(batch(block=65536, depth=4), server.uri, patience=3600)
    assert len(answered) < (1024 if slow == "load" else 64)


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
