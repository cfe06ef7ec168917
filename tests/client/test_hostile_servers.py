"""The client meets servers that are silent, die, lie, or are something else altogether."""

import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from nbdresize.client.size_export import SizeExport
from nbdresize.errors import (
    InsufficientSpace,
    InvalidArgument,
    NbdresizeError,
    NotAuthorized,
    PeerFailed,
    ResourceNotFound,
    VolumeFailed,
)
from nbdresize.protocol.constants import NBD_OPTS_MAGIC
from nbdresize.units import SizeRequest
from tests.client.scripted_server import GIB, RECORD, ScriptedServer

LONG = 60.0
SHORT = 0.3


def fails_with(write: str) -> str:
    return f"cat >/dev/null; echo '{write} no' >&2; exit 1"


def test_the_record_is_read(tmp_path: Path) -> None:
    with ScriptedServer(tmp_path) as server, SizeExport(server.uri, LONG) as export:
        assert export.disk == "web1/disk0"
        assert export.record() == RECORD
        assert export.next_record() == RECORD


@pytest.mark.parametrize(
    ("errno_name", "expected", "told"),
    [
        ("EPERM", NotAuthorized, "--client-resize"),
        ("EINVAL", InvalidArgument, "30 GiB"),
        ("EIO", VolumeFailed, "log"),
        ("ENOMEM", PeerFailed, "log"),
        ("ESHUTDOWN", PeerFailed, "log"),
        ("ENOSPC", InsufficientSpace, "no space"),
    ],
)
def test_the_errno_of_a_refused_resize_becomes_an_error_of_the_table(
    tmp_path: Path, errno_name: str, expected: type[NbdresizeError], told: str
) -> None:
    with (
        ScriptedServer(tmp_path, write=fails_with(errno_name)) as server,
        SizeExport(server.uri, LONG) as export,
        pytest.raises(expected) as caught,
    ):
        export.grow(SizeRequest(exact=30 * GIB))
    assert told in str(caught.value)
    assert "web1/disk0" in str(caught.value)


def test_a_resize_past_the_budget_tells_how_far_it_reaches(tmp_path: Path) -> None:
    with (
        ScriptedServer(tmp_path, write=fails_with("ENOSPC")) as server,
        SizeExport(server.uri, LONG) as export,
        pytest.raises(InsufficientSpace) as caught,
    ):
        export.grow(SizeRequest(relative=500 * GIB))
    assert "520 GiB" in caught.value.problem
    assert "100 GiB at most" in caught.value.problem
    assert str(100 * GIB) in caught.value.way_out


def test_a_smaller_size_is_refused_without_asking_the_server(tmp_path: Path) -> None:
    with (
        ScriptedServer(tmp_path, write="kill -9 $PPID") as server,
        SizeExport(server.uri, LONG) as export,
    ):
        with pytest.raises(InvalidArgument, match="--dangerous-allow-shrink"):
            export.grow(SizeRequest(exact=10 * GIB))
        with pytest.raises(InvalidArgument, match="largest disk"):
            export.grow(SizeRequest(relative=2**63))
        assert export.record() == RECORD


def test_a_server_that_dies_while_resizing_is_told_apart_from_a_refusal(tmp_path: Path) -> None:
    with (
        ScriptedServer(tmp_path, write="kill -9 $PPID") as server,
        SizeExport(server.uri, LONG) as export,
        pytest.raises(PeerFailed, match=r"lost|ended"),
    ):
        export.grow(SizeRequest(exact=30 * GIB))


def test_a_server_that_dies_between_commands_is_noticed(tmp_path: Path) -> None:
    with ScriptedServer(tmp_path) as server, SizeExport(server.uri, LONG) as export:
        export.record()
        server.__exit__(None, None, None)
        with pytest.raises(PeerFailed):
            export.record()


@pytest.mark.parametrize(
    "content",
    [
        bytes(4096),
        b"NBDRESZ2" + RECORD.pack()[8:],
        b"\xff" * 4096,
        replace(RECORD, granularity=0).pack(),
        replace(RECORD, minimum=30 * GIB).pack(),
        replace(RECORD, size=2**64 - 1).pack(),
    ],
    ids=["zeroes", "other-magic", "ones", "no-granularity", "minimum-above-size", "absurd-size"],
)
def test_a_record_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    with (
        ScriptedServer(tmp_path, content=content) as server,
        SizeExport(server.uri, LONG) as export,
        pytest.raises(PeerFailed, match="size record"),
    ):
        export.record()


def test_an_export_that_is_too_small_is_no_control_export(tmp_path: Path) -> None:
    with ScriptedServer(tmp_path, size=512) as server, pytest.raises(PeerFailed, match="no size export"):
        SizeExport(server.uri, LONG)


def test_a_read_that_fails_is_told(tmp_path: Path) -> None:
    with (
        ScriptedServer(tmp_path, read="echo 'EIO no' >&2; exit 1") as server,
        SizeExport(server.uri, LONG) as export,
        pytest.raises(PeerFailed, match="refused to tell"),
    ):
        export.record()


def test_an_unknown_export_is_not_found(tmp_path: Path) -> None:
    with (
        ScriptedServer(tmp_path, settings=("open=echo 'ENOENT no' >&2; exit 1",)) as server,
        pytest.raises(ResourceNotFound),
    ):
        SizeExport(server.uri, LONG)


def test_a_server_that_answers_a_read_too_late_is_given_up(tmp_path: Path) -> None:
    with ScriptedServer(tmp_path, options=("--filter=delay",), settings=("rdelay=60",)) as server:
        export = SizeExport(server.uri, LONG)
        export.connection.timeout = SHORT
        with export, pytest.raises(PeerFailed, match="did not answer within"):
            export.record()


@pytest.mark.parametrize(
    "greeting",
    [
        b"",
        b"NBDMAGIC",
        b"NBDMAGIC" + NBD_OPTS_MAGIC.to_bytes(8) + b"\0\3",
    ],
    ids=["nothing", "half-a-greeting", "greeting-only"],
)
def test_a_silent_server_is_given_up(tmp_path: Path, greeting: bytes) -> None:
    with Listener(tmp_path, greeting, closes=False) as uri, pytest.raises(PeerFailed, match=f"within {SHORT:g} s"):
        SizeExport(uri, SHORT)


@pytest.mark.parametrize(
    "greeting",
    [
        b"",
        b"NBDMAGIC",
        b"HTTP/1.1 400 Bad Request\r\n\r\n" * 20,
        b"NBDMAGIC" + bytes(8) + b"\0\3",
    ],
    ids=["nothing", "half-a-greeting", "http", "other-magic"],
)
def test_a_server_that_hangs_up_or_speaks_something_else_is_told(tmp_path: Path, greeting: bytes) -> None:
    with Listener(tmp_path, greeting, closes=True) as uri, pytest.raises(PeerFailed):
        SizeExport(uri, LONG)


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(PeerFailed, match="No such file"):
        SizeExport(f"nbd+unix:///web1/disk0?socket={tmp_path / 'none.sock'}", LONG)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: every connection is refused
        with pytest.raises(PeerFailed, match="refused"):
            SizeExport(f"nbd://127.0.0.1:{unused.getsockname()[1]}/web1/disk0", LONG)


def test_a_long_uri_makes_no_long_message(tmp_path: Path) -> None:
    with pytest.raises(PeerFailed) as caught:
        SizeExport(f"nbd+unix:///{'x' * 4000}?socket={tmp_path / 'none.sock'}", LONG)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("uri", ["nbd+unix:///web1/disk0", "nbd://localhost:port/web1", "nbds://h/x?tls-certificates="])
def test_a_uri_that_libnbd_does_not_take_is_refused(uri: str) -> None:
    with pytest.raises((InvalidArgument, PeerFailed)):
        SizeExport(uri, LONG)


def test_tls_with_a_shared_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys.psk"
    keys.write_text("alice:" + "7f" * 32 + "\n")
    with ScriptedServer(tmp_path, options=("--tls=require", f"--tls-psk={keys}")) as server:
        uri = f"nbds+unix://alice@/web1/disk0?socket={server.socket}&tls-psk-file={keys}"
        with SizeExport(uri, LONG) as export:
            assert export.record() == RECORD
        with pytest.raises(PeerFailed):
            SizeExport(server.uri, LONG)


def test_tls_asked_of_a_server_without_it_is_refused(tmp_path: Path) -> None:
    with ScriptedServer(tmp_path) as server, pytest.raises(PeerFailed):
        SizeExport(server.uri.replace("nbd+unix", "nbds+unix"), LONG)


class Listener:
    """A unix socket on which each client gets `greeting`, then silence until this ends, or the end if `closes`."""

    def __init__(self, directory: Path, greeting: bytes, *, closes: bool) -> None:
        self._path = directory / "listener.sock"
        self._greeting = greeting
        self._closes = closes

    def __enter__(self) -> str:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self._path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return f"nbd+unix:///web1/disk0?socket={self._path}"

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        clients = []
        while True:
            try:
                client = self._socket.accept()[0]
            except OSError:
                break
            clients.append(client)
            client.sendall(self._greeting)
            if self._closes:
                client.close()
        for client in clients:
            client.close()
