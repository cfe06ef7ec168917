"""A real NBD server, nbdkit with its eval plugin, that says what a test wants said: also what no honest server says."""

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from nbdresize.protocol.size_record import DEVICE_SIZE, SizeRecord
from tests.wait import until

GIB = 2**30

RECORD = SizeRecord(size=20 * GIB, generation=3, minimum=20 * GIB, maximum=100 * GIB, granularity=4096, features=2)
"""A disk of 20 GiB that may grow to 100 GiB."""


class ScriptedServer:
    """Serves one export under every name, on a unix socket in `directory`.

    Reads answer with `content`, or run the shell script `read`. A write runs the shell script `write`; by default it
    fails with EPERM.
    """

    def __init__(
        self,
        directory: Path,
        *,
        content: bytes = RECORD.pack(),
        write: str = "cat >/dev/null; echo 'EPERM no' >&2; exit 1",
        read: str = "",
        size: int = DEVICE_SIZE,
        options: tuple[str, ...] = (),
        settings: tuple[str, ...] = (),
    ) -> None:
        self._directory = directory
        self.socket = directory / "peer.sock"
        image = content[:DEVICE_SIZE].ljust(DEVICE_SIZE, b"\0")
        # The waiting read of a control export finds the same record at its own place.
        self._image = image[:1024] + content[:64].ljust(64, b"\0") + image[1088:]
        self._command = [
            "nbdkit",
            "--foreground",
            "--exit-with-parent",
            f"--unix={self.socket}",
            f"--pidfile={directory / 'peer.pid'}",
            *options,
            "eval",
            f"get_size=echo {size}",
            f"pread={read}" if read else f"pread=dd if={directory / 'peer.img'} bs=1 skip=$4 count=$3 status=none",
            "can_write=exit 0",
            f"pwrite={write}",
            *settings,
        ]

    @property
    def uri(self) -> str:
        return f"nbd+unix:///web1/disk0?socket={self.socket}"

    def __enter__(self) -> Self:
        (self._directory / "peer.img").write_bytes(self._image)
        log = (self._directory / "peer.log").open("wb")
        with log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            until(self._ready, what="nbdkit")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _ready(self) -> bool:
        assert self._process.poll() is None, (self._directory / "peer.log").read_text()
        return (self._directory / "peer.pid").exists()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
