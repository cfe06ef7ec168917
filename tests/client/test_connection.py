"""Bytes through a connection: our own server, nbdkit and qemu-nbd, and what they have in common."""

import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest

from nbdresize.client import Connection, Extent, connect, connect_resizable
from nbdresize.errors import (
    InvalidArgument,
    NbdresizeError,
    NotAuthorized,
    PeerFailed,
    ResourceNotFound,
    VolumeFailed,
)
from nbdresize.protocol.negotiated import Mode
from tests.client import raw_server as raw
from tests.client.conftest import GIB, MIB, Listening, qemu_nbd, stock_nbdkit
from tests.client.raw_server import Honest, RawServer, Request
from tests.peers import Serve

pytestmark = pytest.mark.slow

LONG = 60.0
SHORT = 0.3


@pytest.fixture(params=["native", "our-nbdkit", "nbdkit", "nbdkit-simple", "qemu-nbd"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A writable disk of 64 MiB."""
    with ExitStack() as stack:
        if request.param in ("native", "our-nbdkit"):
            image = tmp_path / "disk.img"
            image.touch()
            os.truncate(image, 64 * MIB)
            front = request.param.removeprefix("our-")
            yield stack.enter_context(Serve("--file", image, front=front, directory=tmp_path)).uri()
        elif request.param == "qemu-nbd":
            yield stack.enter_context(qemu_nbd(tmp_path)).uri("disk")
        else:
            simple = ("--no-sr",) if request.param == "nbdkit-simple" else ()
            server = stock_nbdkit(tmp_path)
            server.command[3:3] = simple
            yield stack.enter_context(server).uri("any")


def test_what_is_written_is_read(uri: str) -> None:
    content = os.urandom(5 * MIB)
    with connect(uri, LONG) as disk:
        assert disk.size == 64 * MIB
        disk.write(content, 3 * MIB)
        disk.write(bytearray(b"x" * 4096), 0, fua=True)
        disk.write(memoryview(content)[:512], 512)
        disk.flush()
        assert disk.read(len(content), 3 * MIB) == content
    with connect(uri, LONG) as disk:
        assert disk.read(64 * MIB, 0) == (
            b"x" * 512 + content[:512] + b"x" * 3072 + bytes(3 * MIB - 4096) + content + bytes(56 * MIB)
        )


def test_requests_that_are_refused_leave_the_connection_in_use(uri: str) -> None:
    with connect(uri, LONG) as disk:
        for ask in (
            lambda: disk.read(4096, 64 * MIB),
            lambda: disk.read(4096, 2**62),
            lambda: disk.write(b"x" * 4096, 64 * MIB - 4095),
        ):
            with pytest.raises(NbdresizeError, match="The server refused to") as caught:
                ask()
            assert type(caught.value) is not PeerFailed
        assert disk.read(4, 0) == bytes(4)


@pytest.mark.parametrize(("length", "offset"), [(0, 0), (-1, 0), (1, -1), (1, 2**63 - 1), (2**63, 0)])
def test_what_is_no_range_is_refused_without_asking(tmp_path: Path, length: int, offset: int) -> None:
    with RawServer(tmp_path, Honest()) as server, connect(server.uri, LONG) as disk:
        with pytest.raises(InvalidArgument, match="no range"):
            disk.read(length, offset)
        with pytest.raises(InvalidArgument, match="no range"):
            disk.block_status(length, offset)
        disk.close()
        disk.close()


def test_what_is_allocated_is_told(native: Serve) -> None:
    with connect(native.uri("web1/disk0"), LONG) as disk:
        assert disk.negotiated.mode is Mode.EXTENDED
        disk.write(b"x" * MIB, 10 * GIB)
        extents = disk.block_status(20 * GIB, 0)
    assert extents == [
        Extent(10 * GIB, hole=True, zero=True),
        Extent(MIB, hole=False, zero=False),
        Extent(10 * GIB - MIB, hole=True, zero=True),
    ]


@pytest.mark.parametrize("make", [stock_nbdkit, qemu_nbd])
def test_what_is_allocated_is_told_by_stock_servers_and_never_past_the_range(
    tmp_path: Path, make: Callable[[Path], Listening]
) -> None:
    with make(tmp_path) as server, connect(server.uri("disk"), LONG) as disk:
        assert disk.negotiated.mode is Mode.STRUCTURED
        disk.write(b"x" * MIB, 32 * MIB)
        disk.flush()
        found: list[Extent] = []
        while (told := sum(extent.length for extent in found)) < 63 * MIB:
            found += disk.block_status(63 * MIB - told, told)
        assert told == 63 * MIB
        at = 0
        for extent in found:
            assert (at in range(32 * MIB, 33 * MIB)) is not extent.zero
            at += extent.length


def test_block_status_that_is_not_offered_is_refused(tmp_path: Path) -> None:
    refused = {raw.SET_META: raw.option_reply(raw.SET_META, raw.UNSUP)}
    for script in (Honest(structured=False), Honest(answers=refused)):
        directory = tmp_path / str(script.structured)
        directory.mkdir()
        with (
            RawServer(directory, script) as server,
            connect(server.uri, LONG) as disk,
            pytest.raises(InvalidArgument, match="no block status"),
        ):
            disk.block_status(4096, 0)


def test_the_chunks_of_a_read_may_come_in_any_order_with_holes(tmp_path: Path) -> None:
    def answer(request: Request) -> bytes:
        cookie, offset = request.cookie, request.offset
        return b"".join(
            (
                raw.data(cookie, offset + 3000, b"c" * 1096, flags=0),
                raw.chunk(raw.HOLE, cookie, struct.pack(">QI", offset + 1000, 2000), flags=0),
                raw.data(cookie, offset, b"a" * 1000, flags=0),
                raw.chunk(raw.NONE, cookie),
            )
        )

    with (
        RawServer(tmp_path, Honest(lambda peer: peer.requests(answer))) as server,
        connect(server.uri, LONG) as disk,
    ):
        assert disk.read(4096, 8192) == b"a" * 1000 + bytes(2000) + b"c" * 1096


def test_reads_and_writes_keep_to_the_block_sizes_of_the_server(tmp_path: Path) -> None:
    asked: list[tuple[int, int, int]] = []

    def answer(request: Request) -> bytes:
        asked.append((request.command, request.offset, request.length))
        if request.command == raw.READ:
            return raw.data(request.cookie, request.offset, bytes(request.length))
        return raw.simple(request.cookie)

    infos = (raw.export_info(), raw.block_sizes(512, 4096, 65536))
    script = Honest(lambda peer: peer.requests(answer), infos=infos)
    with RawServer(tmp_path, script) as server, connect(server.uri, LONG) as disk:
        assert disk.read(150 * 1024, 512) == bytes(150 * 1024)
        disk.write(bytes(65536 + 512), 0)
        with pytest.raises(InvalidArgument, match="whole blocks"):
            disk.read(512, 100)
        with pytest.raises(InvalidArgument, match="whole blocks"):
            disk.write(b"x", 0)
    reads = [(0, 512, 65536), (0, 66048, 65536), (0, 131584, 22528)]
    assert asked == [*reads, (1, 0, 65536), (1, 65536, 512)]


def test_every_error_of_the_wire_has_its_class(tmp_path: Path) -> None:
    numbers = {1: NotAuthorized, 5: VolumeFailed, 12: PeerFailed, 22: InvalidArgument, 75: InvalidArgument}
    numbers |= {95: InvalidArgument, 108: PeerFailed, 4711: PeerFailed}
    for structured in (True, False):
        left = list(numbers)

        def answer(request: Request, left: list[int] = left, structured: bool = structured) -> bytes:
            number = left.pop(0)
            return raw.error(request.cookie, number, b"its words") if structured else raw.simple(request.cookie, number)

        directory = tmp_path / str(structured)
        directory.mkdir()
        script = Honest(partial(raw.Peer.requests, answer=answer), structured=structured)
        with RawServer(directory, script) as server, connect(server.uri, LONG) as disk:
            for kind in numbers.values():
                with pytest.raises(kind, match="its words" if structured else "refused to read") as caught:
                    disk.read(4096, 0)
                assert type(caught.value) is kind
                assert caught.value.way_out


def test_a_read_only_disk_is_not_written(root: Path, tmp_path: Path) -> None:
    with (
        Serve("--read-only", front="native", directory=tmp_path, root=root) as server,
        connect(server.uri("web1/disk0"), LONG) as disk,
    ):
        assert disk.read_only
        with pytest.raises(NotAuthorized, match="read-only"):
            disk.write(b"x", 0)
        with pytest.raises(NotAuthorized, match="read-only"):
            disk.resize(30 * GIB)
        assert disk.query().size == 20 * GIB


def test_a_server_that_offers_no_flush_promises_none(tmp_path: Path) -> None:
    script = Honest(infos=(raw.export_info(flags=raw.HAS_FLAGS),))
    with (
        RawServer(tmp_path, script) as server,
        connect(server.uri, LONG) as disk,
        pytest.raises(InvalidArgument, match="no flush"),
    ):
        disk.flush()


# How it connects


def test_by_name_and_by_every_family_of_addresses_that_the_machine_has(root: Path, tmp_path: Path) -> None:
    addresses = ["127.0.0.1", *(["[::1]"] if _has_ipv6() else [])]
    places = [part for address in addresses for part in ("--tcp", f"{address}:0")]
    with Serve(*places, front="native", directory=tmp_path, root=root) as server:
        assert server.process.stdout is not None
        uris = [server.process.stdout.readline().strip() for _ in addresses]
        for uri, address in zip(uris, addresses, strict=True):
            assert address in uri
        for uri in (*uris, uris[0].replace("127.0.0.1", "localhost")):
            with connect(f"{uri}web1/disk0", LONG) as disk:
                assert disk.size == 20 * GIB


def _has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as trial:
        try:
            trial.bind(("::1", 0))
        except OSError:
            return False
        return True


def test_the_default_export_of_a_file(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(8192))
    with Serve("--file", image, front="native", directory=tmp_path) as server, connect(server.uri(), LONG) as disk:
        assert (disk.export, disk.disk, disk.size) == ("", "", 8192)


def test_an_export_that_is_not_there_is_not_found(native: Serve, tmp_path: Path) -> None:
    with qemu_nbd(tmp_path) as qemu:
        for uri in (native.uri("web1/disk7"), qemu.uri("nope"), native.uri("x" * 4096)):
            with pytest.raises(ResourceNotFound):
                connect(uri, LONG)
            with pytest.raises(ResourceNotFound), connect_resizable(uri, LONG):
                pass


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (raw.UNKNOWN, ResourceNotFound),
        (raw.POLICY, NotAuthorized),
        (raw.TLS_REQD, PeerFailed),
        (1 << 31 | 4, PeerFailed),
    ],
)
def test_what_the_server_says_of_an_export_that_it_does_not_give(
    tmp_path: Path, error: int, kind: type[NbdresizeError]
) -> None:
    answers = {
        raw.GO: raw.option_reply(raw.GO, error, b"its words"),
        raw.ASK_INFO: raw.option_reply(raw.ASK_INFO, error),
    }
    with RawServer(tmp_path, Honest(answers=answers)) as server:
        with pytest.raises(kind):
            connect(server.uri, LONG)
        with pytest.raises(kind), connect_resizable(server.uri, LONG):
            pass


def test_a_server_of_before_2016_is_asked_by_export_name(tmp_path: Path) -> None:
    """Fixed newstyle without GO, and newstyle that is not even fixed; both with the 124 zeroes."""

    def after(peer: raw.Peer) -> None:
        peer.send(struct.pack(">QH", raw.SIZE, raw.HAS_FLAGS), bytes(124))
        request = peer.request()
        peer.send(raw.simple(request.cookie, 0, b"x" * request.length))

    def fixed(peer: raw.Peer) -> None:
        peer.send(b"NBDMAGICIHAVEOPT\0\1")
        peer.receive(4)
        while (option := peer.option())[0] != raw.EXPORT_NAME:
            peer.send(raw.option_reply(option[0], raw.UNSUP))
        assert option[1] == b"web1/disk0"
        after(peer)

    def not_fixed(peer: raw.Peer) -> None:
        peer.send(b"NBDMAGICIHAVEOPT\0\0")
        peer.receive(4)
        assert peer.option() == (raw.EXPORT_NAME, b"web1/disk0")
        after(peer)

    for number, script in enumerate((fixed, not_fixed)):
        directory = tmp_path / str(number)
        directory.mkdir()
        with RawServer(directory, script) as server, connect(server.uri, LONG) as disk:
            assert disk.negotiated.mode is Mode.SIMPLE
            assert disk.read(10, 0) == b"x" * 10
            with pytest.raises(PeerFailed, match="does not offer"):
                disk.query()


def test_an_old_server_that_hangs_up_has_no_such_export(tmp_path: Path) -> None:
    def script(peer: raw.Peer) -> None:
        peer.send(b"NBDMAGICIHAVEOPT\0\0")
        peer.receive(4)
        peer.option()

    with RawServer(tmp_path, script) as server, pytest.raises(PeerFailed, match="when asked for"):
        connect(server.uri, LONG)


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(PeerFailed, match="No such file"):
        connect(f"nbd+unix:///web1/disk0?socket={tmp_path / 'none.sock'}", LONG)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: every connection is refused
        with pytest.raises(PeerFailed, match="refused"):
            connect(f"nbd://127.0.0.1:{unused.getsockname()[1]}/web1/disk0", LONG)


@pytest.mark.parametrize("host", ["name.invalid", "x" * 300, "a..b", "%00", "%ff"])
def test_a_host_that_is_none(host: str) -> None:
    with pytest.raises((PeerFailed, InvalidArgument)) as caught:
        connect(f"nbd://{host}/web1", LONG)
    assert caught.value.way_out


def test_a_vsock_that_leads_nowhere() -> None:
    with pytest.raises(PeerFailed):
        connect("nbd+vsock://4294967294:65535/web1", SHORT)


@pytest.mark.parametrize("kind", ["abstract", "not-utf-8", "relative"])
def test_sockets_of_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = {"abstract": b"\0" + bytes(tmp_path), "not-utf-8": bytes(tmp_path) + b"/r \xff+", "relative": b"r&s;t"}[kind]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        hanging_up = threading.Thread(target=lambda: listener.accept()[0].close())
        hanging_up.start()
        with pytest.raises(PeerFailed, match=r"ended the connection|reset|lost"):
            connect(f"nbd+unix:///?socket={quote(path)}", LONG)
        hanging_up.join()


def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="too long"):
        connect(f"nbd+unix:///web1/disk0?socket={tmp_path / ('x' * 200)}", LONG)


def test_a_long_uri_makes_no_long_message(tmp_path: Path) -> None:
    with pytest.raises(PeerFailed) as caught:
        connect(f"nbd+unix:///{'x' * 4000}?socket={tmp_path / 'none.sock'}", LONG)
    assert len(str(caught.value)) < 1000


def test_a_server_too_busy_to_accept_is_waited_for_within_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "busy.sock"
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        full = False
        while not full:
            filler = stack.enter_context(socket.socket(socket.AF_UNIX))
            filler.setblocking(False)
            full = bool(filler.connect_ex(str(path)))
        with pytest.raises(PeerFailed, match=f"within {SHORT:g} s"):
            connect(f"nbd+unix:///?socket={path}", SHORT)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e300])
def test_a_time_limit_that_is_none(seconds: float) -> None:
    with pytest.raises(InvalidArgument, match="time limit"):
        connect("nbd://localhost/web1", seconds)


def test_what_ended_stays_ended(native: Serve) -> None:
    with connect(native.uri("web1/disk0"), LONG) as disk:
        pass
    for ask in (disk.flush, disk.query, lambda: disk.read(1, 0), lambda: next(disk.watch())):
        with pytest.raises(PeerFailed, match="has ended"):
            ask()


def test_an_interrupted_request_ends_the_connection(tmp_path: Path) -> None:
    """What arrives later could not be told from the answer to something else."""

    class Interrupted(BaseException):
        pass

    def ask(connection: Connection) -> None:
        def interrupt(*_: object) -> None:
            raise Interrupted

        before = signal.signal(signal.SIGUSR1, interrupt)
        try:
            connection.read(4096, 0)
        finally:
            signal.signal(signal.SIGUSR1, before)

    def script(peer: raw.Peer) -> None:
        peer.request()
        os.kill(os.getpid(), signal.SIGUSR1)
        peer.receive(1)

    with RawServer(tmp_path, Honest(script)) as server, connect(server.uri, LONG) as disk:
        with pytest.raises(Interrupted):
            ask(disk)
        with pytest.raises(PeerFailed, match="has ended"):
            disk.flush()
