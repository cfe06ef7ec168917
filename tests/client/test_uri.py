import pytest

from nbdresize.client.uri import SizeUri, size_uri
from nbdresize.errors import InvalidArgument


@pytest.mark.parametrize(
    ("disk", "control", "name"),
    [
        ("nbd://localhost/web1/disk0", "nbd://localhost/web1/disk0@size", "web1/disk0"),
        ("nbd://[::1]:10810/web1/disk0", "nbd://[::1]:10810/web1/disk0@size", "web1/disk0"),
        ("nbd+unix:///web1/disk0?socket=/run/a b".replace(" ", "%20"), None, "web1/disk0"),
        ("nbds://alice@example.org/web1/disk0?tls-psk-file=/k", None, "web1/disk0"),
        ("nbds+unix:///web%31/disk0?socket=/s", "nbds+unix:///web%31/disk0@size?socket=/s", "web1/disk0"),
        ("nbd+unix:///?socket=/run/nbd.sock", "nbd+unix:///@size?socket=/run/nbd.sock", ""),
        ("nbd://localhost", "nbd://localhost/@size", ""),
        ("nbd://localhost/", "nbd://localhost/@size", ""),
    ],
)
def test_the_control_export_stands_beside_the_disk(disk: str, control: str | None, name: str) -> None:
    expected = control or disk.replace("/disk0", "/disk0@size")
    assert size_uri(disk) == SizeUri(expected, name)


@pytest.mark.parametrize("uri", ["nbd://h/web1/disk0@size", "nbd://h/web1/disk0%40size"])
def test_the_control_export_itself_may_be_named(uri: str) -> None:
    assert size_uri(uri) == SizeUri(uri, "web1/disk0")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "web1/disk0",
        "/run/nbd.sock",
        "http://localhost/web1/disk0",
        "nbd",
        "nbd://[::1/web1",
        "nbd://localhost/web 1",
        "nbd://localhost/web\n1",
        "nbd://localhost/w\udcffb",
        "nbd://localhost/wéb",
        "nbd://localhost/" + "x" * 9000,
    ],
)
def test_what_is_no_nbd_uri_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        size_uri(text)
    assert caught.value.way_out
    assert len(str(caught.value)) < 600
