from pathlib import Path

import pytest

from nbdresize.client.uri import Target, Tls, Transport, parse_uri
from nbdresize.errors import InvalidArgument

TCP, UNIX, VSOCK = Transport.TCP, Transport.UNIX, Transport.VSOCK


@pytest.mark.parametrize(
    ("uri", "host", "port", "export"),
    [
        ("nbd://localhost/web1/disk0", "localhost", 10809, "web1/disk0"),
        ("nbd://192.0.2.1:10810/web1/disk0", "192.0.2.1", 10810, "web1/disk0"),
        ("nbd://[::1]:10810/web1/disk0", "::1", 10810, "web1/disk0"),
        ("nbd://[::1]", "::1", 10809, ""),
        ("nbd://example.org/", "example.org", 10809, ""),
        ("nbd://example.org", "example.org", 10809, ""),
        ("nbd:///web1", "localhost", 10809, "web1"),
        ("nbd://alice@example.org//web1", "example.org", 10809, "/web1"),
        ("nbd://h/web%31/disk%200%2f%C3%A9+", "h", 10809, "web1/disk 0/é+"),
        ("NBD://h/Web1", "h", 10809, "Web1"),
        ("nbd://h/a?x-mine=1", "h", 10809, "a"),
    ],
)
def test_tcp(uri: str, host: str, port: int, export: str) -> None:
    assert parse_uri(uri) == Target(uri, TCP, export, host, port)


@pytest.mark.parametrize(
    ("uri", "path", "export"),
    [
        ("nbd+unix:///web1/disk0?socket=/run/nbd.sock", "/run/nbd.sock", "web1/disk0"),
        ("nbd+unix:///?socket=nbd.sock", "nbd.sock", ""),
        ("nbd+unix://?socket=a%20b+c%26d", "a b+c&d", ""),
        ("nbd+unix:///?socket=%00abstract", "\0abstract", ""),
        ("nbd+unix:///?socket=/r%FFn", "/r\udcffn", ""),
        ("nbd+unix:///x?x-a=b&socket=/s", "/s", "x"),
        ("nbd+unix:///x?x-a=b;socket=/s", "/s", "x"),
    ],
)
def test_unix_sockets(uri: str, path: str, export: str) -> None:
    target = parse_uri(uri)
    assert (target.transport, target.socket, target.export, target.tls) == (UNIX, path, export, None)


def test_vsock() -> None:
    target = parse_uri("nbd+vsock://2:1234/web1")
    assert (target.transport, target.host, target.port, target.export) == (VSOCK, "2", 1234, "web1")


@pytest.mark.parametrize(
    ("uri", "tls"),
    [
        ("nbds://h/x", Tls(None, "h")),
        ("nbds://h/x?tls-certificates=/p%20ki", Tls(Path("/p ki"), "h")),
        ("nbds://h/x?tls-hostname=other", Tls(None, "other")),
        ("nbds://h/x?tls-verify-peer=0&tls-type=x509", Tls(None, "h", verify=False)),
        ("nbds+unix:///x?socket=/s&tls-certificates=pki", Tls(Path("pki"), None)),
        ("nbds+unix:///x?socket=/s&tls-hostname=h", Tls(None, "h")),
        ("nbd://h/x?tls-certificates=/pki", None),
    ],
)
def test_tls(uri: str, tls: Tls | None) -> None:
    assert parse_uri(uri).tls == tls


@pytest.mark.parametrize("uri", ["nbd://h/web1/disk0@size", "nbd://h/web1/disk0%40size"])
def test_the_control_export_itself_may_be_named(uri: str) -> None:
    target = parse_uri(uri)
    assert target.names_size_export
    assert (target.export, target.disk) == ("web1/disk0@size", "web1/disk0")


@pytest.mark.parametrize(
    "uri",
    [
        "nbds://alice@h/x?tls-psk-file=/keys.psk",
        "nbds+unix://alice@/x?socket=/s&tls-psk-file=/keys.psk",
        "nbds://h/x?tls-type=psk",
    ],
)
def test_pre_shared_keys_are_refused_with_the_way_out(uri: str) -> None:
    with pytest.raises(InvalidArgument, match="pre-shared key") as caught:
        parse_uri(uri)
    assert "tls-certificates=DIR" in caught.value.way_out
    assert "nbdsh" in caught.value.way_out


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "web1/disk0",
        "/run/nbd.sock",
        "http://localhost/web1/disk0",
        "nbd",
        "nbd:h/web1",
        "nbd+ssh://h/web1",
        "nbdss://h/web1",
        "nbd://[::1/web1",
        "nbd://localhost:port/web1",
        "nbd://localhost:0/web1",
        "nbd://localhost:65536/web1",
        "nbd://localhost/web 1",
        "nbd://localhost/web\n1",
        "nbd://localhost/w\udcffb",
        "nbd://localhost/wéb",
        "nbd://localhost/w%FFb",
        "nbd://localhost/w%00b",
        "nbd://localhost/" + "x" * 4097,
        "nbd://localhost/" + "x" * 9000,
        "nbd://localhost/web1?socket=/s",
        "nbd://localhost/web1?sokcet=/s",
        "nbd+unix:///web1/disk0",
        "nbd+unix:///web1/disk0?socket=",
        "nbd+unix:///web1/disk0?socket=/a%00b",
        "nbd+vsock:///web1",
        "nbd+vsock://host/web1",
        "nbds://h/x?tls-certificates=",
        "nbds://h/x?tls-certificates=a%00b",
        "nbds://h/x?tls-verify-peer=maybe",
        "nbds://h/x?tls-type=anon",
    ],
)
def test_what_is_no_nbd_uri_or_can_not_be_done_is_refused(uri: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_uri(uri)
    assert caught.value.way_out
    assert len(str(caught.value)) < 700
