"""What a server is asked to serve, and how."""

from dataclasses import dataclass
from pathlib import Path

from nbdresize.errors import InvalidArgument

CERTIFICATES = ("ca-cert.pem", "server-cert.pem", "server-key.pem")
"""What a directory of TLS certificates has to hold, named as nbdkit and QEMU name them."""


@dataclass(frozen=True)
class Tls:
    """How connections are encrypted: by certificates in a directory, or by a file of pre-shared keys."""

    certificates: Path | None = None
    psk: Path | None = None
    optional: bool = False
    """Clients may do without."""
    verify_peer: bool = True
    """Clients need a certificate of the same authority."""

    def __bool__(self) -> bool:
        return self.certificates is not None or self.psk is not None

    def check(self) -> None:
        """Raises InvalidArgument where the files are not what they have to be."""
        if self.certificates is not None and self.psk is not None:
            raise InvalidArgument("Certificates and pre-shared keys exclude each other", "give --tls or --tls-psk")
        if self.certificates is not None:
            for name in CERTIFICATES:
                if not (self.certificates / name).is_file():
                    raise InvalidArgument(
                        f"There is no {name} in {self.certificates}",
                        f"--tls takes a directory with {_all(CERTIFICATES)}",
                    )
        if self.psk is not None and not self.psk.is_file():
            raise InvalidArgument(f"There is no file of keys {self.psk}", "make one with: psktool -u NAME -p FILE")

    def psk_user(self) -> str | None:
        """The first user in the file of keys, whose lines are `user:key`."""
        if self.psk is None:
            return None
        with self.psk.open(encoding="utf-8", errors="replace") as lines:
            return next((line.partition(":")[0] for line in lines if ":" in line), None)


@dataclass(frozen=True)
class ServeOptions:
    """What is served: the disks of the ledger at `root`, or one `file`. Sizes in bytes.

    `max_size` is how far clients may grow the file. `client_resize`: off, grow or all. `max_connections`: of each
    of the `workers`. `front_arguments` go to the front as they are.
    """

    root: Path | None = None
    file: Path | None = None
    max_size: int | None = None
    read_only: bool = False
    client_resize: str = "grow"
    max_connections: int | None = None
    workers: int = 1
    tls: Tls = Tls()
    front_arguments: tuple[str, ...] = ()


def _all(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
