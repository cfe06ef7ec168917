"""Names that clients make up: they are looked up, and never become paths."""

import socket
import struct
from pathlib import Path

import nbd
import pytest

from tests.front.conftest import MIB, SIZE, Served, connect, make_ledger
from tests.peers import Serve, run

pytestmark = pytest.mark.slow

HOSTILE = (
    "web1",
    "web1/",
    "web1/disk7",
    "web1/disk0/",
    "/web1/disk0",
    "web1//disk0",
    "web1/disk0@",
    "web1/disk0@size@size",
    "../volumes",
    "../../../../etc/passwd",
    "web1/../web1/disk0",
    "/etc/passwd",
    "WEB1/DISK0",
    "web1/disk0 ",
    "web1/disk0\n",
    "\x1b[31m",
    "%s%n%x",
    "' OR 1=1 --",
    "ſ/disk0",
    "@size",
    "x" * 4096,
    "é" * 2048,
)


def refuse(uri: str, name: str) -> None:
    """Asking for that name fails; the connection could go on."""
    client = nbd.NBD()
    client.set_opt_mode(True)
    client.connect_uri(uri)
    client.set_export_name(name)
    for request in (client.opt_info, client.opt_go):
        with pytest.raises(nbd.Error):
            request()
    client.opt_abort()


def test_hostile_names_are_refused_in_one_line_each(front: str, tmp_path: Path) -> None:
    root = make_ledger(tmp_path, SIZE, MIB)
    with Serve(front=front, directory=tmp_path, root=root) as server:
        for name in HOSTILE:
            refuse(server.uri(), name)
        assert run("nbdinfo", "--size", server.uri("web1/disk0")).strip() == str(SIZE)
        said = server.said()
        assert "Traceback" not in said
        assert all(line.isprintable() for line in said.splitlines())
        assert len(said.splitlines()) <= 4 * len(HOSTILE)


def test_no_name_is_one_of_several_disks(front: str, tmp_path: Path) -> None:
    root = make_ledger(tmp_path, SIZE, MIB)
    with Serve(front=front, directory=tmp_path, root=root) as server:
        refuse(server.uri(), "")
        assert "web1/disk1" in run("nbdinfo", "--list", server.uri())


def test_a_name_that_is_not_utf8_is_refused(served: Served) -> None:
    name = b"\xff\xfe/disk0"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(served.server.socket))
        received = client.makefile("rb")
        assert received.read(18)[:16] == b"NBDMAGICIHAVEOPT"
        client.sendall(struct.pack(">I", 3))
        option = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        client.sendall(b"IHAVEOPT" + struct.pack(">II", 7, len(option)) + option)
        magic, number, kind, _ = struct.unpack(">QIII", received.read(20))
        assert (magic, number) == (0x3E889045565A9, 7)
        assert kind >= 1 << 31, "an error reply"
        received.close()
    works = connect(served.uri)
    assert works.get_size() == SIZE
    works.shutdown()
    assert "Traceback" not in served.server.said()
