"""Asking servers, against small real ones on real sockets: good, dead, mute, endless, lying."""

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control import admin_client
from nbdresize.errors import ServerFailed

Answering = Callable[[socket.socket, bytes], None]


class Server:
    """An admin socket that gives each connection's line to a function, in a thread of its own."""

    def __init__(self, path: Path, answering: Answering) -> None:
        self.path = path
        self.lines: list[bytes] = []
        self._answering = answering
        self._listening = socket.socket(socket.AF_UNIX)
        path.parent.mkdir(parents=True, exist_ok=True)
        with admin_client.reachable(path) as address:
            self._listening.bind(address)
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                line = connection.makefile("rb").readline()
                self.lines.append(line)
                self._answering(connection, line)

    def stop(self) -> None:
        """End, and leave the socket file behind, as a killed server does."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(60)
        assert not self._thread.is_alive()


@contextmanager
def serving(path: Path, answering: Answering) -> Iterator[Server]:
    server = Server(path, answering)
    try:
        yield server
    finally:
        server.stop()
        path.unlink(missing_ok=True)


def reply(message: object) -> Answering:
    return lambda connection, _: connection.sendall(json.dumps(message).encode() + b"\n")


def raw(data: bytes) -> Answering:
    return lambda connection, _: connection.sendall(data)


def mute(connection: socket.socket, _: bytes) -> None:
    connection.recv(1)  # until the client gives up


def endless(connection: socket.socket, _: bytes) -> None:
    for _i in range(10):
        connection.sendall(b"x" * (1 << 20))


def slow_drip(connection: socket.socket, _: bytes) -> None:
    """A byte now and then, so that no single receive ever times out."""
    for _i in range(3000):
        connection.sendall(b" ")
        time.sleep(0.01)


def socket_path(state: StateDirectory, number: int = 1) -> Path:
    return state.run / f"{number}-0123abcd.admin"


def test_a_server_is_asked_and_answers(state: StateDirectory) -> None:
    with serving(socket_path(state), reply({"ok": True, "clients": 3})) as server:
        assert admin_client.ask(server.path, {"command": "sizes", "exports": ["a/disk0"]})["clients"] == 3
        assert [json.loads(line) for line in server.lines] == [{"command": "sizes", "exports": ["a/disk0"]}]


def test_all_servers_are_asked_side_by_side(state: StateDirectory) -> None:
    with ExitStack() as stack:
        for number in range(5):
            stack.enter_context(serving(socket_path(state, number), reply({"ok": True, "clients": number})))
        answers = admin_client.ask_all(state, {"command": "clients"})
        assert [answer.reply["clients"] for answer in answers if answer.reply] == [0, 1, 2, 3, 4]
        stage = admin_client.publish(state, ["vm/disk0"])
    assert stage.done
    assert stage.detail == "5 servers, 10 clients"


def test_no_server_is_no_problem(state: StateDirectory) -> None:
    assert admin_client.servers(state) == []
    stage = admin_client.publish(state, ["vm/disk0"])
    assert stage.done
    assert stage.detail == "no server runs"


def test_the_socket_of_a_dead_server_is_removed(state: StateDirectory) -> None:
    server = Server(socket_path(state), mute)
    server.stop()
    assert admin_client.servers(state) == [server.path]
    assert admin_client.ask_all(state, {"command": "clients"}) == []
    assert not server.path.exists()
    with pytest.raises(ServerFailed, match="No server listens"):
        admin_client.ask(server.path, {"command": "clients"})


def test_a_file_that_is_no_socket_is_reported_and_kept(state: StateDirectory) -> None:
    path = socket_path(state)
    path.parent.mkdir(parents=True)
    path.write_text("not a socket")
    admin_client.publish(state, ["vm/disk0"])
    assert path.read_text() == "not a socket"


def test_sockets_in_the_making_and_other_files_are_left_alone(state: StateDirectory) -> None:
    state.run.mkdir(parents=True)
    for name in (".1-0123abcd.admin", "1-0123abcd.admin.new", "nbd.sock", "pid"):
        (state.run / name).touch()
    assert admin_client.servers(state) == []


@pytest.mark.parametrize("answering", [mute, slow_drip], ids=["mute", "slow drip"])
def test_a_server_that_does_not_answer_is_given_up(state: StateDirectory, answering: Answering) -> None:
    with serving(socket_path(state), answering) as server:
        with pytest.raises(ServerFailed, match=r"did not answer within 0\.2 s"):
            admin_client.ask(server.path, {"command": "clients"}, timeout=0.2)
        stage = admin_client.publish(state, ["vm/disk0"], timeout=0.2)
        assert not stage.done
        assert server.path.name in stage.detail
        assert server.path.exists()


def test_a_server_whose_queue_is_full_is_given_up(state: StateDirectory) -> None:
    """It was stopped (SIGSTOP): connections wait to be accepted until there is no room for more."""
    state.run.mkdir(parents=True)
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(str(socket_path(state)))
        listening.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            with suppress(BlockingIOError):
                waiting.connect(str(socket_path(state)))
        with pytest.raises(ServerFailed, match="did not answer"):
            admin_client.ask(socket_path(state), {"command": "clients"}, timeout=0.2)
    assert socket_path(state).exists()


@pytest.mark.parametrize(
    ("answering", "complaint"),
    [
        (endless, "more than 1048576 bytes"),
        (raw(b""), "without an answer"),
        (raw(b'{"ok": true}'), "without an answer"),
        (raw(b"\n"), "no JSON object"),
        (raw(b"[]\n"), "no JSON object"),
        (raw(b"\xff\xfe\n"), "no JSON object"),
        (raw(b"[" * 100_000 + b"\n"), "no JSON object"),
        (raw(b"1" * 100_000 + b"\n"), "no JSON object"),
        (reply({"ok": False, "error": "no such command"}), "refused: no such command"),
        (reply({"ok": "yes"}), "refused: no reason given"),
        (reply({"ok": False, "error": "x" * 5000}), "refused: x"),
        (reply({"ok": False, "error": ["\ud800"]}), "refused"),
    ],
)
def test_an_answer_that_is_none_is_one_short_line(state: StateDirectory, answering: Answering, complaint: str) -> None:
    with serving(socket_path(state), answering) as server:
        with pytest.raises(ServerFailed, match=complaint) as caught:
            admin_client.ask(server.path, {"command": "clients"}, timeout=30)
        assert len(str(caught.value)) < 500
        str(caught.value).encode()
        stage = admin_client.publish(state, ["vm/disk0"], timeout=30)
        assert not stage.done


@pytest.mark.parametrize("clients", [None, -1, "3", True, 1.5, [1]])
def test_a_count_that_is_none_counts_as_nobody(state: StateDirectory, clients: object) -> None:
    with serving(socket_path(state), reply({"ok": True, "clients": clients})):
        assert admin_client.publish(state, ["vm/disk0"]).detail == "1 server, 0 clients"


def test_a_request_that_no_server_takes_is_not_sent(state: StateDirectory) -> None:
    with serving(socket_path(state), reply({"ok": True})) as server:
        with pytest.raises(ServerFailed, match="more than a server takes"):
            admin_client.ask(server.path, {"exports": ["x" * (1 << 20)]})
        assert server.lines == []


def test_without_a_descriptor_left_nobody_is_asked_and_that_is_said(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_socket(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with serving(state.run / "1-00000000.admin", lambda *_: None), monkeypatch.context() as patch:
        patch.setattr(socket, "socket", no_socket)
        stage = admin_client.publish(state, ["vm/disk0"])
    assert not stage.done
    assert "can't be asked: Too many open files" in stage.detail


def test_a_reply_of_the_largest_size_is_taken(state: StateDirectory) -> None:
    message = {"ok": True, "filling": ""}
    message["filling"] = "x" * (admin_client.LONGEST_LINE - len(json.dumps(message)) - 1)
    with serving(socket_path(state), reply(message)) as server:
        assert admin_client.ask(server.path, {}, timeout=30) == message


def test_a_state_directory_with_a_long_path_works(tmp_path: Path) -> None:
    """sockaddr_un holds 107 bytes."""
    state = StateDirectory(tmp_path / ("long" * 50))
    with serving(socket_path(state), reply({"ok": True, "clients": 1})):
        assert admin_client.publish(state, ["vm/disk0"]).detail == "1 server, 1 client"
    assert list(state.run.iterdir()) == []
