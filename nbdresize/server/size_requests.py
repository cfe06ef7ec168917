"""Requests to a `@size` export: a few reads and writes that mean something, one by one."""

from nbdresize.errors import InvalidArgument, NbdresizeError
from nbdresize.export.size_device import SizeDevice
from nbdresize.protocol.constants import (
    NBD_CMD_FLAG_DF,
    NBD_CMD_FLAG_FUA,
    NBD_CMD_FLAG_PAYLOAD_LEN,
    NBD_CMD_FLUSH,
    NBD_CMD_READ,
    NBD_CMD_WRITE,
    NBD_MAX_PAYLOAD,
)
from nbdresize.protocol.negotiated import Mode
from nbdresize.protocol.server_replies import Replies
from nbdresize.server.replying import LARGEST_SKIPPED, Parts, Replying
from nbdresize.server.stream import PeerGone, Stream
from nbdresize.server.transfer import pieces
from nbdresize.server.transmission import Request

_PIECE = 64 << 10
_FLAGS = {NBD_CMD_READ: NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF, NBD_CMD_WRITE: NBD_CMD_FLAG_FUA, NBD_CMD_FLUSH: 0}


class SizeRequests:
    """Answers reads and writes of the size device. All of them leave the hot loop, since a read may wait for news."""

    def __init__(self, device: SizeDevice, replies: Replies, replying: Replying, stream: Stream) -> None:
        self._device = device
        self._replies = replies
        self._replying = replying
        self._stream = stream

    def answer(self, request: Request) -> None:
        try:
            self._check(request)
        except NbdresizeError as error:
            self._replying.refuse(request, error)
        else:
            self._replying.later(request, request.length, lambda: self._do(request))

    def write(self, request: Request, payload: memoryview) -> None:
        data = bytes(payload)
        try:
            self._check(request)
        except NbdresizeError as error:
            self._replying.refuse(request, error)
        else:
            self._replying.later(request, len(data), lambda: self._write(request, data))

    def receive_write(self, request: Request, head: memoryview) -> None:
        """No write that means something is so long."""
        self.skip(request, len(head))

    def skip(self, request: Request, arrived: int) -> None:
        if request.length > LARGEST_SKIPPED:
            raise PeerGone(f"a payload of {request.length} bytes")
        for _ in pieces(self._stream, memoryview(bytearray(_PIECE)), request.length - arrived):
            continue
        self._replying.refuse(request, InvalidArgument(f"A payload of {request.length} bytes", "write a request of 64"))

    def _check(self, request: Request) -> None:
        allowed = _FLAGS.get(request.command)
        if allowed is None:
            raise InvalidArgument(f"Command {request.command} is not offered", "read and write the size export")
        if self._replies.mode is Mode.EXTENDED and request.command == NBD_CMD_WRITE:
            allowed |= NBD_CMD_FLAG_PAYLOAD_LEN
        if request.flags & ~allowed or request.length > NBD_MAX_PAYLOAD:
            raise InvalidArgument(f"Command {request.command} with flags {request.flags:#x}", "leave them zero")
        if (request.length == 0) is not (request.command == NBD_CMD_FLUSH):
            raise InvalidArgument(f"Command {request.command} of {request.length} bytes", "ask for at least one")

    def _do(self, request: Request) -> Parts:
        if request.command == NBD_CMD_FLUSH:
            self._device.flush()
            return (self._replies.success(request.cookie, request.offset),)
        data = self._device.read(request.length, request.offset)
        return (self._replies.data_header(request.cookie, request.offset, request.length), data)

    def _write(self, request: Request, data: bytes) -> Parts:
        self._device.write(data, request.offset)
        return (self._replies.success(request.cookie, request.offset),)
