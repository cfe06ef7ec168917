"""Where the running servers of a state directory can be reached by guests."""

from nbdresize.config import StateDirectory
from nbdresize.control.admin_client import TIME_LIMIT, ask_all


def serving_uris(state: StateDirectory, timeout: float = TIME_LIMIT) -> tuple[str, ...]:
    """The URIs that the servers listen on which answer now, each once.

    Ask right before a guest is made to connect: a QEMU that connects to a server that hangs, hangs as well.
    """
    uris: dict[str, None] = {}
    for answer in ask_all(state, {"command": "clients"}, timeout):
        server = (answer.reply or {}).get("server")
        told = server.get("uris") if isinstance(server, dict) else None
        uris.update(dict.fromkeys(uri for uri in told or () if isinstance(uri, str)))
    return tuple(uris)
