"""Where a benchmark's file lies; all of it real, so it takes root as the tests of storage do."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench import places
from bench.model import Medium
from bench.places import (
    NoPlace,
    cached,
    drop_from_page_cache,
    kept_warm,
    kind_of,
    make_certificates,
    make_disk,
    placed,
)
from nbdresize.errors import InsufficientSpace, VolumeFailed
from tests.filesystems import mounted
from tests.peers import CHECKOUT, run
from tests.wait import until

MIB = 1 << 20


def mount_points() -> str:
    return Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize("medium", Medium)
def test_a_place_is_on_its_file_system_and_gone_afterwards(medium: Medium, tmp_path: Path) -> None:
    with mounted("btrfs", tmp_path, size=512 * MIB) as other:  # none of the three, so that all but tmpfs are mounted
        with placed(medium, other, 2 * MIB) as place:
            assert kind_of(place) == medium.value
            disk = make_disk(place, 2 * MIB)
            assert disk.stat().st_size == 2 * MIB
        assert not place.exists()
        assert list(other.iterdir()) == []
    assert str(other) not in mount_points()


def test_a_directory_that_is_on_the_medium_is_used_as_it_is(tmp_path: Path) -> None:
    with mounted("xfs", tmp_path) as own, placed(Medium.XFS, own) as place:
        assert place.parent == own


def test_without_root_a_medium_that_is_not_at_hand_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        mounted("btrfs", tmp_path, size=512 * MIB) as other,
        monkeypatch.context() as changed,
        pytest.raises(NoPlace, match="as root, or give a --directory on xfs"),
    ):
        changed.setattr(os, "geteuid", lambda: 1000)
        placed(Medium.XFS, other, MIB).__enter__()


def test_a_place_without_room_is_refused_with_numbers(tmp_path: Path) -> None:
    with mounted("ext4", tmp_path) as small, pytest.raises(InsufficientSpace, match="free, and this takes 1 GiB"):
        placed(Medium.EXT4, small, 1 << 30).__enter__()


def test_ctrl_c_unmounts_and_detaches(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from bench.model import Medium; from bench.places import placed; import sys\n"
        "with placed(Medium.XFS, Path(sys.argv[1])) as place:\n"
        "    print(place, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = ["env", "--default-signal=INT", sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=CHECKOUT
    ) as process:
        assert process.stdout is not None
        place = Path(process.stdout.readline().decode().strip())
        assert kind_of(place) == "xfs"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT
    assert str(tmp_path) not in mount_points()
    assert list(tmp_path.iterdir()) == []
    until(
        lambda: str(tmp_path) not in run("losetup", "--list", "--noheadings", "-O", "BACK-FILE"), what="no loop device"
    )


def test_a_failed_mount_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(places._MAKE, Medium.XFS, ("true",))
    with mounted("btrfs", tmp_path, size=512 * MIB) as other:
        with pytest.raises(VolumeFailed, match="mount failed"):
            placed(Medium.XFS, other, MIB).__enter__()
        assert list(other.iterdir()) == []


def test_a_disk_is_full_of_what_does_not_compress(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, 3 * MIB + 4096)
    assert disk.stat().st_size == 3 * MIB + 4096
    assert disk.stat().st_blocks * 512 >= 3 * MIB
    content = disk.read_bytes()
    assert len({content[at : at + 4096] for at in range(0, len(content), 4096)}) == 3 * 256 + 1


def test_a_sparse_disk_is_mostly_holes(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, 8 * MIB, sparse=True)
    assert disk.stat().st_size == 8 * MIB
    assert 0 < disk.stat().st_blocks * 512 <= MIB


def test_what_is_data_of_a_disk_is_told_from_its_holes(tmp_path: Path) -> None:
    assert places.data_bytes(make_disk(tmp_path, 8 * MIB, sparse=True)) == 4 * (64 << 10)
    assert places.data_bytes(make_disk(tmp_path, 3 * MIB)) == 3 * MIB
    hole = tmp_path / "hole"
    with hole.open("wb") as file:
        file.truncate(MIB)
    assert places.data_bytes(hole) == 0


def test_a_cold_file_is_not_in_memory_and_a_warm_one_stays_there(tmp_path: Path) -> None:
    with mounted("ext4", tmp_path) as place:
        disk = make_disk(place, 4 * MIB)
        drop_from_page_cache(disk)
        assert cached(disk) <= 4 * MIB // 100
        with kept_warm(disk), pytest.raises(VolumeFailed, match=r"4 MiB of .* stay in the page cache"):
            drop_from_page_cache(disk)
        drop_from_page_cache(disk)


def test_a_file_that_can_not_be_cold_is_refused(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path) as place, pytest.raises(VolumeFailed, match=r"4 MiB of .* stay in the page cache"):
        drop_from_page_cache(make_disk(place, 4 * MIB))


def test_certificates_are_signed_by_their_authority(tmp_path: Path) -> None:
    made = make_certificates(tmp_path / "keys")
    for name in ("server", "client"):
        run(
            "certtool", "--verify", "--load-ca-certificate", made / "ca-cert.pem", "--infile", made / f"{name}-cert.pem"
        )
