"""Switches over the wire, on both fronts: they hold from the next request of a client that is attached."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import nbd
import pytest

from nbdresize.client import connect_resizable
from nbdresize.client.values import Resizable
from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.errors import NotAuthorized
from nbdresize.protocol.size_record import SizeWish
from tests.front.conftest import BUDGET, MIB, SIZE, connect
from tests.peers import Serve

pytestmark = pytest.mark.slow

LONG = 60.0


@pytest.fixture
def operator(ledger_root: Path) -> Iterator[Control]:
    with Control.open(StateDirectory(ledger_root)) as control:
        control.update_vm("web1", owner="ada")
        yield control


@pytest.fixture
def server(front: str, operator: Control, ledger_root: Path, tmp_path: Path) -> Iterator[Serve]:
    with Serve("--client-resize", "all", front=front, directory=tmp_path, root=ledger_root) as server:
        yield server


@pytest.fixture
def client(server: Serve) -> Iterator[Resizable]:
    """By RESIZE where the front has it, else through the size export."""
    with connect_resizable(server.uri("web1/disk0"), LONG) as client:
        yield client


@pytest.mark.parametrize(
    ("off", "on"),
    [
        (
            lambda operator: operator.set_switch("client_resize", "off", owner="ada"),
            lambda operator: operator.unset_switch("client_resize", owner="ada"),
        ),
        (
            lambda operator: operator.set_switch("client_resize", "off"),
            lambda operator: operator.set_switch("client_resize", "all"),
        ),
        (
            lambda operator: operator.allow("client_resize", "bob"),
            lambda operator: operator.allow("client_resize", "ada"),
        ),
    ],
    ids=["owner", "site", "list"],
)
def test_resizing_is_switched_off_and_on_for_an_attached_client(
    operator: Control, client: Resizable, off: Callable[[Control], object], on: Callable[[Control], object]
) -> None:
    assert client.resize(SIZE + MIB, shrink=False, fit=False).size == SIZE + MIB
    off(operator)
    for size, shrink in ((SIZE + 2 * MIB, False), (SIZE, True)):
        with pytest.raises(NotAuthorized):
            client.resize(size, shrink=shrink, fit=False)
    assert client.query().size == operator.disk("web1", "disk0").size == SIZE + MIB
    on(operator)
    assert client.resize(SIZE + 2 * MIB, shrink=False, fit=False).size == SIZE + 2 * MIB


def test_fixed_disks_can_be_looked_at_only(operator: Control, client: Resizable, server: Serve) -> None:
    assert client.query().maximum == BUDGET
    operator.set_switch("flexible_disks", "off", vm="web1")
    assert client.query().maximum == SIZE
    with connect_resizable(server.uri("web1/disk0"), LONG) as newcomer:
        told = newcomer.query()
        assert (told.minimum, told.maximum) == (SIZE, SIZE)
    for size, shrink, fit in ((SIZE + MIB, False, False), (SIZE - MIB, True, False), (None, False, True)):
        with pytest.raises(NotAuthorized):
            client.resize(size, shrink=shrink, fit=fit)
    operator.unset_switch("flexible_disks", vm="web1")
    assert client.resize(None, shrink=False, fit=True).size == client.query().maximum == BUDGET


def test_any_client_of_the_size_export_gets_eperm(operator: Control, server: Serve) -> None:
    size_export = connect(server.uri("web1/disk0@size"))
    size_export.pwrite(SizeWish(SIZE + MIB).pack(), 512)
    for feature in ("client_resize", "flexible_disks"):
        operator.set_switch(feature, "off", owner="ada")
        with pytest.raises(nbd.Error) as refused:
            size_export.pwrite(SizeWish(SIZE + 2 * MIB).pack(), 512)
        assert refused.value.errnum == errno.EPERM
        operator.unset_switch(feature, owner="ada")
    size_export.pwrite(SizeWish(SIZE + 2 * MIB).pack(), 512)
    assert operator.disk("web1", "disk0").size == SIZE + 2 * MIB
    size_export.shutdown()
