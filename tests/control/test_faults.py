"""A call that fails at any step of any change: all is put back, and said in an error of ours; a retry works.

Each step fails once: before it has happened, with the disk full or with an error of the device; or after it has, as
where a device reports an error of something that it did write.
"""

import errno
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
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
    number, after = FAULTS[fault]
    failures = 0
    for step in range(1000):
        state = copy_of(fast / "template", fast / f"{change}-{fault}-{step}")
        failed, error = _change_with_fault(state, change, Fault(step, number, after=after))
        what = f"{change} with {failed} {fault} (step {step}): {error!r}"
        if error is not None:
            failures += 1
            assert type(error) in ERRORS, what
            assert "\n" not in str(error), what
        with Control.open(state) as control:
            assert problems(state) == [], what
            found = seen(control)
            assert plain(found) in (plain(before(change)), plain(AFTER[change])), what
            assert error is not None or found == AFTER[change], what
            check_content(state, control, what)
            CHANGES[change](control)
            assert plain(seen(control)) == plain(AFTER[change]), what
            assert control.operation(OPERATION).state is OperationState.DONE, what
        assert problems(state) == [], what
        shutil.rmtree(state.root)
        if failed is None:
            assert error is None
            assert failures or (after and change == "change_package"), "that one only locks and commits"
            return
    raise AssertionError("there is no end of steps")


def _change_with_fault(state: StateDirectory, change: str, fault: Fault) -> tuple[str | None, NbdresizeError | None]:
    """The step that failed, and the error that the change ended with."""
    error: NbdresizeError | None = None
    with Control.open(state) as control:
        sys.setprofile(fault.profile)
        try:
            CHANGES[change](control)
        except NbdresizeError as caught:
            error = caught
        finally:
            sys.setprofile(None)
        if error is not None and fault.failed is not None:
            _check_given_back(state, control, change, fault.failed, error)
    return fault.failed, error


def _check_given_back(state: StateDirectory, control: Control, change: str, failed: str, error: NbdresizeError) -> None:
    """What was reserved is free at once, not only at the next start, unless the ledger itself could not be written.

    What is committed is not put back, but finished by whatever comes next.
    """
    what = f"{change} with {failed}: {error!r}"
    assert plain(seen(control)) in (plain(before(change)), plain(AFTER[change])), what
    with closing(sqlite3.connect(state.ledger)) as ledger:
        committed = ledger.execute("SELECT min(committed) FROM intents").fetchone()[0]
    if committed or failed.startswith("Connection."):
        return
    left = [each for each in problems(state) if not each.startswith(("orphan lease", "orphan lock"))]
    assert left == [], what
