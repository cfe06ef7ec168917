"""A kernel NBD device kept at the size of its export: what `nbdresize follow` does."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from nbdresize.client import Size, connect_watching
from nbdresize.client.connection import TIMEOUT
from nbdresize.client.uri import parse_uri
from nbdresize.errors import InvalidArgument, NbdresizeError, PeerFailed, ResourceNotFound
from nbdresize.guests.kernel.device import KernelDevice
from nbdresize.guests.kernel.service import tell_manager
from nbdresize.units import format_size

LOOK_SECONDS = 1.0
"""How often the device is looked at: the kernel tells nobody when one is disconnected."""
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 15.0
"""How long is waited before the server is asked anew; the pause doubles from the first to the longest."""


@dataclass(frozen=True)
class Event:
    """Something that happened. Sizes in bytes, of the device; `detail` for people.

    `kind`: `following` (the first, once the device has its size), `resized`, `kept` (the device stays as it is: the
    export is smaller, or its connection can't use more), `lost` (the server does not answer), `back`.
    """

    kind: str
    device: str
    export: str
    old_size: int
    size: int
    generation: int
    detail: str = ""

    def line(self, arrow: str = "→") -> str:
        """For people."""
        change = format_size(self.size)
        if self.old_size != self.size:
            change = f"{format_size(self.old_size)} {arrow} {change}"
        match self.kind:
            case "following":
                return f"{self.device} follows {self.export}: {change}"
            case "resized":
                return f"{self.device}: {change}"
            case _:
                return f"{self.device}: {self.detail}"

    def document(self) -> dict[str, str | int]:
        """For JSON."""
        return {
            "event": self.kind,
            "device": self.device,
            "export": self.export,
            "old_size": self.old_size,
            "size": self.size,
            "generation": self.generation,
            "detail": self.detail,
        }


Tell = Callable[[Event], None]


def follow(
    uri: str,
    device: KernelDevice,
    *,
    tell: Tell,
    once: bool = False,
    allow_shrink: bool = False,
    timeout: float = TIMEOUT,
) -> None:
    """Keep the device at the size of the export at `uri`; with `once`, set it and return.

    Returns otherwise only by an error: ResourceNotFound once the device is not connected any more, or to something
    new; NotAuthorized, InvalidArgument (also for a device that is larger than the export) and those of KernelDevice;
    and PeerFailed, ResourceNotFound and the like where the server can't be asked at the start. One that goes away
    later is asked again and again, and the device stays as it is meanwhile. The server may take `timeout` seconds for
    each answer.

    The kernel does not tell which export a device is connected to, so nothing but the sizes is checked. The device
    becomes smaller only with `allow_shrink`.
    """
    export = parse_uri(uri).disk or "the default export"
    follower = _Follower(device, export, allow_shrink, tell)
    if once:
        with connect_watching(uri, timeout) as disk:
            follower.begin(disk.query())
        return
    news = _News()
    threading.Thread(target=_watch, args=(uri, timeout, news), name="watch", daemon=True).start()
    try:
        first = news.take(None)
        if not isinstance(first, Size):
            assert first is not None
            raise first
        follower.begin(first)
        tell_manager(READY="1", STATUS=f"{format_size(device.size)}, as {export}")
        while True:
            follower.step(news.take(LOOK_SECONDS))
    finally:
        news.unwanted.set()


class _Follower:
    """What is known of both sides, and the one place that decides."""

    def __init__(self, device: KernelDevice, export: str, allow_shrink: bool, tell: Tell) -> None:
        self._device = device
        self._connection = device.check_connected()
        self._export = export
        self._allow_shrink = allow_shrink
        self._tell = tell
        self._wanted: Size | None = None
        self._kept: int | None = None

    def begin(self, size: Size) -> None:
        """Give the device its size for the first time. Raises InvalidArgument where that can't be meant."""
        self._check_device()
        before, after = self._device.size, self._device.fitting(size.size)
        if after < before and not self._allow_shrink:
            raise InvalidArgument(
                f"{self._device.path} has {format_size(before)} and {self._export} only {format_size(size.size)}",
                "see whether the device is connected to another disk; --allow-shrink makes it smaller, and what lies"
                " beyond is lost to it",
            )
        self._device.set_size(after)  # also where it has that size, to know now whether sizes can be set at all
        self._wanted = size
        self._report("following", before, after)

    def step(self, news: "Size | Exception | None") -> None:
        """Take in the news, if any, and bring the device to its size where it has another."""
        self._check_device()
        if isinstance(news, Size):
            if self._wanted is None:
                self._report_state("back", news, f"the server of {self._export} is back")
            self._wanted, self._kept = news, None
        elif isinstance(news, NbdresizeError):
            if self._wanted is not None:
                self._report_state("lost", self._wanted, f"{news}; trying again")
            self._wanted = None  # what was true may be so no more: a device that someone set up again is left alone
        elif news is not None:
            raise news
        if self._wanted is not None:
            self._adjust(self._wanted)

    def _adjust(self, wanted: Size) -> None:
        before, after = self._device.size, self._device.fitting(wanted.size)
        if after in (before, self._kept):
            return
        if after < before and not self._allow_shrink:
            self._keep(wanted, after, f"{self._export} has only {format_size(wanted.size)} now")
            return
        try:
            self._device.set_size(after)
        except PeerFailed as error:
            self._keep(wanted, after, str(error))
            return
        self._report("resized", before, after)
        tell_manager(STATUS=f"{format_size(after)}, as {self._export}")

    def _keep(self, wanted: Size, refused: int, reason: str) -> None:
        """Leave the device at its size, until there is news; said once."""
        self._kept = refused
        self._report_state("kept", wanted, f"kept at {format_size(self._device.size)}: {reason}")

    def _check_device(self) -> None:
        if self._device.connection != self._connection:
            now = "is not connected any more" if self._device.connection is None else "has been connected anew"
            raise ResourceNotFound(f"{self._device.path} {now}", "follow it again once it is connected to this export")

    def _report(self, kind: str, before: int, after: int) -> None:
        generation = self._wanted.generation if self._wanted is not None else 0
        self._tell(Event(kind, self._device.path, self._export, before, after, generation))

    def _report_state(self, kind: str, known: Size, detail: str) -> None:
        size = self._device.size
        self._tell(Event(kind, self._device.path, self._export, size, size, known.generation, detail))


class _News:
    """The latest size or error, handed from the thread that watches to the one that acts; what is older is dropped."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._latest: Size | Exception | None = None
        self.unwanted = threading.Event()
        """Set once nobody takes any more."""

    def put(self, news: "Size | Exception") -> None:
        with self._changed:
            self._latest = news
            self._changed.notify()

    def take(self, seconds: float | None) -> "Size | Exception | None":
        """The latest, once; waits for it until `seconds` have passed, None meaning without an end."""
        with self._changed:
            self._changed.wait_for(lambda: self._latest is not None, seconds)
            latest, self._latest = self._latest, None
            return latest


def _watch(uri: str, timeout: float, news: _News) -> None:
    """Put every size of the export into `news`, and why there is none, until nobody takes it any more."""
    pause = 0.0
    while not news.unwanted.wait(pause):
        pause = min(max(2 * pause, FIRST_PAUSE), LONGEST_PAUSE)
        try:
            with connect_watching(uri, timeout) as disk:
                for size in disk.watch():
                    if news.unwanted.is_set():
                        return
                    pause = FIRST_PAUSE
                    news.put(size)
            raise PeerFailed("The server has stopped telling of changes", "see whether it runs")
        except NbdresizeError as error:
            news.put(error)
        except Exception as error:  # noqa: BLE001  a bug of ours: raised where it can be reported
            news.put(error)
            return
