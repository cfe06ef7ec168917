"""nbdkit's filters in front of our plugin."""

import errno
import json
from pathlib import Path

import nbd
import pytest

from tests.front.conftest import MIB, SIZE, Kind, connect
from tests.peers import Serve, run

pytestmark = pytest.mark.slow


def filtered(*arguments: str) -> list[str]:
    return [f"--nbdkit-argument={argument}" for argument in arguments]


def test_stats_counts_what_passes(kind: Kind, tmp_path: Path) -> None:
    statistics = tmp_path / "stats.txt"
    more = filtered("--filter=stats", f"statsfile={statistics}")
    with Serve(*kind.arguments, *more, directory=tmp_path, root=kind.root) as server:
        client = connect(server.uri(kind.export))
        client.pwrite(b"x" * MIB, 0)
        client.pread(MIB, 0)
        client.shutdown()
    assert "write: 1 ops" in statistics.read_text()


def test_cow_keeps_the_disk_as_it_is(kind: Kind, tmp_path: Path) -> None:
    with Serve(*kind.arguments, *filtered("--filter=cow"), directory=tmp_path, root=kind.root) as server:
        client = connect(server.uri(kind.export))
        client.pwrite(b"x" * MIB, 0)
        assert bytes(client.pread(MIB, 0)) == b"x" * MIB
        client.flush()
        client.shutdown()
    assert kind.volume.stat().st_size == SIZE
    assert kind.volume.read_bytes()[:MIB] == bytes(MIB)


def test_error_fails_requests_and_the_next_ones_work(kind: Kind, tmp_path: Path) -> None:
    trigger = tmp_path / "fail"
    more = filtered("--filter=error", "error-pwrite=ENOSPC", "error-pwrite-rate=100%", f"error-file={trigger}")
    with Serve(*kind.arguments, *more, directory=tmp_path, root=kind.root) as server:
        client = connect(server.uri(kind.export))
        trigger.touch()
        with pytest.raises(nbd.Error) as failed:
            client.pwrite(b"x" * 512, 0)
        assert failed.value.errnum == errno.ENOSPC
        trigger.unlink()
        client.pwrite(b"y" * 512, 0)
        assert bytes(client.pread(512, 0)) == b"y" * 512
        client.shutdown()


def test_delay_only_takes_longer(kind: Kind, tmp_path: Path) -> None:
    more = filtered("--filter=delay", "rdelay=20ms", "wdelay=20ms")
    with Serve(*kind.arguments, *more, directory=tmp_path, root=kind.root) as server:
        client = connect(server.uri(kind.export))
        client.pwrite(b"late", 512)
        assert bytes(client.pread(4, 512)) == b"late"
        client.shutdown()


def test_blocksize_policy_sets_and_holds_limits(kind: Kind, tmp_path: Path) -> None:
    more = filtered("--filter=blocksize-policy", "blocksize-minimum=4096", "blocksize-error-policy=error")
    with Serve(*kind.arguments, *more, directory=tmp_path, root=kind.root) as server:
        [export] = json.loads(run("nbdinfo", "--json", server.uri(kind.export)))["exports"]
        assert export["block_size_minimum"] == 4096
        client = connect(server.uri(kind.export))
        client.set_strict_mode(0)
        with pytest.raises(nbd.Error) as refused:
            client.pread(512, 512)
        assert refused.value.errnum == errno.EINVAL
        assert len(client.pread(4096, 4096)) == 4096
        client.shutdown()


def test_filters_don_t_hide_a_growth_from_new_connections(kind: Kind, tmp_path: Path) -> None:
    more = filtered("--filter=stats", f"statsfile={tmp_path}/stats.txt")
    with Serve(*kind.arguments, *more, directory=tmp_path, root=kind.root) as server:
        kind.grow(SIZE + MIB)
        assert run("nbdinfo", "--size", server.uri(kind.export)).strip() == str(SIZE + MIB)
