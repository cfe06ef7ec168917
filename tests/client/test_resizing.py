"""The RESIZE command from the client's side: asking, changing, following, and where it is not offered."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from nbdresize.client import Cause, Connection, Size, connect, connect_resizable
from nbdresize.client.growing import grow
from nbdresize.client.size_export import SizeExport
from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.model import ResizeOptions
from nbdresize.errors import (
    InsufficientSpace,
    InvalidArgument,
    NotAuthorized,
    PeerFailed,
    ResourceInUse,
    VolumeFailed,
)
from nbdresize.units import REMAINING, SizeRequest
from tests.client import raw_server as raw
from tests.client.conftest import GIB, Listening, grow_to, qemu_nbd, stock_nbdkit
from tests.client.raw_server import SIZE, Honest, Peer, RawServer, Request
from tests.peers import Serve

pytestmark = pytest.mark.slow

LONG = 60.0
SHORT = 1.0


@pytest.fixture
def disk(native: Serve) -> Iterator[Connection]:
    """web1/disk0 of 20 GiB, which may grow to 100."""
    with connect(native.uri("web1/disk0"), LONG) as connection:
        yield connection


def test_the_size_is_told(disk: Connection) -> None:
    told = disk.query()
    assert (told.size, told.generation, told.maximum, told.granularity) == (20 * GIB, 1, 100 * GIB, 4096)
    assert (told.minimum, told.cause) == (20 * GIB, Cause.QUERY)


def test_a_disk_is_resized_and_the_new_bytes_are_there(disk: Connection) -> None:
    grown = disk.resize(30 * GIB)
    assert (grown.size, grown.generation, grown.cause) == (30 * GIB, 2, Cause.AS_REQUESTED)
    assert disk.size == 30 * GIB
    assert disk.read(4096, 30 * GIB - 4096) == bytes(4096)
    disk.write(b"x" * 4096, 30 * GIB - 4096)

    assert disk.resize(30 * GIB).generation == 2
    rounded = disk.resize(30 * GIB + 1)
    assert (rounded.size, rounded.cause) == (30 * GIB + 4096, Cause.ROUNDED_UP)
    fitted = disk.resize(500 * GIB, fit=True)
    assert (fitted.size, fitted.cause) == (100 * GIB, Cause.FITTED)
    assert disk.resize(None).size == 100 * GIB


def test_the_server_says_why_it_refuses(disk: Connection) -> None:
    with pytest.raises(InsufficientSpace, match="80 GiB free of its 100 GiB"):
        disk.resize(500 * GIB)
    with pytest.raises(NotAuthorized, match="less than the 20 GiB"):
        disk.resize(10 * GIB)
    with pytest.raises(NotAuthorized):
        disk.resize(10 * GIB, shrink=True)
    with pytest.raises(InvalidArgument):
        disk.resize(0)
    assert disk.query().generation == 1


def test_the_only_client_of_a_server_that_allows_it_shrinks(root: Path, tmp_path: Path) -> None:
    with (
        Serve("--client-resize", "all", front="native", directory=tmp_path, root=root) as server,
        connect(server.uri("web1/disk0"), LONG) as disk,
    ):
        assert disk.query().minimum < 20 * GIB
        with connect(server.uri("web1/disk0"), LONG), pytest.raises((ResourceInUse, NotAuthorized)):
            disk.resize(10 * GIB, shrink=True)
        assert disk.resize(10 * GIB, shrink=True).size == 10 * GIB
        with pytest.raises(InsufficientSpace):
            disk.read(4096, 15 * GIB)
        assert disk.resize(20 * GIB).size == 20 * GIB


# Following


def test_changes_by_anybody_are_told_as_they_happen(disk: Connection, native: Serve, root: Path) -> None:
    with closing(disk.watch()) as sizes, connect(native.uri("web1/disk0"), LONG) as other:
        assert next(sizes).cause is Cause.QUERY
        grow_to(root, 30 * GIB)
        by_operator = next(sizes)
        assert (by_operator.size, by_operator.generation) == (30 * GIB, 2)
        assert by_operator.cause is Cause.CHANGED_BY_ANOTHER
        other.resize(31 * GIB)
        assert (told := next(sizes)).size == 31 * GIB
        assert told.cause is Cause.CHANGED_BY_ANOTHER
        disk.resize(32 * GIB)
        own = next(sizes)
        assert (own.size, own.cause, own.minimum) == (32 * GIB, Cause.AS_REQUESTED, 32 * GIB)
        assert disk.size == 32 * GIB


def test_other_requests_go_on_while_the_size_is_watched(disk: Connection) -> None:
    sizes = disk.watch()
    next(sizes)
    for step in range(1, 6):
        disk.resize(20 * GIB + step * 8192)
        disk.write(b"x" * 8192, 20 * GIB + (step - 1) * 8192)
    assert disk.read(8192, 20 * GIB) == b"x" * 8192
    while next(sizes).size < 20 * GIB + 5 * 8192:
        continue
    assert disk.query().generation == 6


def test_a_watch_that_is_left_is_cancelled_and_the_connection_goes_on(disk: Connection, root: Path) -> None:
    for _ in disk.watch():
        break
    for number in range(3):
        with closing(disk.watch()) as sizes:
            assert next(sizes).size == (20 + number) * GIB
            with pytest.raises(InvalidArgument, match="watched already"):
                disk.watch()
        first, second = disk.watch(), disk.watch()
        next(first)
        with pytest.raises(InvalidArgument, match="watched already"):
            next(second)
        first.close()
        grow_to(root, (21 + number) * GIB)
        assert disk.query().size == (21 + number) * GIB


def test_a_watch_ends_when_the_server_shuts_down(disk: Connection, native: Serve) -> None:
    sizes = disk.watch()
    next(sizes)
    native.process.terminate()
    assert list(sizes) == []
    assert native.wait() == 0


def test_a_watched_server_with_no_news_is_asked_now_and_then(tmp_path: Path) -> None:
    """A change whose notification got lost is found by the way."""
    ended = threading.Event()

    def script(peer: Peer) -> None:
        watched = peer.request()
        assert watched.flags == raw.NOTIFY
        peer.send(raw.told(watched.cookie, flags=0))
        for generation in (1, 1, 2):
            asked = peer.request()
            assert asked.flags == raw.QUERY
            peer.send(raw.told(asked.cookie, SIZE + generation, generation))
        cancelled = peer.request()
        assert (cancelled.flags, cancelled.offset) == (raw.CANCEL, watched.cookie)
        peer.send(raw.chunk(raw.NONE, watched.cookie), raw.simple(cancelled.cookie))
        ended.set()
        assert peer.request().command == raw.DISC

    with RawServer(tmp_path, Honest(script)) as server, connect(server.uri, LONG) as disk:
        with closing(disk.watch(check_seconds=SHORT)) as sizes:
            assert [next(sizes).generation for _ in range(2)] == [1, 2]
        assert ended.wait(LONG)


def test_only_the_latest_of_many_changes_is_told_and_no_older_one(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        cookie = peer.request().cookie
        told = [(20, 5), (21, 6), (25, 9), (24, 8), (26, 10), (26, 10)]
        peer.send(*(raw.told(cookie, size * GIB, generation, flags=0) for size, generation in told))
        peer.send(raw.chunk(raw.NONE, cookie))

    with RawServer(tmp_path, Honest(script)) as server, connect(server.uri, LONG) as disk:
        generations = [size.generation for size in disk.watch()]
        assert generations == sorted(set(generations))
        assert generations[-1] == 10
        assert disk.size == 26 * GIB


def test_a_refused_subscription_says_why(tmp_path: Path) -> None:
    script = Honest(lambda peer: peer.requests(lambda request: raw.error(request.cookie, 5, b"the ledger is gone")))
    with RawServer(tmp_path, script) as server, connect(server.uri, LONG) as disk:
        with pytest.raises(VolumeFailed, match="changes of web1/disk0: the ledger is gone"):
            next(disk.watch())
        with pytest.raises(VolumeFailed):
            next(disk.watch())


def test_causes_from_a_later_version_are_taken(tmp_path: Path) -> None:
    script = Honest(lambda peer: peer.requests(lambda request: raw.told(request.cookie, cause=77)))
    with RawServer(tmp_path, script) as server, connect(server.uri, LONG) as disk:
        assert disk.query().cause is Cause.UNKNOWN


# Servers that can do less


def test_what_goes_over_the_wire(tmp_path: Path) -> None:
    asked: list[tuple[int, int, int]] = []

    def answer(request: Request) -> bytes:
        asked.append((request.command, request.flags, request.offset))
        return raw.told(request.cookie)

    with RawServer(tmp_path, Honest(lambda peer: peer.requests(answer))) as server, connect(server.uri, LONG) as disk:
        disk.query()
        disk.resize(SIZE)
        disk.resize(SIZE, fit=True, shrink=True)
        disk.resize(None)
    assert asked == [
        (raw.RESIZE, raw.QUERY, 0),
        (raw.RESIZE, raw.F_SIZE, SIZE),
        (raw.RESIZE, raw.F_SIZE | raw.FIT | raw.SHRINK, SIZE),
        (raw.RESIZE, raw.F_SIZE | raw.FIT, 2**64 - 1),
    ]


@pytest.mark.parametrize("structured", [True, False])
def test_a_server_of_the_draft_is_resized_without_any_flag(tmp_path: Path, structured: bool) -> None:
    asked: list[tuple[int, int]] = []

    def answer(request: Request) -> bytes:
        asked.append((request.flags, request.offset))
        return raw.simple(request.cookie, 28 if request.offset > 50 * GIB else 0)

    script = Honest(lambda peer: peer.requests(answer), infos=(raw.export_info(),), structured=structured)
    with RawServer(tmp_path, script) as server, connect(server.uri, LONG) as disk:
        assert disk.resize(30 * GIB) == Size(30 * GIB, 0, 1, 2**63 - 1, 1, 0, Cause.AS_REQUESTED)
        assert disk.size == 30 * GIB
        with pytest.raises(NotAuthorized, match="less than") as caught:
            disk.resize(25 * GIB)
        assert "shrink=True" in caught.value.way_out
        disk.resize(25 * GIB, shrink=True)
        with pytest.raises(InsufficientSpace):
            disk.resize(60 * GIB)
        for size, fit in ((None, False), (30 * GIB, True)):
            with pytest.raises(InvalidArgument, match="can't fit"):
                disk.resize(size, fit=fit)
        for refused in (disk.query, disk.watch):
            with pytest.raises(PeerFailed, match="does not offer"):
                refused()
    assert asked == [(0, 30 * GIB), (0, 25 * GIB), (0, 60 * GIB)]


def test_a_server_that_offers_no_resize_is_sent_none(tmp_path: Path) -> None:
    with stock_nbdkit(tmp_path) as server, connect(server.uri("any"), LONG) as disk:
        for ask in (disk.query, disk.watch, partial(disk.resize, GIB)):
            with pytest.raises(PeerFailed, match="does not offer"):
                ask()
        assert disk.read(4, 0) == bytes(4)


@pytest.mark.parametrize("make", [stock_nbdkit, qemu_nbd])
def test_stock_servers_are_told_apart_from_ours(tmp_path: Path, make: Callable[[Path], Listening]) -> None:
    with (
        make(tmp_path) as server,
        pytest.raises(PeerFailed) as caught,
        connect_resizable(server.uri("disk"), LONG) as disk,
    ):
        disk.query()
    assert "resiz" in caught.value.problem or "no size record" in caught.value.problem
    assert "nbdinfo --size" in caught.value.way_out


def test_by_command_where_it_is_offered_and_else_by_the_size_export(ours: Serve) -> None:
    with connect_resizable(ours.uri("web1/disk0"), LONG) as disk:
        assert isinstance(disk, Connection if "native" in ours.command else SizeExport)
        assert disk.disk == "web1/disk0"
        growth = grow(disk, SizeRequest(relative=GIB))
        assert (growth.before.size, growth.after.size, growth.after.cause) == (20 * GIB, 21 * GIB, Cause.AS_REQUESTED)
        assert growth.after.generation == 2
        growth = grow(disk, SizeRequest(exact=21 * GIB + 1))
        assert (growth.after.size, growth.after.cause) == (21 * GIB + 4096, Cause.ROUNDED_UP)
        with pytest.raises(InsufficientSpace, match="100 GiB at most"):
            grow(disk, SizeRequest(exact=101 * GIB))
        with pytest.raises(InvalidArgument, match="less than"):
            grow(disk, SizeRequest(exact=GIB))
        assert grow(disk, SizeRequest(exact=200 * GIB), fit=True).after.cause is Cause.FITTED
        assert grow(disk, REMAINING).after.size == 100 * GIB


def test_a_uri_that_names_the_size_export_means_it(ours: Serve, root: Path) -> None:
    with connect_resizable(ours.uri("web1/disk0@size"), LONG) as disk:
        assert isinstance(disk, SizeExport)
        assert disk.disk == "web1/disk0"
        sizes = disk.watch()
        assert next(sizes).size == 20 * GIB
        grow_to(root, 30 * GIB)
        assert next(sizes).size == 30 * GIB
        assert disk.resize(31 * GIB).size == 31 * GIB


def test_where_clients_may_not_resize_sizes_can_be_asked_for(root: Path, tmp_path: Path) -> None:
    for front in ("native", "nbdkit"):
        with (
            Serve("--client-resize", "off", front=front, directory=tmp_path, root=root) as server,
            connect_resizable(server.uri("web1/disk0"), LONG) as disk,
        ):
            assert disk.query().size == 20 * GIB
            with pytest.raises(NotAuthorized, match="--client-resize"):
                grow(disk, SizeRequest(exact=30 * GIB))


def test_asking_about_a_disk_by_its_size_export_is_not_using_it(root: Path, tmp_path: Path) -> None:
    """The disk's own export is asked about first, which must not leave a lease behind."""
    with (
        Serve("--client-resize", "off", front="native", directory=tmp_path, root=root) as server,
        connect_resizable(server.uri("web1/disk0"), LONG) as disk,
        Control.open(StateDirectory(root), create=False) as control,
    ):
        sizes = disk.watch()
        next(sizes)
        control.resize_disk("web1", "disk0", SizeRequest(exact=GIB), ResizeOptions(shrink=True))
        assert next(sizes).size == GIB


def test_watching_by_command_is_using_the_disk_until_the_connection_has_ended(native: Serve, root: Path) -> None:
    def shrink(size: int) -> None:
        control.resize_disk("web1", "disk0", SizeRequest(exact=size), ResizeOptions(shrink=True))

    with Control.open(StateDirectory(root), create=False) as control:
        for size in (2 * GIB, GIB):
            with connect(native.uri("web1/disk0"), LONG) as disk:
                next(disk.watch())
                with pytest.raises(ResourceInUse):
                    shrink(size)
            shrink(size)  # at once: the connection's end was waited for
