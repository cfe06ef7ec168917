"""What only the native front has: one client on standard input and output, a limit of connections, live sizes."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import nbd
import pytest

from tests.front.conftest import MIB, SIZE, Kind, connect, file_kind, make_ledger
from tests.peers import PROGRAM, SECONDS, Serve, run
from tests.wait import until

pytestmark = pytest.mark.slow


@pytest.fixture
def disk(tmp_path: Path) -> Kind:
    return file_kind(tmp_path)


def command(*arguments: str | Path) -> list[str]:
    return [str(PROGRAM), "serve", *map(str, arguments)]


def test_stdio_serves_one_client_and_ends_with_it(disk: Kind) -> None:
    client = nbd.NBD()
    client.connect_command(command(*disk.arguments, "--stdio"))
    client.pwrite(b"over a socket pair", 4096)
    assert client.get_size() == SIZE
    client.shutdown()
    assert disk.volume.read_bytes()[4096:4114] == b"over a socket pair"


def test_stdio_serves_the_disks_of_a_ledger(tmp_path: Path) -> None:
    root = make_ledger(tmp_path, SIZE, MIB)
    client = nbd.NBD()
    client.set_export_name("web1/disk1")
    client.connect_command(command("--root", root, "--stdio"))
    assert client.get_size() == MIB
    client.shutdown()


def test_stdio_over_pipes(disk: Kind) -> None:
    """The greeting, NBD_OPT_EXPORT_NAME, a read and NBD_CMD_DISC, and the answers, through two pipes."""
    disk.volume.write_bytes(b"bytes of the disk".ljust(SIZE, b"\0"))
    wish = bytes.fromhex("00000003") + b"IHAVEOPT" + bytes.fromhex("00000001 00000000")
    read = bytes.fromhex("25609513 0000 0000 0000000000000007 0000000000000000 00000011")
    leave = bytes.fromhex("25609513 0000 0002 0000000000000008 0000000000000000 00000000")
    done = subprocess.run(
        command(*disk.arguments, "--stdio"), input=wish + read + leave, capture_output=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout[:18] == b"NBDMAGICIHAVEOPT\0\x03"
    assert int.from_bytes(done.stdout[18:26], "big") == SIZE
    assert done.stdout[28:] == bytes.fromhex("67446698 00000000 0000000000000007") + b"bytes of the disk"


def test_stdio_ends_by_a_signal_with_its_client_connected(disk: Kind) -> None:
    ours, theirs = socket.socketpair()
    with (
        ours,
        subprocess.Popen(command(*disk.arguments, "--stdio"), stdin=theirs.fileno(), stdout=theirs.fileno()) as process,
    ):
        theirs.close()
        ours.settimeout(SECONDS)
        assert ours.recv(18) == b"NBDMAGICIHAVEOPT\0\x03"
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
        assert ours.recv(1) == b""


def test_a_server_that_a_tool_starts_for_itself_gets_its_socket(disk: Kind) -> None:
    """The tools of libnbd hand over a listening socket by LISTEN_FDS, as systemd does."""
    for front in ("native", "nbdkit"):
        own = command("--front", front, *disk.arguments)
        assert run("nbdinfo", "--size", "--", "[", *own, "]").strip() == str(SIZE)


def test_a_socket_of_systemd_is_left_listening(disk: Kind, tmp_path: Path) -> None:
    path = tmp_path / "activated.sock"
    start = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()));"
        "os.execv(sys.argv[2], sys.argv[2:])"
    )
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        for _ in range(2):
            with subprocess.Popen(
                [sys.executable, "-c", start, str(listening.fileno()), *command(*disk.arguments)],
                pass_fds=[listening.fileno()],
                stdout=subprocess.PIPE,
            ) as process:
                assert run("nbdinfo", "--size", f"nbd+unix:///?socket={path}").strip() == str(SIZE)
                process.send_signal(signal.SIGTERM)
                assert process.communicate(timeout=SECONDS)[0] == b"", "its output is that of whoever started it"
                assert process.returncode == 0


def test_more_connections_than_allowed_are_closed_and_the_others_stay(disk: Kind, tmp_path: Path) -> None:
    with Serve(*disk.arguments, "--max-connections", "3", front="native", directory=tmp_path) as server:
        clients = [connect(server.uri()) for _ in range(3)]
        with pytest.raises(nbd.Error):
            connect(server.uri())
        assert all(client.pread(512, 0) == bytes(512) for client in clients)
        clients.pop().shutdown()
        until(lambda: accepted(server.uri()), what="the place of one that left")
        assert "refused, there are 3 connections already" in server.said()


def accepted(uri: str) -> bool:
    try:
        connect(uri).shutdown()
    except nbd.Error:
        return False
    return True


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--tls-psk", "keys"), 3, "no pre-shared keys"),
        (("--nbdkit-argument=--filter=stats",), 3, "no arguments of nbdkit"),
        (("--max-connections", "0"), 3, "at least one"),
        (("--stdio", "--workers", "2"), 2, "--stdio"),
        (("--stdio", "--front", "nbdkit"), 2, "--stdio"),
        (("--tls-mode", "optional"), 2, "--tls"),
    ],
)
def test_what_it_can_not_do_is_one_line(disk: Kind, arguments: tuple[str, ...], code: int, told: str) -> None:
    (disk.volume.parent / "keys").write_text("alice:00\n")
    done = subprocess.run(
        command(*disk.arguments, *arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=disk.volume.parent,
    )
    assert done.returncode == code
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_grown_pages_of_a_connection_are_seen_without_a_new_one(tmp_path: Path) -> None:
    """The kernel's client keeps its connection through a grow: the old one reads and writes the new range."""
    root = make_ledger(tmp_path, SIZE)
    with Serve(front="native", directory=tmp_path, root=root) as server:
        client = connect(server.uri("web1/disk0"))
        client.set_strict_mode(0)
        assert run(PROGRAM, "disk", "resize", "web1", "disk0", str(2 * SIZE), "--json", NBDRESIZE_ROOT=str(root))
        client.pwrite(b"new", 2 * SIZE - 3)
        assert bytes(client.pread(6, 2 * SIZE - 6)) == b"\0\0\0new"
        client.shutdown()
    [volume] = (root / "volumes").iterdir()
    assert volume.stat().st_size == 2 * SIZE
