"""The ledger's schema, versions, durability settings, and its errors."""

import errno
import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sql

from nbdresize.config import StateDirectory
from nbdresize.control import migrations, operations, records, schema
from nbdresize.control.control import Control
from nbdresize.control.ledger import Ledger
from nbdresize.errors import ResourceInUse, StateUnusable
from tests.wait import until


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "ledger.sqlite", busy_seconds=0.05)
    ledger.migrate(tmp_path)
    yield ledger
    ledger.close()


def test_the_migrations_end_at_the_schema_that_this_release_uses(ledger: Ledger) -> None:
    with ledger.reading() as connection:
        inspector = sql.inspect(connection)
        for table in schema.metadata.sorted_tables:
            columns = {column["name"]: column for column in inspector.get_columns(table.name)}
            assert list(columns) == [column.name for column in table.columns]
            for column in table.columns:
                found = columns[column.name]
                assert str(found["type"]) == str(column.type.compile(connection.dialect))
                assert found["nullable"] == column.nullable
        assert connection.scalar(sql.text("SELECT version FROM meta")) == migrations.VERSION


def test_ids_are_never_given_twice(ledger: Ledger) -> None:
    """The outcome of an old operation names a VM by its id."""
    with ledger.deciding() as connection:
        first = records.insert_vm(connection, "vm", 1, None)
        records.delete_vm(connection, first)
        assert records.insert_vm(connection, "vm", 1, None) > first


def test_what_is_promised_is_written_to_disk(ledger: Ledger) -> None:
    with ledger.reading() as connection:
        assert connection.scalar(sql.text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(sql.text("PRAGMA synchronous")) == 2
        assert connection.scalar(sql.text("PRAGMA foreign_keys")) == 1


def test_a_transaction_that_raises_changes_nothing(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="no"), ledger.deciding() as connection:
        records.insert_vm(connection, "vm", 1, None)
        raise ValueError("no")
    with ledger.reading() as connection:
        assert records.read_vms(connection) == []


def test_nobody_writes_beside_a_decision_and_readers_do_not_wait(ledger: Ledger, tmp_path: Path) -> None:
    other = Ledger(tmp_path / "ledger.sqlite", busy_seconds=0.05)
    with ledger.deciding() as connection:
        records.insert_vm(connection, "vm", 1, None)
        with pytest.raises(ResourceInUse, match="Another process holds the ledger"), other.deciding():
            pass
        with other.reading() as reading:
            assert records.read_vms(reading) == []
    with other.deciding() as connection:
        assert [entry.vm.name for entry in records.read_vms(connection)] == ["vm"]
    other.close()


def test_a_decision_waits_for_another_that_ends_in_time(ledger: Ledger, tmp_path: Path) -> None:
    patient = Ledger(tmp_path / "ledger.sqlite", busy_seconds=60)
    entered, done = threading.Event(), threading.Event()

    def decide() -> None:
        entered.set()
        with patient.deciding() as connection:
            records.insert_vm(connection, "second", 1, None)
        done.set()

    with ledger.deciding() as connection:
        records.insert_vm(connection, "first", 1, None)
        thread = threading.Thread(target=decide)
        thread.start()
        assert entered.wait(60)
        assert not done.is_set()
    thread.join(60)
    assert done.is_set()
    patient.close()


def test_no_error_of_the_database_layer_gets_out(ledger: Ledger) -> None:
    for statement in ("SELECT * FROM nowhere", "INSERT INTO vms (id) VALUES ('x')", "not sql"):
        with pytest.raises(StateUnusable, match="can't be used") as caught, ledger.deciding() as connection:
            connection.execute(sql.text(statement))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


def test_operations_of_long_ago_are_forgotten(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    with ledger.deciding() as connection:
        old, new = (operations.Request(name, "update_vm", "vm", "{}") for name in ("old", "new"))
        operations.remember(connection, old, {})
        assert operations.outcome_of(connection, old) == {}
        monkeypatch.setattr("time.time", lambda: 4e9)
        operations.remember(connection, new, {})
        assert operations.outcome_of(connection, old) is None
        assert operations.outcome_of(connection, new) == {}


def test_a_newer_ledger_is_refused_and_not_touched(state: StateDirectory) -> None:
    Control.open(state).close()
    with closing(sqlite3.connect(state.ledger)) as ledger, ledger:
        ledger.execute("UPDATE meta SET version = 1000")
    with pytest.raises(StateUnusable, match="newer nbdresize") as caught:
        Control.open(state)
    assert "use that release" in caught.value.way_out
    with closing(sqlite3.connect(state.ledger)) as ledger:
        assert ledger.execute("SELECT version FROM meta").fetchall() == [(1000,)]


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE songs (title TEXT)"],
        ["CREATE TABLE meta (colour TEXT)"],
        ["CREATE TABLE meta (version INTEGER)"],
        ["CREATE TABLE meta (version TEXT)", "INSERT INTO meta VALUES ('one')"],
        ["CREATE TABLE meta (version INTEGER)", "INSERT INTO meta VALUES (1), (2)"],
        ["CREATE TABLE meta (version INTEGER)", "INSERT INTO meta VALUES (0)"],
    ],
)
def test_the_database_of_another_program_is_refused_and_kept(state: StateDirectory, statements: list[str]) -> None:
    state.root.mkdir()
    with closing(sqlite3.connect(state.ledger)) as other, other:
        for statement in statements:
            other.execute(statement)
    with pytest.raises(StateUnusable, match="not one of nbdresize"):
        Control.open(state)
    with closing(sqlite3.connect(state.ledger)) as other:
        assert other.execute("SELECT count(*) FROM sqlite_master").fetchall() == [(1,)]


def test_an_older_ledger_is_brought_up_to_date_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a second step, as a later release will have one."""
    ran: list[int] = []

    def second(connection: sql.Connection) -> None:
        ran.append(1)
        connection.execute(sql.text("ALTER TABLE vms ADD COLUMN colour TEXT DEFAULT 'blue'"))

    path = tmp_path / "ledger.sqlite"
    first = Ledger(path)
    first.migrate(tmp_path)
    with first.deciding() as connection:
        records.insert_vm(connection, "vm", 1, None)
    first.close()
    monkeypatch.setattr(migrations, "STEPS", (*migrations.STEPS, second))
    monkeypatch.setattr(migrations, "VERSION", migrations.VERSION + 1)
    for _ in range(2):
        later = Ledger(path)
        later.migrate(tmp_path)
        with later.reading() as connection:
            assert connection.execute(sql.text("SELECT name, colour FROM vms")).one()._tuple() == ("vm", "blue")
        later.close()
    assert ran == [1]


def test_a_failed_migration_leaves_the_old_version_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(connection: sql.Connection) -> None:
        connection.execute(sql.text("ALTER TABLE vms ADD COLUMN colour TEXT"))
        connection.execute(sql.text("ALTER TABLE nowhere ADD COLUMN colour TEXT"))

    path = tmp_path / "ledger.sqlite"
    first = Ledger(path)
    first.migrate(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "STEPS", (*migrations.STEPS, broken))
        patch.setattr(migrations, "VERSION", migrations.VERSION + 1)
        with pytest.raises(StateUnusable):
            Ledger(path).migrate(tmp_path)
    first.migrate(tmp_path)
    with first.reading() as connection:
        assert "colour" not in connection.execute(sql.text("SELECT * FROM vms")).keys()  # noqa: SIM118 - a Result
    first.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE operations SET state = 'odd'",
        "INSERT INTO switches VALUES ('odd', 'site', '', 'off')",
        "INSERT INTO switches VALUES ('snapshots', 'odd', '', 'off')",
        "INSERT INTO intents (operation, kind, vm_id, committed) SELECT operation, 'odd', 1, 0 FROM operations",
    ],
)
def test_what_this_release_does_not_know_is_told_and_no_bug(state: StateDirectory, statement: str) -> None:
    with Control.open(state) as control:
        control.create_vm("vm", 4096)
        with closing(sqlite3.connect(state.ledger)) as ledger, ledger:
            ledger.execute(statement)
        with pytest.raises(StateUnusable, match="'odd' for a"):
            control.operations()
            control.vms()


# Who decides when


def test_who_waits_decides_before_one_that_has_just_decided(ledger: Ledger, tmp_path: Path) -> None:
    """With SQLite's own pauses it is the other way round nearly always."""
    first, second = (Ledger(tmp_path / "ledger.sqlite", busy_seconds=60) for _ in range(2))
    made: list[str] = []

    def decide() -> None:
        with second.deciding():
            made.append("second")

    with first.deciding():
        made.append("first")
        thread = threading.Thread(target=decide)
        thread.start()
        until(lambda: queued(tmp_path), what="somebody waits")
    with first.deciding():
        made.append("first again")
    thread.join(60)
    assert made == ["first", "second", "first again"]
    first.close()
    second.close()


def queued(directory: Path) -> bool:
    """Whether somebody is next to decide."""
    queue = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(queue, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(queue)
    return False


def test_the_one_that_is_next_may_be_stopped(ledger: Ledger, tmp_path: Path) -> None:
    """Order is lost then, and nothing else."""
    patient = Ledger(tmp_path / "ledger.sqlite", busy_seconds=60)
    stopped = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(stopped, fcntl.LOCK_EX)
    with patient.deciding() as connection:
        records.insert_vm(connection, "vm", 1, None)
    fcntl.flock(stopped, fcntl.LOCK_UN)
    os.close(stopped)
    patient.close()


def test_a_process_forked_while_one_is_next_does_not_keep_the_queue(ledger: Ledger, tmp_path: Path) -> None:
    forked: list[int] = []
    real = os.close

    def forking(descriptor: int) -> None:
        if not forked and Path(f"/proc/self/fd/{descriptor}").resolve() == tmp_path:
            forked.append(os.dup(descriptor))  # as a fork has it
        real(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "close", forking)
        with ledger.deciding():
            pass
    queue = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(queue, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for each in (queue, *forked):
        real(each)
    assert forked


def test_where_there_is_no_queue_decisions_are_made_all_the_same(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refusing)
    with ledger.deciding() as connection:
        records.insert_vm(connection, "vm", 1, None)
    with ledger.reading() as connection:
        assert [entry.vm.name for entry in records.read_vms(connection)] == ["vm"]
        assert connection.scalar(sql.text("PRAGMA busy_timeout")) == 50
