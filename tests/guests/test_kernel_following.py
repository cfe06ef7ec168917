"""A device kept at the size of its export: a real server on either side of the wire, the device a few files."""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.model import ResizeOptions
from nbdresize.errors import InvalidArgument, NbdresizeError, NotAuthorized, PeerFailed, ResourceNotFound
from nbdresize.guests.kernel.device import KernelDevice
from nbdresize.guests.kernel.following import Event, follow
from nbdresize.units import SizeRequest
from tests.guests.kernel_files import MIB, FakeDevice, fake_device
from tests.peers import Serve

pytestmark = pytest.mark.slow

SECONDS = 30.0


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    """A state directory with a VM web1, whose disk0 has 64 MiB."""
    with Control.open(StateDirectory(tmp_path / "state")) as control:
        control.update_pool(overcommit="unlimited")
        control.create_vm("web1", 1024 * MIB, [SizeRequest(exact=64 * MIB)])
        yield control


def serving(tmp_path: Path, front: str = "native") -> Serve:
    return Serve(front=front, directory=tmp_path, root=tmp_path / "state")


def resize(control: Control, size: int, *, shrink: bool = False) -> None:
    control.resize_disk("web1", "disk0", SizeRequest(exact=size), ResizeOptions(shrink=shrink))


@dataclass
class Follower:
    """`follow` in a thread."""

    uri: str
    device: KernelDevice
    allow_shrink: bool = False
    events: "queue.SimpleQueue[Event]" = field(default_factory=queue.SimpleQueue)
    errors: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def next(self) -> Event:
        return self.events.get(timeout=SECONDS)

    def ended(self) -> BaseException:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        return self.errors[0]

    def _run(self) -> None:
        try:
            follow(self.uri, self.device, allow_shrink=self.allow_shrink, tell=self.events.put)
        except NbdresizeError as error:
            self.errors.append(error)


@pytest.fixture
def following(tmp_path: Path) -> Iterator[Callable[..., Follower]]:
    """Starts followers, whose devices are disconnected at the end."""
    started: list[Follower] = []

    def start(uri: str, device: KernelDevice, *, allow_shrink: bool = False) -> Follower:
        started.append(Follower(uri, device, allow_shrink))
        return started[-1]

    yield start
    for follower in started:
        disconnect(follower.device)
        follower.ended()


def disconnect(device: KernelDevice) -> None:
    (device.directory / "pid").unlink(missing_ok=True)


Start = Callable[..., Follower]


@pytest.mark.parametrize("front", ["native", "nbdkit"])
def test_every_growth_reaches_the_device(tmp_path: Path, control: Control, following: Start, front: str) -> None:
    device = fake_device(tmp_path, size=32 * MIB)
    with serving(tmp_path, front) as server:
        follower = following(server.uri("web1/disk0"), device)
        first = follower.next()
        assert (first.kind, first.export, first.old_size, first.size) == ("following", "web1/disk0", 32 * MIB, 64 * MIB)
        assert first.line() == f"{device.path} follows web1/disk0: 32 MiB → 64 MiB"
        for size in (65 * MIB, 70 * MIB, 700 * MIB):
            resize(control, size)
            grown = follower.next()
            assert (grown.kind, grown.size, device.size) == ("resized", size, size)
        assert grown.line("->") == f"{device.path}: 70 MiB -> 700 MiB"
        disconnect(device)
        assert isinstance(follower.ended(), ResourceNotFound)


def test_following_is_no_use_of_the_disk(tmp_path: Path, control: Control, following: Start) -> None:
    device = fake_device(tmp_path, size=64 * MIB)
    with serving(tmp_path) as server:
        follower = following(server.uri("web1/disk0"), device)
        assert follower.next().kind == "following"
        resize(control, 32 * MIB, shrink=True)
        kept = follower.next()
        assert (kept.kind, kept.size, device.size) == ("kept", 64 * MIB, 64 * MIB)
        assert "32 MiB" in kept.line()
        resize(control, 16 * MIB, shrink=True)
        assert "16 MiB" in follower.next().line()
        resize(control, 80 * MIB)
        assert (follower.next().kind, device.size) == ("resized", 80 * MIB)


def test_a_device_shrinks_only_where_that_is_allowed(tmp_path: Path, control: Control, following: Start) -> None:
    device = fake_device(tmp_path, size=100 * MIB)
    with serving(tmp_path) as server:
        refused = following(server.uri("web1/disk0"), device).ended()
        assert isinstance(refused, InvalidArgument)
        assert "100 MiB" in refused.problem
        assert "another disk" in refused.way_out
        assert device.size == 100 * MIB
        follower = following(server.uri("web1/disk0"), device, allow_shrink=True)
        assert (follower.next().kind, device.size) == ("following", 64 * MIB)
        resize(control, 32 * MIB, shrink=True)
        assert (follower.next().kind, device.size) == ("resized", 32 * MIB)


def test_a_server_that_is_killed_is_found_again(tmp_path: Path, control: Control, following: Start) -> None:
    device = fake_device(tmp_path)
    with serving(tmp_path) as server:
        follower = following(server.uri("web1/disk0"), device)
        assert follower.next().kind == "following"
        server.die()
        lost = follower.next()
        assert (lost.kind, device.size) == ("lost", 64 * MIB)
        assert "trying again" in lost.line()
        resize(control, 65 * MIB)
    with serving(tmp_path):
        assert [follower.next().kind, follower.next().kind] == ["back", "resized"]
        assert device.size == 65 * MIB


def test_a_device_that_is_connected_anew_is_left_alone(tmp_path: Path, control: Control, following: Start) -> None:
    device = fake_device(tmp_path)
    with serving(tmp_path) as server:
        follower = following(server.uri("web1/disk0"), device)
        assert follower.next().kind == "following"
        (device.directory / "pid").write_text("18\n")
        assert "anew" in str(follower.ended())


def test_once_sets_the_size_and_returns(tmp_path: Path, control: Control) -> None:
    device = fake_device(tmp_path)
    events: list[Event] = []
    with serving(tmp_path) as server:
        follow(server.uri("web1/disk0"), device, once=True, tell=events.append)
    assert device.size == 64 * MIB
    assert [event.document() for event in events] == [
        {
            "event": "following",
            "device": device.path,
            "export": "web1/disk0",
            "old_size": MIB,
            "size": 64 * MIB,
            "generation": 1,
            "detail": "",
        }
    ]


@pytest.mark.parametrize("once", [True, False])
def test_what_is_wrong_at_the_start_ends_it(tmp_path: Path, control: Control, once: bool) -> None:
    class Forbidden(FakeDevice):
        def _set(self, size: int) -> None:
            raise PermissionError(1, "Operation not permitted")

    device = fake_device(tmp_path, size=64 * MIB, kind=Forbidden)
    events: list[Event] = []

    def attempt(uri: str) -> None:
        follow(uri, device, once=once, tell=events.append)

    with pytest.raises(PeerFailed):
        attempt(f"nbd+unix:///web1/disk0?socket={tmp_path}/nobody.sock")
    with serving(tmp_path) as server:
        with pytest.raises(ResourceNotFound):
            attempt(server.uri("web1/disk7"))
        with pytest.raises(NotAuthorized, match="root"):
            attempt(server.uri("web1/disk0"))
        disconnect(device)
        with pytest.raises(ResourceNotFound, match="not connected"):
            attempt(server.uri("web1/disk0"))
    assert events == []
