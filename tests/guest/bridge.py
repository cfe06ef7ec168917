"""Joins its standard input, a socket that QEMU's user network gives it, and the unix socket that it is told.

One process per connection of a guest; it ends with the first of both sides that closes.
"""

import selectors
import socket
import sys

with socket.socket(fileno=0) as guest, socket.socket(socket.AF_UNIX) as server, selectors.DefaultSelector() as ready:
    server.connect(sys.argv[1])
    ready.register(guest, selectors.EVENT_READ, server)
    ready.register(server, selectors.EVENT_READ, guest)
    while True:
        for key, _ in ready.select():
            source, target = key.fileobj, key.data
            assert isinstance(source, socket.socket)
            data = source.recv(1 << 18)
            if not data:
                sys.exit()
            target.sendall(data)
