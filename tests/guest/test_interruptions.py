"""Servers that are killed while a guest's disk grows: the guest waits a little, and sees no error."""

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.guest.machine import QemuGuest
from tests.guest.site import FIRST, FRONTS, MIB, Site, sees, trouble, writing
from tests.peers import SECONDS, Serve
from tests.wait import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEP = 8 * MIB

# Says each size that a disk shows, as soon as it does.
SIZES = """
import os, time
file, last = os.open("/sys/class/block/vda/size", os.O_RDONLY), None
while True:
    size = int(os.pread(file, 32, 0)) * 512
    if size != last:
        print(size, flush=True)
        last = size
    time.sleep(0.01)
"""


def killed_worker(site: Site, server: Serve) -> Serve:
    """Kill the process that serves; its supervisor starts another."""
    (worker,) = server.workers()
    os.kill(worker, signal.SIGKILL)
    return server


def killed_server(site: Site, server: Serve) -> Serve:
    """Kill all of the server, and start another in its place."""
    server.die()
    another = site.server()
    another.start()
    return another


def at_once(site: Site, guest: QemuGuest, size: int) -> bool:
    return True


def once_the_volume_has_grown(site: Site, guest: QemuGuest, size: int) -> bool:
    return site.size("disk0") == size


def once_qemu_is_being_told(site: Site, guest: QemuGuest, size: int) -> bool:
    """Once there is a fresh nbd node beside the one that the disk had."""
    drivers = [node["drv"] for node in guest.qmp("query-named-block-nodes", flat=True)]
    return drivers.count("nbd") > 1


def interrupted_resize(
    site: Site,
    guest: QemuGuest,
    server: Serve,
    size: int,
    kill: Callable[[Site, Serve], Serve],
    moment: Callable[[Site, QemuGuest, int], bool],
) -> Serve:
    """Resize the disk, and kill the server at that moment; the server that there is then."""
    with site.command.start("disk", "resize", "web1", "disk0", str(size)) as command:
        until(lambda: command.poll() is not None or moment(site, guest, size), what=f"the moment {moment.__name__}")
        server = kill(site, server)
        _, said = command.communicate(timeout=SECONDS)
    assert command.returncode == 0, said
    return server


@pytest.mark.parametrize("front", FRONTS)
def test_a_server_killed_in_the_middle_of_a_grow(front: str, tmp_path: Path) -> None:
    site = Site.make(1, front, tmp_path)
    with ExitStack() as stack:
        server = site.server()
        stack.callback(lambda: server.kill())  # whichever it is by then
        server.start()
        guest = stack.enter_context(QemuGuest(tmp_path, disks=[site.disk(0)]))
        with writing(guest, "vda"):
            site.command("guest", "attach", "web1", "--qmp", guest.qmp_path).ok()
            sizes = guest.start(SIZES, interpreter="python3")
            size = FIRST
            for kill in (killed_worker, killed_server):
                for moment in (at_once, once_the_volume_has_grown, once_qemu_is_being_told):
                    size += STEP
                    server = interrupted_resize(site, guest, server, size, kill, moment)
                    until(lambda: site.command("guest", "sync", "web1").code == 0, what="the guest to be told")
                    sees(guest, "vda", size)
                    guest.run("resize2fs /dev/vda")
            sizes.kill()
            seen = [int(line) for line in sizes.output.split()]
            assert seen == sorted(seen)
            assert seen[-1] == size
        assert trouble(guest) == []
