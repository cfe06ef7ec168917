"""What stands on nbdkit's command line for our plugin."""

from pathlib import Path

from nbdresize.control.model import ClientResize
from nbdresize.errors import InvalidArgument
from nbdresize.units import parse_size


class Settings:
    """What came on nbdkit's command line."""

    def __init__(self) -> None:
        self.root: Path | None = None
        self.file: Path | None = None
        self.max_size: int | None = None
        self.client_resize = ClientResize.GROW
        self.run: Path | None = None
        self.uris: list[str] = []
        self.end_descriptor: int | None = None
        self.parallel = False

    def take(self, key: str, value: str) -> None:
        """One `key=value`. Raises InvalidArgument. Paths are made absolute, since nbdkit changes to / later."""
        match key:
            case "root":
                self.root = Path(value).absolute()
            case "file":
                self.file = Path(value).absolute()
            case "max-size":
                self.max_size = parse_size(value)
            case "client-resize":
                self.client_resize = ClientResize(_one_of(key, value, [each.value for each in ClientResize]))
            case "run":
                self.run = Path(value).absolute()
            case "uri":
                self.uris.append(value)
            case "end-descriptor":
                self.end_descriptor = int(_number(key, value))
            case "requests":
                self.parallel = _one_of(key, value, ["serial", "parallel"]) == "parallel"
            case _:
                raise InvalidArgument(f"There is no parameter {key!r}", "see the top of plugins/nbdresize.py")

    def check(self) -> None:
        if (self.root is None) == (self.file is None):
            raise InvalidArgument("What is to be served is not clear", "give root=DIR or file=PATH")
        if self.max_size is not None and self.file is None:
            raise InvalidArgument("max-size is for a file", "the disks of a ledger have their VM's budget")


def _one_of(key: str, value: str, choices: list[str]) -> str:
    if value not in choices:
        raise InvalidArgument(f"{key}={value} is none of {', '.join(choices)}", "choose one of them")
    return value


def _number(key: str, value: str) -> str:
    if not (value.isascii() and value.isdigit()):
        raise InvalidArgument(f"{key}={value} is no number", "give the number of a descriptor")
    return value
