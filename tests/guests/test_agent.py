"""Sessions with guest agents of all kinds: a socket that says what a test tells it to."""

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nbdresize.errors import InvalidArgument, PeerFailed, ResourceNotFound
from nbdresize.guests.agent import Agent, NotAllowed, Place, grow_file_systems
from nbdresize.guests.agent.file_systems import SCRIPT
from nbdresize.guests.agent.session import LONGEST_REPLY, Refused

MIB = 1 << 20
SHORT, LONG = 0.3, 10.0
DISABLED = {"error": {"class": "CommandNotFound", "desc": "Command guest-exec has been disabled"}}

Reply = bytes | Mapping[str, Any]
Answers = Callable[[str, Mapping[str, Any]], Reply]


class FakeAgent:
    """Answers `guest-sync-delimited` as an agent does, after `stale`; all else with what `answers` returns."""

    def __init__(self, path: Path, answers: Answers, stale: bytes = b"") -> None:
        self.path = path
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self._answers = answers
        self._stale = stale
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(LONG)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                try:
                    for line in lines:
                        connection.sendall(self._reply(json.loads(line.replace(b"\xff", b""))))
                except OSError:
                    pass  # who asks has had enough

    def _reply(self, message: Mapping[str, Any]) -> bytes:
        command, arguments = message["execute"], message.get("arguments", {})
        if command == "guest-sync-delimited":
            return self._stale + b"\xff" + json.dumps({"return": arguments["id"]}).encode() + b"\n"
        self.asked.append((command, arguments))
        reply = self._answers(command, arguments)
        return reply if isinstance(reply, bytes) else json.dumps(reply).encode() + b"\n"


@contextmanager
def fake_agent(directory: Path, answers: Answers | Reply = b"", stale: bytes = b"") -> Iterator[FakeAgent]:
    agent = FakeAgent(
        directory / "agent.sock", answers if callable(answers) else lambda command, arguments: answers, stale
    )
    try:
        yield agent
    finally:
        agent.close()


@contextmanager
def session(directory: Path, answers: Answers | Reply = b"", stale: bytes = b"") -> Iterator[Agent]:
    with fake_agent(directory, answers, stale) as fake, Agent.connect(fake.path, LONG) as agent:
        yield agent


def ended(code: int = 0, output: str = "", errors: str = "") -> dict[str, Any]:
    encoded = {"out-data": output, "err-data": errors}
    return {"exited": True, "exitcode": code} | {
        key: base64.b64encode(text.encode()).decode() for key, text in encoded.items()
    }


def running_script(*states: Mapping[str, Any]) -> Answers:
    """An agent that starts what it is told to, and says these states of it one after the other."""
    left = list(states)

    def answers(command: str, arguments: Mapping[str, Any]) -> Reply:
        if command == "guest-exec":
            return {"return": {"pid": 7}}
        assert (command, arguments) == ("guest-exec-status", {"pid": 7})
        return {"return": left.pop(0) if len(left) > 1 else left[0]}

    return answers


# Connecting


@pytest.mark.parametrize(
    "stale",
    [
        b"",
        b'{"return": {}}\n{"return": 5}\n',
        b'\xff{"return": 12345}\n',
        b'\xff{"return": {"pid"',
        b"\xff\xff\xff",
        b"\x00\x80\xfe" * 1000,
        b"[" * 100_000 + b"\n",
        b"\xff" + b"[" * 100_000 + b"\n",
        b"x" * (LONGEST_REPLY // 2),
    ],
    ids=lambda stale: f"{len(stale)} bytes",
)
def test_what_was_left_of_another_session_is_read_over(tmp_path: Path, stale: bytes) -> None:
    with session(tmp_path, {"return": {"one": 1}}, stale) as agent:
        assert agent.execute("guest-info") == {"one": 1}


def test_endless_leftovers_have_an_end(tmp_path: Path) -> None:
    with (
        fake_agent(tmp_path, stale=b"x" * (2 * LONGEST_REPLY)) as fake,
        pytest.raises(PeerFailed, match="no guest agent, or one that is out of order"),
    ):
        Agent.connect(fake.path, LONG)


def test_a_socket_where_nobody_answers_is_told_in_time(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        start = time.monotonic()
        for _ in range(3):  # the queue is full by the last
            with pytest.raises(PeerFailed, match="guest agent"):
                Agent.connect(path, SHORT)
        assert time.monotonic() - start < 10 * SHORT
    with pytest.raises(PeerFailed, match="nobody listens"):
        Agent.connect(path, SHORT)


def test_what_is_no_socket_is_told(tmp_path: Path) -> None:
    with pytest.raises(ResourceNotFound, match="There is no guest agent at"):
        Agent.connect(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match="is not a socket"):
        Agent.connect(tmp_path / "file")


# Commands


@pytest.mark.parametrize(
    "reply",
    [
        b"\n",
        b"\x00\xfe\x80garbage\n",
        b"[1, 2]\n",
        b"{}\n",
        b'{"error": 5}\n',
        b"[" * 100_000 + b"\n",
        b'{"return": \n',
    ],
    ids=lambda reply: repr(reply[:12]),
)
def test_a_reply_that_is_none_ends_the_session(tmp_path: Path, reply: bytes) -> None:
    with session(tmp_path, reply) as agent:
        with pytest.raises(PeerFailed, match="answered guest-info with what is no answer"):
            agent.execute("guest-info", timeout=LONG)
        with pytest.raises(PeerFailed, match="is gone"):
            agent.execute("guest-info")


def test_a_reply_without_end_has_one(tmp_path: Path) -> None:
    with session(tmp_path, b"x" * (LONGEST_REPLY + MIB)) as agent, pytest.raises(PeerFailed, match="is longer than"):
        agent.execute("guest-info", timeout=LONG)


def test_an_agent_that_dawdles_is_given_up(tmp_path: Path) -> None:
    with session(tmp_path) as agent:
        start = time.monotonic()
        with pytest.raises(PeerFailed, match=r"did not answer guest-info within 0\.3 s"):
            agent.execute("guest-info", timeout=SHORT)
        assert time.monotonic() - start < 10 * SHORT
        with pytest.raises(PeerFailed):  # a late reply is never taken for that of another command
            agent.execute("guest-info")


def test_errors_of_the_agent_leave_the_session_as_it_is(tmp_path: Path) -> None:
    replies: list[Reply] = [
        DISABLED,
        {"error": {"class": "GenericError", "desc": "no\x1b[2J such\nthing"}},
        {"return": 1},
    ]
    with session(tmp_path, lambda command, arguments: replies.pop(0)) as agent:
        with pytest.raises(NotAllowed, match="does not allow guest-exec"):
            agent.execute("guest-exec")
        with pytest.raises(Refused) as refused:
            agent.execute("guest-exec")
        assert refused.value.problem.isprintable()
        assert agent.execute("guest-ping") == 1


def test_a_program_that_goes_on_is_told(tmp_path: Path) -> None:
    with session(tmp_path, running_script({"exited": False})) as agent, pytest.raises(PeerFailed, match="goes on"):
        agent.run("/bin/sh", [], b"", SHORT)


@pytest.mark.parametrize(
    "told", [{}, {"exited": 1}, {"exited": True, "out-data": 5}, {"exited": True, "out-data": "!"}], ids=str
)
def test_lies_about_a_program_are_found(tmp_path: Path, told: Mapping[str, Any]) -> None:
    with session(tmp_path, running_script(told)) as agent, pytest.raises(PeerFailed, match="no answer"):
        agent.run("/bin/sh", [], b"", LONG)


# Growing


def test_the_script_is_sent_with_the_place_of_the_disk(tmp_path: Path) -> None:
    lines = "disk /dev/sda 42949672960\ngrown /dev/sda1 partition 1 42949672960\ngrown /dev/sda1 ext4 1 42949672960\n"
    states = ({"exited": False}, {"exited": False}, ended(0, lines))
    with fake_agent(tmp_path, running_script(*states)) as fake, Agent.connect(fake.path) as agent:
        grown = grow_file_systems(agent, Place("0000:00:04.0", (1, 2), "abc"), 40 << 30, LONG)
    assert grown.grown == ("/dev/sda1 ext4 40 GiB",)
    assert (grown.changed, grown.error) == (True, None)
    _, started = fake.asked[0]
    wanted = "-s -- --pci 0000:00:04.0 --unit 1:2 --serial abc --size 42949672960"
    assert (started["path"], started["arg"]) == ("/bin/sh", wanted.split())
    assert base64.b64decode(started["input-data"]) == SCRIPT.read_bytes()


def test_what_was_large_enough_is_no_change(tmp_path: Path) -> None:
    with session(tmp_path, running_script(ended(0, "disk /dev/vda 1\nfull /dev/vda xfs 1073741824\n"))) as agent:
        grown = grow_file_systems(agent, Place("0000:00:04.0"), 1 << 30)
    assert (grown.grown, grown.changed, grown.error) == (("/dev/vda xfs 1 GiB",), False, None)


def test_what_is_left_says_why(tmp_path: Path) -> None:
    lines = "disk /dev/vda 1\ngrown /dev/vda2 partition 1 2\nleft /dev/vda2 is swap\n"
    with session(tmp_path, running_script(ended(3, lines))) as agent:
        grown = grow_file_systems(agent, Place("0000:00:04.0"), 1 << 30)
    assert grown.error is not None
    assert "/dev/vda2: is swap" in grown.error.problem


@pytest.mark.parametrize(
    "state",
    [
        ended(127, "", "sh: not found"),
        ended(0, "hello\n"),
        ended(0, "\x1b[2J\x00 \x07"),
        ended(1, ""),
        {"exited": True, "signal": 9},
        ended(0, "\n" * 100_000),
        ended(3, "left /dev/vda " + "x" * MIB + "\n"),
        ended(3, "left /dev/vda x\n" * 100_000),
    ],
    ids=["no shell", "hello", "controls", "silent", "killed", "lines", "a long line", "many lines"],
)
def test_whatever_a_guest_says_is_pending_and_short(tmp_path: Path, state: Mapping[str, Any]) -> None:
    with session(tmp_path, running_script(state)) as agent:
        grown = grow_file_systems(agent, Place("0000:00:04.0"), 1 << 30, LONG)
    assert grown.error is not None
    assert grown.error.problem.isprintable()
    assert len(grown.error.problem) < 4000


@pytest.mark.parametrize("size", ["nonsense", "-5", "9" * 100, "", "1e9"])
def test_sizes_that_are_none_are_not_shown(tmp_path: Path, size: str) -> None:
    with session(tmp_path, running_script(ended(0, f"grown /dev/vda ext4 1 {size}\n"))) as agent:
        assert grow_file_systems(agent, Place("0000:00:04.0"), 1 << 30).grown in ((), ("/dev/vda ext4 1 byte",))


# By hand

PCI = {"domain": 0, "bus": 0, "slot": 4, "function": 0}


def restricted(disks: object, file_systems: object, system: object = None) -> Answers:
    """An agent that runs nothing, and tells of these."""
    told = {"guest-get-disks": disks, "guest-get-fsinfo": file_systems, "guest-get-osinfo": system or {"id": "debian"}}

    def answers(command: str, arguments: Mapping[str, Any]) -> Reply:
        return DISABLED if told.get(command) is None else {"return": told[command]}

    return answers


def a_disk(name: str, **address: object) -> dict[str, Any]:
    return {"name": name, "partition": False, "address": {"pci-controller": PCI, "target": 0, "unit": 0, **address}}


def a_file_system(name: str, kind: str, point: str) -> dict[str, Any]:
    return {"name": name, "type": kind, "mountpoint": point, "disk": [{"dev": f"/dev/{name}"}]}


@pytest.mark.parametrize(
    ("disk", "file_system", "commands"),
    [
        ("/dev/vda", a_file_system("vda", "ext4", "/srv"), "resize2fs /dev/vda"),
        ("/dev/vda", a_file_system("vda1", "xfs", "/a b"), "growpart /dev/vda 1 && xfs_growfs '/a b'"),
        ("/dev/sda", a_file_system("sda12", "btrfs", "/"), "growpart /dev/sda 12 && btrfs filesystem resize max /"),
        (
            "/dev/nvme0n1",
            a_file_system("nvme0n1p2", "ext4", "/"),
            "growpart /dev/nvme0n1 2 && resize2fs /dev/nvme0n1p2",
        ),
        ("/dev/vda", a_file_system("vdaa1", "ext4", "/"), "nbdresize-grow /dev/vda"),
        ("/dev/vda", a_file_system("vda1", "zfs", "/"), "nbdresize-grow /dev/vda"),
        ("/dev/vda", {"name": 5, "disk": [{"dev": "/dev/vda"}]}, "nbdresize-grow /dev/vda"),
        ("/dev/vda", {"disk": "x"}, "nbdresize-grow /dev/vda"),
        ("/dev/x;reboot", a_file_system("vda1", "xfs", "/"), "nbdresize-grow '/dev/x;reboot'"),
        ("vda\x1b[2J", a_file_system("vda1", "xfs", "/"), "nbdresize-grow DISK"),
    ],
)
def test_commands_for_a_guest_whose_agent_runs_nothing(
    tmp_path: Path, disk: str, file_system: Mapping[str, Any], commands: str
) -> None:
    with session(tmp_path, restricted([a_disk(disk)], [file_system])) as agent:
        error = grow_file_systems(agent, Place("0000:00:04.0"), 1 << 30).error
    assert error is not None
    assert error.problem.startswith("The guest agent does not allow guest-exec")
    assert commands in error.way_out
    assert error.way_out.isprintable()


@pytest.mark.parametrize(
    "disks",
    [None, [], "x", [5], [a_disk("/dev/vda"), a_disk("/dev/vdb")], [a_disk("/dev/vda", **{"pci-controller": {}})]],
    ids=["not allowed", "none", "text", "numbers", "two", "no address"],
)
def test_a_disk_that_the_agent_does_not_tell_is_not_guessed(tmp_path: Path, disks: object) -> None:
    with session(tmp_path, restricted(disks, [a_file_system("vda", "ext4", "/")])) as agent:
        error = grow_file_systems(agent, Place("0000:00:04.0"), 1 << 30).error
    assert error is not None
    assert "nbdresize-grow DISK" in error.way_out


def test_an_agent_that_runs_nothing_and_dawdles_has_no_more_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute, given = Agent.execute, list[float]()

    def timed(agent: Agent, command: str, arguments: Mapping[str, Any] | None = None, timeout: float = 10.0) -> Any:
        given.append(timeout)
        return execute(agent, command, arguments, timeout)

    monkeypatch.setattr(Agent, "execute", timed)
    with session(tmp_path, lambda command, arguments: DISABLED if command == "guest-exec" else b"") as agent:
        error = grow_file_systems(agent, Place("0000:00:04.0"), 1 << 30, SHORT).error
    assert error is not None
    assert "nbdresize-grow DISK" in error.way_out
    assert len(given) > 1
    assert given == sorted(given, reverse=True)
    assert given[0] <= SHORT


def test_windows_has_its_own_script(tmp_path: Path) -> None:
    with session(tmp_path, restricted([], [], {"id": "mswindows"})) as agent:
        error = grow_file_systems(agent, Place("0000:00:04.0"), 1 << 30).error
    assert error is not None
    assert "Grow-Disk.ps1" in error.way_out
