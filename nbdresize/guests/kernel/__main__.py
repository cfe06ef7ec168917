"""`nbdresize follow` where nothing but Python is installed: python3 -m nbdresize.guests.kernel URI DEVICE."""

import argparse
import json
import sys
from collections.abc import Sequence

from nbdresize.errors import EXIT_BUG, EXIT_INTERRUPTED, NbdresizeError
from nbdresize.guests.kernel.device import KernelDevice
from nbdresize.guests.kernel.following import Event, follow
from nbdresize.guests.kernel.service import ended_by_sigterm


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; the exit code, as that of `nbdresize follow`."""
    given = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]

    def tell(event: Event) -> None:
        print(json.dumps(event.document()) if given.json else _harmless(event.line()), flush=True)

    try:
        with ended_by_sigterm():
            follow(
                given.uri,
                KernelDevice.at(given.device),
                once=given.once,
                allow_shrink=given.allow_shrink,
                timeout=given.timeout,
                tell=tell,
            )
    except NbdresizeError as error:
        if given.json:
            text = json.dumps({"error": error.name, "message": error.problem, "way_out": error.way_out})
        else:
            text = _harmless(f"nbdresize: {error.name}: {error}")
        print(text, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:
        print(f"nbdresize: OutputFailed: The output can't be written: {error.strerror}", file=sys.stderr)
        return EXIT_BUG
    return 0


def _harmless(text: str) -> str:
    """`text` on one line; what does not print, such as what a server may have put there, is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m nbdresize.guests.kernel", description="Keep a Linux NBD device at the size of its export."
    )
    parser.add_argument("uri", metavar="URI", help="the disk, as NBD clients attach it")
    parser.add_argument("device", metavar="DEVICE", help="the kernel's device, such as /dev/nbd0, connected to it")
    parser.add_argument("--once", action="store_true", help="set the size now, and end")
    parser.add_argument("--allow-shrink", action="store_true", help="make the device smaller, too")
    parser.add_argument("--timeout", metavar="SECONDS", type=_seconds, default=10.0, help="for each answer; 10")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line, sizes in bytes")
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 3600:
        raise ValueError
    return seconds


if __name__ == "__main__":
    sys.exit(main())
