"""`nbdresize follow`: the Linux kernel's own NBD devices, kept at the size of their exports."""

from typing import TYPE_CHECKING, Annotated

import typer

from nbdresize.cli import options, output

if TYPE_CHECKING:
    from nbdresize.guests.kernel.following import Event

_FOLLOW = options.explained(
    "Keep a kernel NBD device (/dev/nbdN) at the size of its export.",
    """
    nbdresize follow nbd://server/web1/disk0 /dev/nbd0
    nbdresize follow nbd://server/web1/disk0 /dev/nbd0 --once
    nbdresize follow 'nbd+unix:///web1/disk0?socket=/run/nbd.sock' /dev/nbd0
    """,
    "DEVICE is connected to that export already, by nbd-client; the kernel does not tell to which, so only the sizes"
    " are compared. Prints a line at the start and for each change, until the device is disconnected (exit code 5),"
    " SIGTERM (0) or Ctrl-C (130). A server that goes away is asked again and again. The device never becomes smaller"
    " without --allow-shrink. Needs root, and as a service tells systemd when it is ready (Type=notify).",
)


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("follow", **_FOLLOW)(follow)


def follow(
    uri: Annotated[str, typer.Argument(metavar="URI", help="The disk, as NBD clients attach it.", show_default=False)],
    device: Annotated[
        str, typer.Argument(metavar="DEVICE", help="The kernel's device, such as /dev/nbd0.", show_default=False)
    ],
    once: Annotated[bool, typer.Option("--once", help="Set the size now, and end.")] = False,
    allow_shrink: Annotated[bool, typer.Option("--allow-shrink", help="Make the device smaller, too.")] = False,
    timeout: options.Timeout = 10.0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line, sizes in bytes.")] = False,
) -> None:
    from nbdresize.guests.kernel import following
    from nbdresize.guests.kernel.device import KernelDevice
    from nbdresize.guests.kernel.service import ended_by_sigterm

    def tell(event: "Event") -> None:
        if json:
            output.json_line(event.document())
        else:
            output.line(event.line(output.arrow()))
            output.flush()

    with ended_by_sigterm():
        found = KernelDevice.at(device)
        following.follow(uri, found, once=once, allow_shrink=allow_shrink, timeout=timeout, tell=tell)
