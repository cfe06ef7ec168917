"""The scripts for guests, on loop devices that grow; what the kernel here can't do, tests/guest/ does in guests.

ext4 grows online only for who has CAP_SYS_RESOURCE, so that it is tested in guests.
"""

import contextlib
import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nbdresize.guests.agent.file_systems import SCRIPT
from nbdresize.guests.agent.session import bounded
from tests.filesystems import MIB, loop_device, notice_growth, run
from tests.peers import CHECKOUT

pytestmark = [pytest.mark.slow]

SCRIPTS = CHECKOUT / "scripts/guest"
GROW = SCRIPTS / "nbdresize-grow"
MOVE_SWAP = SCRIPTS / "nbdresize-move-swap"
SMALL, LARGE = 512 * MIB, 800 * MIB
SWAP = 64 * MIB
SWAP_TYPES = {"gpt": "S", "dos": "82"}
MAKE = {"xfs": ("mkfs.xfs", "-q", "-f"), "btrfs": ("mkfs.btrfs", "-q", "-f")}


@dataclass
class Disk:
    """A loop device that a test partitions."""

    device: Path
    backing: Path

    def write_table(self, table: str) -> None:
        command = ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(self.device)]
        subprocess.run(command, input=table, text=True, check=True, capture_output=True)

    def partition(self, table: str) -> None:
        self.write_table(table)
        run("partx", "--add", self.device)

    def part(self, number: int) -> Path:
        return Path(f"{self.device}p{number}")

    def grow(self, size: int = LARGE) -> None:
        with self.backing.open("r+b") as file:
            file.truncate(size)
        notice_growth(self.device)

    def table(self) -> dict[str, str]:
        """The lines of its partition table, each by the partition that it is about, sizes and places in sectors."""
        lines = run("sfdisk", "--dump", self.device).splitlines()
        return {name: re.sub(" +", "", rest) for name, _, rest in (line.partition(":") for line in lines if line)}

    def place(self, number: int) -> range:
        """The bytes of that partition."""
        known = Path("/sys/class/block") / self.part(number).name
        start, size = (int((known / name).read_text()) * 512 for name in ("start", "size"))
        return range(start, start + size)

    def content(self, besides: range = range(0)) -> str:
        """What all its data is, told by a hash: of what is no hole, so that it takes no time.

        `besides`: of what lies there, nothing; where a file system is mounted that writes by itself now and then.
        """
        digest = hashlib.sha256()
        run("blockdev", "--flushbufs", self.device)
        with self.backing.open("rb") as file:
            end = 0
            with contextlib.suppress(OSError):  # no data any more
                while True:
                    start = os.lseek(file.fileno(), end, os.SEEK_DATA)
                    end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                    for first, last in ((start, min(end, besides.start)), (max(start, besides.stop), end)):
                        if first < last:
                            digest.update(f"{first} ".encode() + os.pread(file.fileno(), last - first, first))
        return digest.hexdigest()

    def mbr(self) -> bytes:
        """The first sector, but for what its first partition's place and size are."""
        run("blockdev", "--flushbufs", self.device)
        with self.backing.open("rb") as file:
            sector = file.read(512)
        return sector[:447] + sector[462:]

    def write(self, offset: int, data: bytes) -> None:
        with self.device.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def tag(self, number: int, name: str) -> str:
        return run("blkid", "-p", "-s", name, "-o", "value", self.part(number)).strip()


@contextlib.contextmanager
def disk(directory: Path, *, sector_size: int = 512) -> Iterator[Disk]:
    backing = directory / "disk.img"
    with backing.open("wb") as file:
        file.truncate(SMALL)
    with loop_device(backing, sector_size=sector_size) as device:
        try:
            yield Disk(device, backing)
        finally:
            if list(Path(f"/sys/block/{device.name}").glob(f"{device.name}p*")):
                run("partx", "--delete", device)


@contextlib.contextmanager
def mounted(kind: str, device: Path, point: Path, *options: str) -> Iterator[Path]:
    run(*MAKE[kind], device)
    point.mkdir()
    run("mount", *options, device, point)
    try:
        (point / "data").write_bytes(b"data" * MIB)
        run("sync", "--file-system", point)
        yield point
        assert (point / "data").read_bytes() == b"data" * MIB
    finally:
        run("umount", point)


@contextlib.contextmanager
def swapped_on(disk: Disk, number: int) -> Iterator[None]:
    """Swap on a partition; whatever becomes of it, off at the end."""
    run("swapon", "--priority", "7", disk.part(number))
    try:
        yield
    finally:
        for name in re.findall(rf"^{disk.device}p\d+", Path("/proc/swaps").read_text(), re.MULTILINE):
            run("swapoff", name)


def script(*command: str | Path) -> tuple[int, list[str]]:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL
    )
    return done.returncode, (done.stdout + done.stderr).splitlines()


def edited(original: Path, directory: Path, old: str, new: str) -> Path:
    """A script with the last `old` in it replaced."""
    before, found, after = original.read_text().rpartition(old)
    assert found
    copy = directory / original.name
    copy.write_text(before + new + after)
    copy.chmod(0o755)
    return copy


def room(point: Path) -> int:
    return int(run("df", "--output=size", "-B1M", point).split()[-1])


# nbdresize-grow


def test_there_is_one_copy_of_the_script() -> None:
    assert GROW.is_symlink()
    assert GROW.resolve() == SCRIPT


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
@pytest.mark.parametrize(
    ("label", "sector_size", "moved"),
    [("gpt", 512, False), ("gpt", 512, True), ("gpt", 4096, False), ("dos", 512, False), ("dos", 4096, False)],
    ids=["gpt", "gpt with its second copy moved", "gpt of 4 KiB sectors", "mbr", "mbr of 4 KiB sectors"],
)
def test_the_last_partition_grows_with_what_lies_in_it(
    tmp_path: Path, kind: str, label: str, sector_size: int, moved: bool
) -> None:
    name = 'name="root of it", attrs="LegacyBIOSBootable"' if label == "gpt" else "size=+, bootable"
    with disk(tmp_path, sector_size=sector_size) as it:
        it.partition(f"label: {label}\nsize=16MiB\n{name}\n")
        with mounted(kind, it.part(2), tmp_path / "point") as point:
            assert script(GROW, it.device)[0] == 0
            before, small = it.table(), room(point)
            it.grow()
            if moved:
                run("sfdisk", "--relocate", "gpt-bak-std", "--force", it.device)
            code, lines = script(GROW, it.device)
            assert code == 0, lines
            assert lines[0] == f"disk {it.device} {LARGE}"
            assert [line.split()[:3] for line in lines[1:]] == [
                ["grown", str(it.part(2)), "partition"],
                ["grown", str(it.part(2)), kind],
            ]
            assert room(point) - small >= 280
            after = it.table()
            for key in (f"{it.part(2)} ", "last-lba"):
                assert before.pop(key, None) != after.pop(key, None) or label == "dos"
            assert after == before
            assert script(GROW, it.device) == (0, [line.replace("grown", "full") for line in again(lines)])
        assert "No errors" in run("sfdisk", "--verify", it.device)


def again(lines: list[str]) -> list[str]:
    """What the script says the second time, but for its words: only the sizes that were new."""
    return [" ".join(line.split()[:3] + line.split()[4:]) if line.startswith("grown") else line for line in lines]


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_a_file_system_on_the_whole_disk_grows(tmp_path: Path, kind: str) -> None:
    with disk(tmp_path) as it, mounted(kind, it.device, tmp_path / "a point") as point:
        it.grow()
        small = room(point)
        dry = script(GROW, "--dry-run", it.device)
        assert dry == (0, [f"disk {it.device} {LARGE}", f"would {it.device} {kind} {SMALL} {LARGE}"])
        assert room(point) == small
        assert script(GROW, it.device) == (0, [dry[1][0], f"grown {it.device} {kind} {SMALL} {LARGE}"])
        assert room(point) == small + (LARGE - SMALL) // MIB


@pytest.mark.parametrize("damage", ["unmounted", "swap", "empty", "table without partitions", "logical", "read-only"])
def test_what_is_not_known_is_left_as_it_is(tmp_path: Path, damage: str) -> None:
    with disk(tmp_path) as it, contextlib.ExitStack() as stack:
        if damage == "unmounted":
            run(*MAKE["xfs"], it.device)
        elif damage == "swap":
            run("mkswap", it.device)
        elif damage == "table without partitions":
            it.write_table("label: gpt\n")
        elif damage == "logical":
            it.partition("label: dos\nsize=16MiB\ntype=5\nsize=64MiB\n")
        elif damage == "read-only":
            stack.enter_context(mounted("btrfs", it.device, tmp_path / "point"))
            run("mount", "-o", "remount,ro", tmp_path / "point")
            stack.callback(run, "mount", "-o", "remount,rw", tmp_path / "point")
        it.grow()
        content = it.content()
        code, lines = script(GROW, it.device)
        assert (code, lines[1].split()[0]) == (3, "left")
        assert it.content() == content


def test_leftovers_of_another_system_are_not_chosen_from(tmp_path: Path) -> None:
    with disk(tmp_path) as it:
        run(*MAKE["btrfs"], it.device)  # its superblock lies at 64 KiB, where a table does not overwrite it
        it.partition("label: gpt\nsize=16MiB, start=8MiB\n")
        it.grow()
        code, lines = script(GROW, it.device)
        assert (code, lines[1]) == (3, f"left {it.device} looks like several things at once: see wipefs {it.device}")


@pytest.mark.parametrize(
    "arguments", [[], ["--size"], ["--what"], ["a", "b"], ["--size", "5x"], ["--size", ""], ["--dry-run"]], ids=str
)
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    assert script(GROW, *arguments)[0] == 2


def test_what_is_no_disk_is_refused(tmp_path: Path) -> None:
    assert script(GROW, tmp_path / "none") == (1, [f"failed {tmp_path / 'none'} is no block device"])
    with disk(tmp_path) as it:
        it.partition("label: gpt\nsize=16MiB\n")
        code, lines = script(GROW, it.part(1))
        assert (code, lines) == (1, [f"failed {it.part(1)} is a partition; name the disk that it lies on"])


def test_no_disk_is_taken_that_is_not_the_one(tmp_path: Path) -> None:
    code, lines = script(GROW, "--pci", "0000:7f:1f.7", "--size", "4096")
    assert (code, lines) == (
        3,
        ["left - no disk of this guest is it: pci 0000:7f:1f.7, unit any, serial any, 4096 bytes"],
    )


def test_the_script_runs_from_its_input_as_the_agent_sends_it(tmp_path: Path) -> None:
    with disk(tmp_path) as it, mounted("btrfs", it.device, tmp_path / "point"):
        it.grow()
        command = ["sh", "-s", "--", str(it.device)]
        done = subprocess.run(command, stdin=SCRIPT.open("rb"), capture_output=True, text=True, timeout=60)
        assert done.stdout.splitlines()[-1] == f"grown {it.device} btrfs {SMALL} {LARGE}"


@pytest.mark.parametrize("last", ["swap", "vfat", "nothing"])
def test_a_partition_that_can_not_use_the_room_is_not_grown(tmp_path: Path, last: str) -> None:
    with disk(tmp_path) as it:
        it.partition("label: gpt\nsize=384MiB\nsize=64MiB\n")
        if last == "swap":
            run("mkswap", it.part(2))
        elif last == "vfat":
            it.write(448 << 20, bytes.fromhex("eb3c906d6b66732e66617400020401000200020080f8800020004000"))
        with mounted("xfs", it.part(1), tmp_path / "point"):
            it.grow()
            content = it.content(it.place(1))
            for options in ([], ["--dry-run"]):
                code, lines = script(GROW, *options, it.device)
                assert (code, [line.split()[:2] for line in lines[1:]]) == (3, [["left", str(it.part(2))]])
            assert it.content(it.place(1)) == content


def test_swap_can_be_moved_after_a_grow_that_left_it(tmp_path: Path) -> None:
    with disk(tmp_path) as it:
        partition_for_swap(it, "gpt")
        with mounted("xfs", it.part(2), tmp_path / "point") as point:
            small = room(point)
            it.grow()
            assert script(GROW, it.device)[0] == 3
            code, lines = script(MOVE_SWAP, it.device)
            assert code == 0, lines
            assert room(point) - small >= (LARGE - SMALL) // MIB - 2


@pytest.mark.parametrize("instead", ["kill -9 $$", "attempt x false"], ids=["killed", "failed"])
def test_a_partition_grows_that_the_kernel_was_not_told_of(tmp_path: Path, instead: str) -> None:
    stopped = edited(GROW, tmp_path, 'attempt "$disk" partx', f'{instead} && attempt "$disk" partx')
    with disk(tmp_path) as it:
        it.partition("label: gpt\nsize=400MiB\n")
        with mounted("xfs", it.part(1), tmp_path / "point") as point:
            it.grow()
            assert script(stopped, it.device)[0] in (-9, 1)
            small, table = room(point), it.table()
            dry = script(GROW, "--dry-run", it.device)
            assert [line.split()[0] for line in dry[1]] == ["disk", "would", "would"]
            code, lines = script(GROW, it.device)
            assert (code, [line.split()[0] for line in lines]) == (0, ["disk", "grown", "grown"]), lines
            assert room(point) - small >= 280
            assert it.table() == table


def test_a_kernel_that_keeps_the_old_size_is_told_of(tmp_path: Path) -> None:
    deaf = edited(GROW, tmp_path, 'attempt "$disk" partx', 'true || attempt "$disk" partx')
    with disk(tmp_path) as it:
        it.partition("label: gpt\nsize=400MiB\n")
        with mounted("xfs", it.part(1), tmp_path / "point"):
            it.grow()
            for _ in range(2):
                code, lines = script(deaf, it.device)
                assert code == 1
                assert lines[-1].startswith(f"failed {it.part(1)} has ")
                assert f"the kernel still says {400 * MIB}" in lines[-1]


def test_a_partition_is_not_made_smaller_by_its_table(tmp_path: Path) -> None:
    with disk(tmp_path) as it:
        it.partition("label: gpt\nsize=400MiB\n")
        with mounted("xfs", it.part(1), tmp_path / "point"):
            it.write_table("label: gpt\nsize=390MiB\n")
            it.grow()
            content = it.content(it.place(1))
            code, lines = script(GROW, it.device)
            assert (code, lines[1].split()[:2]) == (3, ["left", str(it.part(1))])
            assert it.content(it.place(1)) == content


def test_a_btrfs_is_known_by_any_name_of_its_device(tmp_path: Path) -> None:
    """As those of LVM and LUKS, which `btrfs` calls by their links in /dev/mapper."""
    link = tmp_path / "group-volume"
    programs = tmp_path / "bin"
    programs.mkdir()
    named = edited(GROW, tmp_path, "PATH=/usr/local/sbin", f"PATH={programs}:/usr/local/sbin")
    with disk(tmp_path) as it, mounted("btrfs", it.device, tmp_path / "point"):
        link.symlink_to(it.device)
        renaming = programs / "btrfs"
        renaming.write_text(
            f"#!/bin/sh\nPATH=/usr/sbin:/sbin:/usr/bin:/bin\nbtrfs \"$@\" | sed 's|{it.device}$|{link}|'\n"
        )
        renaming.chmod(0o755)
        it.grow()
        assert script(named, it.device) == (
            0,
            [f"disk {it.device} {LARGE}", f"grown {it.device} btrfs {SMALL} {LARGE}"],
        )


@pytest.mark.parametrize("tool", [GROW, MOVE_SWAP], ids=["grow", "move-swap"])
def test_the_mbr_before_a_gpt_stays_as_it_was(tmp_path: Path, tool: Path) -> None:
    with disk(tmp_path) as it:
        if tool == GROW:
            it.partition("label: gpt\nsize=400MiB\n")
        else:
            partition_for_swap(it, "gpt")
        it.write(0, b"boot code".ljust(440, b"."))
        it.write(440, b"\x00s\xff\n\x01\x02\x80")
        with mounted("xfs", it.part(1 if tool == GROW else 2), tmp_path / "point"):
            it.grow()
            before, table = it.mbr(), it.table()
            code, lines = script(tool, it.device)
            assert code == 0, lines
            assert it.mbr() == before
            assert it.table() != table
        assert "No errors" in run("sfdisk", "--verify", it.device)


@pytest.mark.parametrize("tool", [GROW, MOVE_SWAP], ids=["grow", "move-swap"])
def test_a_hybrid_mbr_is_left_as_it_is(tmp_path: Path, tool: Path) -> None:
    with disk(tmp_path) as it:
        if tool == GROW:
            it.partition("label: gpt\nsize=400MiB\n")
        else:
            partition_for_swap(it, "gpt")
        with mounted("xfs", it.part(1 if tool == GROW else 2), tmp_path / "point"):
            place = it.place(1 if tool == GROW else 2)
            it.grow()
            it.write(462, bytes.fromhex("00feffff83feffff0008000000800000"))
            content = it.content(place)
            code, lines = script(tool, it.device)
            assert code == 3
            assert f"{it.device} has a hybrid MBR besides its GPT" in lines[-1]
            assert it.content(place) == content


def test_no_table_of_a_failed_write_is_lost(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    failing = edited(GROW, tmp_path, "PATH=/usr/local/sbin", f"PATH={programs}:/usr/local/sbin")
    sfdisk = programs / "sfdisk"
    sfdisk.write_text('#!/bin/sh\nPATH=/usr/sbin:/sbin\n[ "$1" != --dump ] || exec sfdisk "$@"\nexit 1\n')
    sfdisk.chmod(0o755)
    with disk(tmp_path) as it:
        it.partition("label: gpt\nsize=400MiB\n")
        with mounted("xfs", it.part(1), tmp_path / "point"):
            it.grow()
            table = run("sfdisk", "--dump", it.device)
            code, lines = script(failing, it.device)
            assert (code, len(lines)) == (1, 2)
            assert bounded(lines[1]) == lines[1], "it can be shown whole"
            saved = Path(lines[1].rpartition("<")[2])
            try:
                assert saved.read_text() == table
            finally:
                saved.unlink()


@pytest.mark.parametrize(("told", "chosen"), [([], False), (["--unit", "0:0"], False), (["--serial", "one"], True)])
def test_of_several_disks_none_is_chosen_by_its_size_alone(tmp_path: Path, told: list[str], chosen: bool) -> None:
    disks = tmp_path / "block"
    for number, sectors in enumerate((8, 16)):
        sys = disks / f"sd{number}"
        (sys / "0:0:0:0").mkdir(parents=True)
        (sys / "device").symlink_to("0:0:0:0")
        for name, value in (("removable", "0"), ("size", str(sectors)), ("serial", "one")):
            (sys / name).write_text(f"{value}\n")
    asking = edited(GROW, tmp_path, "/sys/block/*", f"{disks}/*")
    code, lines = script(asking, *told, "--size", "8192")
    if chosen:
        assert (code, lines) == (1, ["failed /dev/sd1 is no block device"])
    else:
        assert (code, lines[0][:41]) == (3, "left - 2 disks of this guest may be it: p")


# nbdresize-move-swap


def partition_for_swap(it: Disk, label: str) -> None:
    swap = SWAP_TYPES[label]
    root = (SMALL - SWAP) // MIB - 20
    it.partition(f"label: {label}\nsize=16MiB\nsize={root}MiB\nsize={SWAP // MIB}MiB, type={swap}\n")
    run("mkswap", "--label", "pages", it.part(3))


@pytest.mark.parametrize("growth", [8 * MIB, LARGE - SMALL], ids=["less than swap", "more than swap"])
@pytest.mark.parametrize("label", ["gpt", "dos"])
def test_swap_behind_root_moves_to_the_end(tmp_path: Path, label: str, growth: int) -> None:
    with disk(tmp_path) as it:
        partition_for_swap(it, label)
        with mounted("xfs", it.part(2), tmp_path / "point") as point, swapped_on(it, 3):
            before, small, uuid = it.table(), room(point), it.tag(3, "UUID")
            it.grow(SMALL + growth)
            dry = script(MOVE_SWAP, "--dry-run", it.device)
            assert dry[0] == 0
            assert it.table() == before
            code, lines = script(MOVE_SWAP, it.device)
            assert code == 0, lines
            assert lines[:2] == dry[1]
            assert (it.tag(3, "UUID"), it.tag(3, "LABEL")) == (uuid, "pages")
            # This machine may use it by now, so how much of it is in use does not matter.
            (swaps,) = re.findall(rf"^{it.part(3)}\s.*$", Path("/proc/swaps").read_text(), re.MULTILINE)
            assert swaps.split()[2::2] == [str(SWAP // 1024 - 4), "7"]
            assert room(point) - small >= growth // MIB - 2
            after = it.table()
            size = re.compile(r"size=(\d+)")
            for key in (f"{it.part(2)} ", f"{it.part(3)} "):
                ours, theirs = before.pop(key), after.pop(key)
                assert ours != theirs
                assert re.sub(r"(start|size)=\d+", "", ours) == re.sub(r"(start|size)=\d+", "", theirs)
            assert size.findall(ours) == size.findall(theirs)
            for table in (before, after):
                table.pop("last-lba", None)
            assert after == before
            again = script(MOVE_SWAP, it.device)
            assert again[0] == 0
            assert again[1][0] == f"{it.part(3)} is at the end of {it.device} already"
        assert "No errors" in run("sfdisk", "--verify", it.device)


def test_swap_that_was_off_stays_off(tmp_path: Path) -> None:
    with disk(tmp_path) as it:
        partition_for_swap(it, "gpt")
        with mounted("btrfs", it.part(2), tmp_path / "point"):
            it.grow()
            assert script(MOVE_SWAP, it.device)[0] == 0
            assert str(it.device) not in Path("/proc/swaps").read_text()
            assert it.tag(3, "TYPE") == "swap"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("last is no swap", "holds nothing that is known, not swap"),
        ("root unmounted", "not mounted"),
        ("no table", "has no partition table"),
        ("one partition", "less than two partitions"),
        ("logical", "has an extended partition"),
        ("root unknown", "holds nothing that is known"),
    ],
)
def test_anything_unexpected_is_refused_before_anything_changes(tmp_path: Path, damage: str, reason: str) -> None:
    with disk(tmp_path) as it:
        if damage == "one partition":
            it.partition("label: gpt\ntype=S\n")
        elif damage == "logical":
            it.partition("label: dos\nsize=400MiB\ntype=5\ntype=82\n")
        elif damage != "no table":
            partition_for_swap(it, "gpt")
        if damage == "last is no swap":
            run("wipefs", "--all", it.part(3))
        if damage == "root unmounted":
            run(*MAKE["xfs"], it.part(2))
        it.grow()
        content = it.content()
        code, lines = script(MOVE_SWAP, it.device)
        assert code == 3
        assert lines[0].startswith("refused: ")
        assert reason in lines[0]
        assert it.content() == content


@pytest.mark.parametrize(
    "step", ["copy_header ||", "write_table ||", "tell_kernel ||", "turn_on ||", '"$grow" --contents']
)
def test_a_kill_before_any_step_leaves_swap_and_root(tmp_path: Path, step: str) -> None:
    killed = tmp_path / "nbdresize-move-swap"
    text = MOVE_SWAP.read_text()
    place = text.rindex(step)
    killed.write_text(f"{text[:place]}kill -9 $$; {text[place:]}")
    killed.chmod(0o755)
    (tmp_path / "nbdresize-grow").symlink_to(SCRIPT)
    with disk(tmp_path) as it:
        partition_for_swap(it, "gpt")
        uuid = it.tag(3, "UUID")
        with mounted("xfs", it.part(2), tmp_path / "point") as point:
            small = room(point)
            with swapped_on(it, 3):
                it.grow()
                assert script(killed, it.device)[0] == -9
            # The kernel of a machine that starts again reads what partitions there are, as this does for swap's.
            run("partx", "--delete", "--nr", "3", it.device) if it.part(3).exists() else None
            run("partx", "--update", it.device)
            Path(f"/run/nbdresize-move-swap.{uuid}").unlink(missing_ok=True)
            assert (it.tag(3, "TYPE"), it.tag(3, "UUID")) == ("swap", uuid)
            code, lines = script(MOVE_SWAP, it.device)
            assert code == 0, lines
            assert str(it.device) not in Path("/proc/swaps").read_text()
            assert it.tag(3, "UUID") == uuid
            assert room(point) - small >= (LARGE - SMALL) // MIB - 2


@pytest.mark.parametrize("step", ["copy_header ||", "write_table ||", "turn_on ||"])
def test_swap_that_a_killed_run_turned_off_goes_on_again(tmp_path: Path, step: str) -> None:
    killed = edited(MOVE_SWAP, tmp_path, step, f"kill -9 $$; {step}")
    (tmp_path / "nbdresize-grow").symlink_to(SCRIPT)
    with disk(tmp_path) as it:
        partition_for_swap(it, "gpt")
        uuid = it.tag(3, "UUID")
        with mounted("xfs", it.part(2), tmp_path / "point"), swapped_on(it, 3):
            it.grow()
            assert script(killed, it.device)[0] == -9
            assert f"{it.part(3)} " not in Path("/proc/swaps").read_text()
            code, lines = script(MOVE_SWAP, it.device)
            assert code == 0, lines
            (swaps,) = re.findall(rf"^{it.part(3)}\s.*$", Path("/proc/swaps").read_text(), re.MULTILINE)
            assert swaps.split()[-1] == "7"
    assert not list(Path("/run").glob(f"nbdresize-move-swap.{uuid}"))
