"""Sizes followed without using the disk, where the server makes that possible."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nbdresize.client import Connection, connect_watching
from nbdresize.client.size_export import SizeExport
from nbdresize.errors import PeerFailed, ResourceNotFound
from tests.client import raw_server as raw
from tests.client.conftest import GIB, Listening, qemu_nbd, stock_nbdkit
from tests.client.raw_server import SIZE, Honest, Peer, RawServer
from tests.peers import Serve

pytestmark = pytest.mark.slow

LONG = 60.0


class WithoutSizeExports(Honest):
    """Offers RESIZE, and knows no export whose name ends in @size."""

    def __call__(self, peer: Peer) -> None:
        ask = peer.option

        def option() -> tuple[int, bytes]:
            while True:
                number, content = ask()
                if number not in (raw.GO, raw.ASK_INFO) or b"@size" not in content:
                    return number, content
                peer.send(raw.option_reply(number, raw.UNKNOWN, b"no such export"))

        peer.option = option  # type: ignore[method-assign]
        super().__call__(peer)


@pytest.mark.parametrize("export", ["web1/disk0", "web1/disk0@size"])
def test_the_size_export_is_preferred_to_the_command(ours: Serve, export: str) -> None:
    with connect_watching(ours.uri(export), LONG) as disk:
        assert isinstance(disk, SizeExport)
        assert (disk.disk, next(disk.watch()).size) == ("web1/disk0", 20 * GIB)


def test_the_command_will_do_where_there_are_no_size_exports(tmp_path: Path) -> None:
    def subscribed(peer: Peer) -> None:
        peer.requests(lambda request: raw.told(request.cookie, flags=0 if request.flags & raw.NOTIFY else raw.DONE))

    with RawServer(tmp_path, WithoutSizeExports(subscribed)) as server, connect_watching(server.uri, LONG) as disk:
        assert isinstance(disk, Connection)
        assert disk.query().size == SIZE


def test_a_disk_that_is_not_there_is_told(ours: Serve) -> None:
    with pytest.raises(ResourceNotFound, match="disk7"), connect_watching(ours.uri("web1/disk7"), LONG):
        pass


@pytest.mark.parametrize("make", [stock_nbdkit, qemu_nbd])
def test_servers_that_tell_no_sizes_are_refused(tmp_path: Path, make: Callable[[Path], Listening]) -> None:
    with make(tmp_path) as server, pytest.raises(PeerFailed), connect_watching(server.uri("disk"), LONG) as disk:
        disk.query()
