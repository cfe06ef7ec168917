"""`size` and `grow` over NBD, against our own server on either front."""

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import SECONDS, Command
from tests.client.conftest import qemu_nbd, stock_nbdkit
from tests.client.raw_server import Peer, RawServer
from tests.client.scripted_server import RECORD, ScriptedServer
from tests.peers import Serve, next_line

pytestmark = pytest.mark.slow

GIB = 2**30
RECORD_KEYS = ["uri", "export", "size", "generation", "minimum", "maximum", "granularity", "features"]


@pytest.fixture(params=["native", "nbdkit"])
def server(request: pytest.FixtureRequest, web1: Command, tmp_path: Path) -> Iterator[Serve]:
    with Serve("--front", request.param, directory=tmp_path, root=web1.root, tcp=True) as serve:
        yield serve


def test_the_size_of_a_disk(web1: Command, server: Serve) -> None:
    uri = server.uri("web1/disk0")
    answer = web1("size", uri, "--json").ok().json
    assert list(answer) == RECORD_KEYS
    assert (answer["uri"], answer["export"]) == (uri, "web1/disk0")
    assert (answer["size"], answer["generation"], answer["maximum"]) == (20 * GIB, 1, 95 * GIB)
    assert answer["granularity"] == 4096
    assert "notify" in answer["features"]

    lines = [line.split(None, 1) for line in web1("size", uri).ok().out.splitlines()]
    assert ["size", "20 GiB"] in lines
    assert ["maximum", "95 GiB"] in lines
    exact = web1("size", uri, "--bytes").ok().out
    assert str(95 * GIB) in exact
    assert web1("size", server.uri("web1/disk0@size"), "--json").ok().json["size"] == 20 * GIB
    by_tcp = server.uri("web1/disk0", number=1)
    assert by_tcp.startswith("nbd://")
    assert web1("size", by_tcp, "--json").ok().json == {**answer, "uri": by_tcp}


def test_a_disk_is_grown_by_every_kind_of_size(web1: Command, server: Serve) -> None:
    uri = server.uri("web1/disk0")
    assert web1("grow", uri, "30G").ok().out == "web1/disk0: 20 GiB → 30 GiB\n"
    grown = web1("grow", uri, "+1G", "--json").ok().json
    assert list(grown) == [*RECORD_KEYS, "old_size", "cause"]
    assert (grown["old_size"], grown["size"], grown["cause"]) == (30 * GIB, 31 * GIB, "as_requested")
    assert grown["generation"] == 3
    rounded = web1("grow", uri, str(31 * GIB + 1), "--json").ok().json
    assert (rounded["size"], rounded["cause"]) == (31 * GIB + 4096, "rounded_up")
    assert web1("grow", uri, "31G").failed(3, "InvalidArgument")
    assert web1("grow", uri, str(31 * GIB + 4096)).ok().out.endswith(" already\n")

    line = web1("grow", uri, "+500G").failed(4, "InsufficientSpace")
    assert "95 GiB at most" in line
    fitted = web1("grow", uri, "+500G", "--fit").ok().out
    assert fitted.endswith("→ 95 GiB, as far as the budget reaches\n")
    assert web1("grow", uri, "remaining").ok().out == "web1/disk0: 95 GiB already\n"
    assert web1("disk", "list", "web1", "--json").ok().json["free_space"] == 0


def test_all_that_remains(web1: Command, server: Serve) -> None:
    grown = web1("grow", server.uri("web1/disk1"), "remaining", "--json").ok().json
    assert (grown["old_size"], grown["size"], grown["cause"]) == (5 * GIB, 80 * GIB, "fitted")


def test_a_disk_that_is_not_there(web1: Command, server: Serve) -> None:
    for export in ("web1/disk7", "web2/disk0", "../web1", "", "x" * 300):
        web1("size", server.uri(export)).failed(5, "ResourceNotFound")
        web1("grow", server.uri(export), "30G").failed(5, "ResourceNotFound")


@pytest.mark.parametrize("front", ["native", "nbdkit"])
def test_a_server_that_lets_no_client_resize(web1: Command, tmp_path: Path, front: str) -> None:
    with Serve("--client-resize", "off", directory=tmp_path, root=web1.root, front=front) as serve:
        line = web1("grow", serve.uri("web1/disk0"), "30G").failed(8, "NotAuthorized")
        assert "--client-resize" in line
        assert web1("size", serve.uri("web1/disk0"), "--json").ok().json["size"] == 20 * GIB


@pytest.mark.parametrize("front", ["native", "nbdkit"])
def test_a_single_file(nbdresize: Command, tmp_path: Path, front: str) -> None:
    image = tmp_path / "disk.img"
    image.touch()
    with image.open("r+b") as file:
        file.truncate(GIB)
    with Serve("--file", image, "--max-size", "2G", directory=tmp_path, front=front) as serve:
        assert nbdresize("size", serve.uri(), "--json").ok().json["maximum"] == 2 * GIB
        nbdresize("grow", serve.uri(), "1.5G").ok()
        assert image.stat().st_size == GIB * 3 // 2
        nbdresize("grow", serve.uri(), "3G").failed(4, "InsufficientSpace")


def test_watching_prints_each_change_as_it_happens_until_ctrl_c(web1: Command, server: Serve) -> None:
    uri = server.uri("web1/disk0")
    watching = web1.start("size", uri, "--watch", "--json")
    plain = web1.start("size", uri, "--watch")
    try:
        first = json.loads(next_line(watching))
        assert list(first) == RECORD_KEYS
        assert next_line(plain) == "web1/disk0: 20 GiB (generation 1)\n"
        for size, generation in ((21, 2), (22, 3), (23, 4)):
            web1("disk", "resize", "web1", "disk0", f"{size}G").ok()
            assert json.loads(next_line(watching)) == {
                **first,
                "size": size * GIB,
                "generation": generation,
                "minimum": size * GIB,
            }
            line = next_line(plain)
            assert line == f"web1/disk0: {size - 1} GiB → {size} GiB (generation {generation})\n"
        for process in (watching, plain):
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=SECONDS)
            assert (process.returncode, out, err) == (130, b"", b"")
    finally:
        ended(watching)
        ended(plain)


def test_watching_ends_with_the_server(web1: Command, tmp_path: Path) -> None:
    with ScriptedServer(tmp_path) as server:
        watching = web1.start("size", server.uri, "--watch")
        try:
            assert next_line(watching)
            server.__exit__(None, None, None)
            _, err = watching.communicate(timeout=SECONDS)
            assert watching.returncode == 14
            assert err.startswith(b"nbdresize: PeerFailed: ")
            assert err.count(b"\n") == 1
        finally:
            ended(watching)


def test_a_server_that_is_none_of_ours(nbdresize: Command, tmp_path: Path) -> None:
    with ScriptedServer(tmp_path, content=bytes(4096)) as server:
        assert "no size record" in nbdresize("size", server.uri).failed(14, "PeerFailed")
        assert "no size record" in nbdresize("grow", server.uri, "30G").failed(14, "PeerFailed")


def test_a_silent_server_is_given_up_after_the_time_limit(nbdresize: Command, tmp_path: Path) -> None:
    with ScriptedServer(tmp_path, options=("--filter=delay",), settings=("rdelay=3600",)) as server:
        for words in (("size",), ("size", "--watch"), ("grow", "30G")):
            line = nbdresize(words[0], server.uri, *words[1:], "--timeout", "0.5").failed(14, "PeerFailed")
            assert "--timeout" in line


def test_a_record_is_shown_as_it_came(nbdresize: Command, tmp_path: Path) -> None:
    with ScriptedServer(tmp_path) as server:
        answer = nbdresize("size", server.uri, "--json").ok().json
    assert answer["maximum"] == RECORD.maximum
    assert answer["features"] == ["notify"]


def test_by_command_the_features_are_those_of_the_command(web1: Command, tmp_path: Path) -> None:
    with Serve("--client-resize", "all", directory=tmp_path, root=web1.root, front="native") as serve:
        answer = web1("size", serve.uri("web1/disk0"), "--json").ok().json
        assert answer["features"] == ["size_replies", "notify", "shrink", "extend"]
        assert answer["minimum"] < 20 * GIB
        by_size_export = web1("size", serve.uri("web1/disk0@size"), "--json").ok().json
        assert by_size_export["features"] == ["notify", "shrink"]
        same = {key for key in RECORD_KEYS if answer[key] == by_size_export[key]}
        assert same == set(RECORD_KEYS) - {"uri", "features"}


def test_watching_by_command_holds_the_disk_and_by_its_size_export_does_not(web1: Command, tmp_path: Path) -> None:
    with Serve(directory=tmp_path, root=web1.root, front="native") as serve:
        for export, attached in (("web1/disk0@size", False), ("web1/disk0", True)):
            watching = web1.start("size", serve.uri(export), "--watch")
            try:
                assert next_line(watching)
                smaller = "10G" if attached else "15G"
                shrunk = web1("disk", "resize", "web1", "disk0", smaller, "--dangerous-allow-shrink")
                if attached:
                    shrunk.failed(6, "ResourceInUse")
                else:
                    shrunk.ok()
            finally:
                ended(watching)


def test_the_end_of_the_server_ends_watching_by_command(web1: Command, tmp_path: Path) -> None:
    with Serve(directory=tmp_path, root=web1.root, front="native") as serve:
        watching = web1.start("size", serve.uri("web1/disk0"), "--watch")
        try:
            assert next_line(watching)
            assert serve.end() == 0
            _, err = watching.communicate(timeout=SECONDS)
            assert watching.returncode == 14
            assert err.startswith(b"nbdresize: PeerFailed: ")
            assert err.count(b"\n") == 1
        finally:
            ended(watching)


def test_ctrl_c_while_a_server_is_silent(nbdresize: Command, tmp_path: Path) -> None:
    reached = threading.Event()

    def script(peer: Peer) -> None:
        reached.set()
        peer.receive(1)

    with RawServer(tmp_path, script) as server:
        for words in (("size",), ("size", "--watch"), ("grow", "30G")):
            reached.clear()
            process = nbdresize.start(words[0], server.uri, *words[1:], "--timeout", "3600")
            try:
                assert reached.wait(SECONDS)
                process.send_signal(signal.SIGINT)
                assert process.communicate(timeout=SECONDS) == (b"", b"")
                assert process.returncode == 130
            finally:
                ended(process)


def test_stock_servers_are_told_apart_from_ours(nbdresize: Command, tmp_path: Path) -> None:
    for make in (stock_nbdkit, qemu_nbd):
        with make(tmp_path) as server:
            for words in (("size",), ("size", "--watch"), ("grow", "30G")):
                line = nbdresize(words[0], server.uri("disk"), *words[1:]).failed(14, "PeerFailed")
                assert "nbdinfo --size" in line


def test_pre_shared_keys_are_refused_with_the_way_out(nbdresize: Command, tmp_path: Path) -> None:
    uri = f"nbds+unix://alice@/web1/disk0?socket={tmp_path}/nbd.sock&tls-psk-file=keys.psk"
    for words in (("size", uri), ("grow", uri, "30G")):
        assert "tls-certificates=DIR" in nbdresize(*words).failed(3, "InvalidArgument")


def test_no_command_needs_libnbd(web1: Command, tmp_path: Path) -> None:
    """Whose module comes with the distribution's Python only."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "nbd.py").write_text("raise ImportError('there is no libnbd here')\n")
    with Serve(directory=tmp_path, root=web1.root, front="native") as serve:
        uri = serve.uri("web1/disk0")
        assert web1("grow", uri, "+1G", PYTHONPATH=str(hidden)).ok().out == "web1/disk0: 20 GiB → 21 GiB\n"
        assert web1("size", uri, "--json", PYTHONPATH=str(hidden)).ok().json["size"] == 21 * GIB


def ended(process: "subprocess.Popen[bytes]") -> None:
    """End a process that a failed test has left."""
    if process.poll() is None:
        process.kill()
    process.communicate()
