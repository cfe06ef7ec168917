"""`status` asks every running server."""

import socket
import threading
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.errors import VolumeFailed
from nbdresize.storage.file import FilePool
from tests.cli.command import Command, Inside
from tests.peers import Serve, background, next_line

pytestmark = pytest.mark.slow


def test_without_servers(web1: Command) -> None:
    answer = web1("status", "--json").ok().json
    assert list(answer) == ["root", "servers", "pool", "operations", "guests", "switches", "allowed", "vms"]
    assert answer["servers"] == answer["operations"] == answer["guests"] == answer["switches"] == []
    assert answer["pool"] == {**web1("pool", "show", "--json").ok().json, "problem": None} | {
        "available": answer["pool"]["available"]
    }
    assert answer["vms"] == web1("vm", "list", "--json").ok().json["vms"]
    assert "nbdresize serve" in web1("status").ok().out


def test_servers_and_their_clients(web1: Command, tmp_path: Path) -> None:
    with Serve(directory=tmp_path, root=web1.root) as serve:
        uri = serve.uri("web1/disk0")
        script = "import time; h.pread(4096, 0); print('attached', flush=True); time.sleep(3600)"
        with background("env", "PATH=/usr/bin:/bin", "nbdsh", "-u", uri, "-c", script) as client:
            assert next_line(client) == "attached\n"
            answer = web1("status", "--json").ok().json
            (server,) = answer["servers"]
            assert list(server) == ["socket", "pid", "front", "uris", "started", "clients", "counters", "problem"]
            assert server["front"] in ("nbdkit", "native")
            assert server["problem"] is None
            assert server["uris"]
            (attached,) = server["clients"]
            assert attached["export"] == "web1/disk0"
            assert attached["bytes_read"] >= 4096

            shown = web1("status").ok().out
            assert str(server["pid"]) in shown
            assert str(serve.socket) in shown
            assert "web1/disk0" in shown
            assert "100 GiB" in shown


def test_a_server_that_does_not_answer_is_shown_as_such(web1: Command) -> None:
    directory = StateDirectory(web1.root).run
    directory.mkdir(exist_ok=True)
    path = directory / "1-00000000.admin"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        (server,) = web1("status", "--json").ok().json["servers"]
        assert server["problem"]
        assert server["clients"] == []
        assert str(path) in web1("status").ok().out


def test_a_server_that_answers_nonsense_does_no_harm(web1: Command, inside: Inside) -> None:
    replies = [
        b'{"ok": true, "server": 7, "clients": "x"}\n',
        b'{"ok": true, "server": {"pid": "\\u001b[31m", "uris": [1, null], "front": [], "started": 5}}\n',
        b'{"ok": true, "clients": [null, {"export": "\\u001b[2J[red]x", "bytes_read": "many", "since": {}}]}\n',
        b"[]\n",
        b"\xff\xfe\n",
        b"",
    ]
    directory = StateDirectory(web1.root).run
    directory.mkdir(exist_ok=True)
    for reply in replies:
        path = directory / "1-00000000.admin"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            thread = threading.Thread(target=_answer_all, args=(listener, reply))
            thread.start()
            try:
                inside("status", "--json").ok()
                assert "\x1b" not in inside("status").ok().out
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                thread.join()
        path.unlink()


def _answer_all(listener: socket.socket, reply: bytes) -> None:
    """Give everybody the same reply, until the socket is shut down."""
    while True:
        try:
            client = listener.accept()[0]
        except OSError:
            return
        with client:
            client.recv(65536)
            client.sendall(reply)


def test_a_socket_of_a_dead_server_is_no_server(web1: Command) -> None:
    directory = StateDirectory(web1.root).run
    directory.mkdir(exist_ok=True)
    path = directory / "1-00000000.admin"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    assert web1("status", "--json").ok().json["servers"] == []
    assert not path.exists()


def test_what_is_switched_is_shown(inside: Inside) -> None:
    inside("switch", "set", "client_resize", "off", "--owner", "alice").ok()
    inside("switch", "allow", "snapshots", "bob").ok()
    answer = inside("status", "--json").ok().json
    assert answer["switches"] == [{"feature": "client_resize", "value": "off", "vm": None, "owner": "alice"}]
    assert answer["allowed"] == {"snapshots": ["bob"]}
    shown = inside("status").ok().out
    assert "owner alice" in shown
    assert "all but bob" in shown


def test_a_pool_that_can_not_be_seen_hides_nothing_else(
    web1: Command, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: FilePool) -> None:
        raise VolumeFailed("The pool is not mounted", "mount it")

    monkeypatch.setattr(FilePool, "capacity", fail)
    assert inside("status", "--json").ok().json["pool"] == {"problem": "The pool is not mounted"}
    shown = inside("status").ok().out
    assert "Pool: can't be seen: The pool is not mounted" in shown
    assert "web1" in shown
