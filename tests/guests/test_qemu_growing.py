"""Disks that grow in a running QEMU: every way to attach them, over both fronts."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nbdresize.control.control import Control
from nbdresize.errors import PeerFailed, ResourceInUse, ResourceNotFound
from nbdresize.guests.qemu.growing import grow_disk
from nbdresize.guests.qemu.monitor import Monitor
from nbdresize.units import SizeRequest
from tests.guests.machine import Machine
from tests.guests.site import SIZE, Site, nbd, raw, serving, virtio_blk, virtio_scsi
from tests.peers import run
from tests.wait import until

UNDER_DEVICE = "a fresh connection under the device"


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


@pytest.mark.parametrize("device", [virtio_blk, virtio_scsi])
def test_a_raw_node_gets_a_fresh_connection_below(
    site: Site, device: Callable[[str], list[str]], tmp_path: Path
) -> None:
    vm = site.make_vm()
    with Machine(*nbd(site.unix, f"{vm}/disk0"), *raw(), *device("f0"), directory=tmp_path) as machine:
        grown = site.grow(machine, vm)
        assert machine.size("d0") == 2 * SIZE
        assert grown.device in ("virtio-blk d0", "scsi-hd d0")
        assert grown.way == "a fresh connection under f0"
        assert set(machine.nodes()) == {"f0", grown.node}


@pytest.mark.parametrize("device", [virtio_blk, virtio_scsi])
def test_a_device_directly_on_the_connection_gets_a_fresh_one(
    site: Site, device: Callable[[str], list[str]], tmp_path: Path
) -> None:
    vm = site.make_vm()
    with Machine(*nbd(site.unix, f"{vm}/disk0"), *device("n0"), directory=tmp_path) as machine:
        grown = site.grow(machine, vm)
        assert machine.size("d0") == 2 * SIZE
        assert grown.way == UNDER_DEVICE
        assert set(machine.nodes()) == {grown.node}


@pytest.mark.slow
@pytest.mark.parametrize(
    "drive",
    [
        "file=nbd+unix:///{export}?socket={socket},if=virtio,format=raw",
        "file=nbd+unix:///{quoted}?socket={socket},if=virtio,format=raw",
        "file=nbd://localhost:{port}/{export},if=virtio,format=raw,discard=unmap,cache=none",
        "file.driver=nbd,file.path={socket},file.export={export},file.reconnect-delay=9,if=virtio,format=raw",
        "driver=nbd,path={socket},export={export},if=virtio",
        "driver=raw,file.driver=nbd,file.host=localhost,file.port={port},file.export={export},if=virtio",
    ],
)
def test_a_legacy_drive_grows_again_and_again(site: Site, drive: str, tmp_path: Path) -> None:
    vm = site.make_vm()
    given = drive.format(export=f"{vm}/disk0", quoted=f"{vm}%2Fdisk0", socket=site.server.socket, port=site.port)
    with Machine("-drive", given, directory=tmp_path) as machine:
        count = len(machine.nodes())
        ways = [site.grow(machine, vm).way for _ in range(3)]
        [device] = machine.devices().values()
        assert device["inserted"]["image"]["virtual-size"] == 4 * SIZE
        assert ways[0] == UNDER_DEVICE
        assert len(machine.nodes()) == count


def test_a_drive_with_names_is_reopened(site: Site, tmp_path: Path) -> None:
    vm = site.make_vm()
    drive = f"file=nbd+unix:///{vm}/disk0?socket={site.server.socket},if=none,id=old,format=raw,node-name=f0"
    with Machine("-drive", drive, *virtio_scsi("old"), directory=tmp_path) as machine:
        assert site.grow(machine, vm).way == "a fresh connection under f0"
        assert machine.size("d0") == 2 * SIZE
        assert len(machine.nodes()) == 2


def test_a_grow_touches_no_other_disk(site: Site, tmp_path: Path) -> None:
    vms = [site.make_vm(2), site.make_vm(2)]
    arguments: list[str] = []
    for vm in vms:
        for disk in ("disk0", "disk1"):
            name = f"{vm}{disk}"
            arguments += nbd(site.unix, f"{vm}/{disk}", f"n{name}") + raw(f"f{name}", f"n{name}")
            arguments += virtio_blk(f"f{name}", name)
    with Machine(*arguments, directory=tmp_path) as machine:
        before = machine.nodes()
        grown = site.grow(machine, vms[1], "disk1")
        after = machine.nodes()
        assert machine.size(f"{vms[1]}disk1") == 2 * SIZE
        changed = {f"n{vms[1]}disk1", f"f{vms[1]}disk1"}
        assert {name: node for name, node in after.items() if name not in (*changed, grown.node)} == {
            name: node for name, node in before.items() if name not in changed
        }


def test_the_disk_grows_below_filters(site: Site, tmp_path: Path) -> None:
    vm = site.make_vm(4)
    group = ["-object", "throttle-group,id=tg,x-iops-total=5000"]
    throttle, reading = "throttle,throttle-group=tg", "copy-on-read"
    chains = {
        "disk0": [*raw("f0", "n0"), "-blockdev", f"{throttle},node-name=top0,file=f0"],
        "disk1": ["-blockdev", f"{throttle},node-name=top1,file=n1"],
        "disk2": [*raw("f2", "n2"), "-blockdev", f"{reading},node-name=top2,file=f2"],
        "disk3": ["-blockdev", f"{reading},node-name=top3,file=n3"],
    }
    arguments: list[str] = []
    for number, (disk, chain) in enumerate(chains.items()):
        arguments += nbd(site.unix, f"{vm}/{disk}", f"n{number}") + chain + virtio_blk(f"top{number}", f"d{number}")
    with Machine(*group, *arguments, directory=tmp_path) as machine:
        before = sorted(node["drv"] for node in machine.nodes().values())
        ways = [[site.grow(machine, vm, disk).way for disk in chains] for _ in range(2)]
        assert [machine.size(f"d{number}") for number in range(4)] == [3 * SIZE] * 4
        assert ways == [[f"a fresh connection under {node}" for node in ("f0", "top1", "f2")] + [UNDER_DEVICE]] * 2
        nodes = machine.nodes()
        assert sorted(node["drv"] for node in nodes.values()) == before
        assert all('"throttle-group": "tg"' in nodes[name]["file"] for name in ("top0", "top1"))


@pytest.mark.slow
@pytest.mark.parametrize("direct", [True, False])
def test_a_disk_in_an_iothread_grows_while_its_driver_runs(site: Site, direct: bool, tmp_path: Path) -> None:
    vm = site.make_vm()
    arguments = ["-object", "iothread,id=other", "-object", "iothread,id=io0", *nbd(site.unix, f"{vm}/disk0")]
    arguments += virtio_blk("n0", "d0", "iothread=io0") if direct else [*raw(), *virtio_blk("f0", "d0", "iothread=io0")]
    with Machine(*arguments, directory=tmp_path, running=True) as machine:
        # The firmware's own driver reads from the disk, which moves it into the iothread.
        until(lambda: _reads(machine, "d0"), what="the firmware to read")
        way = UNDER_DEVICE if direct else "a fresh connection under f0"
        assert [site.grow(machine, vm).way for _ in range(2)] == [way, way]
        assert machine.size("d0") == 3 * SIZE
        assert machine.execute("query-status")["running"]


def _reads(machine: Machine, device: str) -> int:
    told: list[dict[str, Any]] = machine.execute("query-blockstats")
    return sum(each["stats"]["rd_operations"] for each in told if f"/{device}/" in each.get("qdev", ""))


def test_a_guest_that_is_stopped_grows(native: Site, tmp_path: Path) -> None:
    vm = native.make_vm()
    arguments = (*nbd(native.unix, f"{vm}/disk0"), *raw(), *virtio_blk("f0"))
    with Machine(*arguments, directory=tmp_path, running=True) as machine:
        machine.execute("stop")
        native.grow(machine, vm)
        assert machine.size("d0") == 2 * SIZE
        machine.execute("cont")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_over_tcp_however_the_host_is_written(site: Site, host: str, tmp_path: Path) -> None:
    vm = site.make_vm()
    address = f"server.type=inet,server.host={host},server.port={site.port},server.keep-alive=on"
    with Machine(*nbd(address, f"{vm}/disk0"), *raw(), *virtio_blk("f0"), directory=tmp_path) as machine:
        site.grow(machine, vm)
        assert machine.size("d0") == 2 * SIZE


def test_a_socket_by_a_relative_path_and_by_a_link(site: Site, tmp_path: Path) -> None:
    vm = site.make_vm(2)
    (tmp_path / "the socket?,=&%2F").symlink_to(site.server.socket)
    relative = "server.type=unix,server.path=the socket?,,=&%2F"
    linked = f"server.type=unix,server.path={tmp_path}/the socket?,,=&%2F"
    arguments = [*nbd(relative, f"{vm}/disk0", "n0"), *raw("f0", "n0"), *virtio_blk("f0", "d0")]
    arguments += [*nbd(linked, f"{vm}/disk1", "n1"), *raw("f1", "n1"), *virtio_blk("f1", "d1")]
    with Machine(*arguments, directory=tmp_path) as machine:
        for disk in ("disk0", "disk1"):
            site.grow(machine, vm, disk)
            site.grow(machine, vm, disk)
        assert [machine.size(name) for name in ("d0", "d1")] == [3 * SIZE] * 2


def test_what_qemu_tells_of_a_node_stays(site: Site, tmp_path: Path) -> None:
    vm = site.make_vm()
    options = "cache.direct=on,cache.no-flush=on,detect-zeroes=unmap,discard=unmap"
    arguments = nbd(site.unix, f"{vm}/disk0", "n0", f"{options},reconnect-delay=7,open-timeout=3")
    arguments += raw("f0", "n0", options) + virtio_blk("f0", "d0")
    with Machine(*arguments, directory=tmp_path) as machine:
        before = machine.nodes()
        names = {"f0": "f0", "n0": site.grow(machine, vm).node}
        after = machine.nodes()
        assert {old: _without_size(after[new]) for old, new in names.items()} == {
            name: _without_size(node) for name, node in before.items()
        }


def _without_size(node: dict[str, Any]) -> dict[str, Any]:
    image = {key: value for key, value in node["image"].items() if key != "virtual-size"}
    return {**node, "image": image, "node-name": ""}


@pytest.mark.slow
def test_twenty_grows_leave_nothing_behind(site: Site, tmp_path: Path) -> None:
    vm = site.make_vm()
    with Machine(*nbd(site.unix, f"{vm}/disk0"), *raw(), *virtio_blk("f0"), directory=tmp_path) as machine:
        for number in range(20):
            grown = site.grow(machine, vm)
            assert machine.size("d0") == (number + 2) * SIZE
            assert set(machine.nodes()) == {"f0", grown.node}
        assert len(machine.execute("x-debug-query-block-graph")["nodes"]) == 3


def test_telling_once_more_changes_nothing(site: Site, tmp_path: Path) -> None:
    vm = site.make_vm()
    with Machine(*nbd(site.unix, f"{vm}/disk0"), *raw(), *virtio_blk("f0"), directory=tmp_path) as machine:
        assert site.tell(machine, site.news(vm)).way == "as it was"
        first = site.grow(machine, vm)
        before = machine.nodes()
        again = site.tell(machine, site.news(vm))
        assert (again.node, again.way) == (first.node, "as it was")
        assert machine.nodes() == before


def test_a_block_job_is_waited_for(native: Site, tmp_path: Path) -> None:
    vm = native.make_vm()
    with Machine(*nbd(native.unix, f"{vm}/disk0"), *raw(), *virtio_blk("f0"), directory=tmp_path) as machine:
        news = native.resize(vm)
        machine.execute("blockdev-add", {"driver": "null-co", "node-name": "target", "size": SIZE})
        mirror = {"job-id": "copying", "device": "f0", "target": "target", "sync": "full", "speed": 1}
        machine.execute("blockdev-mirror", mirror)
        before = machine.nodes()
        with pytest.raises(ResourceInUse, match=f"block job copying .* guest sync {vm}"):
            native.tell(machine, news)
        assert machine.nodes() == before
        machine.execute("block-job-cancel", {"device": "copying", "force": True})
        until(lambda: not machine.execute("query-block-jobs"), what="the job to end")
        native.tell(machine, news)
        assert machine.size("d0") == 2 * SIZE


@pytest.mark.slow
@pytest.mark.parametrize("job", ["stream", "commit", "backup"])
def test_any_kind_of_block_job_is_waited_for(native: Site, job: str, tmp_path: Path) -> None:
    vm = native.make_vm()
    overlay = tmp_path / "over.img"
    run("qemu-img", "create", "-f", "qcow2", overlay, str(SIZE))
    for format, image in (("raw", native.server.uri(f"{vm}/disk0")), ("qcow2", str(overlay))):
        run("qemu-io", "-f", format, "-c", "write -P 7 4M 8M", image)  # what is empty is streamed and committed at once
    arguments = [*nbd(native.unix, f"{vm}/disk0"), *raw()]
    if job != "backup":
        arguments += ["-blockdev", f"qcow2,node-name=over,file.driver=file,file.filename={overlay},backing=f0"]
    commands: dict[str, tuple[str, dict[str, Any]]] = {
        "stream": ("block-stream", {"device": "over"}),
        "commit": ("block-commit", {"device": "over", "top-node": "over", "base-node": "f0"}),
        "backup": ("blockdev-backup", {"device": "f0", "target": "target", "sync": "full"}),
    }
    command, options = commands[job]
    with Machine(*arguments, *virtio_blk("f0" if job == "backup" else "over"), directory=tmp_path) as machine:
        news = native.resize(vm)
        machine.execute("blockdev-add", {"driver": "null-co", "node-name": "target", "size": SIZE})
        machine.execute(command, {"job-id": "busy", "speed": 1, **options})
        with pytest.raises(ResourceInUse, match="block job busy"):
            native.tell(machine, news)
        # A job with a limit that is cancelled leaves QEMU 7.2 waiting for the limit when it ends.
        machine.execute("block-job-set-speed", {"device": "busy", "speed": 0})
        with contextlib.suppress(PeerFailed):
            machine.execute("block-job-cancel", {"device": "busy", "force": True})
        until(lambda: not machine.execute("query-block-jobs"), what="the job to end")


def test_a_read_only_disk_is_left_as_it_is(native: Site, tmp_path: Path) -> None:
    vm = native.make_vm()
    arguments = nbd(native.unix, f"{vm}/disk0", more="read-only=on") + raw(more="read-only=on")
    with Machine(*arguments, *virtio_blk("f0"), directory=tmp_path) as machine:
        before = machine.nodes()
        with pytest.raises(ResourceInUse, match="f0 of QEMU is read-only"):
            native.grow(machine, vm)
        assert machine.nodes() == before


def test_an_overlay_on_the_disk_is_not_the_disk(native: Site, tmp_path: Path) -> None:
    vm = native.make_vm()
    run("qemu-img", "create", "-f", "qcow2", tmp_path / "over.img", str(SIZE))
    overlay = f"qcow2,node-name=over,file.driver=file,file.filename={tmp_path}/over.img,backing=f0"
    arguments = (*nbd(native.unix, f"{vm}/disk0"), *raw(), "-blockdev", overlay, *virtio_blk("over"))
    with Machine(*arguments, directory=tmp_path) as machine:
        with pytest.raises(ResourceInUse, match="over of QEMU is a qcow2 node"):
            native.grow(machine, vm)
        assert machine.size("d0") == SIZE


def test_a_part_of_the_disk_is_not_the_disk(native: Site, tmp_path: Path) -> None:
    vm = native.make_vm()
    part = raw(more=f"size={SIZE // 2}")
    with (
        Machine(*nbd(native.unix, f"{vm}/disk0"), *part, *virtio_blk("f0"), directory=tmp_path) as machine,
        pytest.raises(ResourceInUse, match="f0 of QEMU shows only a part"),
    ):
        native.grow(machine, vm)


def test_a_node_that_something_else_uses_stays(native: Site, tmp_path: Path) -> None:
    vm = native.make_vm()
    arguments = nbd(native.unix, f"{vm}/disk0")
    with Machine(*arguments, *virtio_blk("n0", more="share-rw=on"), directory=tmp_path) as machine:
        news = native.resize(vm)
        machine.execute("blockdev-add", {"driver": "raw", "node-name": "aside", "file": "n0", "read-only": True})
        before = machine.nodes()
        with pytest.raises(ResourceInUse, match="Something else in QEMU uses the node n0"):
            native.tell(machine, news)
        assert machine.nodes() == before
        machine.execute("blockdev-del", {"node-name": "aside"})
        native.tell(machine, news)


def export(machine: Machine, node: str) -> None:
    """Have QEMU's own NBD server export a node, as `exported`."""
    address = {"type": "unix", "data": {"path": f"{machine.qmp}.nbd"}}
    machine.execute("nbd-server-start", {"addr": address})
    machine.execute("block-export-add", {"type": "nbd", "id": "exported", "node-name": node})


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("direct", [False, True])
def test_another_connection_to_the_same_disk_stays(native: Site, direct: bool, exported: bool, tmp_path: Path) -> None:
    vm = native.make_vm()
    chain = virtio_blk("n0") if direct else [*raw(), *virtio_blk("f0")]
    spare = nbd(native.unix, f"{vm}/disk0", "spare")
    with Machine(*nbd(native.unix, f"{vm}/disk0"), *chain, *spare, directory=tmp_path) as machine:
        if exported:
            export(machine, "spare")
        before = machine.nodes()
        for _ in range(3):
            grown = native.grow(machine, vm)
            after = machine.nodes()
            assert after["spare"] == before["spare"]
            assert len(after) == len(before)
            assert grown.node in after
            assert machine.size("d0") == grown.size


def test_a_node_that_was_given_the_name_of_a_replaced_one_stays(native: Site, tmp_path: Path) -> None:
    vm = native.make_vm(2)
    with Machine(*nbd(native.unix, f"{vm}/disk0"), *raw(), *virtio_blk("f0"), directory=tmp_path) as machine:
        native.grow(machine, vm)
        server = {"type": "unix", "path": str(native.server.socket)}
        machine.execute("blockdev-add", {"driver": "nbd", "node-name": "n0", "server": server, "export": f"{vm}/disk1"})
        native.grow(machine, vm)
        assert "n0" in machine.nodes()


def test_a_node_that_can_not_be_removed_after_all_keeps_nothing_pending(
    native: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = native.make_vm()
    execute = Monitor.execute

    def refusing(monitor: Monitor, command: str, *given: Any) -> Any:
        return execute(monitor, "no-such" if command == "blockdev-del" else command, *given)

    with Machine(*nbd(native.unix, f"{vm}/disk0"), *raw(), *virtio_blk("f0"), directory=tmp_path) as machine:
        with monkeypatch.context() as patch:
            patch.setattr(Monitor, "execute", refusing)
            native.grow(machine, vm)
            assert set(machine.nodes()) > {"n0", "f0"}
        native.tell(machine, native.news(vm))
        assert "n0" not in machine.nodes(), "the next one removes it"
        assert len(machine.nodes()) == 2


def test_a_disk_that_qemu_exports_itself_is_in_use(native: Site, tmp_path: Path) -> None:
    vm = native.make_vm()
    with Machine(*nbd(native.unix, f"{vm}/disk0"), *raw(), *virtio_blk("f0"), directory=tmp_path) as machine:
        export(machine, "f0")
        news = native.resize(vm)
        with pytest.raises(ResourceInUse, match=r"besides the device keeps QEMU .* f0: .*block-export-del"):
            native.tell(machine, news)
        machine.execute("block-export-del", {"id": "exported"})
        until(lambda: not machine.execute("query-block-exports"), what="the end of the export")
        native.tell(machine, news)
        assert machine.size("d0") == 2 * SIZE
        assert len(machine.nodes()) == 2


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("after", ["blockdev-add", "blockdev-reopen", "qom-set", "block_resize"])
@pytest.mark.parametrize("nodes_go", [False, True])
def test_a_device_that_is_unplugged_meanwhile_is_gone(
    native: Site, legacy: bool, after: str, nodes_go: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = native.make_vm()
    old = f"file=nbd+unix:///{vm}/disk0?socket={native.server.socket},if=none,id=old,format=raw"
    arguments = ["-drive", old] if legacy else [*nbd(native.unix, f"{vm}/disk0"), *raw("old")]
    execute = Monitor.execute

    def unplugging(monitor: Monitor, command: str, *given: Any) -> Any:
        answer = execute(monitor, command, *given)
        if command == after:
            execute(monitor, "device_del", {"id": "d0"})
            # The device goes first, and its nodes some time after.
            until(lambda: not nodes_go or not execute(monitor, "query-block"), what="the device to go")
        return answer

    with Machine(*arguments, *virtio_scsi("old"), directory=tmp_path) as machine:
        news = native.resize(vm)
        monkeypatch.setattr(Monitor, "execute", unplugging)
        if (legacy, after) in ((False, "qom-set"), (True, "blockdev-reopen")):
            native.tell(machine, news)  # that is no step of this one
        else:
            with pytest.raises((PeerFailed, ResourceInUse)) as failed, machine.monitor() as monitor:
                grow_disk(monitor, news)
            if after == "block_resize":
                assert failed.value.problem == f"The device of {vm}/disk0 is gone"


def test_a_legacy_drive_that_goes_with_its_device_is_gone(
    native: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = native.make_vm()
    execute = Monitor.execute

    def unplugging(monitor: Monitor, command: str, *given: Any) -> Any:
        answer = execute(monitor, command, *given)
        if command == "block_resize":
            execute(monitor, "device_del", {"id": "d0"})
            until(lambda: not execute(monitor, "query-named-block-nodes"), what="the nodes to go")
        return answer

    drive = f"file=nbd+unix:///{vm}/disk0?socket={native.server.socket},if=none,id=old,format=raw"
    with Machine("-drive", drive, *virtio_scsi("old"), directory=tmp_path) as machine:
        monkeypatch.setattr(Monitor, "execute", unplugging)
        with pytest.raises(PeerFailed, match=f"The device of {vm}/disk0 is gone"), machine.monitor() as monitor:
            grow_disk(monitor, native.news(vm))


def test_a_smaller_size_is_refused(site: Site, tmp_path: Path) -> None:
    vm = site.make_vm()
    news = site.news(vm)
    with Machine(*nbd(site.unix, f"{vm}/disk0"), *raw(), *virtio_blk("f0"), directory=tmp_path) as machine:
        site.grow(machine, vm)
        before = machine.nodes()
        with pytest.raises(ResourceInUse, match=r"does not shrink: make the file system .* smaller"):
            site.tell(machine, news)
        assert machine.nodes() == before


def test_a_server_with_the_old_size_is_told_of(native: Site, tmp_path: Path) -> None:
    vm = native.make_vm()
    news = native.news(vm)
    more = type(news)(news.vm, news.disk, news.export, 2 * SIZE, 2, news.servers)
    with Machine(*nbd(native.unix, f"{vm}/disk0"), *raw(), *virtio_blk("f0"), directory=tmp_path) as machine:
        with pytest.raises(PeerFailed, match="was told 16 MiB"):
            native.tell(machine, more)
        native.grow(machine, vm)
        assert machine.size("d0") == 2 * SIZE
        assert len(machine.nodes()) == 2


def test_another_vm_is_told_what_nodes_there_are(native: Site, tmp_path: Path) -> None:
    vm, other = native.make_vm(), native.make_vm()
    with Machine(*nbd(native.unix, f"{vm}/disk0"), *raw(), *virtio_blk("f0"), directory=tmp_path) as machine:
        with pytest.raises(ResourceNotFound, match=rf"uses {other}/disk0; the nodes there: n0 \(nbd\+unix:///{vm}"):
            native.grow(machine, other)
        assert set(machine.nodes()) == {"n0", "f0"}
    with (
        Machine(directory=tmp_path, name="empty") as machine,
        pytest.raises(ResourceNotFound, match="no block nodes at all"),
    ):
        native.tell(machine, native.news(vm))


def test_a_job_on_the_disk_of_a_vm_with_a_longer_name_is_no_obstacle(native: Site, tmp_path: Path) -> None:
    vm = native.make_vm()
    with Control.open(native.state) as control:
        control.create_vm(f"my{vm}", SIZE, [SizeRequest(exact=SIZE)])
    arguments = nbd(native.unix, f"my{vm}/disk0", "n1") + raw("f1", "n1") + virtio_blk("f1", "d1")
    arguments += nbd(native.unix, f"{vm}/disk0") + raw() + virtio_blk("f0")
    with Machine(*arguments, directory=tmp_path) as machine:
        machine.execute("blockdev-add", {"driver": "null-co", "node-name": "target", "size": SIZE})
        mirror = {"job-id": "copying", "device": "f1", "target": "target", "sync": "full", "speed": 1}
        machine.execute("blockdev-mirror", mirror)
        native.grow(machine, vm)
        assert machine.size("d0") == 2 * SIZE


def test_a_node_without_a_device_is_told_of(native: Site, tmp_path: Path) -> None:
    vm = native.make_vm()
    with (
        Machine(*nbd(native.unix, f"{vm}/disk0"), directory=tmp_path) as machine,
        pytest.raises(ResourceNotFound, match="though it has the node n0"),
    ):
        native.grow(machine, vm)


def test_the_same_name_at_another_server_is_another_disk(native: Site, tmp_path: Path) -> None:
    with serving(tmp_path, "native") as other:
        vm = native.make_vm()
        while other.make_vm() != vm:
            pass
        arguments = (*nbd(other.unix, f"{vm}/disk0"), *raw(), *virtio_blk("f0"))
        with Machine(*arguments, directory=tmp_path) as machine:
            news = native.resize(vm)
            with pytest.raises(ResourceNotFound, match="its node n0 is connected to nbd"):
                native.tell(machine, news)
            assert set(machine.nodes()) == {"n0", "f0"}
            other.grow(machine, vm)
            assert machine.size("d0") == 2 * SIZE


def test_a_disk_without_a_server_is_left_alone(native: Site, tmp_path: Path) -> None:
    vm = native.make_vm()
    news = native.news(vm)
    unserved = type(news)(news.vm, news.disk, news.export, 2 * SIZE, 2)
    with (
        Machine(*nbd(native.unix, f"{vm}/disk0"), *raw(), *virtio_blk("f0"), directory=tmp_path) as machine,
        machine.monitor() as monitor,
        pytest.raises(ResourceNotFound, match="none that runs"),
    ):
        grow_disk(monitor, unserved)
