"""A device /dev/nbdN: found by its path, looked at in sysfs, and set to another size."""

import contextlib
import errno
import fcntl
import mmap
import os
import re
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from nbdresize.errors import (
    InvalidArgument,
    NbdresizeError,
    NotAuthorized,
    PeerFailed,
    ProgramMissing,
    ResourceNotFound,
    VolumeFailed,
)
from nbdresize.guests.kernel import netlink
from nbdresize.units import format_size

MAJOR = 43
"""The kernel's number of all NBD devices."""
NBD_SET_SIZE_BLOCKS = 0xAB07
"""The ioctl that takes the size as a number of the device's blocks; see linux/nbd.h."""
SECTOR = 512
"""The unit of `size` in sysfs, whatever the device's block size."""

_SYSFS = Path("/sys")
_NAME = re.compile(r"nbd(\d{1,7})")
_NETLINK_GENERIC = 16
_SECONDS = 10.0
_MOST_DATAGRAMS = 16
_MODULE = "load it: modprobe nbd"
_CONNECT = "connect it first: nbd-client -N EXPORT HOST /dev/nbdN"


@dataclass(frozen=True)
class KernelDevice:
    """An NBD device. `path` as the user gave it, `name` the kernel's, such as `nbd0`."""

    path: str
    name: str
    directory: Path

    @classmethod
    def at(cls, path: str, sysfs: Path = _SYSFS) -> Self:
        """The device at `path`, which may be a link to it. Need not be connected.

        Raises InvalidArgument for anything else, ProgramMissing where the kernel's NBD client is not loaded, and
        ResourceNotFound where there is no such device.
        """
        loaded = (sysfs / "module" / "nbd").exists()
        try:
            found = os.stat(path)  # noqa: PTH116  a string, to be shown as it was given
        except (OSError, ValueError) as error:
            if not loaded and isinstance(error, FileNotFoundError):
                raise ProgramMissing(
                    f"{path} is not there, since the kernel's NBD client is not loaded", _MODULE
                ) from None
            reason = getattr(error, "strerror", None) or "no path"
            raise ResourceNotFound(f"{path} can't be looked at ({reason})", "give a device such as /dev/nbd0") from None
        if not stat.S_ISBLK(found.st_mode) or os.major(found.st_rdev) != MAJOR:
            raise InvalidArgument(f"{path} is no device of the kernel's NBD client", "give one such as /dev/nbd0")
        if not loaded:
            raise ProgramMissing(f"{path} has no driver, since the kernel's NBD client is not loaded", _MODULE)
        link = sysfs / "dev" / "block" / f"{MAJOR}:{os.minor(found.st_rdev)}"
        directory = link.resolve()
        if not link.exists():
            raise ResourceNotFound(
                f"The kernel knows no device behind {path}", "see /sys/block for those that it knows"
            )
        if _NAME.fullmatch(directory.name) is None:
            way_out = f"give the whole device, such as /dev/{directory.parent.name}"
            raise InvalidArgument(f"{path} is only a part of a device, {directory.name}", way_out)
        return cls(path, directory.name, directory)

    @property
    def index(self) -> int:
        return int(self.name.removeprefix("nbd"))

    @property
    def connection(self) -> str | None:
        """Names the connection that the device has now: the process that made it. None where it has none."""
        return self._attribute("pid")

    @property
    def size(self) -> int:
        """In bytes, as the kernel has it. Raises ResourceNotFound where the device is gone."""
        return self._number("size") * SECTOR

    @property
    def block_size(self) -> int:
        """In bytes, what the device reads and writes at least. Raises ResourceNotFound where the device is gone."""
        return self._number("queue/logical_block_size")

    def check_connected(self) -> str:
        """Its connection, as `connection`. Raises ResourceNotFound where it has none."""
        connection = self.connection
        if connection is None:
            raise ResourceNotFound(f"{self.path} is not connected to a server", _CONNECT)
        return connection

    def fitting(self, size: int) -> int:
        """The size that this device has on an export of `size` bytes: whole blocks, or what it has already if only
        part of a block is missing."""
        now, block = self.size, self.block_size
        return now if 0 <= size - now < block else size // block * block

    def set_size(self, size: int) -> None:
        """Make it `size` bytes long, which are whole blocks, and see in sysfs that it is.

        By netlink where the device was set up by netlink, else by ioctl; the kernel refuses the other way. Its block
        size stays. Data and requests below the smaller of both sizes are not touched, whoever has the device open or
        mounted. Where it becomes larger, its new last block is read; if that fails, it gets its old size back.

        Raises NotAuthorized for who is not root, ResourceNotFound where the device is not connected any more,
        VolumeFailed where the kernel refuses, or does not do it, and PeerFailed where the new blocks can't be read.
        """
        before = self.size
        self._tell_kernel(size)
        if size > before:
            self._prove(before, size)

    def _tell_kernel(self, size: int) -> None:
        """Set the size, and see in sysfs that it is; errors as `set_size`."""
        try:
            self._set(size)
        except PermissionError:
            raise NotAuthorized(
                f"Only root can change the size of {self.path}", "run this as root (it takes CAP_SYS_ADMIN)"
            ) from None
        except NbdresizeError:
            raise
        except (OSError, netlink.Malformed) as error:
            self.check_connected()
            raise VolumeFailed(
                f"The kernel does not make {self.path} {format_size(size)} long ({error})",
                "see what it says in dmesg; netlink does it from Linux 5.3 on",
            ) from error
        self.check_connected()
        if self.size != size:
            raise VolumeFailed(
                f"{self.path} was set to {format_size(size)} and has {format_size(self.size)}",
                "see whether something else sets it, and what the kernel says in dmesg",
            )

    def _prove(self, before: int, size: int) -> None:
        """See whether the connection takes requests for what is new: some servers keep to the size of its beginning."""
        try:
            self._read(size - self.block_size, self.block_size)
        except OSError as error:
            self._tell_kernel(before)
            raise PeerFailed(
                f"The connection of {self.path} can't use more than {format_size(before)} ({error.strerror})",
                "see whether its server runs, and is one whose connections grow (--front native); else connect it anew",
            ) from error

    def _read(self, offset: int, length: int) -> None:
        """Read whole blocks, past all caches. Takes as long as the device does."""
        opened = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        try:
            with mmap.mmap(-1, length) as aligned:
                if os.preadv(opened, [aligned], offset) != length:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
        finally:
            os.close(opened)

    def _set(self, size: int) -> None:
        backend = self._attribute("backend")
        if backend is not None:  # the kernel has this file, empty or not, for devices set up by netlink only
            _set_by_netlink(self.index, size, os.fsencode(backend))
            return
        try:
            self._set_by_ioctl(size)
        except OSError as error:
            # Before Linux 5.14 no device has the file, and the refusal is the only sign of one set up by netlink.
            if error.errno != errno.EINVAL or self.connection is None:
                raise
            _set_by_netlink(self.index, size, b"")

    def _set_by_ioctl(self, size: int) -> None:
        # Not for writing: closing a device that was open for writing makes udev look at it again.
        opened = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.ioctl(opened, NBD_SET_SIZE_BLOCKS, size // self.block_size)
        finally:
            os.close(opened)

    def _attribute(self, name: str) -> str | None:
        """A file of the device in sysfs, stripped; None where it is not there."""
        with contextlib.suppress(OSError):
            return os.fsdecode((self.directory / name).read_bytes()[:4096]).strip()
        return None

    def _number(self, name: str) -> int:
        text = self._attribute(name) or ""
        if not (text.isascii() and text.isdigit()) or (name != "size" and int(text) == 0):
            raise ResourceNotFound(f"{self.path} is gone", _CONNECT)
        return int(text)


def _set_by_netlink(index: int, size: int, backend: bytes) -> None:
    """Ask the kernel, 10 s at most for each answer. Raises OSError with its errno, Malformed, and ProgramMissing."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC) as kernel:
        kernel.settimeout(_SECONDS)
        kernel.bind((0, 0))
        try:
            answer = _ask(kernel, netlink.pack_get_family(netlink.NBD_FAMILY, 1), 1)
        except FileNotFoundError:
            raise ProgramMissing(
                "The kernel's NBD client does not answer by netlink here",
                "modprobe nbd; in a container, use the host's network namespace",
            ) from None
        if answer is None:
            raise netlink.Malformed("it tells of no family")
        family = netlink.parse_family(answer)
        _ask(kernel, netlink.pack_set_size(family, index, size, backend, 2), 2)


def _ask(kernel: socket.socket, request: bytes, sequence: int) -> bytes | None:
    """Send a request and wait until it is acknowledged; what was told before that, if anything."""
    kernel.sendto(request, (0, 0))
    told: bytes | None = None
    for _ in range(_MOST_DATAGRAMS):
        data, sender = kernel.recvfrom(netlink.MOST_BYTES)
        if sender[0] != 0:  # other processes may send here too
            continue
        for message in netlink.parse_messages(data):
            if message.sequence != sequence:
                continue
            if message.kind != netlink.NLMSG_ERROR:
                told = message.payload
            elif number := netlink.parse_error(message.payload):
                raise OSError(number, os.strerror(number))
            else:
                return told
    raise netlink.Malformed("it does not acknowledge the request")
