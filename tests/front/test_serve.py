"""`nbdresize serve` from start to end: readiness, signals, crashes, commands run beside it."""

import contextlib
import os
import signal
import socket
import subprocess
from pathlib import Path

import nbd
import pytest

from nbdresize.control.admin_client import ask
from tests.front.conftest import MIB, SIZE, Kind, connect, file_kind, ledger_kind, make_ledger
from tests.peers import PROGRAM, SECONDS, Serve, alive, run
from tests.wait import until

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture
def disk(tmp_path: Path) -> Kind:
    """The quicker kind, where it makes no difference."""
    return file_kind(tmp_path)


def failed(*arguments: str | Path, path: str | None = None) -> tuple[int, str]:
    """Exit code and the line of error of a `serve` that does not start."""
    environment = {**os.environ, "NBDRESIZE_ROOT": "/none/none"} | ({"PATH": path} if path is not None else {})
    done = subprocess.run(
        [PROGRAM, "serve", "--front", "nbdkit", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=environment,
    )
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.splitlines()[-1]


def test_it_prints_one_line_per_uri_and_each_accepts_clients(front: str, disk: Kind, tmp_path: Path) -> None:
    with Serve(*disk.arguments, front=front, directory=tmp_path, tcp=True) as server:
        assert server.uris[0] == f"nbd+unix:///?socket={server.socket}"
        assert server.uris[1].startswith("nbd://localhost:")
        for uri in server.uris:
            assert run("nbdinfo", "--size", uri).strip() == str(SIZE)
        server.end()
        assert server.process.stdout is not None
        assert server.process.stdout.read() == ""


@pytest.mark.slow
def test_the_pid_file_is_there_when_it_is_ready_and_gone_at_the_end(front: str, disk: Kind, tmp_path: Path) -> None:
    with Serve(*disk.arguments, front=front, directory=tmp_path) as server:
        assert int(server.pid_file.read_text()) == server.pid
        assert server.end() == 0
        assert not server.pid_file.exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", ENDING_SIGNALS)
def test_a_signal_ends_it_and_leaves_nothing(front: str, disk: Kind, tmp_path: Path, number: signal.Signals) -> None:
    with Serve(*disk.arguments, "--workers", "2", front=front, directory=tmp_path) as server:
        workers = server.workers()
        assert len(workers) == 2
        assert server.end(number) == 0
        assert not any(alive(worker) for worker in workers)
        assert not server.socket.exists()
        assert server.said() == ""


@pytest.mark.slow
def test_idle_clients_do_not_hold_up_the_end(front: str, kind: Kind, tmp_path: Path) -> None:
    with Serve(*kind.arguments, "--workers", "2", front=front, directory=tmp_path, root=kind.root, tcp=True) as server:
        clients = [connect(server.uri(number=number % 2)) for number in range(8)]
        half_open = [socket.create_connection(("localhost", int(server.uris[1].split(":")[-1][:-1]))) for _ in range(2)]
        waiting = connect(server.uri(kind.export + "@size"))
        waiting.pread(64, 0)
        waiting.aio_pread(nbd.Buffer(64), 1024)
        assert server.end() == 0
        assert "killed" not in server.said()
        for client in clients:
            with pytest.raises(nbd.Error):
                client.pread(512, 0)
        for connection in half_open:
            connection.close()


@pytest.mark.slow
def test_what_was_answered_before_the_end_is_there(front: str, disk: Kind, tmp_path: Path) -> None:
    with Serve(*disk.arguments, front=front, directory=tmp_path) as server:
        client = connect(server.uri())
        buffer = os.urandom(4096)
        written = 0
        server.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(nbd.Error):
            while written < SIZE // 4096:
                client.pwrite(buffer, written * 4096)
                written += 1
        assert server.wait() == 0
    assert disk.volume.read_bytes()[: written * 4096] == buffer * written


def stopped_worker(server: Serve) -> int:
    """A worker that will never end by itself."""
    [worker] = server.workers()
    os.kill(worker, signal.SIGSTOP)
    return worker


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(front: str, disk: Kind, tmp_path: Path) -> None:
    with Serve(*disk.arguments, front=front, directory=tmp_path) as server:
        worker = stopped_worker(server)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: not server.socket.exists(), what="the end to begin")
        assert server.end() == 0
        assert not alive(worker)
        assert server.said() == "", "what the first signal would have led to has not happened"


@pytest.mark.slow
def test_a_worker_that_does_not_end_is_killed_after_ten_seconds(front: str, disk: Kind, tmp_path: Path) -> None:
    with Serve(*disk.arguments, front=front, directory=tmp_path) as server:
        worker = stopped_worker(server)
        assert server.end() == 0
        assert not alive(worker)
        assert server.said() == "nbdresize: what had not ended within 10 s was killed\n"


@pytest.mark.slow
def test_a_killed_worker_is_replaced_on_the_same_sockets(front: str, disk: Kind, tmp_path: Path) -> None:
    with Serve(*disk.arguments, front=front, directory=tmp_path, tcp=True) as server:
        for _ in range(3):
            [worker] = server.workers()
            os.kill(worker, signal.SIGKILL)
            for uri in server.uris:  # clients that come meanwhile wait; none is refused
                assert run("nbdinfo", "--size", uri).strip() == str(SIZE)
        assert "was ended by SIGKILL" in server.said()


@pytest.mark.slow
def test_no_worker_outlives_a_killed_supervisor(front: str, disk: Kind, tmp_path: Path) -> None:
    own = {"TMPDIR": str(tmp_path)}  # what a killed server can't remove
    with Serve(*disk.arguments, "--workers", "8", front=front, directory=tmp_path, environment=own) as server:
        client = connect(server.uri())
        workers = server.workers()
        server.end(signal.SIGKILL)
        until(lambda: not any(alive(worker) for worker in workers), what="the workers to end")
        with pytest.raises(nbd.Error):
            client.pread(512, 0)


@pytest.mark.slow
def test_a_socket_that_a_killed_server_left_is_replaced(front: str, disk: Kind, tmp_path: Path) -> None:
    with Serve(*disk.arguments, front=front, directory=tmp_path, environment={"TMPDIR": str(tmp_path)}) as server:
        server.die()
        assert server.socket.exists()
    with Serve(*disk.arguments, front=front, directory=tmp_path) as server:
        assert run("nbdinfo", "--size", server.uri()).strip() == str(SIZE)


@pytest.mark.slow
def test_a_socket_that_somebody_listens_on_is_not(front: str, disk: Kind, tmp_path: Path) -> None:
    with Serve(*disk.arguments, front=front, directory=tmp_path) as server:
        code, line = failed("--file", disk.volume, "--socket", server.socket)
        assert (code, line.split(":")[1]) == (6, " ResourceInUse")
        assert run("nbdinfo", "--size", server.uri()).strip() == str(SIZE)


@pytest.mark.slow
def test_run_gets_the_uri_and_gives_its_exit_code(front: str, disk: Kind, tmp_path: Path) -> None:
    script = 'test -S "$socket" && nbdinfo --size "$uri" && exit 7'
    with Serve(*disk.arguments, "--run", script, front=front, directory=tmp_path) as server:
        assert server.wait() == 7
        assert server.process.stdout is not None
        assert server.process.stdout.read().strip() == str(SIZE)
        assert not server.socket.exists()


@pytest.mark.slow
def test_a_signal_ends_the_command_that_runs_beside_it(front: str, disk: Kind, tmp_path: Path) -> None:
    with Serve(*disk.arguments, "--run", "exec sleep 1000", front=front, directory=tmp_path) as server:
        assert server.end() == 128 + signal.SIGTERM


@pytest.mark.slow
def test_every_worker_serves_and_answers_for_its_clients(front: str, disk: Kind, tmp_path: Path) -> None:
    run_directory = tmp_path / "state/run"
    kind = ledger_kind(make_ledger(tmp_path, SIZE))
    with Serve("--workers", "3", front=front, directory=tmp_path, root=kind.root) as server:
        clients = [connect(server.uri(kind.export)) for _ in range(24)]
        for number, client in enumerate(clients):
            client.pwrite(bytes([number]) * 512, number * 512)
            assert bytes(client.pread(512, number * 512)) == bytes([number]) * 512
        replies = [ask(path, {"command": "clients"}) for path in run_directory.glob("*.admin")]
        assert sorted(reply["server"]["pid"] for reply in replies) == sorted(server.workers())
        assert sum(len(reply["clients"]) for reply in replies) == len(clients)
        assert replies[0]["server"]["uris"] == server.uris
        for client in clients:
            client.shutdown()
    assert list(run_directory.iterdir()) == []


@pytest.mark.slow
def test_dropping_an_export_ends_its_connections_and_no_other(front: str, tmp_path: Path) -> None:
    root = make_ledger(tmp_path, SIZE, MIB)
    with Serve(front=front, directory=tmp_path, root=root, tcp=True) as server:
        first = [connect(server.uri("web1/disk0", number=number % 2)) for number in range(6)]
        second = [connect(server.uri("web1/disk1", number=number % 2)) for number in range(6)]
        [admin] = (root / "run").glob("*.admin")
        assert ask(admin, {"command": "drop", "exports": ["web1/disk0"]})["dropped"] == 6
        for client in first:
            with pytest.raises(nbd.Error):
                client.pread(512, 0)
        for client in second:
            client.pread(512, 0)
            client.shutdown()


@pytest.mark.slow
def test_a_read_only_server_lets_nobody_write(front: str, kind: Kind, tmp_path: Path) -> None:
    with Serve(*kind.arguments, "--read-only", front=front, directory=tmp_path, root=kind.root) as server:
        client = connect(server.uri(kind.export))
        assert client.is_read_only()
        client.set_strict_mode(0)
        with pytest.raises(nbd.Error):
            client.pwrite(b"x", 0)
        client.shutdown()


@pytest.mark.slow
def test_nbdkit_not_installed_names_its_package(disk: Kind, tmp_path: Path) -> None:
    code, line = failed("--file", disk.volume, "--socket", tmp_path / "s", path=str(tmp_path))
    assert code == 12
    assert line == "nbdresize: ProgramMissing: nbdkit is not installed: apt-get install nbdkit nbdkit-plugin-python"


@pytest.mark.slow
def test_a_worker_that_can_not_start_gives_up_with_what_it_said(disk: Kind, tmp_path: Path) -> None:
    code, line = failed("--file", disk.volume, "--socket", tmp_path / "s", "--nbdkit-argument=--filter=nonesuch")
    assert code == 13
    assert "nonesuch" in line
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--socket", "/" + "x" * 200), 3),
        (("--socket", "/none/such/directory/s"), 11),
        (("--tcp", "localhost:99999"), 3),
        (("--tcp", "no such host:1"), 3),
        (("--tcp", "192.0.2.1:0"), 3),
        (("--workers", "0"), 3),
        (("--tls", "/none"), 3),
        (("--tls-psk", "/none"), 3),
        (("--max-size", "9999P"), 3),
        (("--front", "other"), 2),
        (("--client-resize", "some"), 2),
    ],
)
def test_wrong_arguments_are_one_line(disk: Kind, arguments: tuple[str, ...], code: int) -> None:
    found, line = failed("--file", disk.volume, *arguments)
    assert found == code
    assert line.startswith("nbdresize: ")


@pytest.mark.slow
def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    code, line = failed("--file", tmp_path / "none.img", "--socket", tmp_path / "s")
    assert code == 10
    assert "none.img" in line


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "3"])
def test_ended_at_any_moment_of_its_start(front: str, disk: Kind, tmp_path: Path, workers: str) -> None:
    """A signal after each of many delays, most of them before it is ready: it always ends, and leaves nothing."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {"TMPDIR": str(temporary)}
    for step in range(16):
        server = Serve(*disk.arguments, "--workers", workers, front=front, directory=tmp_path, environment=environment)
        server.begin()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.wait(step * 0.06)
            assert server.end() in (0, -signal.SIGTERM)
        finally:
            server.kill()
        assert not server.socket.exists()
        assert not server.pid_file.exists()
        assert list(temporary.iterdir()) == []
        assert "killed" not in server.said()


@pytest.mark.slow
def test_clients_of_two_sockets_all_get_served_by_two_workers(front: str, disk: Kind, tmp_path: Path) -> None:
    """A worker that lost the race for a connection waits for the next one on that socket; another serves the rest."""
    with Serve(*disk.arguments, "--workers", "2", front=front, directory=tmp_path, tcp=True) as server:
        for number in range(100):
            client = connect(server.uri(number=number // 10 % 2))
            client.pread(512, 0)
            client.shutdown()
        assert server.end() == 0
        assert "killed" not in server.said()
