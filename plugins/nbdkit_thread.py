"""What the interpreter knows of a thread of nbdkit's, kept from one call to the next.

nbdkit takes the interpreter's lock for each call by PyGILState_Ensure() and gives it back by PyGILState_Release(). On a
thread that Python did not start, the outermost of these makes all that the interpreter needs to run there, its stack
included, and takes it down again: one mmap and one munmap for every request. Holding one more level of the same from
`open` to `close`, which nbdkit calls on the connection's own thread, makes that once for a connection.
"""

import ctypes
import threading

_WAS_HELD = 0


class KeptThread:
    """Begins on the thread of a connection; requests that run on other threads (`requests=parallel`) gain nothing."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        ctypes.pythonapi.PyGILState_Ensure()

    def let_go(self) -> None:
        """To be called on the same thread; on another one, what was kept stays until the process ends."""
        if threading.get_ident() == self._thread:
            ctypes.pythonapi.PyGILState_Release(_WAS_HELD)
