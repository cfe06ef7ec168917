"""What is told of where files lie: of real file systems, so it takes root as the tests of storage do."""

from pathlib import Path

from bench import mounts
from bench.model import Medium
from bench.places import placed
from tests.filesystems import mounted, run


def test_a_file_system_is_told_with_its_options(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path) as place:
        run("mount", "-o", "remount,noatime", place)
        found = mounts.mount_of(place)
        assert found is not None
        assert found.kind == "tmpfs"
        assert "noatime" in found.options.split(",")
        assert mounts.described(place) == f"tmpfs ({found.options}) in memory"


def test_an_image_is_told_from_a_disk(tmp_path: Path) -> None:
    """And so is what the image lies on, and whether there is a second page cache between."""
    below = mounts.described(tmp_path)
    with mounted("btrfs", tmp_path, size=800 << 20) as other, placed(Medium.XFS, other, 1 << 20) as place:
        told = mounts.described(place)
        assert told.startswith("xfs (rw,")
        assert "a loop device, read and written directly, of an image on btrfs (rw," in told
        assert told.endswith(f"of an image on {below}")
    assert "a loop device" not in below.partition(", ")[0]


def test_a_file_is_on_the_file_system_of_its_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert mounts.described(tmp_path / "file") == mounts.described(tmp_path)


def test_what_is_not_there_can_not_be_told(tmp_path: Path) -> None:
    assert mounts.mount_of(tmp_path / "none") is None
    assert mounts.described(tmp_path / "none") == "what can't be told"
