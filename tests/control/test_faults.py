"""A call that fails at any step of any change: all is put back, and said in an error of ours; a retry works.

Each step fails once: before it has happened, with the disk full or with an error of the device; or after it has, as
where a device reports an error of something that it did write.
"""

import errno
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.control.model import OperationState
from nbdresize.errors import ERRORS, NbdresizeError
from tests.control.consistency import problems
from tests.control.outcomes import AFTER, before, check_content, plain, seen
from tests.control.steps import Profile, counting
from tests.control.victim import CHANGES, OPERATION, copy_of, prepare
from tests.filesystems import MIB, mounted

pytestmark = pytest.mark.slow

_ONLY_BEFORE = {"open", "connect", "flock"}
"""What fails for real can't leave a descriptor open that nobody knows, or lock what it says it did not."""

FAULTS = {"full": (errno.ENOSPC, False), "broken": (errno.EIO, False), "broken afterwards": (errno.EIO, True)}


class Fault:
    """Counts steps, and has one of them fail. Python drops its profile function then: it happens once."""

    def __init__(self, last: int, number: int, *, after: bool) -> None:
        self.failed: str | None = None
        self._left = last
        self._number = number
        self._after = after

    @property
    def profile(self) -> Profile:
        return counting(self._take, after=self._after)

    def _take(self, step: str) -> None:
        if self._after and step in _ONLY_BEFORE:
            return
        if self._left == 0:
            self.failed = step
            raise _error(step, self._number)
        self._left -= 1


def _error(step: str, number: int) -> Exception:
    if not step.startswith("Connection."):
        return OSError(number, os.strerror(number))
    full = number == errno.ENOSPC
    error = sqlite3.OperationalError("database or disk is full" if full else "disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL if full else sqlite3.SQLITE_IOERR
    return error


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted("tmpfs", tmp_path_factory.mktemp("faults"), size=512 * MIB) as point:
        (point / "template").mkdir()
        prepare(StateDirectory(point / "template"))
        yield point


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("change", [change for change in CHANGES if change != "create_first"])
def test_a_call_that_fails_fails_the_change_and_no_more(change: str, fault: str, fast: Path) -> None:
    """Each attempt is the retry of the one before, and fails one step later."""
    number, after = FAULTS[fault]
    with ExitStack() as stack:
        copies = (stack.enter_context(_copied(fast, f"{change}-{fault}-{copy}")) for copy in range(1000))
        control = next(copies)
        failures = 0
        for step in range(1000):
            broken = Fault(step, number, after=after)
            error = _attempt(lambda: CHANGES[change](control), broken)  # noqa: B023 - called at once
            what = f"{change} with {broken.failed} {fault} (step {step}): {error!r}"
            failures += error is not None
            found = plain(seen(control))
            assert found in (plain(before(change)), plain(AFTER[change])), what
            if problems(control.state):
                assert not _should_be_put_back(control.state, broken.failed), f"{what}: {problems(control.state)}"
                Control.open(control.state).close()
                assert problems(control.state) == [], what
            if error is None or found == plain(AFTER[change]):
                check_content(control.state, control, what)
                assert found == plain(AFTER[change]), what
                CHANGES[change](control)
                assert plain(seen(control)) == found, what
                assert control.operation(OPERATION).state is OperationState.DONE, what
                assert problems(control.state) == [], what
                control = next(copies)
            if broken.failed is None:
                assert error is None
                assert failures or (after and change == "change_package"), "that one only locks and commits"
                return
    raise AssertionError("there is no end of steps")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_call_that_fails_fails_the_first_start_and_no_more(fault: str, fast: Path) -> None:
    number, after = FAULTS[fault]
    for step in range(1000):
        state = StateDirectory(fast / f"first-{fault}-{step}")
        broken = Fault(step, number, after=after)
        error = _attempt(lambda: Control.open(state).close(), broken)  # noqa: B023 - called at once
        with Control.open(state) as control:
            assert control.vms() == []
        assert problems(state) == [], f"{broken.failed} {fault} (step {step}): {error!r}"
        shutil.rmtree(state.root)
        if broken.failed is None:
            assert step
            return
    raise AssertionError("there is no end of steps")


@contextmanager
def _copied(fast: Path, name: str) -> Iterator[Control]:
    state = copy_of(fast / "template", fast / name)
    with Control.open(state) as control:
        yield control
    shutil.rmtree(state.root)


def _attempt(act: Callable[[], object], broken: Fault) -> NbdresizeError | None:
    """The error that it ended with, which is one of ours, on one line."""
    sys.setprofile(broken.profile)
    try:
        act()
    except NbdresizeError as error:
        assert type(error) in ERRORS, broken.failed
        assert "\n" not in str(error), broken.failed
        return error
    finally:
        sys.setprofile(None)
    return None


def _should_be_put_back(state: StateDirectory, failed: str | None) -> bool:
    """Whether what was reserved has to be free at once, not only at the next start.

    Where the ledger itself could not be written, it can't be; and what is committed is not put back, but finished by
    whatever comes next. A file that reserves nothing (a lease, a lock, a write map) may be left.
    """
    with closing(sqlite3.connect(state.ledger)) as ledger:
        (committed,) = ledger.execute("SELECT min(committed) FROM intents").fetchone()
    left = [each for each in problems(state) if not each.startswith(("orphan lease", "orphan lock", "left write map"))]
    return bool(left) and not committed and failed is not None and not failed.startswith("Connection.")
