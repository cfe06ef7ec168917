"""A worker's connections, begun and ended."""

import socket
import threading
from pathlib import Path

import pytest

from nbdresize.export.exports import Exports
from nbdresize.protocol.server_events import HandshakeSettings
from nbdresize.server.handshaking import Access
from nbdresize.server.server import Server


def test_a_server_may_end_while_a_connection_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, path = tmp_path / "disk.img", tmp_path / "nbd.sock"
    image.write_bytes(bytes(4096))
    failures: list[BaseException] = []
    begin = threading.Thread.start

    def end() -> None:
        try:
            server.end()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test tells it
            failures.append(error)

    ending = threading.Thread(target=end, daemon=True)

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("unix:"):
            begin(ending)
            ending.join(0.5)  # time for it to come upon a thread that has not begun
        begin(thread)

    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind(str(path))
        listening.listen()
        server = Server([listening], Access(Exports.of_file(image), HandshakeSettings()), print)
        monkeypatch.setattr(threading.Thread, "start", start)
        server.start()
        client.settimeout(30)
        client.connect(str(path))
        while client.recv(100):
            continue
        ending.join(30)
    assert not failures and not ending.is_alive()
