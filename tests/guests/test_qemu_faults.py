"""Growing in a running QEMU when something dies in the middle, requests are in flight, or options are at stake."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from nbdresize.control import admin_client
from nbdresize.control.control import Control
from nbdresize.errors import ResourceInUse
from nbdresize.guests.model import DiskNews
from tests.guests.machine import Machine
from tests.guests.site import MIB, SIZE, Site, nbd, raw, serving, virtio_blk
from tests.peers import CHECKOUT, SECONDS, run
from tests.tls_keys import make_certificates, make_psk
from tests.wait import until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=("native", "nbdkit"))
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Each front in turn."""
    with serving(tmp_path_factory.mktemp("site"), request.param) as site:
        yield site


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Where the front makes no difference."""
    with serving(tmp_path_factory.mktemp("native"), "native") as site:
        yield site


def qemu_io(machine: Machine, device: str, command: str) -> None:
    """Have QEMU itself use a disk as the guest's device does; how that went is told by `reads`."""
    line = f'qemu-io -d /machine/peripheral/{device}/virtio-backend "{command}"'
    machine.execute("human-monitor-command", {"command-line": line})


def reads(machine: Machine) -> tuple[int, int]:
    """How many reads from the only device went well, and how many failed."""
    [told] = machine.execute("query-blockstats")
    return told["stats"]["rd_operations"], told["stats"]["failed_rd_operations"]


def writes(machine: Machine) -> int:
    """How many writes to the only device went well."""
    [told] = machine.execute("query-blockstats")
    assert told["stats"]["failed_wr_operations"] == 0
    done: int = told["stats"]["wr_operations"]
    return done


# Whoever asks is killed


GROWING = """
import json, os, signal, sys
from pathlib import Path
from nbdresize.guests.model import DiskNews
from nbdresize.guests.qemu.growing import grow_disk
from nbdresize.guests.qemu.monitor import Monitor

CHANGES = ("blockdev-add", "blockdev-del", "blockdev-reopen", "block_resize", "qom-set")
path, news, number, after = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "after"
execute = Monitor.execute
changes = iter(range(1000))

def dying(monitor, command, *arguments, **more):
    last = command in CHANGES and next(changes) == number
    if last and not after:
        os.kill(os.getpid(), signal.SIGKILL)
    answer = execute(monitor, command, *arguments, **more)
    if last:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer

Monitor.execute = dying
with Monitor.connect(path, 60) as monitor:
    grow_disk(monitor, DiskNews(**{**news, "servers": tuple(news["servers"])}))
"""


def killed_at(machine: Machine, news: DiskNews, number: int, *, after: bool) -> bool:
    """Grow in a process that is killed before or after its change of that number; whether it came to that."""
    given = [str(machine.qmp), json.dumps(asdict(news)), str(number), "after" if after else "before"]
    grown = subprocess.run(
        [sys.executable, "-c", GROWING, *given], cwd=CHECKOUT, capture_output=True, text=True, timeout=SECONDS
    )
    assert grown.returncode in (0, -signal.SIGKILL), grown.stderr
    return grown.returncode != 0


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("chain", ["raw", "direct", "copy-on-read", "legacy"])
def test_whoever_asks_is_killed_at_any_step_and_the_next_one_finishes(
    native: Site, chain: str, after: bool, tmp_path: Path
) -> None:
    vm = native.make_vm()
    reading = ["-blockdev", "copy-on-read,node-name=c0,file=n0"]
    legacy = f"file=nbd+unix:///{vm}/disk0?socket={native.server.socket},if=none,id=old,format=raw"
    arguments = {
        "raw": [*nbd(native.unix, f"{vm}/disk0"), *raw(), *virtio_blk("f0")],
        "direct": [*nbd(native.unix, f"{vm}/disk0"), *virtio_blk("n0")],
        "copy-on-read": [*nbd(native.unix, f"{vm}/disk0"), *reading, *virtio_blk("c0")],
        "legacy": ["-drive", legacy, *virtio_blk("old")],
    }[chain]
    with Machine(*arguments, directory=tmp_path) as machine:
        count = len(machine.nodes())
        number = 0
        while killed_at(machine, native.resize(vm), number, after=after):
            grown = native.tell(machine, native.news(vm))
            assert machine.size("d0") == grown.size
            assert len(machine.nodes()) == count, f"after change {number}: {machine.nodes().keys()}"
            number += 1
        assert number >= 4


# Requests in flight


@pytest.mark.parametrize("direct", [False, True])
def test_requests_in_flight_are_answered(site: Site, direct: bool, tmp_path: Path) -> None:
    vm = site.make_vm()
    chain = virtio_blk("n0") if direct else [*raw(), *virtio_blk("f0")]
    with Machine(*nbd(site.unix, f"{vm}/disk0"), *chain, directory=tmp_path) as machine:
        rounds_in_flight = 0
        for round_number in range(5):
            news = site.resize(vm)
            [admin] = admin_client.servers(site.state)
            deadline = time.monotonic() + 10
            with admin_client.Conversation(admin, deadline) as admins:
                # The server holds its replies back: when the grow begins, not one of these writes is answered.
                admins.tell({"command": "freeze", "exports": [news.export], "seconds": 1.0}, deadline)
                assert admins.answer(deadline)["ok"]
                for number in range(8):
                    qemu_io(machine, "d0", f"aio_write -P {round_number * 8 + number + 1} {number}M 1M")
                rounds_in_flight += writes(machine) == round_number * 8
                site.tell(machine, news)
            assert machine.size("d0") == news.size
            qemu_io(machine, "d0", "aio_flush")
            for number in range(8):
                pattern = f"read -P {round_number * 8 + number + 1} {number}M 1M"
                said = run("qemu-io", "-r", "-f", "raw", "-c", pattern, site.server.uri(news.export))
                assert "Pattern verification failed" not in said
        assert writes(machine) == 40
        assert rounds_in_flight, "every write was answered before the grow began"


# Options that QEMU keeps to itself


@pytest.mark.parametrize(
    ("legacy", "discard"),
    [(False, "unmap"), (False, "ignore"), (True, "unmap"), (True, "ignore"), (True, "on"), (True, "off")],
)
def test_discards_are_as_they_were(native: Site, legacy: bool, discard: str, tmp_path: Path) -> None:
    vm = native.make_vm()
    given = f"discard={discard}"
    arguments = [*nbd(native.unix, f"{vm}/disk0", more="discard=unmap"), *raw(more=given), *virtio_blk("f0")]
    if legacy:
        drive = f"file=nbd+unix:///{vm}/disk0?socket={native.server.socket},if=none,id=old,format=raw,{given}"
        arguments = ["-drive", drive, *virtio_blk("old")]
    with Machine(*arguments, directory=tmp_path) as machine:
        for number in range(3):
            qemu_io(machine, "d0", "write -P 5 0 8M")
            before = allocated(native, vm)
            assert before >= 8 * MIB
            qemu_io(machine, "d0", "discard 0 8M")
            assert (allocated(native, vm) < before) == (discard in ("unmap", "on")), f"after {number} grows"
            native.grow(machine, vm)


def allocated(site: Site, vm: str) -> int:
    """Bytes that the volume of a VM's disk takes."""
    with Control.open(site.state, create=False) as control:
        volume = control.disk(vm, "disk0").volume
    [file] = site.state.volumes.glob(f"{volume}*")
    return file.stat().st_blocks * 512


@pytest.mark.parametrize("chain", ["raw", "direct", "legacy"])
@pytest.mark.parametrize("delay", [0, 60])
def test_the_wait_for_the_server_is_as_it_was(chain: str, delay: int, tmp_path: Path) -> None:
    with serving(tmp_path, "native") as site:
        vm = site.make_vm()
        waiting = f"reconnect-delay={delay}"
        legacy = f"driver=raw,file.driver=nbd,file.path={site.server.socket},file.export={vm}/disk0,file.{waiting}"
        arguments = {
            "raw": [*nbd(site.unix, f"{vm}/disk0", more=waiting), *raw(), *virtio_blk("f0")],
            "direct": [*nbd(site.unix, f"{vm}/disk0", more=waiting), *virtio_blk("n0")],
            "legacy": ["-drive", f"{legacy},if=none,id=old", *virtio_blk("old")],
        }[chain]
        with Machine(*arguments, directory=tmp_path) as machine:
            for _ in range(2):
                site.grow(machine, vm)
            site.server.die()
            qemu_io(machine, "d0", "aio_read 0 4096")
            if not delay:
                until(lambda: reads(machine) == (0, 1), what="the read to fail")
                return
            site.server.start()
            until(lambda: reads(machine) == (1, 0), what="the read to be answered")


def test_a_disk_plugged_in_later_waits_for_its_server(tmp_path: Path) -> None:
    with serving(tmp_path, "native") as site:
        vm = site.make_vm()
        with Machine(directory=tmp_path) as machine:
            server = {"type": "unix", "path": str(site.server.socket)}
            node = {"driver": "nbd", "node-name": "n0", "server": server, "export": f"{vm}/disk0"}
            machine.execute("blockdev-add", node)
            machine.execute("blockdev-add", {"driver": "raw", "node-name": "f0", "file": "n0", "discard": "unmap"})
            machine.execute("device_add", {"driver": "virtio-blk-pci", "drive": "f0", "id": "d0"})
            site.grow(machine, vm)
            assert machine.size("d0") == 2 * SIZE


# TLS


@pytest.mark.parametrize("front", ["native", "nbdkit"])
@pytest.mark.parametrize("chain", ["raw", "direct"])
def test_a_fresh_connection_has_the_certificates_of_the_old_one(front: str, chain: str, tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path / "pki")
    creds = f"tls-creds-x509,id=tls0,endpoint=client,dir={certificates}"
    (tmp_path / "site").mkdir()
    with serving(tmp_path / "site", front, "--tls", certificates) as site:
        vm = site.make_vm(2)
        arguments = ["-object", creds]
        for number, address in enumerate((site.tcp, f"{site.unix},tls-hostname=localhost")):
            arguments += nbd(address, f"{vm}/disk{number}", f"n{number}", "tls-creds=tls0")
            above = f"n{number}" if chain == "direct" else f"f{number}"
            arguments += [] if chain == "direct" else raw(above, f"n{number}")
            arguments += virtio_blk(above, f"d{number}")
        with Machine(*arguments, directory=tmp_path) as machine:
            for number in (0, 1, 0, 1):
                site.grow(machine, vm, f"disk{number}")
            assert [machine.size(name) for name in ("d0", "d1")] == [3 * SIZE] * 2


def test_a_fresh_connection_has_the_key_of_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    key = make_psk(tmp_path / "keys" / "keys.psk", "alice")
    creds = f"tls-creds-psk,id=tls0,endpoint=client,dir={key.parent},username=alice"
    (tmp_path / "site").mkdir()
    with serving(tmp_path / "site", "nbdkit", "--tls-psk", key) as site:
        vm = site.make_vm()
        arguments = ["-object", creds, *nbd(site.unix, f"{vm}/disk0", more="tls-creds=tls0"), *raw()]
        with Machine(*arguments, *virtio_blk("f0"), directory=tmp_path) as machine:
            for _ in range(2):
                site.grow(machine, vm)
            assert machine.size("d0") == 3 * SIZE


@pytest.mark.parametrize("threads", [False, True])
def test_a_disk_plugged_in_later_has_its_certificates_or_is_left_alone(threads: bool, tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path / "pki")
    arguments = ["-object", f"tls-creds-x509,id=tls0,endpoint=client,dir={certificates}"]
    arguments += ["-object", "iothread,id=io0"] if threads else []
    (tmp_path / "site").mkdir()
    with serving(tmp_path / "site", "native", "--tls", certificates) as site:
        vm = site.make_vm()
        with Machine(*arguments, directory=tmp_path) as machine:
            server = {"type": "inet", "host": "localhost", "port": site.port}
            node = {"driver": "nbd", "node-name": "n0", "server": server, "export": f"{vm}/disk0", "tls-creds": "tls0"}
            machine.execute("blockdev-add", node)
            machine.execute("device_add", {"driver": "virtio-blk-pci", "drive": "n0", "id": "d0"})
            if threads:
                with pytest.raises(ResourceInUse, match="uses TLS can't be told while it runs"):
                    site.grow(machine, vm)
                assert set(machine.nodes()) == {"n0"}
            else:
                for _ in range(2):
                    site.grow(machine, vm)
                assert machine.size("d0") == 3 * SIZE
                assert len(machine.nodes()) == 1


@pytest.mark.parametrize("beside", [",file.tls-creds=tls0", ",file.tls-creds=tls0,file.tls-hostname=localhost"])
def test_a_legacy_drive_has_its_certificates(beside: str, tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path / "pki")
    creds = f"tls-creds-x509,id=tls0,endpoint=client,dir={certificates}"
    (tmp_path / "site").mkdir()
    with serving(tmp_path / "site", "native", "--tls", certificates) as site:
        vm = site.make_vm()
        drive = f"file=nbd://localhost:{site.port}/{vm}/disk0,if=none,id=old,format=raw{beside}"
        with Machine("-object", creds, "-drive", drive, *virtio_blk("old"), directory=tmp_path) as machine:
            for _ in range(2):
                site.grow(machine, vm)
            assert machine.size("d0") == 3 * SIZE
