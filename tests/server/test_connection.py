"""One connection, served in this process."""

import socket
import threading
from pathlib import Path

import pytest

from nbdresize.control.model import ClientResize
from nbdresize.errors import VolumeFailed
from nbdresize.export.disk_export import DiskExport
from nbdresize.export.exports import Exports
from nbdresize.protocol.server_events import HandshakeSettings
from nbdresize.server.connection import Connection
from nbdresize.server.handshaking import Access
from nbdresize.server.stream import Stream
from tests.wire.layout import EIO, READ, RESIZE, SHRINK, STRUCTURED, WRITE
from tests.wire.peer import RawClient


def test_a_connection_whose_lease_was_lost_answers_nothing_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, path = tmp_path / "disk.img", tmp_path / "nbd.sock"
    image.write_bytes(bytes(1 << 20))
    exports = Exports.of_file(image, ClientResize.ALL)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        client = RawClient(path)
        server = Connection(Stream(listening.accept()[0]), "a client", Access(exports, HandshakeSettings()), print)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    with client:
        client.enter(b"", STRUCTURED)
        assert client.read(0, 4096) == bytes(4096)
        [connection] = exports.connections()
        disk = connection.export
        assert isinstance(disk, DiskExport)

        def lose(size: int, flags: int, *, lease: object, wanted: object) -> None:
            disk._lease.release()
            raise VolumeFailed("The lease was lost to another change")

        monkeypatch.setattr(disk.backing, "resize", lose)
        assert client.call(RESIZE, 4096, 0, SHRINK).error == EIO
        assert client.call(READ, 0, 4096).error == EIO
        assert client.call(WRITE, 0, payload=b"lost").error == EIO
    thread.join(30)
    assert not thread.is_alive() and image.read_bytes() == bytes(1 << 20)
