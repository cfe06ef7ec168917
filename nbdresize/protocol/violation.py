"""What ends a connection: the peer broke a rule of the protocol, and nothing that follows can be trusted."""

from nbdresize.errors import PeerFailed


class ProtocolViolation(PeerFailed):
    """The peer sent what the protocol forbids, and no reply could put that right: drop the connection.

    Where an error reply is enough, the parsers raise InvalidArgument instead, and the connection goes on.
    """
