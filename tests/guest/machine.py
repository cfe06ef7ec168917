"""A booted guest: QEMU with a Linux kernel, in which a test runs scripts, and which is gone when the block ends.

    with QemuGuest(tmp_path, disks=[NbdDisk(server.socket, "web1/disk0")]) as guest:
        guest.run("mkfs.ext4 -q /dev/vda")
        writer = guest.start(PROGRAM, interpreter="python3")
        ...
        assert writer.wait(60).code == 0

The processor is emulated, so that a guest boots in seconds, and does everything some ten times slower than its host.
Several may run beside each other. Each is the child of its test's process, and ends with it however that ends.
"""

import base64
import contextlib
import itertools
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from tests.guest.image import guest_image
from tests.wait import until

BOOT_SECONDS = 360.0
"""How long a guest may take to boot on a machine that has much else to do."""
STEP_SECONDS = 180.0
"""How long a script, or an answer of QEMU, may take, unless its caller says otherwise."""
MOST_OUTPUT = 1 << 20
"""How many characters a script may print; what it prints beyond is dropped."""
BRIDGE = Path(__file__).parent / "bridge.py"
GATEWAY = "10.0.2.100"
"""Where a guest finds the servers of `forward`."""
# A processor counter that jumps whenever the host is busy is no clock.
COMMAND_LINE = (
    "console=ttyS0 root=/dev/nvme0n1 rw init=/init panic=-1 mitigations=off nokaslr random.trust_cpu=on tsc=unstable"
)


class Disk(Protocol):
    """A disk of a guest: the arguments that give it to QEMU. `number` counts a guest's disks from 0."""

    def arguments(self, number: int) -> list[str]: ...


@dataclass(frozen=True)
class Result:
    """How a script ended: its exit code (negative: the signal that ended it), and all that it printed."""

    code: int
    output: str


class Job:
    """A script that runs in a guest."""

    def __init__(self, guest: "QemuGuest", number: int, script: str) -> None:
        self._guest = guest
        self._number = number
        self._script = script
        self._code: int | None = None
        self._dropped = 0
        self.output = ""
        """What it printed so far."""

    @property
    def running(self) -> bool:
        """Whether it has not ended, nor its guest."""
        return self._code is None and not self._guest.gone

    def wait(self, timeout: float = STEP_SECONDS) -> Result:
        """Its result, once it has ended; fails after `timeout` seconds, or if the guest is gone before."""
        try:
            until(lambda: not self.running, timeout, "a script in the guest")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self}") from None
        assert self._code is not None, f"The guest is gone. It ran {self}"
        return Result(self._code, self.output)

    def until(self, text: str, timeout: float = STEP_SECONDS) -> None:
        """Wait until it has printed `text`; fails after `timeout` seconds, or if it ends without."""
        try:
            until(lambda: text in self.output or not self.running, timeout, f"{text!r} from a script in the guest")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self}") from None
        assert text in self.output, f"It ended ({self._code}) without {text!r}: {self}"

    def kill(self) -> None:
        """End it and its children at once."""
        self._guest.tell(id=self._number, kill=True)
        self.wait()

    def take(self, message: Mapping[str, Any]) -> None:
        """Take in what the guest says about it."""
        if len(self.output) < MOST_OUTPUT:
            self.output += message.get("output", "")
        self._code = message.get("code", self._code)

    def __str__(self) -> str:
        return f"\n{self._script.strip()}\nwhich printed\n{self.output[-5000:]}"


class QemuGuest:
    """A guest with `disks`, which has its files in the directory `directory`.

    `qmp_path` is a QMP socket, and `agent_path` (with `agent`) one of the guest agent: both for what is tested, since
    QEMU serves one client at a time; the methods here use others. `arguments` are more arguments for QEMU, `memory`
    is in MiB. `forward` has ports of the address GATEWAY that lead to unix sockets of the test.
    """

    def __init__(
        self,
        directory: Path,
        *,
        disks: Sequence[Disk] = (),
        arguments: Sequence[str] = (),
        memory: int = 256,
        agent: bool = False,
        forward: Mapping[int, Path] | None = None,
    ) -> None:
        self.qmp_path = directory / "qmp.sock"
        self.agent_path = directory / "agent.sock"
        self.console = directory / "console.log"
        """What its kernel says, also when it can't be asked any more."""
        self.log = directory / "qemu.log"
        self.gone = False
        """Whether QEMU has ended, by itself or because its guest panicked or powered itself off."""
        self._given = [*arguments, *(word for number, disk in enumerate(disks) for word in disk.arguments(number))]
        self._memory = memory
        self._agent = agent
        self._forward = dict(forward or {})
        self._jobs: dict[int, Job] = {}
        self._numbers = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        self._resources = contextlib.ExitStack()

    # Scripts and files

    def run(self, script: str, *, interpreter: str = "sh", timeout: float = STEP_SECONDS, check: bool = True) -> Result:
        """Run a script to its end. With `check`, an exit code other than 0 fails the test."""
        job = self.start(script, interpreter=interpreter)
        try:
            result = job.wait(timeout)
        except AssertionError:
            if not self.gone:
                self.tell(id=job._number, kill=True)
            raise
        assert result.code == 0 or not check, f"Exit code {result.code} from {job}"
        return result

    def start(self, script: str, *, interpreter: str = "sh") -> Job:
        """Begin to run a script, and don't wait for it. `interpreter` is a program of the guest: sh, bash, python3."""
        job = self._job(script)
        self.tell(id=job._number, interpreter=interpreter, script=script)
        return job

    def put(self, path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        """Write a file into the guest."""
        job = self._job(f"the writing of {path}")
        data = content.encode() if isinstance(content, str) else content
        self.tell(id=job._number, path=path, content=base64.b64encode(data).decode(), mode=mode)
        assert job.wait().code == 0, str(job)

    def kernel_log(self) -> str:
        """All that the kernel said since it started."""
        return self.run("dmesg").output

    def tell(self, **message: object) -> None:
        """Send a message to init.py, which says what there is."""
        self._channel.sendall(json.dumps(message).encode() + b"\n")

    # QEMU

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """QEMU itself."""
        assert self._process is not None
        return self._process

    def qmp(self, command: str, **arguments: Any) -> Any:
        """What QEMU returns for a QMP command, on a connection of the harness's own. "_" in names stands for "-"."""
        given = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._control.write(json.dumps({"execute": command, "arguments": given}).encode() + b"\n")
        while True:
            line = self._control.readline()
            assert line, f"QEMU is gone: {self.log.read_text(errors='replace')}"
            message = json.loads(line)
            assert "error" not in message, f"{command}: {message['error']}"
            if "return" in message:
                return message["return"]

    # Its life

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.push(self._report)
            self._boot(stack)
            if self._agent:
                self.run("qemu-ga --daemonize --logfile /run/qemu-ga.log --pidfile /run/qemu-ga.pid --statedir /run")
            if self._forward:
                self.run("modprobe virtio_net; ip address add 10.0.2.15/24 dev eth0; ip link set eth0 up")
            self._resources = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._resources.__exit__(kind, error, traceback)

    def _boot(self, stack: contextlib.ExitStack) -> None:
        """Start QEMU, and return once its guest runs scripts."""
        image = guest_image()
        self._channel, guest_end = self._pair(stack)
        control, monitor_end = self._pair(stack)
        self._control = stack.enter_context(control.makefile("rwb", buffering=0))
        command = self._command(image.kernel, image.root, guest_end.fileno(), monitor_end.fileno())
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(guest_end.fileno(), monitor_end.fileno()),
            )
        stack.callback(self._end)
        for end in (guest_end, monitor_end):
            end.close()
        ready = self._job("the start of the system")
        reader = threading.Thread(target=self._listen, name="guest", daemon=True)
        reader.start()
        stack.callback(reader.join, STEP_SECONDS)
        stack.callback(self._quit)
        assert ready.wait(BOOT_SECONDS).code == 0
        self.qmp("qmp_capabilities")

    def _command(self, kernel: Path, root: Path, channel: int, control: int) -> list[str]:
        command = [
            # It ends with this process, however this process ends.
            *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot"),
            *(
                "-accel",
                "tcg,tb-size=128",
                "-cpu",
                "max",
                "-m",
                f"{self._memory}M",
                "-display",
                "none",
                "-kernel",
                str(kernel),
            ),
            *("-append", COMMAND_LINE, "-serial", f"file:{self.console}"),
            # What the guest changes in the image lies in a temporary file that has no name.
            *("-drive", f"if=none,id=root,file={root},format=raw,snapshot=on,file.locking=off"),
            *("-device", "nvme,drive=root,serial=root", "-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=control,fd={control}", "-mon", "chardev=control,mode=control"),
            *("-qmp", f"unix:{self.qmp_path},server=on,wait=off"),
        ]
        if self._agent:
            command += ["-chardev", f"socket,id=agent,path={self.agent_path},server=on,wait=off"]
            command += ["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]
        # The guest takes this port, the last, as a sign that it knows all.
        command += ["-chardev", f"socket,id=test,fd={channel}"]
        command += ["-device", "virtserialport,chardev=test,name=nbdresize.test"]
        if self._forward:
            ways = "".join(
                f",guestfwd=tcp:{GATEWAY}:{port}-cmd:{sys.executable} -IS {BRIDGE} {path}"
                for port, path in self._forward.items()
            )
            command += ["-netdev", f"user,id=net,restrict=on{ways}", "-device", "virtio-net-pci,netdev=net"]
        return [*command, *self._given]

    def _pair(self, stack: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
        ours, its = socket.socketpair()
        stack.enter_context(ours)
        stack.enter_context(its)
        ours.settimeout(STEP_SECONDS)
        return ours, its

    def _job(self, script: str) -> Job:
        number = next(self._numbers)
        self._jobs[number] = Job(self, number, script)
        return self._jobs[number]

    def _listen(self) -> None:
        """Take in what the guest says, until QEMU ends."""
        rest = b""
        while True:
            try:
                data = self._channel.recv(1 << 16)
            except TimeoutError:
                continue  # it has nothing to say
            except OSError:
                break
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                self._jobs[message["id"]].take(message)
        self.gone = True

    def _quit(self) -> None:
        with contextlib.suppress(OSError):  # it is gone already
            self._control.write(b'{"execute": "quit"}\n')
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()

    def _end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _report(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """After a failure, print what the guest and QEMU said, for the test's log."""
        if kind is None:
            return
        for file in (self.console, self.log):
            if file.exists():
                print(f"--- the end of {file.name}:\n{file.read_text(errors='replace')[-8000:]}")
