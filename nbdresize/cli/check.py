"""`nbdresize check`: whether the ledger, the volumes and the servers agree."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nbdresize.cli import confirm, options, output, progress
from nbdresize.errors import Inconsistent

if TYPE_CHECKING:
    from nbdresize.control.checks.report import CheckReport, Problem

_CHECK = options.explained(
    "Find what is wrong in the state directory, and repair what can be repaired without risk.",
    """
    nbdresize check
    nbdresize check --repair
    nbdresize check --repair --yes --json
    """,
    "Servers and other commands may go on meanwhile; what they are just changing is skipped, and named. No repair gives"
    " up data: what only you can decide is named with the commands to use. With --repair it asks first, on a terminal;"
    " without one it needs --yes. Exits with 0 if all is well, with 16 if anything remains wrong.",
)

_COUNTED = {"vms": "VM", "disks": "disk", "snapshots": "snapshot", "images": "image", "servers": "server"}


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("check", **_CHECK)(check)


def check(
    repair: Annotated[bool, typer.Option("--repair", help="Put right what can be put right without risk.")] = False,
    yes: options.Yes = False,
    json: options.Json = False,
    root: options.Root = None,
) -> None:
    ask = repair and not yes
    if ask:
        confirm.check_terminal("Repairing")
    with options.control(root) as control:
        with progress.shown(json=json) as listener:
            report = control.check(repair=repair and yes, listener=listener)
        repairable = sum(problem.repairable for problem in report.problems)
        if ask and repairable:
            _show(report)
            typer.confirm(f"Repair {output.counted(repairable, 'problem')}?", abort=True, err=True)
            with progress.shown(json=json) as listener:
                report = control.check(repair=True, listener=listener)
    if json:
        output.document(_json(report))
    else:
        _show(report)
    _fail_on(report)


def _fail_on(report: "CheckReport") -> None:
    """Raises Inconsistent where problems remain."""
    count = len(report.remaining)
    if not count:
        return
    repairable = sum(problem.repairable for problem in report.remaining)
    remain = f"{output.counted(count, 'problem')} {'remains' if count == 1 else 'remain'}"
    way_out = "each one says above what to do"
    if repairable:
        way_out = f"nbdresize check --repair puts {'it' if repairable == count == 1 else f'{repairable} of them'} right"
    raise Inconsistent(remain, way_out)


def _show(report: "CheckReport") -> None:
    for problem in report.problems:
        output.line(_line(problem))
    for warning in report.warnings:
        output.line(f"warning: {_line(warning)}")
    for skipped in report.skipped:
        output.line(f"skipped: {skipped.detail}")
    counts = [output.counted(report.checked[kind], noun) for kind, noun in _COUNTED.items()]
    well = ""
    if not report.remaining:
        well = (
            f": nothing is wrong, {output.counted(len(report.warnings), 'warning')}"
            if report.warnings
            else ": all is well"
        )
    output.line(f"Checked {', '.join(counts[:-1])} and {counts[-1]}{well}")


def _line(problem: "Problem") -> str:
    return f"{problem.subject}: {problem.detail}: {problem.way_out}"


def _json(report: "CheckReport") -> dict[str, Any]:
    return {
        "checked": dict(report.checked),
        "skipped": [{"subject": skipped.subject, "detail": skipped.detail} for skipped in report.skipped],
        "problems": [_problem_json(problem) for problem in report.problems],
        "warnings": [_problem_json(warning) for warning in report.warnings],
    }


def _problem_json(problem: "Problem") -> dict[str, Any]:
    return {
        "what": problem.what.value,
        "subject": problem.subject,
        "detail": problem.detail,
        "repaired": problem.repaired,
        "way_out": problem.way_out,
    }
