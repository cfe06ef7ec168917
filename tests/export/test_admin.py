"""The admin socket of a server, asked as operations ask it, and as nobody should."""

import contextlib
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control import admin_client
from nbdresize.control.control import Control
from nbdresize.control.model import ResizeOptions
from nbdresize.errors import ServerFailed, StateUnusable
from nbdresize.export.admin import MOST_AT_ONCE, AdminSocket
from nbdresize.export.admin_commands import AdminCommands, ServerInfo
from nbdresize.export.exports import Client, Export, Exports
from nbdresize.units import SizeRequest
from tests.wait import until

pytestmark = pytest.mark.slow

MIB = 1 << 20
LONG = 60.0
NONSENSE = [
    b"",
    b"hello",
    b"\xff\xfe",
    b"[]",
    b"null",
    b"7",
    b'"sizes"',
    b"{}",
    b'{"command": "format"}',
    b'{"command": ["sizes"]}',
    b'{"command": {}}',
    b'{"command": "sizes"}',
    b'{"command": "drop"}',
    b'{"command": "sizes", "exports": "web1/disk0"}',
    b'{"command": "sizes", "exports": [1]}',
    b'{"command": "sizes", "exports": [["web1/disk0"]]}',
    b'{"command": "drop", "exports": {"web1/disk0": 1}}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"1" * 100_000,
    b"\0" * 1000,
    b'{"command": "\\ud800"}',
    b'{"command": "' + b"x" * 500_000 + b'"}',
]
INFO = ServerInfo("test", ["nbd://localhost"])


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path / "state")


@pytest.fixture
def control(state: StateDirectory) -> Iterator[Control]:
    with Control.open(state) as control:
        control.create_vm("web1", 64 * MIB, [SizeRequest(exact=MIB), SizeRequest(exact=MIB)])
        yield control


@pytest.fixture
def exports(control: Control) -> Exports:
    return Exports.of_ledger(control)


@pytest.fixture
def admin(state: StateDirectory, exports: Exports) -> Iterator[AdminSocket]:
    with AdminSocket.start(state, exports, INFO) as admin:
        yield admin


def ask(admin: AdminSocket, command: str, **message: Any) -> dict[str, Any]:
    return admin_client.ask(admin.path, {"command": command, **message}, LONG)


@contextlib.contextmanager
def connected(admin: AdminSocket) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(LONG)
        with admin_client.reachable(admin.path) as address:
            connection.connect(address)
        yield connection


def received(connection: socket.socket) -> bytes:
    """All that comes until the other side closes, gently or not."""
    pieces = []
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def test_a_resize_is_known_to_every_connection_before_it_succeeds(
    admin: AdminSocket, exports: Exports, control: Control
) -> None:
    opened = [exports.open("web1/disk0"), exports.open("web1/disk0"), exports.open("web1/disk0@size")]
    outcome = control.resize_disk("web1", "disk0", SizeRequest(exact=2 * MIB))
    assert [export.size for export in opened[:2]] == [2 * MIB] * 2
    (servers,) = [stage for stage in outcome.stages if stage.name == "servers"]
    assert (servers.done, servers.detail) == (True, "1 server, 3 clients")
    for export in opened:
        exports.close(export)


def test_clients_are_listed_with_their_server(admin: AdminSocket, exports: Exports) -> None:
    export = exports.open("web1/disk1", client=Client(peer="127.0.0.1:5"))
    reply = ask(admin, "clients")
    assert reply["server"] == {
        "pid": os.getpid(),
        "front": "test",
        "uris": ["nbd://localhost"],
        "started": INFO.started.isoformat(),
    }
    assert [(client["export"], client["peer"]) for client in reply["clients"]] == [("web1/disk1", "127.0.0.1:5")]
    assert reply["more"] == 0
    exports.close(export)
    assert ask(admin, "clients")["clients"] == []


def test_counters_are_told(admin: AdminSocket, exports: Exports) -> None:
    assert ask(admin, "counters")["counters"] == exports.counters()


def test_a_shrink_that_disconnects_drops_those_who_use_the_disk(
    admin: AdminSocket, exports: Exports, control: Control
) -> None:
    opened: dict[str, Export] = {}

    def close(name: str) -> None:
        exports.close(opened[name])

    for name in ("web1/disk0", "web1/disk1"):
        opened[name] = exports.open(name, client=Client(drop=partial(close, name)))
    control.resize_disk("web1", "disk0", SizeRequest(exact=4096), ResizeOptions(shrink=True, disconnect=True))
    assert [connection.export.name for connection in exports.connections()] == ["web1/disk1"]
    assert control.disk("web1", "disk0").size == 4096
    exports.close(opened["web1/disk1"])


def test_several_requests_on_one_connection_however_they_are_cut(admin: AdminSocket) -> None:
    line = json.dumps({"command": "counters"}).encode() + b"\n"
    with connected(admin) as connection:
        connection.sendall(line + line + line[:5])
        for byte in line[5:]:
            connection.sendall(bytes([byte]))
        connection.shutdown(socket.SHUT_WR)
        replies = received(connection).splitlines()
    assert [json.loads(reply)["ok"] for reply in replies] == [True] * 3


def test_nonsense_is_answered_as_such_and_the_next_client_is_served(admin: AdminSocket) -> None:
    for line in NONSENSE:
        with connected(admin) as connection:
            connection.sendall(line + b"\n")
            connection.shutdown(socket.SHUT_WR)
            reply = json.loads(received(connection))
        assert reply["ok"] is False, line[:100]
        assert 0 < len(reply["error"]) <= 1000
    assert ask(admin, "counters")["ok"]


def test_sizes_and_drops_of_exports_that_nobody_has_open_concern_nobody(admin: AdminSocket) -> None:
    for name in ("", "nothing", "\udc80", "../x", "a" * 100_000):
        assert ask(admin, "sizes", exports=[name, name])["clients"] == 0
        assert ask(admin, "drop", exports=[name])["dropped"] == 0


def test_a_line_without_end_is_cut_off(admin: AdminSocket) -> None:
    with connected(admin) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:
                connection.sendall(b"x" * 65536)
        assert received(connection) == b""
    assert ask(admin, "counters")["ok"]


def test_clients_that_say_nothing_or_never_end_are_let_go(admin: AdminSocket) -> None:
    with connected(admin) as silent, connected(admin) as half:
        half.sendall(b'{"command": ')
        assert received(silent) == received(half) == b""


def test_a_client_that_takes_no_reply_does_not_stay(admin: AdminSocket) -> None:
    with connected(admin) as connection:
        line = json.dumps({"command": "clients"}).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:
                connection.sendall(line * 100)
    assert ask(admin, "counters")["ok"]


def test_a_crowd_that_says_nothing_is_outwaited(admin: AdminSocket) -> None:
    with contextlib.ExitStack() as crowd:
        for _ in range(MOST_AT_ONCE * 2):
            crowd.enter_context(connected(admin))
        assert ask(admin, "counters")["ok"]


def test_many_ask_at_once_and_all_are_answered(admin: AdminSocket) -> None:
    with ThreadPoolExecutor(40) as threads:
        replies = list(threads.map(lambda _: ask(admin, "sizes", exports=["web1/disk0"]), range(200)))
    assert replies == [{"ok": True, "clients": 0, "marking": [], "unmarked": []}] * 200


def test_a_bug_in_one_command_is_answered_and_the_server_lives(
    admin: AdminSocket, exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> dict[str, int]:
        raise RuntimeError("a planted bug")

    monkeypatch.setattr(exports, "counters", broken)
    with pytest.raises(ServerFailed, match="a planted bug"):
        ask(admin, "counters")
    assert ask(admin, "clients")["ok"]


def test_more_clients_than_a_line_holds_are_counted(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    exports = Exports.of_file(image)
    for number in range(8000):
        exports.open("@size", client=Client(peer=f"peer {number} of many"))
    line = AdminCommands(exports, INFO).answer(b'{"command": "clients"}')
    reply = json.loads(line)
    assert len(line) <= admin_client.LONGEST_LINE
    assert reply["more"] > 0
    assert len(reply["clients"]) + reply["more"] == 8000


# The socket itself


def test_the_socket_is_its_owners_and_the_only_file(admin: AdminSocket, state: StateDirectory) -> None:
    assert admin_client.servers(state) == [admin.path]
    assert list(state.run.iterdir()) == [admin.path]
    assert stat.S_IMODE(admin.path.stat().st_mode) == 0o600
    assert admin.path.name.startswith(f"{os.getpid()}-")


def test_it_is_gone_once_it_is_closed(admin: AdminSocket, exports: Exports, state: StateDirectory) -> None:
    threads = threading.active_count()
    other = AdminSocket(state.run, exports, INFO)
    with connected(other):
        other.close()
        other.close()
        until(lambda: threading.active_count() <= threads, LONG, "its threads to end")
    assert admin_client.servers(state) == [admin.path]


def test_closing_leaves_what_somebody_else_put_in_its_place(admin: AdminSocket) -> None:
    admin.path.unlink()
    admin.path.write_text("not ours")
    admin.close()
    assert admin.path.read_text() == "not ours"


def test_it_works_where_the_path_is_longer_than_a_sockets_address_may_be(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / ("long-" * 40))
    with Control.open(state) as control:
        control.create_vm("web1", 64 * MIB, [SizeRequest(exact=MIB)])
        exports = Exports.of_ledger(control)
        with AdminSocket.start(state, exports, INFO) as admin:
            disk = exports.open("web1/disk0")
            outcome = control.resize_disk("web1", "disk0", SizeRequest(exact=2 * MIB))
            assert disk.size == 2 * MIB
            assert "1 server, 1 client" in [stage.detail for stage in outcome.stages]
            exports.close(disk)
            assert admin_client.servers(state) == [admin.path]
        assert list(state.run.iterdir()) == []


def test_a_directory_that_can_not_hold_it_is_told_of(tmp_path: Path, exports: Exports) -> None:
    (tmp_path / "file").touch()
    for directory in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(StateUnusable, match="admin socket"):
            AdminSocket(directory, exports, INFO)


# Holding replies back


class Asker(admin_client.Conversation):
    """Somebody who asks over one connection."""

    def __init__(self, admin: AdminSocket) -> None:
        super().__init__(admin.path, time.monotonic() + LONG)

    def __call__(self, command: str, **message: Any) -> dict[str, Any]:
        deadline = time.monotonic() + LONG
        self.tell({"command": command, **message}, deadline)
        return self.answer(deadline)


def in_time(attempt: Callable[[], bool]) -> bool:
    """Whether one of five attempts is over before its hold, of a second, has run out."""
    return any(attempt() for _ in range(5))


def test_replies_are_held_back_from_freeze_to_thaw(admin: AdminSocket, exports: Exports) -> None:
    disk = exports.open("web1/disk0")
    hold = disk.backing.hold

    def attempt() -> bool:
        reply = asker("freeze", exports=["web1/disk0", "web1/disk1", "nothing"], seconds=1)
        assert reply == {"ok": True, "open": ["web1/disk0"]}
        on = [hold.on]
        late = exports.open("web1/disk1@size")
        on.append(late.backing.hold.on)
        held: bool = asker("thaw")["held"]
        assert on == [True, True] or not held
        assert not hold.on and not late.backing.hold.on
        exports.close(late)
        return held

    with Asker(admin) as asker:
        assert in_time(attempt)
    exports.close(disk)


def test_a_hold_that_has_run_out_is_told(admin: AdminSocket) -> None:
    def attempt() -> bool:
        assert asker("freeze", exports=["web1/disk0"], seconds=1.0)["ok"]
        return asker("thaw") == {"ok": True, "held": True}

    with Asker(admin) as asker:
        assert asker("freeze", exports=["web1/disk0"], seconds=0.000001)["ok"]
        assert asker("thaw") == {"ok": True, "held": False}
        assert in_time(attempt)


def test_a_hold_ends_with_the_connection_of_who_asked(admin: AdminSocket, exports: Exports) -> None:
    disk = exports.open("web1/disk0")
    hold = disk.backing.hold

    def attempt() -> bool:
        start = time.monotonic()
        with Asker(admin) as asker:
            asker("freeze", exports=["web1/disk0"], seconds=1.0)
            on = hold.on
        until(lambda: not hold.on, LONG, "the hold to end")
        return on and time.monotonic() < start + 1.0

    assert in_time(attempt)
    exports.close(disk)


def test_what_makes_no_hold_is_refused(admin: AdminSocket) -> None:
    with Asker(admin) as asker:
        for seconds in (0, -1, 1.01, 10**400, float("nan"), float("inf"), "1", None, True, [1]):
            reply = asker("freeze", exports=["web1/disk0"], seconds=seconds)
            assert not reply["ok"] and "up to 1 s" in reply["error"], seconds
        assert not asker("freeze", exports="web1/disk0", seconds=1)["ok"]
        assert not asker("freeze", exports=["web1/disk0"])["ok"]
        assert not asker("thaw")["ok"]
        assert asker("freeze", exports=[], seconds=1)["ok"]
        assert "thaw first" in asker("freeze", exports=[], seconds=1)["error"]


def test_others_are_answered_during_a_hold(admin: AdminSocket, exports: Exports) -> None:
    dropped = threading.Event()
    disk = exports.open("web1/disk0", client=Client(drop=dropped.set))

    def attempt() -> bool:
        dropped.clear()
        asker("freeze", exports=["web1/disk0"], seconds=1.0)
        assert ask(admin, "sizes", exports=["web1/disk0"])["clients"] == 1
        assert len(ask(admin, "clients")["clients"]) == 1
        assert ask(admin, "drop", exports=["web1/disk0"])["dropped"] == 1
        assert dropped.is_set()
        held: bool = asker("thaw")["held"]
        return held

    with Asker(admin) as asker:
        assert in_time(attempt)
    exports.close(disk)
