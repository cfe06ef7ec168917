"""What systemd is told, and how a service ends."""

import signal
import socket
from pathlib import Path

import pytest

from nbdresize.guests.kernel.service import ended_by_sigterm, tell_manager


@pytest.mark.parametrize("abstract", [False, True])
def test_the_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"@nbdresize-{tmp_path}" if abstract else f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(10)
        manager.bind("\0" + name[1:] if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        tell_manager(READY="1", STATUS="two\nlines")
        assert manager.recv(1000) == b"READY=1\nSTATUS=two lines"


@pytest.mark.parametrize("where", [None, "", "nonsense", "/nonexistent/notify", "/" + "x" * 300, "@"])
def test_a_manager_that_is_not_there_is_no_error(monkeypatch: pytest.MonkeyPatch, where: str | None) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if where is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", where)
    tell_manager(READY="1")


def test_sigterm_ends_quietly() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as raised, ended_by_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert raised.value.code == 0
    assert signal.getsignal(signal.SIGTERM) == before
