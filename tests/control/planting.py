"""Faults put into a state directory from outside, and what a check is to say of them."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from nbdresize.config import StateDirectory
from nbdresize.control.checks.report import CheckReport, Problem, What
from nbdresize.control.control import Control

MIB = 1 << 20


def plant(state: StateDirectory, *statements: str) -> None:
    """Change the ledger behind everybody's back, without SQLite looking at references."""
    with closing(sqlite3.connect(state.ledger, isolation_level=None)) as ledger:
        for statement in statements:
            ledger.execute(statement)


def rows(state: StateDirectory, query: str) -> list[Any]:
    with closing(sqlite3.connect(state.ledger)) as ledger:
        return ledger.execute(query).fetchall()


def volume_of(control: Control, disk: str = "disk0", vm: str = "vm") -> Path:
    return control.state.volumes / f"{control.disk(vm, disk).volume}.raw"


def only(report: CheckReport, what: What) -> Problem:
    """The one problem that was found, of that kind."""
    assert [problem.what for problem in report.problems] == [what], report.problems
    assert not report.warnings
    assert not report.skipped
    (problem,) = report.problems
    assert problem.subject
    assert problem.detail
    assert problem.way_out
    return problem


def assert_well(control: Control) -> None:
    report = control.check()
    assert report.problems == ()
    assert report.warnings == ()
    assert report.skipped == ()


def assert_repaired(control: Control, what: What) -> Problem:
    """Found, and by --repair put right, and not there afterwards; what --repair said."""
    found = only(control.check(), what)
    assert found.repairable
    assert not found.repaired
    assert found.way_out.startswith("nbdresize check --repair ")
    assert only(control.check(), what) == found, "looking changes nothing"
    repaired = only(control.check(repair=True), what)
    assert repaired.repaired
    assert repaired.way_out.startswith("repaired: ")
    assert_well(control)
    return repaired


def assert_stays(control: Control, what: What) -> Problem:
    """Found, and not touched by --repair, which says what to do by hand."""
    found = only(control.check(), what)
    assert not found.repairable
    assert only(control.check(repair=True), what) == found
    assert "--repair" not in found.way_out
    return found
