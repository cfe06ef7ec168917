"""Each of the servers that are compared, really running."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bench import peers
from bench.model import Setting, Transport
from bench.peers import SERVERS, Missing, Peer, serving
from bench.places import make_certificates, make_disk
from nbdresize.client import connect
from nbdresize.errors import ServerFailed
from nbdresize.loads.model import Engine, Load, Operation
from nbdresize.loads.running import run as put_on
from tests.wait import until

MIB = 1 << 20
SIZE = 2 * MIB
LOAD = Load(Engine.BATCH, Operation.READ, 4096, 4)
CORE = max(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_disk(tmp_path_factory.mktemp("disk"), SIZE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("p")
    make_certificates(place / "certificates")
    yield place
    assert [path.name for path in place.iterdir()] == ["certificates"]


def affinities(peer: Peer) -> set[int]:
    threads = [thread.id for process in peer.processes() for thread in process.threads()]
    return set().union(*(os.sched_getaffinity(thread) for thread in threads))


@pytest.mark.parametrize(
    "transport",
    [Transport.UNIX, *(pytest.param(each, marks=pytest.mark.slow) for each in (Transport.TCP, Transport.TLS))],
)
@pytest.mark.parametrize("name", SERVERS)
def test_a_server_serves_the_file_on_its_core_and_is_gone_afterwards(
    name: str, transport: Transport, file: Path, place: Path
) -> None:
    with serving(name, file, place, Setting(LOAD, transport=transport), CORE) as peer:
        with connect(peer.uri, 30) as client:
            assert client.size == SIZE
            assert b"".join(client.read(MIB, offset) for offset in range(0, SIZE, MIB)) == file.read_bytes()
            assert affinities(peer) == {CORE}
            processes = peer.processes()
            assert peer.memory() > 100 << 10
        before = peer.processor_seconds()
        until(lambda: put_on(LOAD, peer.uri, 0.1) and peer.processor_seconds() > before, what="processor time")
        assert peer.processor_seconds() - before < 30
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)
    assert not psutil.pid_exists(peer.pid)


@pytest.mark.parametrize("name", SERVERS)
def test_all_serve_one_file_and_what_is_written_is_in_it(name: str, tmp_path: Path) -> None:
    file = make_disk(tmp_path, SIZE)
    with (
        serving("nbdkit file", file, tmp_path, Setting(LOAD), None) as other,
        serving(name, file, tmp_path, Setting(LOAD), None) as peer,
        connect(peer.uri, 30) as client,
        connect(other.uri, 30) as reader,
    ):
        client.write(b"w" * 4096, 8192)
        client.flush()
        assert reader.read(4096, 8192) == b"w" * 4096
    assert file.read_bytes()[8192:12288] == b"w" * 4096


def test_workers_and_connections_are_counted_together(file: Path, tmp_path: Path) -> None:
    setting = Setting(Load(Engine.BATCH, Operation.READ, 4096, 4, connections=2), workers=2)
    with serving("native", file, tmp_path, setting, None) as peer:
        assert len(peer.processes()) == 3
        alone = sum(process.memory_info().rss for process in peer.processes()[1:])
        assert 2 * MIB < peer.memory() < alone


def test_the_time_of_connections_that_have_ended_stays_counted(file: Path, place: Path) -> None:
    """nbd-server has a process for each connection."""
    with serving("nbd-server", file, place, Setting(LOAD), None) as peer:
        seen = peer.processor_seconds()
        for _ in range(3):
            with connect(peer.uri, 30) as client:
                assert len(peer.processes()) >= 2
                for _ in range(20):
                    client.read(MIB, 0)
                during = peer.processor_seconds()
            assert peer.processor_seconds() >= during >= seen
            seen = during


def test_memory_is_the_most_that_was_there(file: Path, place: Path) -> None:
    with serving("nbd-server", file, place, Setting(LOAD), None) as peer:
        with peer.watched():
            put_on(Load(Engine.BATCH, Operation.READ, MIB, 16), peer.uri, 0.3)
        most = peer.memory()
        assert most > sum(peers._anonymous(process.pid) for process in peer.processes())


def test_page_tables_are_memory_of_a_servers_own_and_pages_of_files_are_not(tmp_path: Path) -> None:
    """512 page tables for one page each, of a file; and 16 MiB of the file besides."""
    program = (
        "import mmap, sys\n"
        "print('before', flush=True)\n"
        "sys.stdin.readline()\n"
        "file = open(sys.argv[1], 'rb')\n"
        "mapped = mmap.mmap(file.fileno(), 1 << 30, access=mmap.ACCESS_READ)\n"
        "mapped.madvise(mmap.MADV_RANDOM)\n"
        "sum(mapped[at] for at in range(0, 1 << 30, 2 << 20))\n"
        "sum(mapped[at] for at in range(0, 16 << 20, 4096))\n"
        "print('mapped', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    file = tmp_path / "file"
    with file.open("wb") as opened:
        opened.truncate(1 << 30)
    command = [sys.executable, "-c", program, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        peer = Peer("none", "", process.pid)
        process.stdout.readline()
        before = peer.memory_now()
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline()
        more = peer.memory_now() - before
        process.stdin.close()
    assert 2 * MIB <= more < 4 * MIB


@pytest.mark.parametrize(
    ("name", "package"), [("nbd-server", "nbd-server"), ("qemu-nbd", "qemu-utils"), ("nbdkit file", "nbdkit")]
)
def test_a_missing_program_is_named_with_what_installs_it(
    name: str, package: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Missing, match=rf"scripts/setup --bench, or: apt-get install --no-install-recommends {package}"):
        serving(name, file, tmp_path, Setting(LOAD), None).__enter__()
    assert peers.version(name) is None


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_that_does_not_start_says_why(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_SECONDS", 3.0)
    place = tmp_path / ("long" * 30)  # no path for a socket
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    others = psutil.Process().children(recursive=True)  # servers of other tests that run in this process
    with pytest.raises(ServerFailed, match=name):
        serving(name, make_disk(tmp_path, MIB), place, Setting(LOAD), None).__enter__()
    assert list(place.iterdir()) == []
    left = [process for process in psutil.Process().children(recursive=True) if process not in others]
    assert [process for process in left if "serve" in " ".join(process.cmdline())] == []


def test_a_server_that_has_died_is_told(file: Path, place: Path) -> None:
    with serving("nbdkit file", file, place, Setting(LOAD), None) as peer:
        process = psutil.Process(peer.pid)
        process.kill()
        process.wait(30)
        with pytest.raises(ServerFailed, match="nbdkit file has ended by itself"):
            peer.processor_seconds()


@pytest.mark.parametrize("name", SERVERS)
def test_versions_are_known(name: str) -> None:
    version = peers.version(name)
    assert version is not None
    assert version[0].isdigit()


def test_installing_nbd_server_starts_no_service() -> None:
    """What `scripts/setup` relies on: with the configuration of its package it ends at once."""
    program = shutil.which("nbd-server")
    assert program
    done = subprocess.run([program, "-C", "/etc/nbd-server/config"], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "No configured exports; quitting" in done.stdout + done.stderr
