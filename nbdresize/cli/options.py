"""What the commands have in common: shared options, help that begins with examples, the state directory opened."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from nbdresize.cli.loading import loading
from nbdresize.config import ROOT_VARIABLE
from nbdresize.errors import NbdresizeError
from nbdresize.units import SizeRequest, parse_size_request

if TYPE_CHECKING:
    from nbdresize.control.control import Control

GUEST_SECONDS = 10.0
"""How long telling a guest takes at the most, unless somebody says otherwise."""

IMAGE_SIZE = "image"
"""What `--disk` is called that is as large as its image."""


class Help(TypedDict):
    """The arguments of typer that explain a command."""

    help: str
    short_help: str


def explained(summary: str, examples: str, details: str = "") -> Help:
    """The help of a command: examples first, as they stand, then the summary and the details, wrapped."""
    lines = "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
    return {"help": f"\b\nExamples:\n{lines}\n\n{summary}\n\n{details}".rstrip(), "short_help": summary}


def _inherit_root(context: typer.Context, value: Path | None) -> Path | None:
    """A --root given before the subcommand counts where none is given after it."""
    if value is not None or context.parent is None:
        return value
    inherited = context.find_root().params.get("root")
    return inherited if isinstance(inherited, Path) else None


def finite(value: float) -> float:
    """A callback for an option that is a number of seconds."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a number of seconds")
    return value


def complete_vm(incomplete: str) -> list[str]:
    """VM names for the shell; none where there is no ledger to read."""
    return completed(incomplete, lambda opened: [vm.name for vm in opened.vms()])


def complete_vm_disk(incomplete: str) -> list[str]:
    """Disks as VM/DISK for the shell."""
    return completed(incomplete, lambda opened: [disk.export_name for vm in opened.vms() for disk in vm.disks])


def complete_guest(incomplete: str) -> list[str]:
    """Names of the VMs that have a guest attached, for the shell."""
    return completed(incomplete, lambda opened: [guest.vm for guest in opened.guests()])


def complete_package(incomplete: str) -> list[str]:
    """Package names for the shell."""
    return completed(incomplete, lambda opened: [package.name for package in opened.packages()])


def complete_image(incomplete: str) -> list[str]:
    """Image names for the shell."""
    return completed(incomplete, lambda opened: [image.name for image in opened.images()])


def complete_disk(incomplete: str) -> list[str]:
    """Disk names for the shell."""
    from nbdresize.control.model import MAX_DISKS

    return [name for slot in range(MAX_DISKS) if (name := f"disk{slot}").startswith(incomplete)]


def completed(incomplete: str, names: "Callable[[Control], list[str]]") -> list[str]:
    """Those of the names that begin like that; none where there is no ledger to read."""
    try:
        with control() as opened:
            return [name for name in names(opened) if name.startswith(incomplete)]
    except NbdresizeError:
        return []


def new_disk(text: str) -> SizeRequest | None:
    """The size of a new disk as `--disk` says it; None for IMAGE_SIZE. Raises InvalidArgument."""
    return None if text.strip().lower() == IMAGE_SIZE else parse_size_request(text)


Root = Annotated[
    Path | None,
    typer.Option(
        "--root",
        metavar="DIR",
        help=f"State directory; else {ROOT_VARIABLE}, else the user's default.",
        callback=_inherit_root,
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, sizes in bytes.")]
Bytes = Annotated[bool, typer.Option("--bytes", help="Show sizes as exact numbers of bytes.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]
Wait = Annotated[
    float,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        min=0,
        max=86400,
        callback=finite,
        help="How long to wait for another change of this VM to end.",
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        min=0.1,
        max=3600,
        callback=finite,
        help="How long the server may take for each answer.",
    ),
]
NoGuest = Annotated[
    bool, typer.Option("--no-guest", help="Leave the guest alone: nbdresize guest sync tells it later.")
]
GuestTimeout = Annotated[
    float,
    typer.Option(
        "--guest-timeout",
        metavar="SECONDS",
        min=0.1,
        max=3600,
        callback=finite,
        help="How long telling the guest may take in all.",
    ),
]
Operation = Annotated[
    str | None,
    typer.Option(
        "--operation-id",
        metavar="ID",
        help="A name for this change: repeated with the same ID, it happens once.",
        show_default=False,
    ),
]
Preallocate = Annotated[bool, typer.Option("--preallocate", help="Allocate all space now instead of on first write.")]
VMName = Annotated[
    str, typer.Argument(metavar="VM", help="The name of a VM.", autocompletion=complete_vm, show_default=False)
]
DiskName = Annotated[
    str,
    typer.Argument(metavar="DISK", help="disk0 to disk7.", autocompletion=complete_disk, show_default=False),
]
SizeText = Annotated[str, typer.Argument(metavar="SIZE", help="20G, 1048576, +5G, remaining.", show_default=False)]


@contextmanager
def control(root: Path | None = None, *, create: bool = False) -> "Iterator[Control]":
    """The control of the state directory at `root`; made where it is not there if `create`.

    Imported here: the ledger's library takes longer to load than most commands take to run.
    """
    with loading():
        from nbdresize.config import state_directory
        from nbdresize.control.control import Control

        control = Control.open(state_directory(root), create=create)
    with control as opened:
        yield opened
