"""A shrink that disconnects, against clients that come back at once and ask for a size at once."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from nbdresize.control.model import ResizeOptions
from nbdresize.units import SizeRequest
from tests.wire.conftest import LedgerDisk
from tests.wire.layout import MIB, RESIZE, STRUCTURED
from tests.wire.peer import NativeServer

pytestmark = pytest.mark.slow

CLIENTS = 2


def test_it_beats_clients_in_a_loop(all_server: NativeServer, disk: LedgerDisk) -> None:
    ended = threading.Event()

    def come_back() -> int:
        resized = 0
        while not ended.is_set():
            with (
                contextlib.suppress(AssertionError, OSError),
                all_server.connect(disk.export, STRUCTURED) as client,
            ):
                for number in range(1000):
                    if ended.is_set():
                        break
                    resized += not client.call(RESIZE, (64 + number % 8) * MIB).error
        return resized

    with ThreadPoolExecutor(CLIENTS) as threads:
        clients = [threads.submit(come_back) for _ in range(CLIENTS)]
        try:
            for _ in range(20):
                options = ResizeOptions(shrink=True, disconnect=True)
                outcome = disk.control.resize_disk(disk.vm, "disk0", SizeRequest(exact=8 * MIB), options)
                assert outcome.size == 8 * MIB
        finally:
            ended.set()
        assert sum(client.result(60) for client in clients) > 0
