"""`nbdresize bench`: what it prints, what it refuses, and how it ends."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdresize.loads import standard
from nbdresize.loads.model import Engine
from tests.cli.command import SECONDS, Command
from tests.cli.terminal import Terminal
from tests.client import raw_server as raw
from tests.client.raw_server import Honest, Peer, RawServer
from tests.peers import Serve, alive, children
from tests.wait import until

pytestmark = pytest.mark.slow

MIB = 1 << 20
SIZE = 4 * MIB
QUICK = ("--seconds", "0.05")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def uri(image: Path, tmp_path: Path) -> Iterator[str]:
    with Serve("--file", image, directory=tmp_path, front="native") as server:
        yield server.uri()


def test_without_more_it_reads_in_all_the_listed_shapes(nbdresize: Command, uri: str, image: Path) -> None:
    before = image.read_bytes()
    listed = nbdresize("bench", "--list").ok().out.splitlines()
    header, *rows = nbdresize("bench", "--uri", uri, *QUICK).ok().out.splitlines()
    assert header.split() == ["load", "requests/s", "throughput", "median", "99", "%", "99.9", "%", "slowest"]
    assert len(rows) == len(listed) == len(standard.loads(Engine.BATCH))
    for row, name in zip(rows, listed, strict=True):
        assert row.startswith(name)
        assert " read, " in row
        assert row.count("s") >= 4
    assert image.read_bytes() == before


def test_json_has_everything(nbdresize: Command, uri: str) -> None:
    answer = nbdresize("bench", "--uri", uri, *QUICK, "--block", "64K", "--depth", "4", "--json").ok().json
    assert (answer["uri"], answer["size"], answer["left_out"]) == (uri, SIZE, [])
    (row,) = answer["loads"]
    assert (row["name"], row["engine"], row["operation"]) == ("64K random read, depth 4", "batch", "read")
    assert (row["block"], row["depth"], row["random"], row["connections"]) == (65536, 4, True, 1)
    assert row["payload"] == row["requests"] * 65536 > 0
    assert row["rate"] == pytest.approx(row["requests"] / row["seconds"])
    assert row["throughput"] == pytest.approx(row["payload"] / row["seconds"])
    assert set(row["latency"]) == {"median", "p99", "p999", "slowest"}
    listed = nbdresize("bench", "--list", "--write", "--json").ok().json
    assert {load["operation"] for load in listed} == {"read", "write", "mixed"}


@pytest.mark.parametrize("engine", ["batch", "fio", "nbdcopy"])
def test_each_engine_with_a_load_of_ones_own(nbdresize: Command, uri: str, engine: str) -> None:
    options = ("--engine", engine, "--block", "64K", "--connections", "2", "--pattern", "sequential", "--json")
    for operation in ("read", "write"):
        answer = nbdresize("bench", "--uri", uri, *QUICK, *options, "--operation", operation, "--write").ok().json
        (row,) = answer["loads"]
        assert (row["engine"], row["operation"], row["connections"], row["random"]) == (engine, operation, 2, False)
        assert row["requests"] > 0


def test_writing_needs_to_be_asked_for(nbdresize: Command, uri: str, image: Path) -> None:
    before = image.read_bytes()
    for operation in ("write", "mixed"):
        line = nbdresize("bench", "--uri", uri, *QUICK, "--operation", operation).failed(2, "UsageError")
        assert "--write" in line
    assert image.read_bytes() == before
    nbdresize("bench", "--uri", uri, *QUICK, "--operation", "write", "--write").ok()
    assert image.read_bytes() != before
    assert "DESTROYS WHAT IS ON THE DISK" in nbdresize("bench", "--help").ok().out


def test_a_verified_run(nbdresize: Command, uri: str, image: Path) -> None:
    before = image.read_bytes()
    out = nbdresize("bench", "--uri", uri, "--verify", "--depth", "4").ok().out
    assert "4K random read, depth 4     4 MiB\nEvery byte was right: 4 MiB\n" in out
    assert image.read_bytes() == before
    answer = nbdresize("bench", "--uri", uri, "--verify", "--operation", "write", "--write", "--json").ok().json
    assert answer["loads"][0]["verified"] == 2 * SIZE
    assert image.read_bytes() != before


def test_a_verified_run_of_tiny_blocks_says_that_it_is_coarse(nbdresize: Command, uri: str) -> None:
    command = ("bench", "--uri", uri, "--verify", "--pattern", "sequential", "--depth", "64", "--block")
    out = nbdresize(*command, "3").ok().out
    assert "Every byte was right: 192 KiB\nSmall blocks: no more than 65536 of a load are verified" in out
    assert "Small blocks" not in nbdresize(*command, "4K").ok().out


def test_a_server_that_loses_writes_is_found(nbdresize: Command, tmp_path: Path) -> None:
    def forgetful(request: raw.Request) -> bytes:
        return raw.simple(request.cookie, data=bytes(request.length) if request.command == raw.READ else b"")

    infos = (raw.export_info(size=MIB),)
    with RawServer(tmp_path, Honest(lambda peer: peer.requests(forgetful), infos=infos, structured=False)) as server:
        command = ("bench", "--uri", server.uri, "--verify", "--operation", "write", "--write")
        assert "should be" in nbdresize(*command).failed(16, "Inconsistent")


def test_a_read_only_disk(nbdresize: Command, image: Path, tmp_path: Path) -> None:
    with Serve("--file", image, "--read-only", directory=tmp_path, front="native") as server:
        line = nbdresize("bench", "--uri", server.uri(), "--write").failed(8, "NotAuthorized")
        assert "leave --write out" in line
        nbdresize("bench", "--uri", server.uri(), *QUICK, "--depth", "4").ok()


def test_loads_that_a_disk_is_too_small_for_are_left_out(nbdresize: Command, tmp_path: Path) -> None:
    image = tmp_path / "small.img"
    image.write_bytes(bytes(100_000))
    with Serve("--file", image, directory=tmp_path, front="native") as server:
        uri = server.uri()
        answer = nbdresize("bench", "--uri", uri, "--verify", "--json").ok().json
        assert {load["block"] for load in answer["loads"]} == {4096, 65536}
        assert answer["left_out"]
        assert all(name.startswith(("256K", "1M")) for name in answer["left_out"])
        assert "left out" in nbdresize("bench", "--uri", uri, "--verify").ok().out
        line = nbdresize("bench", "--uri", uri, "--block", "1M").failed(3, "InvalidArgument")
        assert "less than one block of 1 MiB" in line


@pytest.mark.parametrize(
    ("options", "code", "name"),
    [
        (("--depth", "0"), 3, "InvalidArgument"),
        (("--depth", "-1"), 3, "InvalidArgument"),
        (("--depth", "x"), 2, "UsageError"),
        (("--connections", "0"), 3, "InvalidArgument"),
        (("--block", "0"), 3, "InvalidArgument"),
        (("--block", "1G"), 3, "InvalidArgument"),
        (("--block", "huge"), 3, "InvalidArgument"),
        (("--seconds", "0"), 3, "InvalidArgument"),
        (("--seconds", "nan"), 2, "UsageError"),
        (("--engine", "dd"), 2, "UsageError"),
        (("--pattern", "zigzag"), 2, "UsageError"),
        (("--operation", "trim"), 2, "UsageError"),
        (("--engine", "nbdcopy", "--pattern", "random"), 2, "UsageError"),
        (("--engine", "nbdcopy", "--operation", "mixed", "--write"), 2, "UsageError"),
        (("--engine", "nbdcopy", "--block", "5000"), 3, "InvalidArgument"),
    ],
)
def test_mistakes_are_told_in_one_line(
    nbdresize: Command, uri: str, options: tuple[str, ...], code: int, name: str
) -> None:
    nbdresize("bench", "--uri", uri, *options).failed(code, name)


def test_no_server_no_export_no_uri_and_no_program(nbdresize: Command, uri: str, tmp_path: Path) -> None:
    nbdresize("bench", "--uri", f"nbd+unix:///?socket={tmp_path}/none.sock").failed(14, "PeerFailed")
    nbdresize("bench", "--uri", uri.replace(":///", ":///nothing")).failed(5, "ResourceNotFound")
    nbdresize("bench", "--uri", "http://localhost").failed(3, "InvalidArgument")
    assert "--uri" in nbdresize("bench").failed(2, "UsageError")
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "env").symlink_to("/usr/bin/env")  # what the command itself is started by
    for engine in ("fio", "nbdcopy"):
        line = nbdresize("bench", "--uri", uri, "--engine", engine, PATH=str(programs)).failed(12, "ProgramMissing")
        assert "apt-get install" in line


def silent_after(count: int) -> raw.Script:
    def script(peer: Peer) -> None:
        for _ in range(count):
            request = peer.request()
            peer.send(raw.simple(request.cookie, data=bytes(request.length)))
        while True:
            peer.receive(1)

    return Honest(script, structured=False)


def test_a_server_that_falls_silent_is_given_up(nbdresize: Command, tmp_path: Path) -> None:
    with RawServer(tmp_path, silent_after(5)) as server:
        line = nbdresize("bench", "--uri", server.uri, "--timeout", "0.5", "--depth", "2").failed(14, "PeerFailed")
        assert "--timeout" in line


@pytest.mark.parametrize(
    ("mode", "number"),
    [
        *((mode, signal.SIGINT) for mode in ("batch", "fio", "verify")),
        ("fio", signal.SIGTERM),
        *((mode, signal.SIGKILL) for mode in ("batch", "fio", "nbdcopy")),
    ],
)
def test_a_signal_ends_it_and_all_that_it_started(
    nbdresize: Command, uri: str, tmp_path: Path, mode: str, number: signal.Signals
) -> None:
    options = ["--seconds", "3600", "--depth", "2", "--connections", "2"]
    with RawServer(tmp_path, silent_after(5)) as silent:
        if mode == "verify":
            process = nbdresize.start("bench", "--uri", silent.uri, "--timeout", "3600", "--verify", *options)
        else:
            served = silent.uri if mode == "nbdcopy" else uri
            process = nbdresize.start("bench", "--uri", served, "--timeout", "3600", "--engine", mode, *options)
        try:
            if mode == "verify":
                until(lambda: len(silent._clients) == 4, what="all connections")
                started = []
            else:
                started = until(lambda: children(process.pid), what="the load's process")
                until(lambda: mode != "batch" or len(children(started[0])) == 2, what="both connections")
                started += children(started[0])
            process.send_signal(number)
            assert process.communicate(timeout=SECONDS) == (b"", b"")
            assert process.returncode == (-number if number is signal.SIGKILL else 130)
            until(lambda: not any(map(alive, started)), what="all of its processes to end")
        finally:
            process.kill()
            process.wait()


def test_what_was_measured_before_ctrl_c_is_shown(nbdresize: Command, uri: str) -> None:
    process = nbdresize.start("bench", "--uri", uri, "--seconds", "0.2")
    try:
        first = until(lambda: children(process.pid), what="the first load's process")
        until(lambda: children(process.pid) not in ([], first), what="the second load's process")
        process.send_signal(signal.SIGINT)
        shown, said = process.communicate(timeout=SECONDS)
        assert (process.returncode, said) == (130, b"")
        assert b"4K random read, depth 1" in shown
    finally:
        process.kill()
        process.wait()


def test_a_terminal_shows_which_load_it_is_at(nbdresize: Command, uri: str) -> None:
    terminal = Terminal(nbdresize, "bench", "--uri", uri, "--seconds", "0.4")
    terminal.expect("4K random read, depth 4")
    terminal.expect(" of 20 loads")
    terminal.interrupt()
    assert terminal.end() == 130
