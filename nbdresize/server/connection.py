"""One client's connection, from its first byte to its last, in a thread of its own."""

import socket
import threading
from collections.abc import Callable

from nbdresize.errors import NbdresizeError
from nbdresize.export.disk_export import DiskExport
from nbdresize.export.exports import Client
from nbdresize.protocol.server_replies import Replies
from nbdresize.protocol.transmission import Offer
from nbdresize.protocol.violation import ProtocolViolation
from nbdresize.server.handshaking import Access, Agreed, Handshaking
from nbdresize.server.lane import Lane
from nbdresize.server.replying import Replying
from nbdresize.server.requests import Requests
from nbdresize.server.resizing import Resizing
from nbdresize.server.size_requests import SizeRequests
from nbdresize.server.stream import PeerGone, Stream
from nbdresize.server.transfer import Transfer
from nbdresize.server.transmission import Answers, QuickPath, serve_requests
from nbdresize.storage.mapping import Mapping
from nbdresize.storage.page_cache import nowait_flags


class Connection:
    """Serves one client. `finish` and `drop` may be called from any thread, at any time."""

    def __init__(self, stream: Stream, peer: str, access: Access, log: Callable[[str], None]) -> None:
        self.peer = peer
        self._stream = stream
        self._access = access
        self._log = log
        self._ending = False
        self._over = threading.Event()

    def run(self) -> None:
        """Serve the client until it has left or is not to be served any longer. Never raises."""
        try:
            self._serve()
        except PeerGone as gone:
            if str(gone):
                self._log(f"{self.peer}: {gone}")
        except ProtocolViolation as violation:
            self._log(f"{self.peer}: {violation.problem}")
        except NbdresizeError as error:
            self._log(f"{self.peer}: {error}")
        finally:
            self._over.set()
            self._stream.close()

    def finish(self) -> None:
        """Take in nothing more, finish what has come, then end."""
        self._ending = True
        self._stream.finish_receiving()

    def drop(self) -> None:
        """End at once, whatever is under way."""
        self._ending = True
        self._over.set()
        self._stream.break_off()

    def _serve(self) -> None:
        client = Client(self.peer, self.drop, lambda: not self._over.is_set())
        agreed = Handshaking(self._stream, self._access, client, self._use_stream).run()
        if agreed is None:
            return
        lane = Lane(self.peer)
        try:
            self._transmit(agreed, lane)
        finally:
            self._over.set()
            lane.close()
            self._access.exports.close(agreed.export)

    def _use_stream(self, stream: Stream) -> None:
        """From here on the connection runs on that one, which goes on with the same socket."""
        self._stream = stream
        if self._ending:
            stream.finish_receiving()

    def _transmit(self, agreed: Agreed, lane: Lane) -> None:
        stream, export, mode = agreed.stream, agreed.export, agreed.negotiated.mode
        stream.hold = export.backing.hold
        replies = Replies(mode)
        replying = Replying(stream, replies, lane)
        offer = Offer.of(agreed.negotiated)
        if not isinstance(export, DiskExport):
            answers: Answers = SizeRequests(export, replies, replying, stream, offer)
            serve_requests(stream, mode, None, answers, export, agreed.early, lambda: self._ending)
            return
        nowait = nowait_flags(export.handle.fileno())
        quick = None
        if nowait is not None:
            fd = export.handle.fileno()
            mapping = Mapping(fd, export) if stream.direct else None
            quick = QuickPath(fd, export, export.backing, nowait, not export.read_only, mapping)
        transfer = Transfer(stream, export.handle, nowait)
        resizing = Resizing(stream, export, replies, replying, lane)
        answers = Requests(export, replies, replying, lane, transfer, resizing, offer)
        try:
            serve_requests(stream, mode, quick, answers, export, agreed.early, lambda: self._ending)
        finally:
            self._finish(lane, resizing)
            transfer.close()

    def _finish(self, lane: Lane, resizing: Resizing) -> None:
        """Replies to what is under way go out before the connection ends."""
        lane.drain()
        resizing.close()


def peer_name(sock: socket.socket) -> str:
    """Who is at the other end, for people: an address, or the process and user of a unix socket's client."""
    if sock.family == socket.AF_UNIX:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        process = int.from_bytes(credentials[:4], "little", signed=True)
        user = int.from_bytes(credentials[4:8], "little")
        return f"unix:pid={process},uid={user}"
    address = sock.getpeername()
    return f"[{address[0]}]:{address[1]}" if sock.family == socket.AF_INET6 else f"{address[0]}:{address[1]}"
