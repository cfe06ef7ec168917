"""The plugin under an nbdkit that nobody supervises."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import nbd
import pytest

from nbdresize.control.admin_client import ask
from tests.front.conftest import MIB, SIZE, connect, make_ledger
from tests.peers import PLUGIN, SECONDS, Nbdkit, nbdsh, run

pytestmark = pytest.mark.slow


def refused(*arguments: str | Path) -> str:
    """What nbdkit says when the plugin does not let it start."""
    done = subprocess.run(
        ["nbdkit", "--foreground", "--unix", "/none/none", "python", PLUGIN, *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


def test_it_serves_a_ledger(tmp_path: Path) -> None:
    root = make_ledger(tmp_path, SIZE, MIB)
    with Nbdkit(f"root={root}", directory=tmp_path) as server:
        exports = json.loads(run("nbdinfo", "--list", "--json", server.uri()))["exports"]
        assert [export["export-name"] for export in exports] == ["web1/disk0", "web1/disk1"]
        assert [export["description"] for export in exports] == ["disk0 of web1, 64 MiB, boots", "disk1 of web1, 1 MiB"]
        assert run("nbdinfo", "--size", server.uri("web1/disk1")).strip() == str(MIB)
        [admin] = (root / "run").glob("*.admin")
        assert ask(admin, {"command": "clients"})["server"]["front"] == "nbdkit"
        assert server.end() == 0
        assert not admin.exists()


def test_it_serves_a_file_that_clients_grow(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.touch()
    os.truncate(image, SIZE)
    with Nbdkit(f"file={image}", "max-size=128M", directory=tmp_path) as server:
        grow = f"h.pwrite(b'NBDRESZQ' + ({2 * SIZE}).to_bytes(8, 'big') + bytes(48), 512)"
        nbdsh(server.uri("@size"), grow)
        assert image.stat().st_size == 2 * SIZE
        assert run("nbdinfo", "--size", server.uri()).strip() == str(2 * SIZE)


def test_it_works_without_its_environment_and_from_another_directory(tmp_path: Path) -> None:
    root = make_ledger(tmp_path, SIZE)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        ["nbdkit", "--unix", "-", "python", PLUGIN, "root=state", "--run", "nbdinfo --size $uri"],
        cwd=root.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.stdout.strip() == str(SIZE), done.stderr


def test_clients_may_not_resize_where_that_is_off(tmp_path: Path) -> None:
    root = make_ledger(tmp_path, SIZE)
    with Nbdkit(f"root={root}", "client-resize=off", directory=tmp_path) as server:
        client = connect(server.uri("web1/disk0@size"))
        with pytest.raises(nbd.Error):
            client.pwrite(b"NBDRESZQ" + (2 * SIZE).to_bytes(8, "big") + bytes(48), 512)
        client.shutdown()


def test_a_client_shrinks_where_that_is_allowed_and_a_range_cut_off_gets_enospc(tmp_path: Path) -> None:
    root = make_ledger(tmp_path, SIZE)
    with Nbdkit(f"root={root}", "client-resize=all", directory=tmp_path) as server:
        size = connect(server.uri("web1/disk0@size"))
        shrink = b"NBDRESZQ" + MIB.to_bytes(8, "big") + (1 << 9).to_bytes(2, "big") + bytes(46)
        disk = connect(server.uri("web1/disk0"))
        with pytest.raises(nbd.Error):
            size.pwrite(shrink, 512)
        disk.shutdown()
        size.pwrite(shrink, 512)
        assert run("nbdinfo", "--size", server.uri("web1/disk0")).strip() == str(MIB)
        size.shutdown()


def test_a_file_cut_under_a_connection_gives_enospc_and_is_not_made_longer(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.touch()
    os.truncate(image, SIZE)
    with Nbdkit(f"file={image}", directory=tmp_path) as server:
        client = connect(server.uri())
        os.truncate(image, MIB)
        requests: list[Callable[[], object]] = [
            lambda: client.pread(512, 2 * MIB),
            lambda: client.pwrite(bytes(512), 2 * MIB),
        ]
        for request in requests:
            with pytest.raises(nbd.Error) as failed:
                request()
            assert failed.value.errno == "ENOSPC"
        assert bytes(client.pread(512, 0)) == bytes(512)
        assert image.stat().st_size == MIB
        client.shutdown()


@pytest.mark.parametrize("requests", ["serial", "parallel"])
def test_either_way_of_taking_requests(tmp_path: Path, requests: str) -> None:
    image = tmp_path / "disk.img"
    image.touch()
    os.truncate(image, SIZE)
    content = tmp_path / "content"
    content.write_bytes(os.urandom(SIZE))
    with Nbdkit(f"file={image}", f"requests={requests}", directory=tmp_path) as server:
        run("nbdcopy", "--flush", content, server.uri())
        assert image.read_bytes() == content.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give root=DIR or file=PATH"),
        (("root=/none", "file=/none"), "give root=DIR or file=PATH"),
        (("root=/none",), "/none"),
        (("file=/none",), "/none"),
        (("root=/none", "max-size=1G"), "max-size is for a file"),
        (("file=/none", "max-size=huge"), "'huge' is not a size"),
        (("file=/none", "client-resize=some"), "off, grow, all"),
        (("file=/none", "colour=red"), "'colour'"),
        (("file=/none", "end-descriptor=x"), "no number"),
    ],
)
def test_wrong_parameters_are_told_in_words(arguments: tuple[str, ...], says: str) -> None:
    assert says in refused(*arguments)
