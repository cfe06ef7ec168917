"""Certificates and pre-shared keys for tests, made by GnuTLS's own tools."""

from pathlib import Path

from tests.peers import run

_VALID = "expiration_days = 10\n"


def make_certificates(directory: Path) -> Path:
    """A directory with an authority, a server's certificate for localhost and a client's, as `--tls` takes it."""
    directory.mkdir()
    _key(directory, "ca")
    _template(directory, "ca", 'cn = "authority"\nca\ncert_signing_key\n')
    run("certtool", "--generate-self-signed", *_files(directory, "ca"))
    signer: list[str | Path] = [
        "--load-ca-certificate",
        directory / "ca-cert.pem",
        "--load-ca-privkey",
        directory / "ca-key.pem",
    ]
    for name, usage in (("server", "tls_www_server"), ("client", "tls_www_client")):
        _key(directory, name)
        _template(directory, name, f'cn = "localhost"\ndns_name = "localhost"\n{usage}\nsigning_key\nencryption_key\n')
        run("certtool", "--generate-certificate", *signer, *_files(directory, name))
    return directory


def without_client_certificate(certificates: Path, directory: Path) -> Path:
    """What a client has that knows the authority and nothing else."""
    directory.mkdir()
    (directory / "ca-cert.pem").write_bytes((certificates / "ca-cert.pem").read_bytes())
    return directory


def make_psk(path: Path, user: str = "alice") -> Path:
    """A file with the key of one user."""
    run("psktool", "-u", user, "-p", path)
    return path


def _key(directory: Path, name: str) -> None:
    key = directory / f"{name}-key.pem"
    run("certtool", "--generate-privkey", "--key-type=ecdsa", "--curve=secp256r1", "--outfile", key)


def _template(directory: Path, name: str, content: str) -> None:
    (directory / f"{name}.info").write_text(content + _VALID)


def _files(directory: Path, name: str) -> list[str | Path]:
    return [
        "--load-privkey",
        directory / f"{name}-key.pem",
        "--template",
        directory / f"{name}.info",
        "--outfile",
        directory / f"{name}-cert.pem",
    ]
