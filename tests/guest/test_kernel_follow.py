"""The kernel's own NBD client in a booted guest: devices follow their exports, mounted and written to meanwhile."""

import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.model import ResizeOptions
from nbdresize.units import SizeRequest, format_size
from tests.documentation import CHECKOUT, blocks, examples
from tests.guest.machine import GATEWAY, Job, QemuGuest
from tests.peers import Serve

pytestmark = pytest.mark.slow

MIB = 2**20
FIRST = 64 * MIB
STEP = 8 * MIB
GROWTHS = 10
MODES = {"netlink": "", "ioctl": "-nonetlink"}
"""How nbd-client sets a device up, by its options."""
PAGE = CHECKOUT / "docs" / "kernel-client.md"
TROUBLE = re.compile(r"I/O error|EXT4-fs (error|warning)|nbd\d+:.*(fail|error|timed out)", re.IGNORECASE)

# Writes a block, reads it back, and another one that was written before, past all caches; and all of them at the end.
WRITER = """
import mmap, os, random, struct
BLOCK, COUNT = 65536, 512
file = os.open("/mnt/written", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
page = mmap.mmap(-1, BLOCK)
written, wrong, turn = {}, 0, 0

def content(place):
    return struct.pack("<QQ", place, written[place]) * (BLOCK // 16)

def check(place):
    os.preadv(file, [page], place * BLOCK)
    return page[:] != content(place)

while not os.path.exists("/run/enough"):
    turn += 1
    place = random.randrange(COUNT)
    written[place] = turn
    page[:] = content(place)
    os.pwritev(file, [page], place * BLOCK)
    wrong += check(place) + check(random.choice(list(written)))
    if turn == 1:
        print("writing", flush=True)
wrong += sum(map(check, written))
print(f"wrote {turn}, wrong {wrong}")
"""

# What nbd-client has no option for in Debian 12: a device with a backend identifier, which reads zeroes.
WITH_IDENTIFIER = """
import socket, struct, sys
sys.path.insert(0, "/opt")
from nbdresize.guests.kernel import device, netlink

def attribute(kind, value):
    return (struct.pack("=HH", 4 + len(value), kind) + value).ljust((7 + len(value)) // 4 * 4, bytes(1))

ours, kernels = socket.socketpair()
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16) as kernel:
    kernel.bind((0, 0))
    family = netlink.parse_family(device._ask(kernel, netlink.pack_get_family("nbd", 1), 1))
    sockets = attribute(7, attribute(1, attribute(1, struct.pack("=I", kernels.fileno()))))
    index, size = attribute(1, struct.pack("=I", 0)), attribute(2, struct.pack("=Q", 1 << 20))
    body = struct.pack("=BBH", 1, 1, 0) + index + size + sockets + attribute(10, b"web1-0" + bytes(1))
    device._ask(kernel, struct.pack("=IHHII", 16 + len(body), family, 5, 2, 0) + body, 2)
print("connected", flush=True)
while request := ours.recv(28, socket.MSG_WAITALL):
    _, command, cookie, _, length = struct.unpack(">II8sQI", request)
    ours.sendall(struct.pack(">II8s", 0x67446698, 0, cookie) + (bytes(length) if command == 0 else b""))
"""


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    """A state directory with a VM web1, whose disks have 64, 32 and 96 MiB."""
    with Control.open(StateDirectory(tmp_path / "state")) as control:
        control.update_pool(overcommit="unlimited")
        control.create_vm("web1", 1024 * MIB, [SizeRequest(exact=size) for size in (FIRST, 32 * MIB, 96 * MIB)])
        yield control


def serving(directory: Path, control: Control, front: str = "native") -> Serve:
    directory.mkdir(exist_ok=True)
    return Serve(front=front, directory=directory, root=control.state.root)


def resize(control: Control, size: int, *, shrink: bool = False) -> None:
    control.resize_disk("web1", "disk0", SizeRequest(exact=size), ResizeOptions(shrink=shrink))


def install(guest: QemuGuest) -> None:
    """Put the package into the guest, which has nothing but Python, and a command in front of it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for file in sorted((CHECKOUT / "nbdresize").rglob("*.py")):
            archive.add(file, str(file.relative_to(CHECKOUT)))
    guest.put("/root/nbdresize.tar", packed.getvalue())
    guest.put(
        "/usr/bin/nbdresize", '#!/bin/sh\nshift\ncd /opt && exec python3 -m nbdresize.guests.kernel "$@"\n', mode=0o755
    )
    guest.run("mkdir /opt && tar --extract --file /root/nbdresize.tar --directory /opt && modprobe nbd")


def connect(guest: QemuGuest, options: str = "", export: str = "web1/disk0", device: str = "/dev/nbd0") -> None:
    guest.run(f"nbd-client {options} -N {export} {GATEWAY} {device}")


def following(guest: QemuGuest, options: str = "", port: int = 10809, device: str = "/dev/nbd0") -> Job:
    """A follower that follows."""
    job = guest.start(f"exec nbdresize follow nbd://{GATEWAY}:{port}/web1/disk0 {device} {options}")
    job.until("follow")
    return job


def trouble(guest: QemuGuest) -> list[str]:
    """What its kernel has said about requests that went wrong."""
    return [line for line in guest.kernel_log().splitlines() if TROUBLE.search(line)]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", MODES)
def test_a_mounted_device_is_grown_ten_times_under_a_writer(tmp_path: Path, control: Control, mode: str) -> None:
    with (
        serving(tmp_path / "server", control) as server,
        QemuGuest(tmp_path, forward={10809: server.socket}) as guest,
    ):
        install(guest)
        connect(guest, MODES[mode])
        assert (guest.run("ls /sys/block/nbd0/backend", check=False).code == 0) == (mode == "netlink")
        guest.run("mkfs.ext4 -q -b 4096 /dev/nbd0 && mount /dev/nbd0 /mnt")
        follower = following(guest)
        writer = guest.start(WRITER, interpreter="python3")
        writer.until("writing")
        for size in range(FIRST + STEP, FIRST + (GROWTHS + 1) * STEP, STEP):
            resize(control, size)
            follower.until(f"/dev/nbd0: {format_size(size - STEP)} → {format_size(size)}\n")
            assert guest.run("blockdev --getsize64 /dev/nbd0").output.strip() == str(size)
            assert f"is now {size // 4096} (4k) blocks" in guest.run("resize2fs /dev/nbd0").output
        # What is new is there to be used, to its end.
        guest.run("dd if=/dev/urandom of=/mnt/new bs=1M count=70 oflag=direct; md5sum /mnt/new >/root/sum", timeout=120)
        guest.put("/run/enough", "")
        said = writer.wait(120)
        assert said.code == 0, said.output
        assert re.search(r"wrote \d{2,}, wrong 0$", said.output, re.MULTILINE), said.output
        guest.run("umount /mnt && mount /dev/nbd0 /mnt && md5sum --check /root/sum && umount /mnt", timeout=120)
        guest.run("e2fsck -f -n /dev/nbd0")
        guest.run("nbd-client -d /dev/nbd0")
        ended = follower.wait()
        assert (ended.code, ended.output.count("→")) == (5, GROWTHS)
        assert "nbdresize: ResourceNotFound: /dev/nbd0 is not connected any more" in ended.output
        assert guest.kernel_log().count("nbd0: detected capacity change") == GROWTHS + 1
        assert not trouble(guest)


@pytest.mark.timeout(1800)
def test_a_follower_outlives_its_server_and_is_no_use_of_the_disk(tmp_path: Path, control: Control) -> None:
    device, sizes = serving(tmp_path / "device", control), serving(tmp_path / "sizes", control)
    with device, QemuGuest(tmp_path, forward={10809: device.socket, 10810: sizes.socket}) as guest:
        install(guest)
        connect(guest)
        with sizes:
            follower = following(guest, "--json", port=10810)
            sizes.kill()
            follower.until('"lost"')
        resize(control, FIRST + STEP)
        with serving(tmp_path / "sizes", control):
            follower.until('"resized"')
            guest.run("nbd-client -d /dev/nbd0")
            assert follower.wait().code == 5
            events = [json.loads(line) for line in follower.output.splitlines()]
            assert [event.get("event", "error") for event in events] == [
                "following",
                "lost",
                "back",
                "resized",
                "error",
            ]
            assert (events[3]["old_size"], events[3]["size"]) == (FIRST, FIRST + STEP)

            # The disk has a follower and no other client, so it may shrink. The device is connected to another disk.
            connect(guest, export="web1/disk2")
            kept = following(guest, "--allow-shrink", port=10810)
            resize(control, FIRST, shrink=True)
            kept.until(f"→ {format_size(FIRST)}\n")


@pytest.mark.timeout(1800)
def test_refusals_signals_and_identifiers(tmp_path: Path, control: Control) -> None:
    uri = f"nbd://{GATEWAY}/web1/disk0"
    with serving(tmp_path / "server", control) as server, QemuGuest(tmp_path, forward={10809: server.socket}) as guest:
        install(guest)

        def refused(code: int, arguments: str, before: str = "") -> str:
            done = guest.run(f"{before} timeout 50 nbdresize follow {arguments}", check=False)
            assert done.code == code, done.output
            return done.output

        assert "not connected" in refused(5, f"{uri} /dev/nbd0")
        assert "no device of the kernel's NBD client" in refused(3, f"{uri} /dev/nvme0n1")
        assert "can't be looked at" in refused(5, f"{uri} /dev/nbd99")
        connect(guest)
        assert "another disk" in refused(3, f"{uri.replace('disk0', 'disk1')} /dev/nbd0")
        unprivileged = "import os, sys; os.setuid(65534); os.execvp(sys.argv[1], sys.argv[1:])"
        for options in MODES.values():
            guest.run("nbd-client -d /dev/nbd0")
            connect(guest, options)
            assert "run this as root" in refused(
                8, f"{uri} /dev/nbd0 --once", f"chmod 666 /dev/nbd0; python3 -c '{unprivileged}'"
            )

        resize(control, FIRST + STEP)
        once = guest.run(f"nbdresize follow {uri} /dev/nbd0 --once")
        assert once.output == f"/dev/nbd0 follows web1/disk0: {format_size(FIRST)} → {format_size(FIRST + STEP)}\n"

        for name, code in (("TERM", 0), ("INT", 130)):
            job = guest.start(f"exec nbdresize follow {uri} /dev/nbd0")
            job.until("follows")
            guest.run(f"pkill -{name} -f '^python3 -m nbdresize.guests.kernel'")
            ended = job.wait()
            assert (ended.code, ended.output.count("\n")) == (code, 1), ended.output

        # A device with a backend identifier takes sizes only from who knows it.
        guest.run("nbd-client -d /dev/nbd0")
        guest.start(WITH_IDENTIFIER, interpreter="python3").until("connected")
        assert guest.run("cat /sys/block/nbd0/backend").output.strip() == "web1-0"
        guest.run(f"nbdresize follow {uri} /dev/nbd0 --once")
        assert guest.run("cat /sys/block/nbd0/size").output.strip() == str((FIRST + STEP) // 512)


@pytest.mark.timeout(1800)
def test_a_connection_that_does_not_grow_keeps_its_device(tmp_path: Path, control: Control) -> None:
    with (
        serving(tmp_path / "server", control, "nbdkit") as server,
        QemuGuest(tmp_path, forward={10809: server.socket}) as guest,
    ):
        install(guest)
        connect(guest)
        follower = following(guest)
        resize(control, FIRST + STEP)
        follower.until(f"/dev/nbd0: kept at {format_size(FIRST)}: The connection of /dev/nbd0 can't use more")
        assert guest.run("blockdev --getsize64 /dev/nbd0").output.strip() == str(FIRST)
        guest.run("dd if=/dev/nbd0 of=/dev/null bs=1M count=1 iflag=direct")
        uri = f"nbd://{GATEWAY}/web1/disk0"
        refused = guest.run(f"nbdresize follow {uri} /dev/nbd0 --once", check=False)
        assert (refused.code, "--front native" in refused.output) == (14, True)
        assert guest.run("blockdev --getsize64 /dev/nbd0").output.strip() == str(FIRST)
        guest.run("nbd-client -d /dev/nbd0")
        assert follower.wait().code == 5
        connect(guest)
        grown = guest.run(f"nbdresize follow {uri} /dev/nbd0 --once").output
        assert grown == f"/dev/nbd0 follows web1/disk0: {format_size(FIRST + STEP)}\n"


@pytest.mark.timeout(1800)
def test_the_commands_of_the_page_work_in_a_guest(tmp_path: Path, control: Control) -> None:
    here = f"tests/guest/{Path(__file__).name}"
    commands = [example.command for block in blocks(PAGE) if block.elsewhere == here for example in examples(block)]
    assert len(commands) > 5
    with serving(tmp_path / "server", control) as server, QemuGuest(tmp_path, forward={10809: server.socket}) as guest:
        install(guest)
        guest.run(f"echo {GATEWAY} server >>/etc/hosts")
        for command in commands:
            if not command.endswith("&"):
                guest.run(f"cd /opt; {command}")
                continue
            follower = guest.start(f"exec {command.removesuffix('&')}")
            follower.until("follows")
            resize(control, 2 * FIRST)
            follower.until("→")
        taken = guest.run("stat --file-system --format '%b %S' /mnt").output.split()
        assert int(taken[0]) * int(taken[1]) > FIRST
        assert not trouble(guest)
