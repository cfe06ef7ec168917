"""Block devices that grow under us: stale bytes are zeroed before anything says that the new range is there."""

import os
import signal
import subprocess
import sys

import pytest

from nbdresize.errors import InsufficientSpace, VolumeFailed
from nbdresize.storage.block import BlockVolume
from tests.filesystems import notice_growth
from tests.storage.conftest import DEVICE_SIZE, LoopDevice

MIB = 1 << 20
LARGER = DEVICE_SIZE + 4 * MIB


def enlarge(device: LoopDevice, size: int = LARGER) -> bytes:
    """Make the device larger by stale bytes, as an LVM volume grows over what another one left; return them."""
    stale = os.urandom(size - device.backing.stat().st_size)
    with device.backing.open("ab") as file:
        file.write(stale)
    notice_growth(device.path)
    return stale


def test_a_device_that_has_grown_is_noticed_by_handles_that_are_open(device: LoopDevice) -> None:
    volume = BlockVolume(device.path)
    with volume.open() as handle:
        assert handle.size() == DEVICE_SIZE
        stale = enlarge(device)
        assert handle.size() == volume.size() == LARGER
        assert handle.read(4 * MIB, DEVICE_SIZE) == stale


@pytest.mark.parametrize("known", [DEVICE_SIZE, DEVICE_SIZE - 5000, 1])
def test_growing_zeroes_what_lies_behind_the_known_size_and_no_more(device: LoopDevice, known: int) -> None:
    volume = BlockVolume(device.path, known_size=known)
    data = os.urandom(DEVICE_SIZE)
    with volume.open() as handle:
        handle.write(data, 0)
        stale = enlarge(device)
        volume.grow(LARGER - 4096)
        expected = data[:known] + bytes(LARGER - 4096 - known) + stale[-4096:]
        assert handle.read(LARGER, 0) == expected
    assert volume.known_size == LARGER - 4096
    assert device.backing.read_bytes() == expected  # on stable storage before grow returned


def test_growing_again_zeroes_only_what_is_new(device: LoopDevice) -> None:
    volume = BlockVolume(device.path, known_size=DEVICE_SIZE)
    enlarge(device)
    volume.grow(DEVICE_SIZE + MIB)
    with volume.open() as handle:
        handle.write(b"x" * MIB, DEVICE_SIZE)
        volume.grow(DEVICE_SIZE + MIB)
        volume.grow(DEVICE_SIZE)
        volume.grow(LARGER)
        assert handle.read(4 * MIB, DEVICE_SIZE) == b"x" * MIB + bytes(3 * MIB)


def test_growing_after_a_shrink_reads_as_zeroes(device: LoopDevice) -> None:
    volume = BlockVolume(device.path, known_size=DEVICE_SIZE)
    with volume.open() as handle:
        handle.write(b"x" * DEVICE_SIZE, 0)
        volume.shrink(MIB + 77)
        assert volume.known_size == MIB + 77
        assert volume.size() == DEVICE_SIZE
        volume.grow(DEVICE_SIZE)
        assert handle.read(DEVICE_SIZE, 0) == b"x" * (MIB + 77) + bytes(DEVICE_SIZE - MIB - 77)


def test_without_a_known_size_all_of_the_device_is_the_disk(device: LoopDevice) -> None:
    volume = BlockVolume(device.path)
    stale = enlarge(device)
    volume.grow(LARGER)
    with volume.open() as handle:
        assert handle.read(4 * MIB, DEVICE_SIZE) == stale
    assert volume.known_size == LARGER


def test_a_device_that_has_not_grown_says_so(device: LoopDevice) -> None:
    volume = BlockVolume(device.path, known_size=DEVICE_SIZE)
    for change in (volume.grow, volume.shrink):
        with pytest.raises(VolumeFailed, match="has 8 MiB, less than the 12 MiB asked for: enlarge the device first"):
            change(LARGER)
    assert volume.known_size == DEVICE_SIZE


def test_the_known_size_stays_where_zeroing_failed(device: LoopDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = BlockVolume(device.path, known_size=DEVICE_SIZE)
    enlarge(device)

    def fail(fd: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as failing:
        failing.setattr(os, "fdatasync", fail)
        with pytest.raises(InsufficientSpace):
            volume.grow(LARGER)
    assert volume.known_size == DEVICE_SIZE
    volume.grow(LARGER)
    with volume.open() as handle:
        assert handle.read(4 * MIB, DEVICE_SIZE) == bytes(4 * MIB)


_KILLED_WHILE_GROWING = """
import os, signal, sys
from pathlib import Path
from nbdresize.storage import block, handle

def killing(self, *arguments, _real=handle.Handle.zero, **options):
    if killing.left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    killing.left -= 1
    _real(self, *arguments, **options)

def killing_flush(self):
    os.kill(os.getpid(), signal.SIGKILL)

path, known, size, killing.left = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
handle.Handle.zero, handle.Handle.flush = killing, killing_flush
block._STEP = 1 << 20
block.BlockVolume(path, known).grow(size)
"""


@pytest.mark.parametrize("steps", [0, 2, 4])
def test_a_grow_that_was_killed_is_done_again_from_the_known_size(device: LoopDevice, steps: int) -> None:
    with BlockVolume(device.path).open() as handle:
        handle.write(b"x" * DEVICE_SIZE, 0)
        handle.flush()
    stale = enlarge(device)
    command = [sys.executable, "-c", _KILLED_WHILE_GROWING, str(device.path), str(DEVICE_SIZE), str(LARGER), str(steps)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    volume = BlockVolume(device.path, known_size=DEVICE_SIZE)
    with volume.open() as handle:
        assert handle.read(4 * MIB, DEVICE_SIZE) == bytes(steps * MIB) + stale[steps * MIB :]
        volume.grow(LARGER)
        assert handle.read(LARGER, 0) == b"x" * DEVICE_SIZE + bytes(4 * MIB)
