"""The servers that are compared: ours, and those that one would else take; how each is started.

All serve the same file through the page cache, without O_DIRECT, and with what they do by default:

- native: `nbdresize serve`, one worker unless the setting says more.
- nbdkit front: `nbdresize serve --front nbdkit`, likewise.
- nbdkit file: nbdkit's own file plugin; up to 16 threads for a connection, its default.
- nbdkit python: bench/plain_plugin.py, one request at a time, as nbdkit's manual has its Python plugins.
- qemu-nbd: raw, --cache=writeback and --aio=threads, its defaults, written out; --discard=unmap, since all others give
  space back that is trimmed too; any number of clients.
- nbd-server: four threads, its default, and a process for each connection; flush, fua and trim, which all others have
  and which it leaves off. It has no export without a name.

Over TLS clients show a certificate, since nbd-server takes none without; no other server asks for it.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.model import Setting, Transport
from nbdresize.errors import ProgramMissing

HOST = "127.0.0.1"
_PLAIN_PLUGIN = Path(__file__).with_name("plain_plugin.py")
_SECONDS = 30.0


class Missing(ProgramMissing):
    """A server's program is not installed; says the command that installs it."""


@dataclass(frozen=True)
class Place:
    """Where one server is to listen, and what it serves."""

    file: Path
    directory: Path
    setting: Setting
    certificates: Path
    port: int

    @property
    def socket(self) -> Path:
        return self.directory / "nbd.sock"

    @property
    def pid_file(self) -> Path:
        return self.directory / "pid"

    @property
    def tcp(self) -> bool:
        return self.setting.transport is Transport.TCP

    @property
    def tls(self) -> bool:
        return self.setting.transport is Transport.TLS

    def uri(self, export: str) -> str:
        if self.tcp:
            return f"nbd://{HOST}:{self.port}/{export}"
        if self.tls:
            return f"nbds+unix:///{export}?socket={self.socket}&tls-certificates={self.certificates}"
        return f"nbd+unix:///{export}?socket={self.socket}"


@dataclass(frozen=True)
class Server:
    """How one of them is found and started. It writes its process id to `pid_file` by the time it listens."""

    program: str
    package: str
    command: Callable[[Place], list[str]]
    export: str = ""
    version: tuple[str, ...] = ("--version",)


def _ours(front: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        where = [f"--tcp={HOST}:{place.port}"] if place.tcp else []
        tls = [f"--tls={place.certificates}", "--no-tls-verify-peer"] if place.tls else []
        return [
            *(sys.executable, "-m", "nbdresize.cli.main", "serve", f"--front={front}", f"--socket={place.socket}"),
            *(*where, *tls, f"--workers={place.setting.workers}", f"--pid-file={place.pid_file}"),
            f"--file={place.file}",
        ]

    return command


def _nbdkit(*plugin: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        where = [f"--ipaddr={HOST}", f"--port={place.port}"] if place.tcp else [f"--unix={place.socket}"]
        tls = ["--tls=require", f"--tls-certificates={place.certificates}"] if place.tls else []
        return ["nbdkit", "--foreground", f"--pidfile={place.pid_file}", *where, *tls, *plugin, f"file={place.file}"]

    return command


def _qemu_nbd(place: Place) -> list[str]:
    where = [f"--bind={HOST}", f"--port={place.port}"] if place.tcp else [f"--socket={place.socket}"]
    keys = f"tls-creds-x509,id=tls,endpoint=server,dir={place.certificates},verify-peer=off"
    tls = [f"--object={keys}", "--tls-creds=tls"] if place.tls else []
    return [
        *("qemu-nbd", "--format=raw", "--cache=writeback", "--aio=threads", "--discard=unmap"),
        *("--persistent", "--shared=0", "--export-name=", f"--pid-file={place.pid_file}", *where, *tls),
        str(place.file),
    ]


_NBD_SERVER_EXPORT = "disk"


def _nbd_server(place: Place) -> list[str]:
    """It goes to the background to serve more than one client, whatever happens to be in /etc/nbd-server."""
    lines = ["[generic]"]
    lines += [f"listenaddr = {HOST}", f"port = {place.port}"] if place.tcp else [f"unixsock = {place.socket}"]
    if place.tls:
        lines += ["force_tls = true"]
        lines += [f"{kind}file = {place.certificates}/{name}.pem" for kind, name in _NBD_SERVER_KEYS]
    lines += [f"[{_NBD_SERVER_EXPORT}]", f"exportname = {place.file}", "flush = true", "fua = true", "trim = true"]
    config = place.directory / "config"
    config.write_text("\n".join(lines) + "\n")
    return ["nbd-server", "-C", str(config), "-p", str(place.pid_file)]


_NBD_SERVER_KEYS = (("cacert", "ca-cert"), ("cert", "server-cert"), ("key", "server-key"))

SERVERS: dict[str, Server] = {
    "native": Server(sys.executable, "", _ours("native")),
    "nbdkit front": Server("nbdkit", "nbdkit nbdkit-plugin-python", _ours("nbdkit")),
    "nbdkit file": Server("nbdkit", "nbdkit", _nbdkit("file")),
    "nbdkit python": Server("nbdkit", "nbdkit nbdkit-plugin-python", _nbdkit("python", str(_PLAIN_PLUGIN))),
    "qemu-nbd": Server("qemu-nbd", "qemu-utils", _qemu_nbd),
    "nbd-server": Server("nbd-server", "nbd-server", _nbd_server, _NBD_SERVER_EXPORT, ("-V",)),
}
"""All of them, in the order in which tables show them."""


def can(name: str, setting: Setting) -> bool:
    """Whether that server can serve so; where not, its column of the table has a dash."""
    return name in _WITH_WORKERS or setting.workers == 1 or setting.load.connections > 1


_WITH_WORKERS = ("native", "nbdkit front")


def require(name: str) -> None:
    """Raises Missing where the server is not installed."""
    server = SERVERS[name]
    if shutil.which(server.program) is None:
        raise Missing(
            f"{server.program} is not installed",
            f"scripts/setup --bench, or: apt-get install --no-install-recommends {server.package}",
        )


def version(name: str) -> str | None:
    """The version of the program behind that name; None where it is not installed. Ours is that of the package."""
    server = SERVERS[name]
    if server.program == sys.executable:
        command = [sys.executable, "-m", "nbdresize.cli.main", "--version"]
    elif shutil.which(server.program) is None:
        return None
    else:
        command = [server.program, *server.version]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return found[0] if found else None
