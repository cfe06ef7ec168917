"""Child processes of a supervisor: started with given descriptors, watched without threads, never outliving it."""

import ctypes
import fcntl
import os
import signal
from collections.abc import Mapping, Sequence
from typing import NoReturn

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
_PR_SET_PDEATHSIG = 1
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""The signals that end a server."""

_FAILED_TO_START = 127
_ABOVE_ALL_PASSED = 100
_libc = ctypes.CDLL(None, use_errno=True)


class Process:
    """A child process. `fileno()` is its pidfd: readable once it has ended.

    `listening` sockets become its descriptors 3, 4, …, and LISTEN_FDS and LISTEN_PID tell it so (sd_listen_fds(3));
    `passed` descriptors get the numbers after them. A `detached` child has a session of its own, so that Ctrl-C on
    the terminal reaches only the supervisor, and is killed by the kernel when the supervisor dies, however that dies.
    (The kernel binds this to the thread that starts it, which therefore has to be the main one; and the child may ask
    for something else, as nbdkit does, so our plugin asks again.)
    """

    def __init__(
        self,
        arguments: Sequence[str],
        env: Mapping[str, str],
        *,
        listening: Sequence[int] = (),
        passed: Sequence[int] = (),
        stderr: int | None = None,
        detached: bool = False,
    ) -> None:
        supervisor = os.getpid()
        # A signal between fork and exec would run the supervisor's handlers in the child, on the supervisor's own
        # wake-up socket: it would count as a second signal there.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        try:
            self.pid = os.fork()
            if self.pid == 0:
                variables = dict(env)
                if listening:
                    variables |= {"LISTEN_FDS": str(len(listening)), "LISTEN_PID": str(os.getpid())}
                _become(arguments, variables, [*listening, *passed], stderr, supervisor if detached else None)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._pidfd = os.pidfd_open(self.pid)
        self.returncode: int | None = None

    def fileno(self) -> int:
        return self._pidfd

    def ended(self) -> bool:
        """Whether it has ended; then `returncode` says how: minus the number of a signal, or the exit status."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode is not None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it has not ended. It can't reach another process: the process id is ours until ended()."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def close(self) -> None:
        """Give the pidfd back."""
        os.close(self._pidfd)

    def how_ended(self) -> str:
        """How it ended, in words."""
        if self.returncode is None:
            return "has not ended"
        if self.returncode >= 0:
            return f"ended with exit code {self.returncode}"
        try:
            return f"was ended by {signal.Signals(-self.returncode).name}"
        except ValueError:
            return f"was ended by signal {-self.returncode}"


def _become(
    arguments: Sequence[str],
    env: Mapping[str, str],
    descriptors: Sequence[int],
    stderr: int | None,
    supervisor: int | None,
) -> NoReturn:
    """The child's part."""
    try:
        for number in HANDLED:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        if supervisor is not None:
            os.setsid()
            if _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)) != 0:
                raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
            if os.getppid() != supervisor:  # it died before the kernel was told
                os._exit(_FAILED_TO_START)
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, 0)
            os.dup2(nothing, 1)
        if stderr is not None:
            os.dup2(stderr, 2)
        _pass(descriptors)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        os.execve(arguments[0], list(arguments), dict(env))
    except OSError as error:
        os.write(2, f"{arguments[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(_FAILED_TO_START)


def _pass(descriptors: Sequence[int]) -> None:
    """Give the descriptors their numbers; over a detour, since one may have the number of another."""
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE_ALL_PASSED) for fd in descriptors]
    for number, copy in enumerate(copies, _FIRST_DESCRIPTOR):
        os.dup2(copy, number, inheritable=True)
