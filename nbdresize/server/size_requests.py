"""Requests to a `@size` export: a few reads and writes that mean something, one by one."""

from nbdresize.errors import InvalidArgument, NbdresizeError
from nbdresize.export.size_device import SizeDevice
from nbdresize.protocol.constants import (
    NBD_CMD_FLUSH,
)
from nbdresize.protocol.server_replies import Replies
from nbdresize.protocol.transmission import Offer, Request, check_request
from nbdresize.server.replying import Parts, Replying
from nbdresize.server.stream import Stream
from nbdresize.server.transfer import pieces

_PIECE = 64 << 10


class SizeRequests:
    """Answers reads and writes of the size device. All of them leave the hot loop, since a read may wait for news."""

    def __init__(self, device: SizeDevice, replies: Replies, replying: Replying, stream: Stream, offer: Offer) -> None:
        self._device = device
        self._replies = replies
        self._replying = replying
        self._stream = stream
        self._offer = offer

    def answer(self, request: Request) -> None:
        try:
            check_request(request, self._offer)
        except (NbdresizeError, OSError) as error:
            self._replying.refuse(request, error)
        else:
            self._replying.later(request, request.length, lambda: self._do(request))

    def read_slowly(self, requests: list[Request]) -> None:
        """The same one by one: nothing is ever read without being asked about first."""
        for request in requests:
            self.answer(request)

    def write(self, request: Request, payload: memoryview) -> None:
        data = bytes(payload)
        try:
            check_request(request, self._offer)
        except (NbdresizeError, OSError) as error:
            self._replying.refuse(request, error)
        else:
            self._replying.later(request, len(data), lambda: self._write(request, data))

    def receive_write(self, request: Request, head: memoryview) -> None:
        """No write that means something is so long."""
        self.skip(request, len(head))

    def skip(self, request: Request, arrived: int) -> None:
        left = request.payload_length(self._offer.mode) - arrived
        for _ in pieces(self._stream, memoryview(bytearray(_PIECE)), left):
            continue
        self._replying.refuse(request, InvalidArgument(f"A payload of {request.length} bytes", "write a request of 64"))

    def _do(self, request: Request) -> Parts:
        if request.command == NBD_CMD_FLUSH:
            self._device.flush()
            return (self._replies.success(request.cookie, request.offset),)
        data = self._device.read(request.length, request.offset)
        return (self._replies.data_header(request.cookie, request.offset, request.length), data)

    def _write(self, request: Request, data: bytes) -> Parts:
        self._device.write(data, request.offset)
        return (self._replies.success(request.cookie, request.offset),)
