"""Handshakes of clients that lead the server about: options mixed up, without end, or never sent."""

import contextlib
import struct
import threading
from contextlib import ExitStack

import pytest

from nbdresize.units import SizeRequest
from tests.wait import until
from tests.wire.conftest import MAX_SIZE, SIZE, LedgerDisk
from tests.wire.layout import (
    ACK,
    BLOCK_STATUS,
    EINVAL,
    ERR_INVALID,
    ERR_UNKNOWN,
    EXTENDED,
    GO,
    LIST,
    MIB,
    SET_META_CONTEXT,
    STATUS,
    STATUS_EXT,
    STRUCTURED,
    STRUCTURED_REPLY,
    context_query,
    export_query,
    option,
)
from tests.wire.peer import SECONDS, NativeServer, RawClient

pytestmark = pytest.mark.slow

MOST_OPTIONS = 4096
ALLOCATION = b"base:allocation"


@pytest.fixture
def other(disk: LedgerDisk) -> LedgerDisk:
    """A second disk, of another size."""
    name = f"{disk.vm}b"
    disk.control.create_vm(name, MAX_SIZE, [SizeRequest(exact=SIZE // 2)])
    return LedgerDisk(disk.control, name)


def test_info_twice_says_the_same_twice(server: NativeServer) -> None:
    with server.client() as client:
        client.greet()
        assert client.info(b"") == client.info(b"")
        client.info(b"", option=GO)
        assert client.read(0, 3) == b"\1\2\3"


def test_info_of_one_export_leaves_go_to_another(
    grow_server: NativeServer, disk: LedgerDisk, other: LedgerDisk
) -> None:
    with grow_server.client() as client:
        client.greet()
        told = client.info(disk.export)
        client.infos = client.info(other.export, option=GO)
        assert (int.from_bytes(told[0][:8], "big"), client.size) == (SIZE, SIZE // 2)
        client.write(SIZE // 2 - 4, b"here")
    assert other.volume.read_bytes()[-4:] == b"here"
    assert disk.volume.stat().st_blocks == 0


def test_info_alone_leaves_no_disk_attached(grow_server: NativeServer, disk: LedgerDisk) -> None:
    with grow_server.client() as client:
        client.greet()
        client.info(disk.export)
        client.info(disk.export + b"@size")
        disk.control.delete_vm(disk.vm)
        assert client.error_of(GO, export_query(disk.export)) == ERR_UNKNOWN


def test_a_refused_go_may_be_followed_by_another(server: NativeServer) -> None:
    with server.client() as client:
        client.greet()
        for _ in range(10):
            assert client.error_of(GO, export_query(b"none")) == ERR_UNKNOWN
        client.info(b"", option=GO)
        assert client.read(0, 3) == b"\1\2\3"


@pytest.mark.parametrize(("mode", "kind"), [(STRUCTURED, STATUS), (EXTENDED, STATUS_EXT)])
def test_contexts_hold_for_the_export_that_they_were_selected_on(
    grow_server: NativeServer, disk: LedgerDisk, other: LedgerDisk, mode: str, kind: int
) -> None:
    for selected, expected in ((disk, kind), (other, None)):
        with grow_server.client() as client:
            client.greet()
            client.agree(mode)
            client.ask(SET_META_CONTEXT, context_query(selected.export, [ALLOCATION]))
            client.info(disk.export, option=GO)
            reply = client.call(BLOCK_STATUS, 0, 4096)
            assert reply.kinds == [kind] if expected else reply.error == EINVAL


@pytest.mark.parametrize("last", [[], [b"x:y"]])
def test_selecting_contexts_again_replaces_those_before(server: NativeServer, last: list[bytes]) -> None:
    with server.client() as client:
        client.greet()
        client.agree(STRUCTURED)
        client.ask(SET_META_CONTEXT, context_query(b"", [ALLOCATION]))
        client.ask(SET_META_CONTEXT, context_query(b"", last))
        client.info(b"", option=GO)
        assert client.call(BLOCK_STATUS, 0, 4096).error == EINVAL


def test_selecting_contexts_in_vain_replaces_those_before(server: NativeServer) -> None:
    for refused, error in ((context_query(b"none", [ALLOCATION]), ERR_UNKNOWN), (b"\0", ERR_INVALID)):
        with server.client() as client:
            client.greet()
            client.agree(STRUCTURED)
            client.ask(SET_META_CONTEXT, context_query(b"", [ALLOCATION]))
            assert client.error_of(SET_META_CONTEXT, refused) == error
            client.info(b"", option=GO)
            assert client.call(BLOCK_STATUS, 0, 4096).error == EINVAL


def test_options_without_end_end_the_connection(server: NativeServer) -> None:
    with server.client() as client:
        client.greet()
        client.send(option(STRUCTURED_REPLY) * MOST_OPTIONS)
        for _ in range(MOST_OPTIONS):
            assert client.option_replies(STRUCTURED_REPLY) == [(ACK, b"")]
        client.send(option(LIST))
        client.expect_end()


def test_options_without_end_that_are_never_awaited_end_the_connection(server: NativeServer) -> None:
    with server.client() as client:
        client.greet()
        client.send(option(STRUCTURED_REPLY) * (MOST_OPTIONS + 100))
        answers = client.receive_rest()
        assert answers.count(struct.pack(">QII", 0x3E889045565A9, STRUCTURED_REPLY, ACK)) == MOST_OPTIONS


def test_the_last_option_that_is_allowed_may_be_go(server: NativeServer) -> None:
    with server.client() as client:
        client.greet()
        client.send(option(STRUCTURED_REPLY) * (MOST_OPTIONS - 1))
        for _ in range(MOST_OPTIONS - 1):
            client.option_replies(STRUCTURED_REPLY)
        client.mode = STRUCTURED
        client.info(b"", option=GO)
        assert client.read(0, 3) == b"\1\2\3"


def idle(server: NativeServer, said: bytes) -> RawClient:
    client = server.client()
    client.send(said)
    return client


UNFINISHED = {
    "nothing": b"",
    "no option": struct.pack(">I", 3),
    "half an option": struct.pack(">I", 3) + option(GO, export_query(b""))[:20],
    "half of what is skipped": struct.pack(">I", 3) + option(77, bytes(70000), length=100000),
    "answered options": struct.pack(">I", 3) + option(LIST) * 10,
}


def test_who_does_not_finish_the_handshake_in_time_is_hung_up_on(server: NativeServer) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(idle(server, said)) for said in UNFINISHED.values()]
        dripping = stack.enter_context(idle(server, struct.pack(">I", 3)))
        ended = threading.Event()

        def drip() -> None:
            """A byte of a long option now and then: the limit is for all of the handshake."""
            dripping.send(option(77, length=60000)[:16])
            with contextlib.suppress(ConnectionError):
                while not ended.wait(0.2):
                    dripping.send(b"\0")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            for client in clients:
                client.receive_rest()
            thread.join(SECONDS)
            assert not thread.is_alive(), "It still takes in what drips"
        finally:
            ended.set()
            thread.join()


def test_idle_handshakes_hold_up_nobody(server: NativeServer) -> None:
    with ExitStack() as stack:
        for number in range(200):
            stack.enter_context(idle(server, list(UNFINISHED.values())[number % len(UNFINISHED)]))
        with server.connect() as client:
            for number in range(32):
                client.write(8 * MIB + number * 4096, bytes([number]) * 4096)
            for number in range(32):
                assert client.read(8 * MIB + number * 4096, 4096) == bytes([number]) * 4096
        server.check()


def test_gone_handshakes_leave_nothing_behind(server: NativeServer) -> None:
    for said in UNFINISHED.values():
        for _ in range(20):
            idle(server, said).close()
    until(lambda: server.threads < 20 and server.files < 40, what="the threads of clients that have gone to end")
