"""A process that asks for space when told to. Run by test_race: `python -m tests.control.racer ROOT`.

Reads one line per round, `add` or `grow DISK`, and answers `won`, `lost` (the budget did not hold it), or an error.
"""

import sys
from pathlib import Path

from nbdresize.config import StateDirectory
from nbdresize.control.control import Control
from nbdresize.errors import InsufficientSpace, NbdresizeError
from nbdresize.units import SizeRequest

LAST = SizeRequest(exact=1 << 30)
MORE = SizeRequest(relative=1 << 30)


def main() -> None:
    with Control.open(StateDirectory(Path(sys.argv[1]))) as control:
        print("ready", flush=True)
        for line in sys.stdin:
            command, *disk = line.split()
            try:
                if command == "add":
                    control.add_disk("vm", LAST)
                else:
                    control.resize_disk("vm", disk[0], MORE)
                print("won", flush=True)
            except InsufficientSpace:
                print("lost", flush=True)
            except NbdresizeError as error:
                print(f"{error.name}: {error}", flush=True)


if __name__ == "__main__":
    main()
