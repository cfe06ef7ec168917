"""What a request costs in instructions and system calls, counted on the real server with few requests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import instructions
from bench.counting import Callgrind, Strace, hot_loop, per_request, program
from bench.lockstep import Case
from bench.model import Section
from bench.options import Options
from nbdresize.errors import ProgramMissing, ServerFailed
from nbdresize.loads.model import Operation
from nbdresize.protocol.negotiated import Mode
from nbdresize.storage.page_cache import PageCache
from tests.filesystems import mounted

FEW = 64
_OF_MEMORY = ("brk", "mmap", "munmap", "madvise")
READ = Case(Operation.READ, 4096, 16, Mode.EXTENDED)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(1 << 20))
    yield path


def test_instructions_of_a_request_repeat(file: Path, tmp_path: Path) -> None:
    with Callgrind.started(file, tmp_path) as counter:
        [first] = per_request(counter, READ, 4 * FEW).values()
        [second] = per_request(counter, READ, 4 * FEW).values()
    assert 1000 < first < 100_000
    assert second == pytest.approx(first, rel=0.05)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_batch_is_received_at_once_and_answered_in_four_parts(kind: str, mode: Mode, tmp_path: Path) -> None:
    """Reads of a mapped file take no call of their own; without cachestat(2), none is mapped."""
    batch = {"recvfrom": 1 / 16, "sendmsg": 4 / 16}
    with mounted(kind, tmp_path) as directory:
        file = directory / "disk.img"
        file.write_bytes(os.urandom(1 << 20))
        with file.open("rb") as opened:
            maps = kind == "ext4" and PageCache(opened.fileno()).known
        reading = {} if maps else {"preadv2": 1}
        with Strace.started(file, tmp_path) as counter:
            reads = per_request(counter, Case(Operation.READ, 4096, 16, mode), FEW)
            writes = per_request(counter, Case(Operation.WRITE, 4096, 16, mode), FEW)
    assert {call: number for call, number in reads.items() if call not in _OF_MEMORY} == {**reading, **batch}
    assert {call: number for call, number in writes.items() if call not in _OF_MEMORY} == {"pwrite64": 1, **batch}


def test_every_load_runs_to_its_end(file: Path) -> None:
    with hot_loop(file) as loop:
        pids = [
            loop.run(Case(operation, block, depth, mode), 2 * depth)
            for operation, block in instructions._LOADS
            for depth in instructions._DEPTHS
            for mode in Mode
        ]
    assert len(set(pids)) == len(pids)


def test_written_bytes_reach_the_file(file: Path) -> None:
    before = file.read_bytes()
    with hot_loop(file) as loop:
        loop.run(Case(Operation.WRITE, 4096, 16, Mode.SIMPLE), 2048)
    blocks = {file.read_bytes()[start : start + 4096] for start in range(0, 1 << 20, 4096)}
    assert len(blocks) < 256 and file.stat().st_size == len(before)


def test_a_refused_request_ends_the_count(file: Path) -> None:
    with hot_loop(file) as loop, pytest.raises(ServerFailed):
        os.truncate(file, 0)
        os.truncate(file, 1 << 20)  # holes, which are read as other chunks than data
        loop.run(Case(Operation.READ, 64 << 10, 1, Mode.EXTENDED), 1)


def test_a_quick_run_makes_figures_and_tells_them(tmp_path: Path) -> None:
    told: list[str] = []
    kept: list[Section] = []
    options = Options(tmp_path, only="4 KiB read, depth 16, simple", keep=kept.append)
    section = instructions.run(options, told.append, requests=4 * FEW)
    assert [figure.unit for figure in section.figures] == ["instructions per request", "system calls per request"]
    assert [figure.name for figure in section.figures] == instructions.names(options)
    assert len(told) == 2 and kept == [section]
    assert all(figure.value.lowest > 0 for figure in section.figures)
    assert list(tmp_path.iterdir()) == []


def test_the_full_run_has_every_load_depth_and_form_of_replies(tmp_path: Path) -> None:
    assert len(instructions.names(Options(tmp_path, full=True))) == 2 * 4 * 3 * 3
    assert len(instructions.names(Options(tmp_path))) == 2 * 2 * 3


def test_a_missing_tool_is_told_with_its_package_after_the_others_have_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = tmp_path / "programs"
    without.mkdir()
    (without / "strace").symlink_to(program("strace", "strace"))
    monkeypatch.setenv("PATH", str(without))
    kept: list[Section] = []
    options = Options(tmp_path, only="4 KiB read, depth 16, simple", keep=kept.append)
    with pytest.raises(ProgramMissing, match="apt-get install valgrind"):
        instructions.run(options, lambda line: None, requests=FEW)
    assert [figure.unit for figure in kept[0].figures] == ["system calls per request"]
