"""fio and nbdcopy as loads, and what happens without them."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from nbdresize.errors import InsufficientSpace, InvalidArgument, PeerFailed, ProgramMissing
from nbdresize.loads import copying, fio, programs
from nbdresize.loads.model import Engine, Load, Operation
from nbdresize.loads.running import run
from tests.loads.conftest import MIB, SIZE, Counting
from tests.peers import alive
from tests.wait import until

pytestmark = pytest.mark.slow

SECONDS = 0.2


def test_fio_in_every_shape(counting: Counting) -> None:
    with counting:
        for operation in Operation:
            for random in (False, True):
                load = Load(Engine.FIO, operation, 4096, 8, random, connections=2)
                measured = run(load, counting.uri(), SECONDS, warm_up=0.1)
                assert measured.requests > 0
                assert measured.payload == measured.requests * 4096
                latency = measured.latency
                assert latency is not None
                assert 0 < latency.median <= latency.p99 <= latency.p999 <= latency.slowest * 1.01
    assert set(counting.counts()) == {"read", "write"}


def test_nbdcopy_both_ways(native: str, image: Path) -> None:
    for operation in (Operation.READ, Operation.WRITE):
        for sparse in (False, True):
            load = Load(Engine.NBDCOPY, operation, 65536, 8, connections=2, sparse=sparse)
            measured = run(load, native, 1.0)
            assert (measured.requests, measured.payload, measured.latency) == (SIZE // 65536, SIZE, None)
            assert measured.seconds > 0
            allocated = image.stat().st_blocks * 512
            assert allocated < SIZE // 2 if operation is Operation.WRITE and sparse else allocated > SIZE // 2


def test_fio_has_no_certificates(native: str) -> None:
    with pytest.raises(InvalidArgument, match="no certificates"):
        fio.run(Load(Engine.FIO, Operation.READ, 4096, 1), native.replace("nbd+unix", "nbds+unix"), SIZE, SECONDS)


def test_huge_disks_do_not_take_fio_much_memory() -> None:
    load = Load(Engine.FIO, Operation.READ, 4096, 1)
    assert "--norandommap" in fio.command(load, "nbd://localhost", 2**63 - 4096, 1.0)
    assert "--norandommap" not in fio.command(load, "nbd://localhost", SIZE, 1.0)


@pytest.mark.parametrize(
    ("engine", "name", "package"), [(Engine.FIO, "fio", "fio"), (Engine.NBDCOPY, "nbdcopy", "libnbd-bin")]
)
def test_a_program_that_is_not_installed(
    native: str, monkeypatch: pytest.MonkeyPatch, engine: Engine, name: str, package: str
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ProgramMissing, match=f"{name} is not installed: apt-get install {package}"):
        run(Load(engine, Operation.READ, 4096, 1), native, SECONDS)


def pretending(directory: Path, name: str, script: str) -> None:
    """A program of that name that does this instead."""
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo one >&2; echo two >&2; exit 1", "fio failed: one / two"),
        ("exit 3", "does not say why"),
        ("kill -9 $$", "fio failed"),
        ("echo nonsense", "makes no sense"),
        ("echo '{\"jobs\": []}'", "makes no sense"),
        ('echo \'{"jobs": [{"mixed": {"total_ios": 0}}]}\'', "no answer"),
    ],
)
def test_a_program_that_fails(
    native: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, told: str
) -> None:
    pretending(tmp_path, "fio", script)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(PeerFailed, match=told):
        run(Load(Engine.FIO, Operation.READ, 4096, 1), native, SECONDS)


def test_a_program_that_does_not_end_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretending(tmp_path, "slow", f"sleep 3600 & echo $! > {tmp_path}/pid; wait")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(PeerFailed, match="has not ended within"):
        programs.run(["slow"], "slow", 1.0)
    child = int((tmp_path / "pid").read_text())
    until(lambda: not alive(child))


@pytest.mark.parametrize(("engine", "name", "limit"), [(Engine.FIO, "fio", 4), (Engine.NBDCOPY, "nbdcopy", 6)])
def test_the_server_has_as_long_as_was_said(
    native: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Engine, name: str, limit: int
) -> None:
    """4 s of patience; and nbdcopy 2 s for what it copies."""
    pretending(tmp_path, name, "exec sleep 3600")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(programs, "STARTING_SECONDS", 0.0)
    with pytest.raises(PeerFailed, match=f"{name} has not ended within {limit} s: .*--timeout"):
        run(Load(engine, Operation.READ, 4096, 1), native, 0.01, patience=4.0)


def test_a_program_does_not_start_where_its_parent_is_dead_already(tmp_path: Path) -> None:
    made = tmp_path / "made"
    for parent, code in ((os.getpid() + 1, 127), (os.getpid(), 0)):
        done = subprocess.run(["touch", made], preexec_fn=lambda parent=parent: programs.end_with(parent))  # type: ignore[misc]
        assert done.returncode == code
        assert made.exists() == (code == 0)


def test_a_source_is_full_or_mostly_holes() -> None:
    with copying.source(SIZE + 5, sparse=False) as path:
        content = path.read_bytes()
        assert len(content) == SIZE + 5
        assert len({content[at : at + 4096] for at in range(0, SIZE, 4096)}) == SIZE // 4096
        kept = path
    assert not kept.exists()
    with copying.source(64 * MIB, sparse=True) as path:
        assert path.stat().st_size == 64 * MIB
        assert 4 * MIB <= path.stat().st_blocks * 512 < 8 * MIB


def test_no_room_for_what_is_to_be_written() -> None:
    with pytest.raises(InsufficientSpace, match="TMPDIR"), copying.source(2**62, sparse=False):
        pass
