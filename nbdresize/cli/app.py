"""The app: all commands put together."""

from typing import Annotated, Protocol

import typer
from typer.core import TyperGroup

from nbdresize.cli import (
    bench,
    check,
    disk,
    follow,
    guest,
    image,
    operations,
    options,
    output,
    package,
    pool,
    remote,
    serve,
    snapshot,
    status,
    switch,
    vm,
)
from nbdresize.errors import EXIT_USAGE

PROGRAM = "nbdresize"

_HELP = options.explained(
    "Serves the disks of virtual machines over NBD and resizes them while they are in use.",
    """
    nbdresize vm create web1 --disk-space 100G --disk 20G
    nbdresize serve
    nbdresize disk resize web1 disk0 +10G
    nbdresize status
    """,
    "Sizes are binary: 20G, 512M, 1048576; +5G adds to what there is, and 'remaining' takes all that is free."
    " Every error is one line on standard error with an exit code of its own.",
)


class _Group(Protocol):
    """A module of commands that stand together under one word."""

    HELP: options.Help

    def register(self, app: typer.Typer) -> None: ...


_GROUPS: tuple[tuple[str, _Group], ...] = (
    ("vm", vm),
    ("disk", disk),
    ("snapshot", snapshot),
    ("guest", guest),
    ("package", package),
    ("image", image),
    ("pool", pool),
    ("switch", switch),
    ("operations", operations),
)

_ORDER = ("serve", *(name for name, _ in _GROUPS), "size", "grow", "follow", "status", "check", "bench")


class _Commands(TyperGroup):
    """The top level, whose help lists the commands in the order in which they are needed."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return sorted(super().list_commands(ctx), key=_ORDER.index)


def build() -> typer.Typer:
    """The app with all its commands."""
    app = _group(_HELP, top=True)
    app.callback(invoke_without_command=True)(_main)
    for name, module in _GROUPS:
        group = _group(module.HELP)
        group.callback(invoke_without_command=True)(_help_without_command)
        module.register(group)
        app.add_typer(group, name=name)
    serve.register(app)
    remote.register(app)
    follow.register(app)
    status.register(app)
    check.register(app)
    bench.register(app)
    return app


def _group(explanation: options.Help, *, top: bool = False) -> typer.Typer:
    return typer.Typer(
        cls=_Commands if top else TyperGroup,
        help=explanation["help"],
        short_help=explanation["short_help"],
        add_completion=top,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _main(
    context: typer.Context,
    root: options.Root = None,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        from nbdresize import __version__

        output.line(f"{PROGRAM} {__version__}")
        raise typer.Exit
    _help_without_command(context)


def _help_without_command(context: typer.Context) -> None:
    """A group named without a command shows its help, and fails, since nothing was done."""
    if context.invoked_subcommand is None:
        output.text(context.get_help())
        raise typer.Exit(EXIT_USAGE)
