#!/usr/bin/python3 -IS
"""The first process of a guest: makes the system ready and runs what the test asks for, until it is powered off.

Runs inside the guest, with Python's standard library only. Each line on the port is a JSON object. From the test:
{"id", "interpreter", "script"} runs a script, {"id", "kill": true} kills it with its children, {"id", "path",
"content", "mode"} writes a file (content in base64). To the test: {"id": 0, "code": 0} once ready, {"id", "output"}
pieces of what a script prints, {"id", "code"} its end, or that of a file's writing (with "output", where it failed).
"""

import base64
import codecs
import ctypes
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

MOUNTS = [
    ("devtmpfs", "/dev"),
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("devpts", "/dev/pts"),
    ("tmpfs", "/dev/shm"),
]
MODULES = ["virtio_pci", "virtio_console", "virtio_blk", "virtio_scsi", "sd_mod"]
PORT = Path("/dev/virtio-ports/nbdresize.test")
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8", "PYTHONUNBUFFERED": "1"}


def prepare() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, where in MOUNTS:
        Path(where).mkdir(exist_ok=True)
        if libc.mount(kind.encode(), where.encode(), kind.encode(), 0, None) != 0:
            raise OSError(ctypes.get_errno(), f"can't mount {where}")
    os.environ.update(ENVIRONMENT)
    subprocess.run(["modprobe", "--all", *MODULES], check=True)
    name_ports()
    for name, target in {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}.items():
        Path("/dev", name).symlink_to(target)


def name_ports() -> None:
    """Do udev's work for the ports to the host. QEMU tells their names one by one, ours last."""
    PORT.parent.mkdir()
    while not PORT.exists():
        time.sleep(0.01)
        for port in Path("/sys/class/virtio-ports").iterdir():
            name = (port / "name").read_text().strip()
            if name and not (link := PORT.parent / name).is_symlink():
                link.symlink_to(f"/dev/{port.name}")


class Runner:
    def __init__(self) -> None:
        self.port = os.open(PORT, os.O_RDWR)
        self.turn = threading.Lock()
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    def say(self, **message: object) -> None:
        data = json.dumps(message).encode() + b"\n"
        with self.turn:
            while data:
                data = data[os.write(self.port, data) :]

    def serve(self) -> None:
        self.say(id=0, code=0)
        rest = b""
        while data := os.read(self.port, 1 << 16):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self.obey(json.loads(line))

    def obey(self, message: dict[str, Any]) -> None:
        number = message["id"]
        if "kill" in message:
            if number in self.running:
                os.killpg(self.running[number].pid, signal.SIGKILL)
        elif "path" in message:
            self.write(number, Path(message["path"]), base64.b64decode(message["content"]), message["mode"])
        else:
            script = Path(f"/run/script-{number}")
            script.write_text(message["script"])
            process = subprocess.Popen(
                [message["interpreter"], script],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd="/root",
            )
            self.running[number] = process
            threading.Thread(target=self.follow, args=(number, process), daemon=True).start()

    def write(self, number: int, path: Path, content: bytes, mode: int) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(mode)
        except OSError as error:
            self.say(id=number, output=str(error))
            self.say(id=number, code=1)
        else:
            self.say(id=number, code=0)

    def follow(self, number: int, process: subprocess.Popen[bytes]) -> None:
        """Pass on what it prints. It has ended once it and all that hold its output have, as in a pipeline."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        assert process.stdout is not None
        while data := os.read(process.stdout.fileno(), 1 << 16):
            self.say(id=number, output=decoder.decode(data))
        process.stdout.close()
        code = process.wait()
        del self.running[number]
        self.say(id=number, code=code)


prepare()
runner = os.fork()
if runner == 0:
    Runner().serve()
# The first process takes over the children of those that ended, and has to see them end. Without the runner it ends
# too, which the kernel takes as the end of the system.
while os.wait()[0] != runner:
    pass
