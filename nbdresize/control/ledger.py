"""The ledger: one SQLite database, and the transactions in which every decision is made.

Durable when a transaction has ended (WAL with full sync): whatever is killed afterwards, it stands. Nothing of a
transaction that has not ended stands.

Who decides waits in a queue: the lock (flock) on the ledger's directory is held by the one that comes next, until its
transaction has begun. SQLite alone would have each ask again after longer and longer pauses, so that one that has just
decided is first again while others wait for seconds. The queue is for order alone. That nobody writes beside a decision
is SQLite's lock on the database; whoever can't queue, or does not get on there, asks for that lock all the same.
"""

import enum
import errno
import fcntl
import os
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sql

from nbdresize.control import locks, migrations
from nbdresize.errors import NbdresizeError, ResourceInUse, StateUnusable

BUSY_SECONDS = 10.0
"""How long a transaction waits for another process's."""

_TURN_SECONDS = 1.0
"""How long one stands in the queue at most: whoever is next may have been stopped (SIGSTOP)."""
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.002
"""Seconds, between which the pauses of those are who wait: of random length, so that all have the same chance."""

_Kind = TypeVar("_Kind", bound=enum.Enum)
_OTHER_ROOT = "choose another state directory with --root or NBDRESIZE_ROOT"
_MIGRATION_LOCK = ".ledger.lock"


class Ledger:
    """The database at `path`; safe to use from several threads, each transaction on a connection of its own.

    Not to be taken along through a fork. Nothing of SQLAlchemy's errors gets out: ResourceInUse where another process
    holds the database for longer than `busy_seconds`, StateUnusable for all else, in one line.
    """

    def __init__(self, path: Path, busy_seconds: float = BUSY_SECONDS) -> None:
        self.path = path
        self._busy_seconds = busy_seconds
        # Connections are kept open: closing the last one would check the log in and remove it, with its fsyncs.
        self._engine = sql.create_engine(
            "sqlite://", creator=self._connect, poolclass=sql.QueuePool, pool_size=4, max_overflow=-1
        )
        sql.event.listen(self._engine, "begin", self._begin)

    def migrate(self, locks_directory: Path) -> None:
        """Make the schema, or bring it to this release's version; nothing is written where it has that already."""
        with self.reading() as connection:
            if migrations.version_of(connection, str(self.path)) == migrations.VERSION:
                return

        def busy() -> NbdresizeError:
            return ResourceInUse(f"Another command sets up {self.path}", "try again when it has ended")

        # SQLite does not wait for its busy timeout where two processes switch to WAL at once.
        lock_path = locks_directory / _MIGRATION_LOCK
        descriptor = locks.lock_within(lock_path, self._busy_seconds, exclusive=True, held_by=busy)
        try:
            with self._explained(), self._engine.connect() as plain:
                connection = plain.execution_options(isolation_level="AUTOCOMMIT")
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            with self.deciding() as connection:
                migrations.migrate(connection, str(self.path))
        finally:
            os.close(descriptor)

    @contextmanager
    def reading(self) -> Iterator[sql.Connection]:
        """A transaction that sees one moment of the ledger, and waits for nobody."""
        with self._explained(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def deciding(self) -> Iterator[sql.Connection]:
        """A transaction that nobody else writes beside: what it reads is still true when it commits.

        Committed, durably, when the block ends; rolled back where it raises. Of several that wait each has its turn.
        """
        with self._explained(), self._engine.connect() as plain:
            connection = plain.execution_options(immediate=True)
            with connection.begin():
                yield connection

    def close(self) -> None:
        """Close the connections that nobody uses now."""
        self._engine.dispose()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=self._busy_seconds, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = FULL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _begin(self, connection: sql.Connection) -> None:
        """Start SQLite's transaction: Python's sqlite3 would only start one before a write, too late for a decision."""
        options = connection.get_execution_options()
        if options.get("isolation_level") == "AUTOCOMMIT":
            return
        if options.get("immediate"):
            self._begin_deciding(connection)
        else:
            connection.exec_driver_sql("BEGIN")

    def _begin_deciding(self, connection: sql.Connection) -> None:
        deadline = time.monotonic() + self._busy_seconds
        database = connection.connection.driver_connection
        assert isinstance(database, sqlite3.Connection)
        database.execute("PRAGMA busy_timeout = 0")  # the pauses are ours
        try:
            with self._next(deadline):
                _begin_immediately(database, deadline)
        finally:
            database.execute(f"PRAGMA busy_timeout = {round(self._busy_seconds * 1e3)}")

    @contextmanager
    def _next(self, deadline: float) -> Iterator[None]:
        """Alone ask for SQLite's lock, or nearly so: after a while, and where there is no queue, beside others."""
        queue = _opened(self.path.parent)
        try:
            last = min(deadline, time.monotonic() + _TURN_SECONDS)
            while queue is not None and not _is_first(queue) and time.monotonic() < last:
                _pause()
            yield
        finally:
            if queue is not None:
                with suppress(OSError):  # closing is not enough: a process forked meanwhile would keep the lock
                    fcntl.flock(queue, fcntl.LOCK_UN)
                os.close(queue)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sql.exc.DBAPIError as error:
            raise explain(self.path, error.orig) from error
        except sql.exc.SQLAlchemyError as error:
            raise StateUnusable(f"The ledger {self.path} can't be used: {_one_line(error)}") from error
        except sqlite3.Error as error:
            raise explain(self.path, error) from error


def known(kind: type[_Kind], value: object) -> _Kind:
    """A value of the ledger as one of `kind`. Raises StateUnusable for one that this release does not know."""
    try:
        return kind(value)
    except ValueError as error:
        raise StateUnusable(
            f"The ledger has {str(value)[:40]!r} for a {kind.__name__}, which this release does not know",
            "somebody else wrote that: see nbdresize check, or bring the ledger back from a backup",
        ) from error


def explain(path: Path, error: BaseException | None) -> NbdresizeError:
    """What SQLite's `error` on the ledger at `path` means to a user."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return ResourceInUse(f"Another process holds the ledger {path}", "try again when it has ended")
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _is_full(path)):
        return StateUnusable(f"No space for the ledger {path}", "free some space on its file system")
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return StateUnusable(
            f"The ledger {path} is damaged, or no ledger at all", f"bring it back from a backup, or {_OTHER_ROOT}"
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        why = _why_not_writable(path)
        if why is None and _is_full(path):  # no room for the files that SQLite makes beside it
            return StateUnusable(f"No space for the ledger {path}", "free some space on its file system")
        if why == os.strerror(errno.EROFS):
            way_out = "remount its file system for writing; why it is read-only stands in the kernel's log (dmesg)"
            return StateUnusable(f"The ledger {path} can't be written: {why}", way_out)
        return StateUnusable(
            f"The ledger {path} can't be written: {why or 'its directory is not writable'}",
            f"run as the user who owns the state directory, or {_OTHER_ROOT}",
        )
    return StateUnusable(f"The ledger {path} can't be used: {_one_line(error)}", "see the system's log for its disk")


def _begin_immediately(database: sqlite3.Connection, deadline: float) -> None:
    """Raises sqlite3.OperationalError as it comes; that somebody holds the database, once the deadline is over."""
    begun = time.monotonic()
    while True:
        try:
            database.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            now = time.monotonic()
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or now >= deadline:
                raise
        # Short ones at first, since all others wait for this one; a hundredth of a core or so for who waits long.
        time.sleep(min(max((now - begun) / 8, _SHORTEST_PAUSE / 4), _LONGEST_PAUSE))


def _opened(directory: Path) -> int | None:
    """None where that does not work: SQLite tells what is wrong with it, if anything is."""
    try:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None


def _is_first(queue: int) -> bool:
    """Whether the lock was got; where there are no locks, nobody has it, and everybody is."""
    try:
        fcntl.flock(queue, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _pause() -> None:
    time.sleep(random.uniform(_SHORTEST_PAUSE, _LONGEST_PAUSE))


_SCARCE = 2 << 20
"""Bytes that a full file system may say are left although nobody gets them, as xfs does."""


def _is_full(path: Path) -> bool:
    try:
        found = os.statvfs(path.parent)
        return found.f_bavail * found.f_frsize < _SCARCE or (found.f_files > 0 and found.f_favail == 0)
    except OSError:
        return False


def _why_not_writable(path: Path) -> str | None:
    """What keeps this process from writing the ledger; None for nothing that the ledger itself would show."""
    try:
        if os.statvfs(path.parent).f_flag & os.ST_RDONLY:
            return os.strerror(errno.EROFS)
        if path.is_dir():
            return os.strerror(errno.EISDIR)
        path.stat()
        # Never open() and close(): with the first descriptor of the file that closes, SQLite's locks on it are gone.
        if not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
            return os.strerror(errno.EACCES)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _one_line(error: object) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:200] + "…"
