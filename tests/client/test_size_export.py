"""The `@size` export, on real servers that say what a test wants said."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from nbdresize.client import Cause, Connection, Resizable, Size, connect_resizable, rate
from nbdresize.client.growing import grow
from nbdresize.client.handshake import where_it_can_be_resized
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
from nbdresize.units import REMAINING, SizeRequest
from tests.client import raw_server as raw
from tests.client.scripted_server import GIB, RECORD, ScriptedServer

LONG = 60.0
SHORT = 0.3

TOLD = Size(
    RECORD.size, RECORD.generation, RECORD.minimum, RECORD.maximum, RECORD.granularity, RECORD.features, Cause.QUERY
)


def fails_with(write: str) -> str:
    return f"cat >/dev/null; echo '{write} no' >&2; exit 1"


@contextmanager
def opened(server: ScriptedServer) -> Iterator[Resizable]:
    with server, connect_resizable(server.uri, LONG) as disk:
        yield disk


def test_the_record_is_read(tmp_path: Path) -> None:
    with opened(ScriptedServer(tmp_path)) as disk:
        assert disk.disk == "web1/disk0"
        assert disk.query() == TOLD
        assert next(disk.watch()) == TOLD


@pytest.mark.parametrize(
    ("errno_name", "expected", "told"),
    [
        ("EPERM", NotAuthorized, "--client-resize"),
        ("EINVAL", InvalidArgument, "30 GiB"),
        ("EIO", VolumeFailed, "log"),
        ("ENOMEM", PeerFailed, "log"),
        ("ESHUTDOWN", PeerFailed, "once it is back"),
        ("ENOSPC", InsufficientSpace, "free some space"),
    ],
)
def test_the_errno_of_a_refused_resize_becomes_an_error_of_the_table(
    tmp_path: Path, errno_name: str, expected: type[NbdresizeError], told: str
) -> None:
    with opened(ScriptedServer(tmp_path, write=fails_with(errno_name))) as disk:
        with pytest.raises(expected) as caught:
            grow(disk, SizeRequest(exact=30 * GIB))
        assert disk.query() == TOLD
    assert told in str(caught.value)
    assert "resize web1/disk0 to 30 GiB" in str(caught.value)


def test_a_resize_past_the_budget_tells_how_far_it_reaches(tmp_path: Path) -> None:
    with (
        opened(ScriptedServer(tmp_path, write=fails_with("ENOSPC"))) as disk,
        pytest.raises(InsufficientSpace) as caught,
    ):
        grow(disk, SizeRequest(relative=500 * GIB))
    assert "520 GiB" in caught.value.problem
    assert "100 GiB at most" in caught.value.problem
    assert str(100 * GIB) in caught.value.way_out


def test_a_smaller_size_is_refused_without_asking_the_server(tmp_path: Path) -> None:
    with opened(ScriptedServer(tmp_path, write="kill -9 $PPID")) as disk:
        with pytest.raises(InvalidArgument, match="--dangerous-allow-shrink"):
            grow(disk, SizeRequest(exact=10 * GIB))
        with pytest.raises(InvalidArgument, match="largest disk"):
            grow(disk, SizeRequest(relative=2**63))
        with pytest.raises(InvalidArgument, match="No disk has"):
            disk.resize(0)
        with pytest.raises(InvalidArgument, match="No disk has"):
            disk.resize(2**64 - 1)
        assert disk.query() == TOLD


def test_what_is_written_is_the_request(tmp_path: Path) -> None:
    written = tmp_path / "written"
    with opened(ScriptedServer(tmp_path, write=f"cat >> {written}")) as disk:
        assert disk.resize(20 * GIB).cause is Cause.AS_REQUESTED
        assert disk.resize(19 * GIB, shrink=True).cause is Cause.ROUNDED_UP
        assert disk.resize(21 * GIB, fit=True).cause is Cause.FITTED
        assert grow(disk, REMAINING).after.cause is Cause.FITTED
    requests = written.read_bytes()
    sizes = [20 * GIB, 19 * GIB, 21 * GIB, 2**64 - 1]
    flags = [0, 1 << 9, 1 << 10, 1 << 10]
    expected = b"".join(
        b"NBDRESZQ" + size.to_bytes(8) + flag.to_bytes(2) + bytes(46) for size, flag in zip(sizes, flags, strict=True)
    )
    assert requests == expected


def test_a_server_that_dies_while_resizing_is_told_apart_from_a_refusal(tmp_path: Path) -> None:
    with (
        opened(ScriptedServer(tmp_path, write="kill -9 $PPID")) as disk,
        pytest.raises(PeerFailed, match="was lost"),
    ):
        grow(disk, SizeRequest(exact=30 * GIB))


def test_a_server_that_dies_between_commands_is_noticed(tmp_path: Path) -> None:
    with ScriptedServer(tmp_path) as server, connect_resizable(server.uri, LONG) as disk:
        disk.query()
        server.__exit__(None, None, None)
        with pytest.raises(PeerFailed):
            disk.query()


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
        opened(ScriptedServer(tmp_path, content=content)) as disk,
        pytest.raises(PeerFailed, match="size record"),
    ):
        disk.query()


def test_an_export_that_is_too_small_is_no_control_export(tmp_path: Path) -> None:
    with (
        ScriptedServer(tmp_path, size=512) as server,
        pytest.raises(PeerFailed, match="no size export"),
        connect_resizable(server.uri, LONG),
    ):
        pass


def test_an_export_of_large_blocks_is_no_control_export(tmp_path: Path) -> None:
    blocks = ("block_size=echo 512 512 65536",)
    with (
        ScriptedServer(tmp_path, settings=blocks) as server,
        pytest.raises(PeerFailed, match="no size export"),
        connect_resizable(server.uri, LONG),
    ):
        pass


def test_a_read_that_fails_is_told(tmp_path: Path) -> None:
    with (
        opened(ScriptedServer(tmp_path, read="echo 'EIO no' >&2; exit 1")) as disk,
        pytest.raises(VolumeFailed, match="refused to tell the size of web1/disk0"),
    ):
        disk.query()


def test_an_unknown_export_is_not_found(tmp_path: Path) -> None:
    with (
        ScriptedServer(tmp_path, settings=("open=echo 'ENOENT no' >&2; exit 1",)) as server,
        pytest.raises(ResourceNotFound),
        connect_resizable(server.uri, LONG),
    ):
        pass


def test_a_server_that_answers_a_read_too_late_is_given_up(tmp_path: Path) -> None:
    server = ScriptedServer(tmp_path, options=("--filter=delay",), settings=("rdelay=3600",))
    with server, Connection(server.uri, LONG, choose=where_it_can_be_resized) as connection:
        disk = SizeExport(connection)
        connection.timeout = SHORT
        with pytest.raises(PeerFailed, match=f"did not answer within {SHORT:g} s"):
            disk.query()


def test_a_server_whose_waiting_reads_wait_for_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would keep this client, and itself, as busy as they can be."""
    monkeypatch.setattr(rate, "MOST_A_SECOND", 5)  # which a slow machine reaches too

    def answer(request: raw.Request) -> bytes:
        return raw.data(request.cookie, request.offset, RECORD.pack())

    script = raw.Honest(lambda peer: peer.requests(answer), infos=(raw.export_info(4096, raw.HAS_FLAGS),))
    with (
        raw.RawServer(tmp_path, script) as server,
        connect_resizable(server.uri, LONG) as disk,
        pytest.raises(PeerFailed, match="changes in a second"),
    ):
        list(disk.watch())
