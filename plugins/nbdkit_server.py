"""What our plugin keeps beside nbdkit's own server: the exports, the admin socket, and the wait for the end."""

import contextlib
import ctypes
import gc
import os
import select
import signal
import threading

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.export.admin import AdminSocket
from nbdresize.export.admin_commands import ServerInfo
from nbdresize.export.exports import Exports
from plugins.nbdkit_connection import let_idle_clients_go, listening_addresses
from plugins.nbdkit_settings import Settings

_AGAIN_SECONDS = 0.05
_JOIN_SECONDS = 2.0
_PR_SET_PDEATHSIG = 1


def open_exports(settings: Settings, stack: contextlib.ExitStack) -> Exports:
    """What the settings ask to serve, until the stack ends. Raises the errors of whatever is wrong with it."""
    if settings.file is not None:
        return Exports.of_file(settings.file, settings.client_resize, settings.max_size)
    assert settings.root is not None
    control = stack.enter_context(Control.open(StateDirectory(settings.root), create=False))
    return Exports.of_ledger(control, settings.client_resize)


class Server:
    """What this process serves, from the fork to the end."""

    def __init__(self, settings: Settings) -> None:
        """Raises the errors of whatever is wrong with the state directory or the file."""
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self.exports = open_exports(settings, stack)
            listening = listening_addresses()
            run = settings.run or (settings.root / "run" if settings.root else None)
            if settings.end_descriptor is not None:
                _End(settings.end_descriptor, listening, self.exports, stack)
            if run is not None:
                stack.enter_context(AdminSocket(run, self.exports, ServerInfo("nbdkit", settings.uris)))
            self._stack = stack.pop_all()
        # Looking for garbage holds up all threads. What is loaded by now stays; to look through it took 60 ms.
        gc.freeze()

    def close(self) -> None:
        """End what runs beside nbdkit, before Python is taken down."""
        self._stack.close()


class _End:
    """Waits for the end that the supervisor tells, and then keeps idle clients from holding nbdkit up."""

    def __init__(self, descriptor: int, addresses: set[object], exports: Exports, stack: contextlib.ExitStack) -> None:
        _die_with_supervisor()
        os.set_inheritable(descriptor, False)
        self._descriptor = descriptor
        self._addresses = addresses
        self._exports = exports
        self._closing = os.eventfd(0)
        self._thread = threading.Thread(target=self._wait, name="nbdresize end", daemon=True)
        self._thread.start()
        stack.callback(self._close)

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        poll.register(self._closing, select.POLLIN)
        poll.poll()
        poll.unregister(self._descriptor)
        while not poll.poll(0):
            self._exports.end_waits()
            let_idle_clients_go(self._addresses)
            poll.poll(_AGAIN_SECONDS * 1000)  # once more, for whoever was just being accepted

    def _close(self) -> None:
        os.eventfd_write(self._closing, 1)
        self._thread.join(_JOIN_SECONDS)


def _die_with_supervisor() -> None:
    """Have the kernel kill this process when the supervisor dies. In the main thread only, whose setting it is.

    nbdkit 1.32 asks for SIGTERM, whatever its options say, and one that waits in accept(2) never acts on that.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
