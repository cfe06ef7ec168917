"""Which server a node talks to, however its address is written."""

import os
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from nbdresize.guests.qemu.addresses import Addresses, inside


@pytest.fixture
def listening(tmp_path: Path) -> Path:
    path = tmp_path / "the nbd+socket?&%41"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    return path


def unix(path: str | Path) -> dict[str, object]:
    return {"type": "unix", "path": str(path)}


def inet(host: str, port: object = 10809) -> dict[str, object]:
    return {"type": "inet", "host": host, "port": port}


def addresses_of(path: Path, pid: int | None = None) -> Addresses:
    return Addresses([f"nbds+unix:///?socket={quote(str(path))}"], pid)


def test_a_socket_is_known_by_its_file(listening: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(listening.name)
    os.link(listening, tmp_path / "hard")
    monkeypatch.chdir(tmp_path)
    for pid in (None, os.getpid(), 1 << 30):
        ours = addresses_of(listening, pid)
        for path in (listening, tmp_path / "link", tmp_path / "hard", "link", f"./{listening.name}"):
            assert ours.serve(unix(path)), (pid, path)
        for path in (tmp_path / "other", "", "/", tmp_path):
            assert not ours.serve(unix(path))
    assert not ours.serve({**unix(listening), "abstract": True})


def test_a_socket_that_is_gone_is_known_by_its_name(tmp_path: Path) -> None:
    assert addresses_of(tmp_path / "gone").serve(unix(tmp_path / "gone"))
    assert not addresses_of(tmp_path / "gone").serve(unix(tmp_path / "other"))


def test_hosts_are_known_by_what_they_resolve_to(monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = socket.getaddrinfo

    def look_up_here(host: str, *arguments: Any, **options: Any) -> Any:
        if host.endswith(".invalid"):  # what name servers say, who may take their time
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up_here)
    ours = Addresses(["nbd://localhost:10809/"], None)
    assert ours.serve(inet("localhost"))
    assert ours.serve(inet("127.0.0.1", "10809"))
    assert not ours.serve(inet("127.0.0.1", 10810))
    assert not ours.serve(inet("192.0.2.1"))
    assert not ours.serve(inet("no.such.host.invalid"))
    assert not ours.serve(inet("localhost", "nbd"))


@pytest.mark.parametrize(
    "server",
    [
        unix("/run/\0"),
        unix("/run/\udcff" * 5000),
        inet("a\0b"),
        inet("\udcff"),
        inet("localhost", ["1"]),
        inet("h", "9" * 5000),
    ],
    ids=lambda server: str(server)[:30],
)
def test_an_address_that_makes_no_sense_is_nobodys(server: dict[str, object], listening: Path) -> None:
    assert not Addresses(["nbd://localhost:10809/", f"nbd+unix:///?socket={listening}"], os.getpid()).serve(server)


def test_a_name_server_that_is_away_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor asked again, and numbers need none."""
    away, asked = threading.Event(), list[str]()
    known = socket.getaddrinfo

    def look_up(host: str, port: None, *, flags: int = 0, **more: Any) -> Any:
        if not flags and host != "localhost":
            asked.append(host)
            assert away.wait(60)
        return known(host, port, flags=flags, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    ours = Addresses(["nbd://localhost:10809/"], None, 0.05)
    try:
        for _ in range(2):
            assert not ours.serve(inet("far.example"))
        assert asked in ([], ["far.example"])
        assert ours.serve(inet("127.0.0.1")) or ours.serve(inet("localhost"))
    finally:
        away.set()


def test_a_server_on_all_addresses_has_those_of_this_machine() -> None:
    ours = Addresses(["nbds://0.0.0.0/?tls-type=psk"], None)
    assert ours.serve(inet("127.0.0.1"))
    assert not ours.serve(inet("192.0.2.1"))


def test_other_kinds_of_addresses_are_nobodys() -> None:
    ours = Addresses(["nbd://localhost:10809/", "nbd+unix:///?socket=/x"], None)
    assert not ours.serve({"type": "fd", "str": "9"})
    assert not ours.serve({"type": "vsock", "cid": "2", "port": "10809"})
    assert not Addresses([], None).serve(inet("localhost"))


def test_paths_are_those_of_the_other_process(tmp_path: Path) -> None:
    assert inside(None, "x") == "x"
    assert inside(1 << 30, "/x") == "/x"
    assert Path(inside(os.getpid(), str(tmp_path))).samefile(tmp_path)
