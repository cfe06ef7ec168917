"""Listening sockets: where they can be, whom they replace, and what is told where they can't be."""

import os
import socket
import threading
from pathlib import Path

import pytest

from nbdresize.errors import InvalidArgument, NbdresizeError, ResourceInUse, StateUnusable
from nbdresize.serving.listening import LONGEST_PATH, UnixListener, listen_tcp


def leave_behind(path: Path) -> None:
    """A socket as a dead server leaves it."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()


def accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def test_a_unix_socket_is_there_until_it_is_closed(tmp_path: Path) -> None:
    listener = UnixListener(tmp_path / "s")
    assert accepts(tmp_path / "s")
    listener.close()
    assert not (tmp_path / "s").exists()


def test_a_dead_servers_socket_is_replaced(tmp_path: Path) -> None:
    leave_behind(tmp_path / "s")
    listener = UnixListener(tmp_path / "s")
    assert accepts(tmp_path / "s")
    listener.close()


def test_a_live_servers_socket_is_left_alone(tmp_path: Path) -> None:
    first = UnixListener(tmp_path / "s")
    with pytest.raises(ResourceInUse):
        UnixListener(tmp_path / "s")
    assert accepts(tmp_path / "s")
    first.close()


def test_closing_does_not_remove_the_socket_of_a_successor(tmp_path: Path) -> None:
    first = UnixListener(tmp_path / "s")
    (tmp_path / "s").unlink()
    second = UnixListener(tmp_path / "s")
    first.close()
    assert accepts(tmp_path / "s")
    second.close()


def test_of_many_that_find_a_dead_socket_one_gets_it(tmp_path: Path) -> None:
    leave_behind(tmp_path / "s")
    made: list[UnixListener] = []
    refused: list[NbdresizeError] = []

    def listen() -> None:
        try:
            made.append(UnixListener(tmp_path / "s"))
        except ResourceInUse as error:
            refused.append(error)

    threads = [threading.Thread(target=listen) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(refused)) == (1, 15)
    assert accepts(tmp_path / "s")
    made[0].close()


def test_a_path_of_the_longest_length_works_and_one_more_is_refused(tmp_path: Path) -> None:
    name = "s" * (LONGEST_PATH - len(os.fsencode(tmp_path)) - 1)
    UnixListener(tmp_path / name).close()
    with pytest.raises(InvalidArgument, match="at most 107"):
        UnixListener(tmp_path / (name + "s"))


def test_a_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(InvalidArgument, match="not a socket"):
        UnixListener(tmp_path / "s")
    assert (tmp_path / "s").read_text() == "precious"


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StateUnusable):
        UnixListener(tmp_path / "none" / "s")


@pytest.mark.parametrize(
    ("text", "authority"),
    [
        ("127.0.0.1:0", "127.0.0.1:"),
        ("localhost:0", "localhost:"),
        (":0", "localhost:"),
        ("0.0.0.0:0", "0.0.0.0:"),
    ],
)
def test_tcp_addresses(text: str, authority: str) -> None:
    listener = listen_tcp(text)
    assert listener.authority.startswith(authority)
    ports = {each.getsockname()[1] for each in listener.sockets}
    assert ports == {int(listener.authority.rpartition(":")[2])}
    with socket.create_connection(("127.0.0.1", ports.pop())):
        pass
    listener.close()


@pytest.mark.parametrize(
    "text",
    ["", "host:port", "localhost:-1", "localhost:65536", "::1", "[::1", "[::1]x", "a:b:c", "local host:1", "h:１"],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InvalidArgument):
        listen_tcp(text)


def test_a_port_that_is_taken() -> None:
    first = listen_tcp("127.0.0.1:0")
    with pytest.raises(ResourceInUse):
        listen_tcp(first.authority)
    first.close()


def test_stopping_ends_an_accept_that_waits(tmp_path: Path) -> None:
    for listener in (UnixListener(tmp_path / "s"), listen_tcp("127.0.0.1:0")):
        ended = threading.Event()

        def accept(listening: socket.socket, ended: threading.Event) -> None:
            with pytest.raises(OSError, match="Invalid argument"):
                listening.accept()
            ended.set()

        thread = threading.Thread(target=accept, args=(listener.sockets[0], ended))
        thread.start()
        listener.stop()
        assert ended.wait(60)
        thread.join()
        listener.stop()
        listener.close()
