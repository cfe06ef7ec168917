"""TLS from the client's side: who is believed, and who is not."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdresize.client import connect, connect_resizable
from nbdresize.client.growing import grow
from nbdresize.errors import InvalidArgument, PeerFailed
from nbdresize.units import SizeRequest
from tests.client import raw_server as raw
from tests.client.conftest import GIB, MIB, qemu_nbd
from tests.client.raw_server import Peer, RawServer
from tests.peers import Serve, run
from tests.tls_keys import make_certificates, without_client_certificate

pytestmark = pytest.mark.slow

LONG = 60.0
SHORT = 0.5


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    return make_certificates(tmp_path / "pki")


@pytest.fixture(params=["native", "nbdkit"])
def server(request: pytest.FixtureRequest, root: Path, certificates: Path, tmp_path: Path) -> Iterator[Serve]:
    with Serve("--tls", certificates, front=request.param, directory=tmp_path, root=root, tcp=True) as serve:
        yield serve


def test_with_certificates_on_both_sides(server: Serve) -> None:
    for number in range(2):
        uri = server.uri("web1/disk0", number=number)
        assert uri.startswith("nbds")
        with connect(uri, LONG) as disk:
            assert disk.negotiated.tls
            disk.write(b"x" * (3 * MIB), 5)
            assert disk.read(3 * MIB, 5) == b"x" * (3 * MIB)
        with connect_resizable(uri, LONG) as resizable:
            assert grow(resizable, SizeRequest(relative=GIB)).after.size == (21 + number) * GIB
            sizes = resizable.watch()
            assert next(sizes).size == (21 + number) * GIB


def test_the_host_name_has_to_be_that_of_the_certificate(server: Serve, certificates: Path) -> None:
    uri = server.uri("web1/disk0", number=1)
    by_address = uri.replace("localhost", "127.0.0.1")
    with pytest.raises(PeerFailed, match="certificate") as caught:
        connect(by_address, LONG)
    assert "127.0.0.1" in caught.value.problem
    connect(f"{by_address}&tls-hostname=localhost", LONG).close()
    connect(f"{by_address}&tls-verify-peer=0", LONG).close()
    with pytest.raises(PeerFailed, match="certificate"):
        connect(f"{uri}&tls-hostname=example.org", LONG)
    with pytest.raises(PeerFailed, match="certificate"):
        connect(server.uri("web1/disk0") + "&tls-hostname=example.org", LONG)


def test_a_server_of_another_authority_is_not_believed(server: Serve, certificates: Path, tmp_path: Path) -> None:
    other = make_certificates(tmp_path / "other")
    for number in range(2):
        uri = server.uri("web1/disk0", number=number).replace(str(certificates), str(other))
        with pytest.raises(PeerFailed, match="certificate"):
            connect(uri, LONG)
        bare = uri.partition("tls-certificates")[0].rstrip("?&")
        with pytest.raises(PeerFailed, match="certificate"):
            connect(bare, LONG)


def test_a_client_without_a_certificate_is_turned_away(server: Serve, certificates: Path, tmp_path: Path) -> None:
    bare = without_client_certificate(certificates, tmp_path / "bare")
    with pytest.raises(PeerFailed):
        connect(server.uri("web1/disk0").replace(str(certificates), str(bare)), LONG)


def test_a_client_without_tls_is_told_how(server: Serve) -> None:
    plain = f"nbd+unix:///web1/disk0?socket={server.socket}"
    with pytest.raises(PeerFailed, match="TLS") as caught:
        connect(plain, LONG)
    assert "nbds" in caught.value.way_out
    with pytest.raises(PeerFailed, match="TLS"), connect_resizable(plain, LONG):
        pass


def test_certificates_from_where_libnbd_looks(
    server: Serve, certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    place = home / ".config" / "pki"
    place.mkdir(parents=True)
    (place / "libnbd").symlink_to(certificates)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with connect(f"nbds+unix:///web1/disk0?socket={server.socket}", LONG) as disk:
        assert disk.negotiated.tls


def test_certificates_that_are_none_are_refused(server: Serve, certificates: Path, tmp_path: Path) -> None:
    uri = server.uri("web1/disk0")
    (empty := tmp_path / "empty").mkdir()
    (broken := tmp_path / "broken").mkdir()
    (broken / "ca-cert.pem").write_text("no certificate")
    (half := tmp_path / "half").mkdir()
    (half / "ca-cert.pem").write_bytes((certificates / "ca-cert.pem").read_bytes())
    (half / "client-cert.pem").write_bytes((certificates / "client-cert.pem").read_bytes())
    for directory in (empty, broken, half, tmp_path / "none"):
        with pytest.raises(InvalidArgument, match="can't be used") as caught:
            connect(uri.replace(str(certificates), str(directory)), LONG)
        assert "ca-cert.pem" in caught.value.way_out


def test_tls_of_a_server_that_has_none_is_not_done_without(tmp_path: Path, certificates: Path) -> None:
    with qemu_nbd(tmp_path) as server, pytest.raises(PeerFailed, match="no TLS"):
        connect(f"nbds+unix:///disk?socket={server.socket}&tls-certificates={certificates}", LONG)

    def script(peer: Peer) -> None:
        peer.send(b"NBDMAGICIHAVEOPT\0\0")
        peer.receive(5)

    with RawServer(tmp_path, script) as raw_server, pytest.raises(PeerFailed, match="no TLS"):
        connect(f"nbds+unix:///disk?socket={raw_server.socket}&tls-certificates={certificates}", LONG)


ACK = raw.option_reply(raw.STARTTLS, raw.ACK)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (ACK + raw.option_reply(raw.EXTENDED, raw.ACK), "breaks the protocol|can't be used"),
        (ACK, "within"),
        (ACK + b"\x15\x03\x03\x00\x02\x02\x28", "breaks the protocol|can't be used"),
        (raw.option_reply(raw.STARTTLS, raw.POLICY, b"not today"), "not today"),
        (b"", "within"),
    ],
    ids=["something-attached", "silence", "alert", "refused", "no-answer"],
)
def test_a_server_whose_tls_comes_to_nothing(tmp_path: Path, certificates: Path, answer: bytes, told: str) -> None:
    """Nothing in the clear is ever taken for something inside TLS."""

    def script(peer: Peer) -> None:
        peer.send(raw.GREETING)
        peer.receive(4)
        assert peer.option()[0] == raw.STARTTLS
        peer.send(answer)
        while True:
            peer.receive(1)

    with RawServer(tmp_path, script) as server, pytest.raises(PeerFailed, match=told):
        uri = f"nbds+unix:///web1?socket={server.socket}&tls-certificates={certificates}"
        connect(uri, SHORT if told == "within" else LONG)


def test_a_revoked_server_is_not_believed(root: Path, certificates: Path, tmp_path: Path) -> None:
    (template := tmp_path / "crl.info").write_text("expiration_days = 10\ncrl_next_update = 10\ncrl_number = 1\n")
    run(
        "certtool",
        "--generate-crl",
        "--load-ca-privkey",
        certificates / "ca-key.pem",
        "--load-ca-certificate",
        certificates / "ca-cert.pem",
        "--load-certificate",
        certificates / "server-cert.pem",
        "--template",
        template,
        "--outfile",
        tmp_path / "ca-crl.pem",
    )
    with Serve("--tls", certificates, front="native", directory=tmp_path, root=root) as server:
        connect(server.uri("web1/disk0"), LONG).close()
        trusting = tmp_path / "trusting"
        trusting.mkdir()
        for name in ("ca-cert.pem", "client-cert.pem", "client-key.pem"):
            (trusting / name).write_bytes((certificates / name).read_bytes())
        (trusting / "ca-crl.pem").write_bytes((tmp_path / "ca-crl.pem").read_bytes())
        with pytest.raises(PeerFailed, match="revoked"):
            connect(server.uri("web1/disk0").replace(str(certificates), str(trusting)), LONG)
