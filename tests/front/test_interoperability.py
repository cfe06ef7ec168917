"""The clients that people have, against every front and every kind of disk."""

import contextlib
import errno
import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import nbd
import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.protocol.size_record import RECORD_LENGTH, REQUEST_OFFSET, WAITING_RECORD_OFFSET, SizeWish, parse_record
from nbdresize.units import SizeRequest
from tests.front.conftest import BUDGET, MIB, SIZE, Served, connect, make_ledger
from tests.peers import Serve, background, nbdsh, run
from tests.wait import until

PIECE = 64 * 1024


def digest(path: Path, length: int | None = None) -> str:
    content = path.read_bytes()
    return hashlib.sha256(content if length is None else content[:length]).hexdigest()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk image of SIZE bytes, with data here and there and holes between."""
    path = tmp_path / "image.raw"
    with path.open("wb") as file:
        for offset in range(0, SIZE, 8 * MIB):
            file.seek(offset)
            file.write(os.urandom(MIB))
        file.truncate(SIZE)
    return path


def test_nbdinfo_tells_everything(served: Served) -> None:
    [export] = json.loads(run("nbdinfo", "--json", served.uri))["exports"]
    assert export["export-name"] == served.kind.export
    assert export["export-size"] == SIZE
    able = ("can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero")
    assert [export[what] for what in able] == [True] * len(able)
    assert export["is_read_only"] is export["is_rotational"] is False
    assert export["contexts"] == ["base:allocation"]
    sizes = [export[f"block_size_{which}"] for which in ("minimum", "preferred", "maximum")]
    assert sizes == [1, 4096, 32 * MIB]


@pytest.mark.slow
def test_nbdinfo_lists_the_exports_with_descriptions(served: Served) -> None:
    [export] = json.loads(run("nbdinfo", "--list", "--json", served.server.uri()))["exports"]
    assert export["export-name"] == served.kind.export
    assert "64 MiB" in export["description"]


@pytest.mark.slow
def test_nbdinfo_lists_the_exports_of_many_vms(front: str, tmp_path: Path) -> None:
    root = make_ledger(tmp_path)
    names = [f"vm{number}" for number in range(6)]
    with Control.open(StateDirectory(root), create=False) as control:
        for name in names:
            control.create_vm(name, BUDGET, [SizeRequest(exact=MIB)] * 8)
        control.delete_vm("web1")
    with Serve(front=front, directory=tmp_path, root=root) as server:
        exports = json.loads(run("nbdinfo", "--list", "--json", server.uri()))["exports"]
    assert [export["export-name"] for export in exports] == [f"{vm}/disk{slot}" for vm in names for slot in range(8)]


@pytest.mark.slow
def test_one_disk_is_the_default_export(served: Served) -> None:
    assert run("nbdinfo", "--size", served.server.uri()).strip() == str(SIZE)


@pytest.mark.slow
def test_nbdinfo_maps_data_and_holes(served: Served) -> None:
    client = served.connect()
    client.pwrite(b"x" * PIECE, MIB)
    client.flush()
    found = json.loads(run("nbdinfo", "--map", "--json", served.uri))
    assert [(extent["offset"], extent["length"], extent["type"]) for extent in found] == [
        (0, MIB, 3),
        (MIB, PIECE, 0),
        (MIB + PIECE, SIZE - MIB - PIECE, 3),
    ]
    client.shutdown()


@pytest.mark.slow
def test_nbdcopy_both_ways_keeps_every_byte(served: Served, image: Path, tmp_path: Path) -> None:
    back = tmp_path / "back.raw"
    run("nbdcopy", "--flush", image, served.uri)
    assert digest(served.volume) == digest(image)
    run("nbdcopy", served.uri, back)
    assert digest(back) == digest(image)
    assert served.volume.stat().st_blocks < SIZE // 512, "the copy is sparse"


@pytest.mark.slow
def test_nbdsh_grows_through_the_size_export(served: Served) -> None:
    grow = f"h.pwrite(b'NBDRESZQ' + ({SIZE + 8 * MIB}).to_bytes(8, 'big') + bytes(48), 512)"
    tell = "print(int.from_bytes(h.pread(64, 0)[8:16], 'big'))"
    assert nbdsh(served.size_uri, grow, tell).strip() == str(SIZE + 8 * MIB)
    assert run("nbdinfo", "--size", served.uri).strip() == str(SIZE + 8 * MIB)
    assert served.volume.stat().st_size == SIZE + 8 * MIB


@pytest.mark.slow
def test_a_request_past_the_budget_gets_enospc_and_changes_nothing(served: Served) -> None:
    client = connect(served.size_uri)
    with pytest.raises(nbd.Error) as refused:
        client.pwrite(SizeWish(BUDGET + MIB).pack(), REQUEST_OFFSET)
    assert refused.value.errnum == errno.ENOSPC
    record = parse_record(bytes(client.pread(RECORD_LENGTH, 0)))
    assert (record.size, record.maximum) == (SIZE, BUDGET)
    client.shutdown()


@pytest.mark.slow
def test_a_shrink_by_a_client_gets_eperm_by_default(served: Served) -> None:
    client = connect(served.size_uri)
    with pytest.raises(nbd.Error) as refused:
        client.pwrite(SizeWish(MIB, 1 << 9).pack(), REQUEST_OFFSET)
    assert refused.value.errnum == errno.EPERM
    client.shutdown()


@pytest.mark.slow
def test_a_waiting_read_tells_of_a_growth(served: Served) -> None:
    client = connect(served.size_uri)
    before = parse_record(bytes(client.pread(RECORD_LENGTH, 0)))
    buffer = nbd.Buffer(RECORD_LENGTH)
    cookie = client.aio_pread(buffer, WAITING_RECORD_OFFSET)
    served.grow(SIZE + 4 * MIB)

    def answered() -> bool:
        client.poll(100)
        return bool(client.aio_command_completed(cookie))

    until(answered, 60, "the waiting read")
    after = parse_record(bytes(buffer.to_bytearray()))
    assert after.size == SIZE + 4 * MIB
    assert after.generation > before.generation
    client.shutdown()


@pytest.mark.slow
def test_an_old_connection_goes_on_and_a_new_one_sees_the_new_size(served: Served) -> None:
    old = served.connect()
    old.pwrite(b"before", SIZE - 6)
    served.grow(SIZE + 4 * MIB)
    assert bytes(old.pread(6, SIZE - 6)) == b"before"
    old.pwrite(b"behind", SIZE - 6)
    new = served.connect()
    assert new.get_size() == SIZE + 4 * MIB
    assert bytes(new.pread(6 + 4 * MIB, SIZE - 6)) == b"behind" + bytes(4 * MIB)
    new.pwrite(b"end", SIZE + 4 * MIB - 3)
    for client in (old, new):
        client.shutdown()


@pytest.mark.slow
def test_every_request_of_the_protocol(served: Served) -> None:
    client = served.connect()
    client.pwrite(b"d" * MIB, 0, nbd.CMD_FLAG_FUA)
    client.trim(PIECE, 0, nbd.CMD_FLAG_FUA)
    client.zero(PIECE, PIECE)
    client.zero(PIECE, 2 * PIECE, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
    client.zero(PIECE, 3 * PIECE, nbd.CMD_FLAG_FAST_ZERO)
    client.cache(MIB, 0)
    client.flush()
    assert bytes(client.pread(MIB, 0)) == bytes(4 * PIECE) + b"d" * (MIB - 4 * PIECE)
    assert bytes(client.pread(3, MIB - 1)) == b"d\0\0"
    client.pwrite(b"odd", 12345)
    assert bytes(client.pread(5, 12344)) == b"\0odd\0"
    client.shutdown()


@pytest.mark.slow
def test_a_client_with_simple_replies(served: Served) -> None:
    client = served.connect(structured=False)
    client.pwrite(b"simple", 4096)
    assert bytes(client.pread(6, 4096)) == b"simple"
    client.shutdown()


@pytest.mark.slow
def test_requests_past_the_end_get_their_errno(served: Served) -> None:
    client = served.connect()
    client.set_strict_mode(0)
    requests: list[tuple[Callable[[], object], int]] = [
        (lambda: client.pread(512, SIZE), errno.EINVAL),
        (lambda: client.pwrite(bytes(512), SIZE), errno.ENOSPC),
        (lambda: client.zero(512, SIZE), errno.ENOSPC),
        (lambda: client.trim(512, SIZE), errno.EINVAL),
    ]
    for request, number in requests:
        with pytest.raises(nbd.Error) as refused:
            request()
        assert refused.value.errnum == number
    assert bytes(client.pread(512, SIZE - 512)) == bytes(512)
    client.shutdown()


@pytest.mark.slow
def test_qemu_img_converts_compares_and_maps(served: Served, image: Path, tmp_path: Path) -> None:
    back = tmp_path / "back.qcow2"
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, served.uri)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, served.uri)
    mapped = json.loads(run("qemu-img", "map", "-f", "raw", "--output", "json", served.uri))
    assert sum(extent["length"] for extent in mapped) == SIZE
    assert sum(extent["length"] for extent in mapped if extent["data"]) == SIZE // 8
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", served.uri, back)
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", image, back)


@pytest.mark.slow
def test_qemu_io_reads_what_it_wrote(served: Served) -> None:
    steps = (
        "write -P 7 1M 1M",
        "write -z 1M 64k",
        "discard 1088k 64k",
        "flush",
        "read -P 0 1M 64k",
        "read -P 7 1152k 64k",
    )
    said = run("qemu-io", "-f", "raw", *(part for step in steps for part in ("-c", step)), served.uri)
    assert "Pattern verification failed" not in said
    assert "wrote 1048576/1048576 bytes" in said


@pytest.mark.slow
def test_fio_verifies_every_block_while_the_disk_grows(served: Served, tmp_path: Path) -> None:
    fio = [
        "fio",
        "--name=grow",
        "--ioengine=nbd",
        f"--uri={served.uri}",
        "--rw=randwrite",
        "--bs=4k-64k",
        f"--size={SIZE // 2}",
        "--iodepth=16",
        "--time_based",
        "--runtime=5",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--randrepeat=1",
        "--output-format=json",
        f"--aux-path={tmp_path}",
    ]
    size, grown = SIZE, 0
    with background(*fio) as process:
        while size + MIB <= BUDGET:
            size += MIB
            served.grow(size)
            grown += 1
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
                break
        said = process.communicate(timeout=100)[0]
        assert process.returncode == 0, said
    assert '"error" : 0' in said, said
    assert grown > 1
    assert run("nbdinfo", "--size", served.uri).strip() == str(size)
