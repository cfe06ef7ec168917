"""Sessions with QEMU's monitor: what is there instead of one, and a QEMU that does not answer."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from nbdresize.errors import InvalidArgument, PeerFailed, ResourceNotFound
from nbdresize.guests.model import DiskNews
from nbdresize.guests.qemu.growing import grow_disk
from nbdresize.guests.qemu.monitor import Monitor, Refused
from tests.guests.machine import Machine
from tests.wait import until

GREETING = {"QMP": {"version": {"qemu": {"major": 5, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with Machine(directory=tmp_path) as machine:
        yield machine


@contextmanager
def listening(path: Path, *pieces: bytes | Callable[[], object], answers: Sequence[object] = ()) -> Iterator[None]:
    """Something that says `pieces` to one client, then answers each of its requests with the next of `answers`.

    Of the pieces, it calls what can be called. Bytes are no answer: they are said before the next.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            client, _ = listener.accept()
            with client, suppress(OSError):  # it may go away without a word
                for piece in pieces:
                    if isinstance(piece, bytes):
                        client.sendall(piece)
                    else:
                        piece()
                for answer in answers:
                    if isinstance(answer, bytes):
                        client.sendall(answer)
                        continue
                    # A request has no end of its line, and the next one comes after the answer.
                    request = json.loads(client.recv(65536) or b"{}")
                    kept = {key: value for key, value in request.items() if key == "id"}
                    client.sendall(json.dumps({"return": answer, **kept}).encode() + b"\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def test_a_command_is_answered_or_refused(machine: Machine) -> None:
    with machine.monitor() as monitor:
        assert monitor.execute("query-status")["status"] == "prelaunch"
        assert monitor.version.count(".") == 2
        assert monitor.pid == machine.pid
        with pytest.raises(Refused, match="refused no-such: The command no-such has not been found"):
            monitor.execute("no-such")
        assert monitor.execute("query-name") == {}


def test_events_before_the_first_answer_are_none(tmp_path: Path) -> None:
    """QEMU takes commands, and tells events, a moment before it has answered that it does."""
    event = b'{"event": "JOB_STATUS_CHANGE", "data": {}, "timestamp": {"seconds": 1, "microseconds": 0}}\n'
    greeting = json.dumps(GREETING).encode() + b"\n"
    with listening(tmp_path / "qmp", greeting, event + event, answers=[{}, event, 7]):
        monitor = Monitor.connect(tmp_path / "qmp")
        with monitor:
            assert monitor.execute("query-status") == 7


def test_sessions_follow_one_another(machine: Machine) -> None:
    for _ in range(5):
        assert machine.execute("query-status")


def test_a_path_with_nothing_and_one_with_a_file(tmp_path: Path) -> None:
    with pytest.raises(ResourceNotFound, match=r"no monitor at .*is QEMU running"):
        Monitor.connect(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match="is not a socket: start QEMU with -qmp"):
        Monitor.connect(tmp_path / "file")
    with pytest.raises(InvalidArgument, match="can't be looked at: Not a directory"):
        Monitor.connect(tmp_path / "file" / "below")


def test_a_socket_that_nobody_listens_on(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    with pytest.raises(PeerFailed, match="No QEMU listens"):
        Monitor.connect(tmp_path / "dead")


@pytest.mark.parametrize(
    "said",
    [
        b"NBDMAGICIHAVEOPT\x00\x03",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"{nonsense}\n",
        b'{"hello": 1}\n',
        b'{"QMP": 7}\n',
        b"[]\n",
    ],
)
def test_what_is_no_monitor_says_so(tmp_path: Path, said: bytes) -> None:
    with listening(tmp_path / "other", said), pytest.raises(InvalidArgument, match="does not speak QMP"):
        Monitor.connect(tmp_path / "other")


def test_what_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    with listening(tmp_path / "silent", answers=[{}]):
        start = time.monotonic()
        with pytest.raises(PeerFailed, match=r"did not answer within 0\.3 s"):
            Monitor.connect(tmp_path / "silent", 0.3)
        assert time.monotonic() - start < 5


def test_a_second_client_is_told_of_the_first(machine: Machine) -> None:
    with machine.monitor() as first:
        with pytest.raises(PeerFailed, match="another client uses it, since QEMU serves one at a time"):
            machine.monitor(0.3)
        assert first.execute("query-status")
    assert machine.execute("query-status")


def test_a_stopped_qemu_is_named(machine: Machine) -> None:
    monitor = machine.monitor()
    os.kill(machine.pid, signal.SIGSTOP)
    try:
        until(lambda: ") T " in Path(f"/proc/{machine.pid}/stat").read_text(), what="QEMU to stop")
        with pytest.raises(PeerFailed, match=rf"stopped by a signal .* query-status .* kill -CONT {machine.pid}"):
            monitor.execute("query-status", timeout=0.3)
        with pytest.raises(PeerFailed, match=r"session .* is over"):
            monitor.execute("query-status")
        with pytest.raises(PeerFailed, match="stopped by a signal and did not answer within"):
            machine.monitor(0.3)
    finally:
        os.kill(machine.pid, signal.SIGCONT)
    assert machine.execute("query-status")


def test_a_qemu_that_ends_ends_the_session(machine: Machine) -> None:
    with machine.monitor() as monitor:
        machine.kill()
        with pytest.raises(PeerFailed, match=r"ended the session .* during query-status"):
            monitor.execute("query-status")
    with pytest.raises(PeerFailed, match="No QEMU listens"):
        machine.monitor()


def test_a_session_leaves_no_descriptor(machine: Machine) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    machine.execute("query-status")
    before = descriptors()
    for _ in range(5):
        machine.execute("query-status")
    with machine.monitor(), pytest.raises(PeerFailed):
        machine.monitor(0.1)
    assert descriptors() == before


def test_a_qemu_that_is_too_old_is_named(tmp_path: Path) -> None:
    path = tmp_path / "old.qmp"
    commands = [{"name": "query-commands"}, {"name": "x-blockdev-reopen"}]
    with (
        listening(path, json.dumps(GREETING).encode() + b"\n", answers=[{}, commands]),
        Monitor.connect(path) as monitor,
        pytest.raises(PeerFailed, match=r"QEMU 5\.2\.0 has no blockdev-reopen: use QEMU 6\.1 or later"),
    ):
        grow_disk(monitor, DiskNews("web1", "disk0", "web1/disk0", 1 << 20, 1))


def test_all_of_connecting_has_one_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    run = Monitor._run

    def timed(monitor: Monitor, step: Any, timeout: float) -> Any:
        given.append(timeout)
        return run(monitor, step, timeout)

    monkeypatch.setattr(Monitor, "_run", timed)
    with (
        listening(tmp_path / "slow", lambda: time.sleep(0.3), b"{", answers=[{}]),
        pytest.raises(PeerFailed, match="did not answer"),
    ):
        Monitor.connect(tmp_path / "slow", 0.6)
    greeting, ending = given
    assert greeting <= 0.3
    assert ending < 0.1


def test_a_time_that_is_over_is_not_prolonged_by_the_end(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    run = Monitor._run

    def timed(monitor: Monitor, step: Any, timeout: float) -> Any:
        given.append(timeout)
        return run(monitor, step, timeout)

    with machine.monitor() as monitor:
        monkeypatch.setattr(Monitor, "_run", timed)
        os.kill(machine.pid, signal.SIGSTOP)
        try:
            with pytest.raises(PeerFailed, match="did not answer"):
                monitor.execute("query-status", timeout=0.1)
        finally:
            os.kill(machine.pid, signal.SIGCONT)
    assert given[0] == 0.1
    assert given[1] < 0.1


def test_events_are_not_kept(tmp_path: Path) -> None:
    event = json.dumps({"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 1}}).encode() + b"\n"
    with (
        listening(
            tmp_path / "busy", json.dumps(GREETING).encode() + b"\n", answers=[{}, event * 1000, {"status": "x"}]
        ),
        Monitor.connect(tmp_path / "busy") as monitor,
    ):
        assert monitor.execute("query-status") == {"status": "x"}
        assert monitor._client.events.empty()
