"""Guests that are idle, stopped, or out of reach, and setups in which QEMU has no raw node of its own to reopen."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from nbdresize.errors import InsufficientSpace
from tests.guest.machine import QemuGuest
from tests.guest.site import BUDGET, FIRST, MIB, Site, sees, shown, trouble, writing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEP = 8 * MIB


@dataclass
class Booted:
    """A guest whose disk0 comes from a legacy -drive, and whose disk1 sits on its nbd node itself."""

    site: Site
    guest: QemuGuest
    size: int = FIRST

    def grow(self) -> dict[str, bool]:
        """Grow both disks; whether each one's device had its size when the command ended."""
        self.size += STEP
        told = self.site.resize({"disk0": self.size, "disk1": self.size})
        return {disk: stage["done"] for disk, stage in told.items()}

    def sees_it(self) -> None:
        sees(self.guest, "vda", self.size)
        sees(self.guest, "sda", self.size)

    def sync(self) -> None:
        self.site.command("guest", "sync", "web1").ok()


DONE = {"disk0": True, "disk1": True}
PENDING = {"disk0": False, "disk1": False}


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    directory = tmp_path_factory.mktemp("booted")
    site = Site.make(2, "native", directory)
    disks = [site.disk(0, "drive"), site.disk(1, "direct", "virtio-scsi")]
    with site.server(), QemuGuest(directory, disks=disks) as guest:
        site.command("guest", "attach", "web1", "--qmp", guest.qmp_path).ok()
        yield Booted(site, guest)


def test_an_idle_guest_sees_its_disks_grow(booted: Booted) -> None:
    for _ in range(3):
        assert booted.grow() == DONE
        booted.sees_it()
    assert trouble(booted.guest) == []


def test_disks_without_a_raw_node_of_their_own_grow_under_writers(booted: Booted) -> None:
    with writing(booted.guest, "vda"), writing(booted.guest, "sda"):
        for _ in range(5):
            assert booted.grow() == DONE
            booted.sees_it()
            booted.guest.run("resize2fs /dev/vda; resize2fs /dev/sda")
    assert trouble(booted.guest) == []


def test_a_stopped_qemu_has_the_new_size_once_it_goes_on(booted: Booted) -> None:
    booted.guest.qmp("stop")
    booted.grow()
    booted.guest.qmp("cont")
    booted.sync()
    booted.sees_it()
    assert trouble(booted.guest) == []


def test_a_guest_out_of_reach_is_told_later(booted: Booted) -> None:
    hidden = booted.guest.qmp_path.with_suffix(".hidden")
    booted.guest.qmp_path.rename(hidden)
    assert booted.grow() == PENDING
    status = booted.site.command("guest", "show", "web1", "--json").ok().json
    assert status["pending"]
    hidden.rename(booted.guest.qmp_path)
    booted.sync()
    booted.sees_it()
    assert not booted.site.command("guest", "show", "web1", "--json").ok().json["pending"]
    assert trouble(booted.guest) == []


def test_the_budget_refuses_the_operator_and_the_guest_notices_nothing(booted: Booted) -> None:
    before = booted.guest.kernel_log()
    answer = booted.site.command("disk", "resize", "web1", "disk0", str(BUDGET))
    line = answer.failed(InsufficientSpace.exit_code, "InsufficientSpace")
    assert "free" in line
    assert (shown(booted.guest, "vda"), shown(booted.guest, "sda")) == (booted.size, booted.size)
    assert booted.guest.kernel_log() == before
