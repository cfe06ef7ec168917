"""Clients that race for the size of one disk while fio writes on it and verifies what it reads."""

import contextlib
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.peers import background
from tests.wire.conftest import MAX_SIZE, SIZE, LedgerDisk
from tests.wire.layout import ENOSPC, EPERM, FIT, MIB, QUERY, RESIZE, SHRINK
from tests.wire.layout import SIZE as TELL
from tests.wire.peer import NativeServer, RawClient

pytestmark = pytest.mark.slow

_RACERS = 3
_STEP = 4096


class Racer:
    """Asks for one size after the other, and writes behind each end that it was promised."""

    def __init__(self, client: RawClient, seed: int) -> None:
        self.client = client
        self.random = random.Random(seed)
        self.promised = SIZE
        self.generation = 0
        self.written: dict[int, bytes] = {}

    def run(self, ended: threading.Event, number: int) -> int:
        """Race until the end; how many requests were granted."""
        granted = 0
        while not ended.is_set():
            flags = TELL | self.random.choice((0, FIT, 0, FIT, 0, FIT, SHRINK, SHRINK | FIT))
            wanted = self.random.randrange(self.promised // 2, self.promised + MIB, _STEP)
            reply = self.client.call(RESIZE, wanted, 0, flags)
            if reply.error:
                # smaller while others use it, or without leave to shrink; or more than the budget holds
                assert reply.error in (EPERM, ENOSPC), reply.text
                reply = self.client.call(RESIZE, 0, 0, QUERY)
            else:
                granted += 1
            told = reply.size
            assert self.generation <= told.generation, "generations only rise"
            assert self.promised <= told.size <= told.maximum <= MAX_SIZE, "nobody shrinks a disk that others use"
            self.promised, self.generation = told.size, told.generation
            offset = self.promised - (number + 1) * 512  # each has a sector of its own before any end
            if offset // _STEP == (self.promised - 1) // _STEP:
                self.written[offset] = os.urandom(512)
                self.client.write(offset, self.written[offset])
        return granted


def test_fio_verifies_every_block_while_three_clients_race_for_the_size(
    all_server: NativeServer, disk: LedgerDisk, tmp_path: Path
) -> None:
    uri = f"nbd+unix:///{disk.vm}/disk0?socket={all_server.socket}"
    fio = [
        *("fio", "--name=race", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=4k-64k", "--iodepth=16"),
        *(f"--size={SIZE // 2}", "--time_based", "--runtime=4", "--verify=crc32c", "--verify_fatal=1"),
        *("--output-format=json", f"--aux-path={tmp_path}"),
    ]
    ended = threading.Event()
    with contextlib.ExitStack() as stack:
        racers = [Racer(stack.enter_context(all_server.connect(disk.export)), seed) for seed in range(_RACERS)]
        process = stack.enter_context(background(*fio))
        threads = stack.enter_context(ThreadPoolExecutor(_RACERS))
        races = [threads.submit(racer.run, ended, number) for number, racer in enumerate(racers)]
        try:
            said = process.communicate(timeout=100)[0]
        finally:
            ended.set()
        assert process.returncode == 0, said
        assert '"error" : 0' in said
        assert sum(race.result() for race in races) > 0, "nobody was granted anything"
        written = {offset: data for racer in racers for offset, data in racer.written.items()}
        assert written
        for offset, data in written.items():
            assert racers[0].client.read(offset, 512) == data, "every acknowledged byte is there"
        assert disk.size == max(racer.promised for racer in racers) <= MAX_SIZE
    all_server.wait_alone()


def test_shrunk_and_grown_again_it_reads_zeroes(all_server: NativeServer, disk: LedgerDisk) -> None:
    with all_server.connect(disk.export) as client:
        client.write(SIZE - MIB, os.urandom(MIB))
        assert client.call(RESIZE, SIZE - MIB + _STEP, 0, SHRINK).error == 0
        assert client.call(RESIZE, SIZE + MIB).error == 0
        assert client.read(SIZE - MIB + _STEP, 2 * MIB - _STEP) == bytes(2 * MIB - _STEP)
