"""TLS of the native server: certificates in a directory, named as QEMU and nbdkit name them."""

import ssl
from pathlib import Path

from nbdresize.errors import InvalidArgument


def server_context(directory: Path, *, verify_peer: bool = True) -> ssl.SSLContext:
    """TLS 1.2 and later with the certificates in `directory`: ca-cert.pem, server-cert.pem and server-key.pem.

    With `verify_peer`, clients need a certificate of that authority too, and ca-crl.pem, if it is there, tells which
    are revoked. Raises InvalidArgument where a file is missing or makes no sense.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    revoked = directory / "ca-crl.pem"
    try:
        context.load_cert_chain(directory / "server-cert.pem", directory / "server-key.pem")
        context.load_verify_locations(directory / "ca-cert.pem")
        if revoked.is_file():
            context.load_verify_locations(revoked)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    except (OSError, ssl.SSLError) as error:
        raise InvalidArgument(
            f"The certificates in {directory} can't be used: {error.strerror or error}",
            "it takes ca-cert.pem, server-cert.pem and server-key.pem in PEM form",
        ) from error
    context.verify_mode = ssl.CERT_REQUIRED if verify_peer else ssl.CERT_NONE
    return context
