"""NBD as a client: a disk's size asked for, followed and changed over NBD, and its bytes read and written.

    from nbdresize.client import connect

    with connect("nbd+unix:///web1/disk0?socket=nbd.sock", timeout=10) as disk:
        print(disk.query().maximum)           # what its budget allows now
        grown = disk.resize(30 * 2**30)       # grows it; InsufficientSpace where the budget does not reach
        print(grown.size, grown.cause.name)
        disk.write(b"hello", grown.size - 5)
        disk.flush()
        for size in disk.watch():             # now, and after each change, whoever makes it
            print(size.size, size.generation)

URIs are those of the NBD project: nbd:// and nbds:// (TLS), nbd+unix:// and nbds+unix:// with ?socket=PATH, and
?tls-certificates=DIR. Every error is an NbdresizeError; no server, however it behaves, holds a call up for longer than
its time limit, or takes more memory than twice the call's result and 32 MiB (block_status: 256 MiB).
"""

from nbdresize.client.connection import Connection
from nbdresize.client.connection import Connection as connect
from nbdresize.client.growing import connect_resizable, connect_watching
from nbdresize.client.values import Cause, Extent, Resizable, Size

__all__ = ["Cause", "Connection", "Extent", "Resizable", "Size", "connect", "connect_resizable", "connect_watching"]
