"""TLS, with certificates and with pre-shared keys: who is let in, and who is not."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.front.conftest import SIZE, Kind, connect, file_kind
from tests.peers import SECONDS, Serve, run
from tests.tls_keys import make_certificates, make_psk, without_client_certificate

pytestmark = pytest.mark.slow


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    return make_certificates(tmp_path / "pki")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return make_psk(tmp_path / "keys.psk")


@pytest.fixture
def disk(tmp_path: Path) -> Kind:
    return file_kind(tmp_path)


def refused(uri: str) -> str:
    """What nbdinfo says when it is not let in."""
    done = subprocess.run(["nbdinfo", uri], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode != 0, done.stdout
    return done.stderr


def works(uri: str) -> None:
    """Data goes both ways, encrypted."""
    client = connect(uri)
    assert client.get_tls_negotiated()
    content = os.urandom(1 << 20)
    client.pwrite(content, 12345)
    assert bytes(client.pread(len(content), 12345)) == content
    client.shutdown()


def test_clients_with_a_certificate_are_let_in_on_both_sockets(
    front: str, disk: Kind, certificates: Path, tmp_path: Path
) -> None:
    with Serve(*disk.arguments, "--tls", certificates, front=front, directory=tmp_path, tcp=True) as server:
        assert server.uris[0].startswith("nbds+unix:///?socket=")
        assert server.uris[1].startswith("nbds://localhost:")
        for uri in server.uris:
            assert run("nbdinfo", "--size", uri).strip() == str(SIZE)
            works(uri)


def test_clients_without_tls_are_not(front: str, disk: Kind, certificates: Path, tmp_path: Path) -> None:
    with Serve(*disk.arguments, "--tls", certificates, front=front, directory=tmp_path) as server:
        refused(f"nbd+unix:///?socket={server.socket}")
        works(server.uri())


def test_a_client_needs_a_certificate_unless_the_server_says_otherwise(
    front: str, disk: Kind, certificates: Path, tmp_path: Path
) -> None:
    bare = without_client_certificate(certificates, tmp_path / "bare")
    uri = f"nbds+unix:///?socket={tmp_path}/nbd.sock&tls-certificates={bare}"
    with Serve(*disk.arguments, "--tls", certificates, front=front, directory=tmp_path):
        refused(uri)
    more = ("--tls", certificates, "--no-tls-verify-peer")
    with Serve(*disk.arguments, *more, front=front, directory=tmp_path):
        works(uri)


def test_tls_can_be_left_to_the_client(front: str, disk: Kind, certificates: Path, tmp_path: Path) -> None:
    more = ("--tls", certificates, "--tls-mode", "optional")
    with Serve(*disk.arguments, *more, front=front, directory=tmp_path) as server:
        assert run("nbdinfo", "--size", f"nbd+unix:///?socket={server.socket}").strip() == str(SIZE)
        works(server.uri())


def test_pre_shared_keys(disk: Kind, keys: Path, tmp_path: Path) -> None:
    other = make_psk(tmp_path / "other.psk")
    with Serve(*disk.arguments, "--tls-psk", keys, directory=tmp_path, tcp=True) as server:
        for uri in server.uris:
            assert "alice@" in uri
            works(uri)
            refused(uri.replace(str(keys), str(other)))
        refused(f"nbd+unix:///?socket={server.socket}")


def test_idle_clients_do_not_hold_up_the_end_under_tls(
    front: str, disk: Kind, certificates: Path, tmp_path: Path
) -> None:
    more = ("--tls", certificates, "--workers", "2")
    with Serve(*disk.arguments, *more, front=front, directory=tmp_path) as server:
        clients = [connect(server.uri()) for _ in range(4)]
        assert server.end() == 0
        assert "killed" not in server.said()
        del clients
