"""Images: copied from files, devices, disks and snapshots; whole or not at all; and the disks made from them."""

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import nbd
import pytest

from nbdresize.config import StateDirectory
from nbdresize.control import image_sources, recovery
from nbdresize.control.control import Control
from nbdresize.control.freeze import Instant, InstantLost, instant
from nbdresize.control.model import Disk, DiskSource, OperationState, Progress, ResizeOptions
from nbdresize.control.site import Site
from nbdresize.errors import (
    InsufficientSpace,
    InvalidArgument,
    NbdresizeError,
    OperationCancelled,
    ResourceInUse,
    ResourceNotFound,
    VolumeFailed,
)
from nbdresize.storage.file import FilePool
from nbdresize.units import REMAINING, SizeRequest
from tests.control.consistency import problems
from tests.control.faulty import failing
from tests.filesystems import loop_device, mounted
from tests.peers import Serve

MIB = 1 << 20
GIB = 1 << 30


def exact(size: int) -> SizeRequest:
    return SizeRequest(exact=size)


def volume(state: StateDirectory, vm: str, control: Control, slot: int = 0) -> Path:
    return state.volumes / f"{control.vm(vm).disks[slot].volume}.raw"


def content(state: StateDirectory, control: Control, image: str) -> bytes:
    return (state.volumes / f"{control.image(image).volume}.raw").read_bytes()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A file with 4 MiB of data, then a hole of 3 MiB, then 4 MiB of data."""
    path = tmp_path / "raw image"
    with path.open("wb") as file:
        file.write(os.urandom(4 * MIB))
        file.seek(3 * MIB, os.SEEK_CUR)
        file.write(os.urandom(4 * MIB))
    return path


# Files


def test_an_image_is_a_copy_of_its_file(control: Control, state: StateDirectory, raw: Path) -> None:
    made = control.add_image("debian", raw)
    assert (made.name, made.size, made.original_size) == ("debian", 11 * MIB, 11 * MIB)
    assert made.space == (state.volumes / f"{made.volume}.raw").stat().st_blocks * 512
    assert 8 * MIB <= made.space < 9 * MIB
    assert content(state, control, "debian") == raw.read_bytes()
    assert control.images() == [made]
    assert control.image("debian") == made
    assert control.pool().images == made.space
    assert problems(state) == []


def test_a_size_between_blocks_is_rounded_up_with_zeroes(
    control: Control, state: StateDirectory, tmp_path: Path
) -> None:
    path = tmp_path / "odd"
    path.write_bytes(b"x" * 5001)
    made = control.add_image("odd", path)
    assert (made.size, made.original_size) == (8192, 8192)
    assert content(state, control, "odd") == b"x" * 5001 + bytes(8192 - 5001)


def test_a_block_device_is_copied_without_its_zeroes(control: Control, state: StateDirectory, raw: Path) -> None:
    with loop_device(raw) as device:
        made = control.add_image("debian", device)
    assert made.size == 11 * MIB
    assert made.space < 9 * MIB
    assert content(state, control, "debian") == raw.read_bytes()


@pytest.mark.parametrize(
    ("head", "way_out"),
    [
        (b"QFI\xfb", "qemu-img convert -f qcow2 -O raw '{0}' '{0}.raw'"),
        (b"KDMV", "qemu-img convert -f vmdk -O raw"),
        (b"# Disk DescriptorFile\n", "qemu-img convert -f vmdk -O raw"),
        (b"vhdxfile", "qemu-img convert -f vhdx -O raw"),
        (b"conectix", "qemu-img convert -f vpc -O raw"),
        (b"<<< Oracle VM".ljust(64) + b"\x7f\x10\xda\xbe", "qemu-img convert -f vdi -O raw"),
        (b"\x1f\x8b\x08", "gunzip --keep '{0}'"),
        (b"\xfd7zXZ\x00", "unxz --keep"),
    ],
)
def test_what_is_not_raw_is_refused_with_the_way_to_make_it_so(
    control: Control, state: StateDirectory, tmp_path: Path, head: bytes, way_out: str
) -> None:
    path = tmp_path / "an image"
    path.write_bytes(head + bytes(10000))
    with pytest.raises(InvalidArgument, match="no raw image") as refused:
        control.add_image("image", path)
    assert way_out.format(path) in refused.value.way_out
    assert control.images() == []
    assert problems(state) == []


def test_formats_are_called_as_qemu_img_calls_them() -> None:
    known = {"qcow2", "qed", "vmdk", "vhdx", "vpc", "vdi"}
    assert {name for _, _, name in image_sources._DISK_FORMATS} == known


def test_what_can_not_be_an_image_is_refused(control: Control, state: StateDirectory, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    huge = tmp_path / "huge"
    with suppress(OSError), huge.open("wb") as file:
        file.truncate(2**63 - 1)
    with pytest.raises(InvalidArgument, match="is empty"):
        control.add_image("image", empty)
    with pytest.raises(ResourceNotFound, match="There is no file"):
        control.add_image("image", tmp_path / "nothing")
    for path in (pipe, tmp_path):
        with pytest.raises(VolumeFailed):
            control.add_image("image", path)
    for name in ("", "a/b", ".hidden", "x" * 64):
        with pytest.raises(InvalidArgument):
            control.add_image(name, empty)
    assert problems(state) == []


@pytest.mark.parametrize("given", [-1, 12 * MIB, True])
def test_an_image_adds_no_more_than_it_has(control: Control, state: StateDirectory, raw: Path, given: int) -> None:
    with pytest.raises(InvalidArgument, match="to a budget"):
        control.add_image("image", raw, original_size=given)
    assert control.add_image("image", raw, original_size=0).original_size == 0
    assert control.add_image("other", raw, original_size=11 * MIB).original_size == 11 * MIB
    assert problems(state) == []


def test_a_name_is_taken_once(control: Control, state: StateDirectory, raw: Path) -> None:
    control.add_image("image", raw)
    with pytest.raises(ResourceInUse, match="There is an image image already"):
        control.add_image("image", raw)
    assert len(control.images()) == 1
    assert problems(state) == []


def test_of_two_who_add_the_same_name_at_once_one_does(state: StateDirectory, control: Control, raw: Path) -> None:
    def add(_: int) -> str:
        with Control.open(state) as mine:
            try:
                mine.add_image("image", raw)
            except ResourceInUse as error:
                return str(error)
            return "added"

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(add, range(4)))
    assert sorted(answers)[-1] == "added"
    assert answers.count("added") == 1
    assert problems(state) == []


def test_retries_change_nothing(control: Control, state: StateDirectory, raw: Path) -> None:
    made = control.add_image("image", raw, operation="one")
    raw.unlink()
    assert control.add_image("image", raw, operation="one") == made
    with pytest.raises(InvalidArgument, match="was another request"):
        control.add_image("image", raw, original_size=0, operation="one")
    vm = control.create_vm("vm", GIB, image="image", operation="two")
    control.delete_image("image", operation="three")
    control.delete_image("image", operation="three")
    assert control.create_vm("vm", GIB, image="image", operation="two") == vm
    with pytest.raises(ResourceNotFound, match="has been deleted"):
        control.add_image("image", raw, operation="one")
    with pytest.raises(ResourceNotFound):
        control.delete_image("image")
    assert problems(state) == []


# Room, errors, cancelling


def test_an_image_is_promised_of_the_pool(control: Control, state: StateDirectory, raw: Path) -> None:
    control.update_pool(capacity=10 * MIB, overcommit="1")
    control.add_image("first", raw)
    with pytest.raises(InsufficientSpace, match="Image second needs 8 MiB of the pool"):
        control.add_image("second", raw)
    assert [image.name for image in control.images()] == ["first"]
    control.delete_image("first")
    assert control.pool().images == 0
    control.add_image("second", raw)
    assert problems(state) == []


def test_a_copy_that_takes_more_than_was_reserved_is_checked_again(
    control: Control, state: StateDirectory, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.update_pool(capacity=6 * MIB, overcommit="1")
    little = image_sources._of_file

    def compressed(path: Path) -> image_sources.Origin:
        found = little(path)
        return image_sources.Origin(found.name, found.path, found.size, MIB, found.original_size)

    monkeypatch.setattr(image_sources, "_of_file", compressed)
    with pytest.raises(InsufficientSpace, match="Image image needs 7 MiB"):
        control.add_image("image", raw)
    assert control.images() == []
    assert control.pool().images == 0
    assert problems(state) == []


def test_a_full_file_system_leaves_nothing(tmp_path: Path, raw: Path) -> None:
    with mounted("tmpfs", tmp_path, size=6 * MIB) as point:
        state = StateDirectory(point / "state")
        with Control.open(state) as control:
            control.update_pool(overcommit="unlimited")
            with pytest.raises(InsufficientSpace):
                control.add_image("image", raw)
            assert control.images() == []
            assert control.pool().images == 0
            assert [each.state for each in control.operations() if each.kind == "add_image"] == [OperationState.FAILED]
        assert problems(state) == []


@pytest.mark.parametrize("ended_by", [KeyboardInterrupt, RuntimeError])
def test_whatever_ends_a_copy_nothing_is_left(
    control: Control, state: StateDirectory, raw: Path, ended_by: type[BaseException]
) -> None:
    def end(progress: Progress) -> None:
        assert (progress.step, progress.total) == ("copying raw image", 11 * MIB)
        raise ended_by

    with pytest.raises(ended_by):
        control.add_image("image", raw, listener=end)
    assert control.images() == []
    assert problems(state) == []
    control.add_image("image", raw)


def test_a_cancelled_copy_is_undone(
    control: Control, state: StateDirectory, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbdresize.control.operations._REPORT_EVERY", 0.0)

    def cancel(progress: Progress) -> None:
        if control.operation("slow").state is OperationState.RUNNING:
            with suppress(NbdresizeError):
                control.cancel_operation("slow")

    with pytest.raises(OperationCancelled):
        control.add_image("image", raw, operation="slow", listener=cancel)
    assert control.operation("slow").state is OperationState.CANCELLED
    assert control.images() == []
    assert problems(state) == []
    assert control.add_image("image", raw, operation="slow").name == "image"


def test_a_deletion_that_fails_is_taken_back(
    control: Control, state: StateDirectory, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = control.add_image("image", raw)

    def fail(self: FilePool, name: str) -> None:
        raise VolumeFailed("no")

    with monkeypatch.context() as patch:
        patch.setattr(FilePool, "delete", fail)
        with pytest.raises(VolumeFailed):
            control.delete_image("image")
    assert control.images() == [made]
    assert problems(state) == []
    control.delete_image("image")
    assert problems(state) == []


# Disks made from them


def test_the_boot_disk_is_the_image_and_then_zeroes(control: Control, state: StateDirectory, raw: Path) -> None:
    control.add_image("debian", raw)
    vm = control.create_vm("vm", 50 * MIB, [exact(20 * MIB), exact(10 * MIB), REMAINING], image="debian")
    assert [disk.size for disk in vm.disks] == [20 * MIB, 10 * MIB, 31 * MIB]
    assert [disk.image for disk in vm.disks] == ["debian", None, None]
    assert volume(state, "vm", control).read_bytes() == raw.read_bytes() + bytes(9 * MIB)
    assert not any(volume(state, "vm", control, 1).read_bytes())
    assert problems(state) == []


def test_a_disk_never_gets_smaller_than_its_image(control: Control, raw: Path) -> None:
    control.add_image("debian", raw)
    with pytest.raises(InvalidArgument):
        control.create_vm("vm", GIB, [exact(11 * MIB - 4096)], image="debian")
    control.create_vm("vm", GIB, [exact(20 * MIB)], image="debian")
    with pytest.raises(InvalidArgument):
        control.resize_disk("vm", "disk0", exact(10 * MIB), ResizeOptions(shrink=True))
    control.resize_disk("vm", "disk0", exact(11 * MIB), ResizeOptions(shrink=True))


def test_disks_outlive_their_image(control: Control, state: StateDirectory, raw: Path) -> None:
    control.add_image("debian", raw)
    control.create_vm("vm", GIB, image="debian")
    control.delete_image("debian")
    assert volume(state, "vm", control).read_bytes() == raw.read_bytes()
    with pytest.raises(ResourceNotFound, match="There is no image debian"):
        control.create_vm("other", GIB, image="debian")
    assert problems(state) == []


def test_twenty_vms_are_made_from_one_image_at_once(control: Control, state: StateDirectory, raw: Path) -> None:
    control.add_image("debian", raw)

    def make(number: int) -> None:
        with Control.open(state) as mine:
            mine.create_vm(f"vm{number}", 20 * MIB, image="debian")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(make, range(20)))
    assert len(control.vms()) == 20
    for vm in control.vms():
        assert volume(state, vm.name, control).read_bytes() == raw.read_bytes()
    assert problems(state) == []


def test_a_vm_that_does_not_fit_its_file_system_leaves_nothing(tmp_path: Path, raw: Path) -> None:
    with mounted("tmpfs", tmp_path, size=14 * MIB) as point:
        state = StateDirectory(point / "state")
        with Control.open(state) as control:
            control.update_pool(overcommit="unlimited")
            control.add_image("debian", raw)
            with pytest.raises(InsufficientSpace):
                control.create_vm("vm", GIB, image="debian")
            assert control.vms() == []
            assert [path.name for path in state.volumes.iterdir()] == [f"{control.image('debian').volume}.raw"]
        assert problems(state) == []


def test_a_vm_whose_copy_is_interrupted_leaves_nothing(control: Control, state: StateDirectory, raw: Path) -> None:
    control.add_image("debian", raw)

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        control.create_vm("vm", GIB, [None, exact(MIB)], image="debian", listener=interrupt)
    assert control.vms() == []
    assert problems(state) == []
    control.delete_image("debian")


def test_of_two_who_make_the_same_vm_at_once_one_does(control: Control, state: StateDirectory, raw: Path) -> None:
    control.add_image("debian", raw)

    def make(_: int) -> str:
        with Control.open(state) as mine:
            try:
                mine.create_vm("vm", 20 * MIB, image="debian")
            except ResourceInUse as error:
                return str(error)
            return "made"

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(make, range(4))).count("made") == 1
    assert volume(state, "vm", control).read_bytes() == raw.read_bytes()
    assert problems(state) == []


def test_an_id_is_one_vms(control: Control, raw: Path) -> None:
    control.create_vm("a", MIB, operation="one")
    with pytest.raises(InvalidArgument, match="was another request"):
        control.create_vm("b", MIB, operation="one")


@contextmanager
def stopped(work: Callable[[Callable[[Progress], None]], object]) -> Iterator[None]:
    """`work`, standing still at its first report of progress until the block ends."""
    begun, go_on = threading.Event(), threading.Event()

    def stop(progress: Progress) -> None:
        begun.set()
        assert go_on.wait(60)

    with ThreadPoolExecutor(1) as threads:
        result = threads.submit(work, stop)
        try:
            assert begun.wait(60)
            yield
        finally:
            go_on.set()
        result.result(60)


def test_an_image_is_not_deleted_while_a_disk_is_made_from_it(
    control: Control, state: StateDirectory, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.add_image("debian", raw)
    monkeypatch.setattr(recovery.changing_image.__wrapped__, "__defaults__", (0.1,))  # type: ignore[attr-defined]
    with stopped(lambda stop: control.create_vm("vm", 20 * MIB, image="debian", listener=stop)):
        with pytest.raises(ResourceInUse, match="a disk is being made from it"):
            control.delete_image("debian")
        control.create_vm("other", 20 * MIB, image="debian")
    control.delete_image("debian")
    assert volume(state, "vm", control).read_bytes() == raw.read_bytes()
    assert problems(state) == []


def test_an_image_that_is_just_being_made_is_waited_for(
    control: Control, state: StateDirectory, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(1) as threads:
        with stopped(lambda stop: control.add_image("debian", raw, listener=stop)):
            assert control.images() == []
            with monkeypatch.context() as patch:
                patch.setattr(recovery.changing_image.__wrapped__, "__defaults__", (0.1,))  # type: ignore[attr-defined]
                with pytest.raises(ResourceInUse, match="is being made"):
                    control.create_vm("vm", GIB, image="debian")
                with pytest.raises(ResourceInUse, match="is being made"):
                    control.delete_image("debian")
            made = threads.submit(control.create_vm, "vm", GIB, image="debian")
        assert made.result(60).disks[0].image == "debian"
    assert problems(state) == []


def test_a_copy_that_goes_on_holds_nobody_up_who_opens_the_state_directory(
    control: Control, state: StateDirectory, raw: Path
) -> None:
    with stopped(lambda stop: control.add_image("debian", raw, listener=stop)), Control.open(state) as other:
        assert [each.state for each in other.operations() if each.kind == "add_image"] == [OperationState.RUNNING]
        assert other.images() == []
    assert [image.name for image in control.images()] == ["debian"]


# From disks and snapshots


def test_an_image_of_a_disk_is_its_content(control: Control, state: StateDirectory, raw: Path) -> None:
    control.add_image("debian", raw)
    control.create_vm("vm", GIB, [exact(12 * MIB), exact(MIB)], image="debian")
    with volume(state, "vm", control).open("r+b") as file:
        file.write(b"changed")
    made = control.add_image("golden", DiskSource("vm", "disk0"))
    assert (made.size, made.original_size) == (12 * MIB, 11 * MIB)
    assert content(state, control, "golden") == volume(state, "vm", control).read_bytes()
    assert control.add_image("data", DiskSource("vm", "disk1")).original_size == 0
    for source in (DiskSource("vm", "disk2"), DiskSource("nobody", "disk0"), DiskSource("vm", "disk0", "nothing")):
        with pytest.raises(ResourceNotFound):
            control.add_image("other", source)
    with pytest.raises(InvalidArgument):
        control.add_image("other", DiskSource("vm", "disk9"))
    assert problems(state) == []


def test_a_disk_of_a_snapshot_is_as_it_was_then(control: Control, state: StateDirectory, raw: Path) -> None:
    control.add_image("debian", raw)
    control.create_vm("vm", GIB, image="debian")
    control.create_snapshot("vm", "before")
    with volume(state, "vm", control).open("r+b") as file:
        file.write(b"changed")
    made = control.add_image("golden", DiskSource("vm", "disk0", "before"))
    assert (made.size, made.original_size) == (11 * MIB, 11 * MIB)
    assert content(state, control, "golden") == raw.read_bytes()
    with pytest.raises(ResourceNotFound, match="has no disk1"):
        control.add_image("other", DiskSource("vm", "disk1", "before"))
    assert problems(state) == []


def test_a_snapshot_that_is_not_whole_is_no_image(control: Control, state: StateDirectory) -> None:
    """Neither one that somebody has damaged, nor one that is half made, or half deleted."""
    control.create_vm("vm", GIB, [SizeRequest(exact=16 * MIB)])
    made = control.create_snapshot("vm", "cut")
    os.truncate(state.volumes / f"{made.disks[0].volume}.raw", MIB)
    with pytest.raises(VolumeFailed, match=r"disk0 of snapshot cut, .* has 1048576 bytes instead of 16777216"):
        control.add_image("image", DiskSource("vm", "disk0", "cut"))
    with failing("copy", "delete"):
        with pytest.raises(VolumeFailed):
            control.create_snapshot("vm", "half")
        with pytest.raises(ResourceNotFound, match="no snapshot half"):
            control.add_image("image", DiskSource("vm", "disk0", "half"))
        with pytest.raises(VolumeFailed):
            control.delete_snapshot("vm", "cut")
        with pytest.raises(ResourceNotFound, match="no snapshot cut"):
            control.add_image("image", DiskSource("vm", "disk0", "cut"))
    Control.open(state).close()
    assert control.images() == []
    assert problems(state) == []


def test_a_path_that_can_not_be_one_is_not_found(control: Control, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (tmp_path / ("x" * 300), Path("/x" * 4000), loop, tmp_path / "nul\0", Path("/dev/null/x")):
        with pytest.raises(ResourceNotFound, match="There is no file"):
            control.add_image("image", path)


def test_a_path_that_may_not_be_looked_at_says_so(control: Control, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As below a directory of somebody else's."""
    real = Path.stat

    def forbidden(path: Path, **named: bool) -> os.stat_result:
        if path == raw:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, **named)

    monkeypatch.setattr(Path, "stat", forbidden)
    with pytest.raises(VolumeFailed, match="Permission denied"):
        control.add_image("image", raw)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_copies_share_their_blocks_where_the_file_system_can(kind: str, tmp_path: Path, raw: Path) -> None:
    with mounted(kind, tmp_path) as point, Control.open(StateDirectory(point / "state")) as control:
        control.update_pool(overcommit="unlimited")
        control.add_image("debian", raw)
        control.create_vm("vm", GIB, [exact(20 * MIB)], image="debian")
        control.add_image("golden", DiskSource("vm", "disk0"))
        pool = FilePool(control.state.volumes)
        names = [control.image("debian").volume, control.vm("vm").disks[0].volume, control.image("golden").volume]
        first, *others = pool.spaces(names)
        assert first >= 8 * MIB
        assert others == [0, 0]
        with volume(control.state, "vm", control).open("r+b") as file:
            file.write(b"x" * MIB)
        assert content(control.state, control, "debian") == raw.read_bytes()


@contextmanager
def attached(control: Control, directory: Path) -> Iterator[nbd.NBD]:
    """A client of vm/disk0, over a real server."""
    directory.mkdir()
    with Serve(front="native", directory=directory, root=control.state.root) as server:
        client = nbd.NBD()
        client.set_uri_allow_local_file(True)
        client.connect_uri(server.uri("vm/disk0"))
        yield client
        client.shutdown()


@pytest.mark.slow
def test_an_attached_disk_is_copied_at_one_instant_where_copies_share(tmp_path: Path, raw: Path) -> None:
    with mounted("xfs", tmp_path) as point, Control.open(StateDirectory(point / "state")) as control:
        control.update_pool(overcommit="unlimited")
        control.add_image("debian", raw)
        control.create_vm("vm", GIB, image="debian")
        with attached(control, tmp_path / "server") as client:
            client.pwrite(b"answered" * 512, 0)
            control.add_image("golden", DiskSource("vm", "disk0"))
            client.pwrite(b"later---" * 512, 0)
        assert content(control.state, control, "golden") == b"answered" * 512 + raw.read_bytes()[4096:]
        assert problems(control.state) == []


@pytest.mark.slow
def test_an_attached_disk_is_refused_where_copies_do_not_share(tmp_path: Path, raw: Path) -> None:
    with mounted("ext4", tmp_path, size=64 * MIB) as point, Control.open(StateDirectory(point / "state")) as control:
        control.update_pool(overcommit="unlimited")
        control.create_vm("vm", GIB, [exact(20 * MIB)])
        with volume(control.state, "vm", control).open("r+b") as file:
            file.write(raw.read_bytes())
        with attached(control, tmp_path / "server") as client:
            with pytest.raises(ResourceInUse, match="has clients attached") as refused:
                control.add_image("golden", DiskSource("vm", "disk0"))
            assert "--snapshot vm/SNAPSHOT/disk0" in refused.value.way_out
            client.pwrite(bytes(512), 0)
        assert problems(control.state) == []
        control.add_image("golden", DiskSource("vm", "disk0"))
        assert control.image("golden").space < 9 * MIB
        assert content(control.state, control, "golden") == volume(control.state, "vm", control).read_bytes()


def test_clients_are_kept_from_a_disk_while_it_is_copied(control: Control, raw: Path, state: StateDirectory) -> None:
    control.create_vm("vm", GIB, [exact(20 * MIB)])
    with volume(state, "vm", control).open("r+b") as file:
        file.write(raw.read_bytes())
    source = DiskSource("vm", "disk0")
    copying = stopped(lambda stop: control.add_image("golden", source, listener=stop))
    with copying, pytest.raises(ResourceInUse):
        control.take_lease("vm", "disk0", wait=0.1)
    _, lease = control.take_lease("vm", "disk0")
    lease.release()


def test_an_instant_that_is_lost_is_tried_again_and_then_given_up(
    control: Control, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.create_vm("vm", GIB, [exact(MIB)])
    losses = [0]

    @contextmanager
    def losing(site: Site, disks: Sequence[Disk]) -> Iterator[Instant]:
        with instant(site, disks) as now:
            yield now
        losses[0] -= 1
        if losses[0] >= 0:
            raise InstantLost("too late")

    monkeypatch.setattr(image_sources, "instant", losing)
    losses[0] = 2
    control.add_image("golden", DiskSource("vm", "disk0"))
    losses[0] = 1000
    with pytest.raises(ResourceInUse, match="can't be copied at one instant"):
        control.add_image("other", DiskSource("vm", "disk0"))
    assert problems(state) == []
