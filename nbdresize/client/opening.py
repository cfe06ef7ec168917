"""A connection to an export from the first byte to the end of the handshake, all within one time limit."""

import ssl

from nbdresize.client.deadline import Deadline
from nbdresize.client.dialing import dial
from nbdresize.client.exchange import failure
from nbdresize.client.handshake import Chooser, Negotiation, the_export
from nbdresize.client.stream import Stream
from nbdresize.client.uri import Target
from nbdresize.errors import PeerFailed
from nbdresize.protocol.negotiated import Mode, Negotiated
from nbdresize.protocol.violation import ProtocolViolation


def open_export(
    target: Target, timeout: float, choose: Chooser = the_export, best: Mode = Mode.EXTENDED
) -> tuple[Stream, Negotiated]:
    """Connect and negotiate, `timeout` seconds for all of it; replies have the best form up to `best`.

    Raises ResourceNotFound where there is no such export, NotAuthorized where this client may not use it, PeerFailed,
    and InvalidArgument for a path or certificates that can't be used.
    """
    deadline = Deadline(timeout)
    try:
        stream = Stream(dial(target, deadline))
        try:
            negotiation = Negotiation(stream, target, deadline)
            negotiation.begin(best)
            return stream, choose(negotiation)
        except BaseException:
            stream.close()
            raise
    except TimeoutError:
        raise PeerFailed(
            f"No NBD server answered at {target.shown} within {timeout:g} s", "check that it runs, or give --timeout"
        ) from None
    except ssl.SSLCertVerificationError as error:
        raise PeerFailed(
            f"The certificate of the server at {target.shown} is not accepted ({error.verify_message})",
            "tls-certificates=DIR in the URI names the authority that counts, and the host must be the certificate's",
        ) from error
    except ProtocolViolation as violation:
        raise failure(violation, target.shown, timeout) from violation
    except OSError as error:
        raise PeerFailed(
            f"The server at {target.shown} can't be used ({error.strerror or error})",
            "check that it runs, and what its log says",
        ) from error
