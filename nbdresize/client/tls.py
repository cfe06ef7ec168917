"""TLS from the client's side, with certificates in the files that libnbd and QEMU use."""

import os
import ssl
from pathlib import Path

from nbdresize.client.uri import Tls
from nbdresize.errors import InvalidArgument

_AUTHORITY = "ca-cert.pem"
_REVOKED = "ca-crl.pem"
_OWN = ("client-cert.pem", "client-key.pem")


def client_context(tls: Tls) -> ssl.SSLContext:
    """TLS 1.2 and later as `tls` says; the server's certificate is verified, its host name where there is one.

    Certificates come from tls.certificates, else from where libnbd looks, else the system's authorities count.
    Raises InvalidArgument where a file is missing or makes no sense.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = tls.verify and tls.hostname is not None
    context.verify_mode = ssl.CERT_REQUIRED if tls.verify else ssl.CERT_NONE
    directory = tls.certificates or _usual_directory()
    if directory is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        return context
    try:
        _load(context, directory)
    except (OSError, ssl.SSLError) as error:
        raise InvalidArgument(
            f"The certificates in {directory} can't be used: {error.strerror or error}",
            f"it takes {_AUTHORITY}, and for a client that has to prove itself {_OWN[0]} and {_OWN[1]}, in PEM form",
        ) from error
    return context


def _load(context: ssl.SSLContext, directory: Path) -> None:
    context.load_verify_locations(directory / _AUTHORITY)
    if (directory / _REVOKED).is_file():
        context.load_verify_locations(directory / _REVOKED)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    certificate, key = (directory / name for name in _OWN)
    if certificate.exists() or key.exists():
        context.load_cert_chain(certificate, key, password=_no_password)


def _no_password() -> str:
    """Nobody is asked at a terminal for the password of an encrypted key."""
    raise OSError(0, "the key is protected by a password")


def _usual_directory() -> Path | None:
    """Where libnbd looks for certificates when it is told nothing: see nbd_set_tls_certificates(3)."""
    home = os.environ.get("HOME")
    places = [Path(home) / ".pki" / "libnbd", Path(home) / ".config" / "pki" / "libnbd"] if home else []
    if os.geteuid() == 0:
        places = [Path("/etc/pki/libnbd")]
    return next((place for place in places if (place / _AUTHORITY).is_file()), None)
